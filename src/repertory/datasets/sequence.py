"""How classes come in a sequence of tasks, and how much is kept of the tasks before."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from repertory.datasets.stratify import random_ranks
from repertory.errors import OptionError

KEYS = ("tasks", "rehearsal")
"""Options after the `?` of a data spec that only the scenario continual reads."""

_TASKS = 5
_REHEARSAL = 20
"""Examples a class; those of Biondi et al. (2024)."""


def check(options: Mapping[str, str], task: str, classes: int) -> None:
    """Refuse options that the data cannot carry.

    Raises:
        OptionError: if a value is malformed or out of range, or does not fit the task.
    """
    for key, value in options.items():
        if task != "classification":
            raise OptionError(f"{key}={value} needs classes, but the task is {task}; leave it out")
        if not value.isdecimal():
            raise OptionError(f"{key}={value} is not a whole number, as in tasks=5 or rehearsal=20")
    if "tasks" in options and not 2 <= task_count(options, classes) <= classes:
        raise OptionError(
            f"tasks={options['tasks']} is not from 2 to {classes}, one class a task at least; ask for fewer"
        )


def task_count(options: Mapping[str, str], classes: int) -> int:
    """Return the number of tasks: 5, or as many as classes where these are fewer, unless given."""
    return int(options.get("tasks", min(_TASKS, classes)))


def rehearsal(options: Mapping[str, str]) -> int:
    """Return how many examples of each class are kept when its task is over: 20 unless given."""
    return int(options.get("rehearsal", _REHEARSAL))


def deal_classes(classes: int, tasks: int, generator: torch.Generator) -> list[Tensor]:
    """Return the classes of each task, in an order drawn at random; earlier tasks have one more where it must be.

    >>> [len(part) for part in deal_classes(5, 2, torch.Generator().manual_seed(0))]
    [3, 2]
    """
    return list(torch.randperm(classes, generator=generator).tensor_split(tasks))


def remembered(targets: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return rows of `count` examples of each class, drawn at random, or of all where there are fewer; sorted.

    Args:
        targets: classes `(n,)`, int64.
        count: examples a class.
        generator: source of the choice.

    >>> targets = torch.tensor([0, 1, 0, 1, 0])
    >>> targets[remembered(targets, 2, torch.Generator().manual_seed(0))].bincount().tolist()
    [2, 2]
    """
    return (random_ranks(targets, generator) < count).nonzero().flatten()
