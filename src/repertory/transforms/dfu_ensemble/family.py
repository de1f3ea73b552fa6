"""Networks of several sizes, and how long a generator may train beside them."""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Callable
from typing import Any

from repertory.core.state import Counts
from repertory.errors import OptionError, check_number
from repertory.recipe import Part, locate


def further_widths(widths: object, members: int) -> list[int] | None:
    """Return the widths of all members but the first, None where all are alike.

    Raises:
        OptionError: if one is no whole number from 1 on, or there are too few or too many.

    >>> further_widths([32, 128], members=3)
    [32, 128]
    """
    if widths is None:
        return None
    given: list[Any] = list(widths) if isinstance(widths, (list, tuple)) else [widths]
    for width in given:
        check_number("widths", width, minimum=1, integer=True)
    if len(given) != members - 1:
        raise OptionError(
            f"widths={given} is not allowed: give one for each of the {members - 1} members beside the first, which "
            "keeps the model's own"
        )
    return given


def sized(model: Part, width: int) -> Part:
    """Return the part that builds the model of another width."""
    return dataclasses.replace(model, options={**model.options, "width": width})


def check_family(model: Part, widths: list[int]) -> None:
    """See that the model comes in several widths.

    Raises:
        OptionError: if its factory has no option of that name.
    """
    if "width" not in inspect.signature(locate(model.factory)).parameters:
        raise OptionError(
            f"widths={widths} needs a model with an option width, such as repertory:mlp or repertory:small_cnn, and "
            f"{model.factory} has none; leave it out"
        )


def progress_of(budget: Any) -> Callable[[Counts], float]:
    """Return what tells the share of a budget that is spent at some counts, and at the time since now."""
    start = time.perf_counter()
    return lambda counts: float(budget.share(counts, time.perf_counter() - start))
