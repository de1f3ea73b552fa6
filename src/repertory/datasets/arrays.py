"""Read arrays: `.npz` files, and what a user's own function returns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.datasets.bag_sources import with_array_groups
from repertory.datasets.columns import Column
from repertory.datasets.dataset import Dataset
from repertory.datasets.encoder import Encoder
from repertory.datasets.raw_arrays import array_inputs, read_arrays
from repertory.datasets.targets import read_targets
from repertory.errors import DataError, OptionError

_PARTS = {"train": "train", "val": "validation", "test": "test"}


def load_arrays(path: Path, spec: str, task: str | None = None) -> Dataset:
    """Read a `.npz` file with `x` and `y`, or `x_train`, `y_train` and the same for `val` and `test`.

    Raises:
        DataError: if arrays are missing, or hold what cannot be learnt from.
    """
    return from_arrays(read_arrays(path), path.stem, spec, task)


def from_arrays(arrays: Mapping[str, Any], name: str, spec: str, task: str | None = None) -> Dataset:
    """Make a data set from arrays or tensors.

    Args:
        arrays: `x` and `y`, or `x_train`, `y_train` and perhaps `x_val`, `y_val`, `x_test`, `y_test`. An `x`
            of shape `(examples, columns)` is a table; `(examples, channels, length)` sequences; uint8 with
            three dimensions, `(examples, height, width)`, or four, with 1 or 3 channels second or last,
            images. With each `x` there may be a `bag`, which says which rows belong together, and a `truth`, what is
            known of single rows of bags: 0, 1, or -1.
        name: short name of the data.
        spec: what the user typed.
        task: "classification", "regression", or None for the rule of `read_targets`.

    Raises:
        DataError: if arrays are missing, do not fit together, or hold what cannot be learnt from.
        OptionError: if they are to be pairs of texts.
    """
    if task == "pairs":
        raise OptionError(f"task=pairs reads a table of texts, but {name} are arrays; give a .csv or .parquet file")
    whole = "x" in arrays
    keys = {"x": "train"} if whole else {f"x_{short}": part for short, part in _PARTS.items() if f"x_{short}" in arrays}
    targets_of = {key: key.replace("x", "y", 1) for key in keys}
    lacking = [key for key in targets_of.values() if key not in arrays]
    if lacking or "train" not in keys.values():
        raise DataError(
            f"{name} lacks {' and '.join(lacking or ['x_train'])}: it has the arrays "
            f"{', '.join(arrays) or 'none'}, but x and y are needed, or x_train and y_train with or without "
            f"x_val, y_val, x_test and y_test"
        )
    inputs: list[Tensor] = []
    given: list[np.ndarray[Any, Any]] = []
    for key in keys:
        modality, part = array_inputs(np.asarray(arrays[key]), f"{name}: {key}")
        if inputs and (part.shape[1:] != inputs[0].shape[1:] or part.dtype != inputs[0].dtype):
            raise DataError(
                f"{name}: inputs of {key} have shape {tuple(part.shape[1:])}, others {tuple(inputs[0].shape[1:])}"
            )
        values = np.atleast_1d(np.asarray(arrays[targets_of[key]]))
        if len(part) != len(values):
            raise DataError(f"{name}: {key} has {len(part)} rows, but {targets_of[key]} has {len(values)}")
        inputs.append(part)
        given.append(values)
    kind, targets, classes, notes = read_targets(
        np.concatenate(given), f"{name}: target {'y' if whole else 'y_train'}", task
    )
    rows = torch.arange(len(targets)).split([len(part) for part in inputs])
    shape = tuple(inputs[0].shape[1:])
    columns = tuple(Column(str(k)) for k in range(shape[0])) if modality == "table" else ()
    dataset = Dataset(
        name=name,
        spec=spec,
        task="classification" if kind == "classification" else "regression",
        modality=modality,
        inputs=torch.cat(inputs),
        targets=targets,
        classes=classes,
        encoder=Encoder(modality, shape, columns),
        fixed=dict(zip(keys.values(), rows)) if len(keys) > 1 else {},
        notes=notes,
    )
    return with_array_groups(dataset, arrays, list(keys))


def from_factory(made: Any, name: str, spec: str, task: str | None = None) -> Dataset:
    """Make a data set from what a user's function returned: a `Dataset`, `(x, y)`, or a mapping of arrays.

    Raises:
        DataError: if it is none of these.
        OptionError: if `task` contradicts the `Dataset`.
    """
    if isinstance(made, Dataset):
        if task not in (None, made.task):
            raise OptionError(f"task={task} does not apply: {name} returns a Dataset for {made.task}; leave it out")
        return made
    if isinstance(made, Mapping):
        return from_arrays(made, name, spec, task)
    if isinstance(made, tuple) and len(made) == 2:
        return from_arrays({"x": made[0], "y": made[1]}, name, spec, task)
    raise DataError(f"{name} returned {type(made).__name__}; return a Dataset, a tuple (x, y), or a dict with x and y")
