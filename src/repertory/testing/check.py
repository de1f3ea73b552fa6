"""What a check is: a named function of a subject that raises where the contract is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from repertory.card import KINDS
from repertory.testing.subject import Subject

TRAINED = ("algorithm", "optimizer", "loss", "layer", "model")
"""Kinds that take part in a training step."""

CHECKS: dict[str, Check] = {}
"""All checks by name, in the order of their definition."""


class CheckFailure(AssertionError):
    """The contract is broken; the message says how, in one line."""


class NotApplicable(Exception):
    """The check does not concern this method; the message says why."""


@dataclass(frozen=True)
class Check:
    """One check of the contract.

    Args:
        name: stable; a row of the capability table.
        kinds: the kinds of method it concerns.
        function: raises `CheckFailure` (or any error) where the contract is broken, and `NotApplicable` where
            it has no say.
    """

    name: str
    kinds: tuple[str, ...]
    function: Callable[[Subject], None]


def check(*kinds: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register the decorated function as a check of the given kinds; of all kinds when none is given."""

    def register(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        CHECKS[function.__name__] = Check(function.__name__, kinds or KINDS, function)
        return function

    return register


def require(holds: object, message: str) -> None:
    """Raise `CheckFailure` unless the condition holds."""
    if not holds:
        raise CheckFailure(message)
