"""How many examples of each class a training part is condensed to, and how a condensed set is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repertory.datasets.splits import Examples
from repertory.errors import DataError, OptionError

KEYS = ("ipc",)
"""Options after the `?` of a data spec that only the scenario condensation reads."""

_PER_CLASS = 10


def check(options: Mapping[str, str], task: str) -> None:
    """Refuse options that the data cannot carry.

    Raises:
        OptionError: if a value is malformed or out of range, or does not fit the task.
    """
    for key, value in options.items():
        if task != "classification":
            raise OptionError(f"{key}={value} needs classes, but the task is {task}; leave it out")
        if not value.isdecimal() or int(value) < 1:
            raise OptionError(f"{key}={value} is not a whole number of examples a class from 1 on, as in ipc=10")


def asked_per_class(options: Mapping[str, str]) -> int:
    """Return how many examples of each class are asked for: 10 unless given."""
    return int(options.get("ipc", _PER_CLASS))


def examples_per_class(options: Mapping[str, str], targets: Tensor, classes: Sequence[str]) -> int:
    """Return how many examples of each class there will be: what was asked for, else 10 or what the smallest class has.

    Args:
        options: of the data.
        targets: classes of the training part `(examples,)`, int64.
        classes: their names.

    Raises:
        DataError: if a class has fewer examples than were asked for.

    >>> examples_per_class({}, torch.tensor([0, 0, 1, 1, 1]), ["cat", "dog"])
    2
    """
    counts = targets.bincount(minlength=len(classes))
    smallest, wanted = int(counts.min()), asked_per_class(options)
    if "ipc" in options and smallest < wanted:
        name = classes[int(counts.argmin())]
        raise DataError(
            f"ipc={wanted} asks for more than the {smallest} training examples that class {name!r} has; "
            f"{f'ask for at most ipc={smallest}' if smallest else 'add examples of it'}, or leave the class out"
        )
    if not smallest:
        raise DataError(f"class {classes[int(counts.argmin())]!r} has no training example; add some or leave it out")
    return min(wanted, smallest)


def columns(examples: Examples, classes: Sequence[str]) -> dict[str, list[Any]]:
    """Return a condensed set as the columns of a table, a row an example.

    Args:
        examples: the set; targets are classes `(examples,)`, or probabilities `(examples, classes)`.
        classes: names of the classes.

    Returns:
        `class`, the name of the (likeliest) class; `target`, its number or the list of probabilities; `input`, the
        numbers of the input in one list, in the units of `Dataset.inputs`; `shape`, that of the input.
    """
    soft = examples.targets.ndim > 1
    likeliest = examples.targets.argmax(1) if soft else examples.targets
    return {
        "class": [classes[each] for each in likeliest.tolist()],
        "target": examples.targets.tolist(),
        "input": examples.inputs.float().flatten(1).tolist(),
        "shape": [list(examples.inputs.shape[1:])] * len(examples),
    }


def read(path: str | Path) -> Examples:
    """Read a condensed set that a comparison or a fit has kept as `synthetic.parquet`.

    Args:
        path: the file.

    Returns:
        Inputs float32 `(examples, ...)` in the units of `Dataset.inputs` (images count from 0 to 255), and targets:
        int64 `(examples,)`, or probabilities float32 `(examples, classes)`.

    Raises:
        DataError: if the file is not one of these.
    """
    import numpy as np
    import pandas as pd

    try:
        table = pd.read_parquet(path)
        shape = [int(side) for side in table["shape"].iloc[0]]
        inputs = torch.from_numpy(np.stack(table["input"].to_list()).astype("float32")).view(-1, *shape)
        targets = torch.from_numpy(np.stack(table["target"].to_list()))
    except (OSError, ValueError, LookupError, RuntimeError) as error:
        raise DataError(f"{path} holds no condensed set ({error}); give a synthetic .parquet file of a run") from error
    return Examples(inputs, targets.float() if targets.ndim > 1 else targets.long())
