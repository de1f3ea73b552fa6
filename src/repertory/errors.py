"""The errors a user can cause, each of which says what was given, what is allowed, and the fix."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot work; the message names it, what is allowed, and the fix.

    The command line prints the message on one line and exits with status 2. In Python it is an ordinary `ValueError`.
    """


class ConflictError(UserError):
    """Two methods cannot work together, or a method asks for something that the data or the run does not offer."""


class OptionError(UserError):
    """An option of a method or part has no such name, or a value outside its range."""


class DataError(UserError):
    """The data cannot be read, or cannot be learnt from as it is."""


class DivergedError(RuntimeError):
    """The training loss stopped being finite."""


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """Return a hint that names the `known` words closest to `word`, or an empty string when none is close.

    >>> nearest("esma", ["esam", "saf", "lion"])
    'did you mean esam?'
    """
    close = difflib.get_close_matches(word, list(known), n=count, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else ""


def check_number(
    name: str,
    value: object,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
    integer: bool = False,
) -> None:
    """Check that the option `name` is a finite number inside its range.

    Args:
        name: the option's name, for the message.
        value: what was given.
        minimum: smallest allowed value.
        above: the value must be larger than this.
        maximum: largest allowed value.
        below: the value must be smaller than this.
        integer: whether it must be a whole number.

    Raises:
        OptionError: if it is not; the message names the option, the value and the range.

    >>> check_number("rho", -1.0, minimum=0)
    Traceback (most recent call last):
    ...
    repertory.errors.OptionError: rho=-1.0 is not allowed: rho must be a number, at least 0
    """
    number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    ok = math.isfinite(number) and (isinstance(value, int) or not integer)
    limits: list[str] = []
    for limit, words, holds in (
        (minimum, "at least", operator.ge),
        (above, "above", operator.gt),
        (maximum, "at most", operator.le),
        (below, "below", operator.lt),
    ):
        if limit is not None:
            limits.append(f"{words} {limit:g}")
            ok = ok and holds(number, limit)
    if not ok:
        allowed = " and ".join(limits)
        kind = "a whole number" if integer else "a number"
        raise OptionError(f"{name}={value!r} is not allowed: {name} must be {kind}{', ' if allowed else ''}{allowed}")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Check that the option `name` is one of `choices`.

    Raises:
        OptionError: if it is not; the message lists the choices.
    """
    allowed = list(choices)
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in allowed):
        hint = nearest(value, [c for c in allowed if isinstance(c, str)]) if isinstance(value, str) else ""
        listed = ", ".join(repr(choice) for choice in allowed)
        raise OptionError(f"{name}={value!r} is not allowed: {name} must be one of {listed}; {hint}".rstrip("; "))
