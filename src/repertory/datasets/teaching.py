"""Which trained model teaches, where the data name one."""

from __future__ import annotations

from collections.abc import Mapping

from repertory.errors import OptionError

KEYS = ("teacher",)
"""Options after the `?` of a data spec that only the scenario distillation reads."""


def check(options: Mapping[str, str], task: str) -> None:
    """Refuse a teacher that the data cannot have.

    Raises:
        OptionError: if the data have no classes.
    """
    for key, value in options.items():
        if task != "classification":
            raise OptionError(f"{key}={value} needs classes, but the task is {task}; leave it out")
