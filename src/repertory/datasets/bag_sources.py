"""Read which rows belong together: from a column of a table, or from the subfolders of an image folder's classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from repertory.datasets.dataset import Dataset
from repertory.datasets.folder import load_folder_with_paths
from repertory.datasets.images import is_hidden
from repertory.datasets.table import load_table_with_columns
from repertory.errors import DataError, OptionError

if TYPE_CHECKING:
    import pandas as pd

_COLUMN = "bag"
_LAYOUT = "expected FOLDER/CLASS/BAG/image files, or FOLDER/train/CLASS/BAG/... with test and val beside train"


def load_bag_table(
    path: Path,
    spec: str,
    target: str | None,
    drop: Sequence[str],
    options: Mapping[str, str],
    skip_bad: bool = False,
    option: str = "bag",
) -> Dataset:
    """Read a table in which one column says which rows belong together.

    Args:
        path: the file.
        spec: what the user typed.
        target: column of the label of the bag, the same in all rows of a bag.
        drop: columns to leave out.
        options: `bag`, or what `option` says, names the column ("bag" when not given), `truth` one of what is known of
            single rows: names of classes, empty where unknown.
        skip_bad: go on without the rows that have missing or infinite cells.
        option: what the option is called that names the column.

    Returns:
        Data with `groups`, and `truth` where a column of it was named; neither column is an input.

    Raises:
        DataError: if the table cannot be learnt from, a row is in no bag, or the truth is not that of a class.
        OptionError: if an option names no column.
    """
    names = {option: options.get(option, _COLUMN), **({"truth": options["truth"]} if "truth" in options else {})}
    for asked, name in names.items():
        if name == target or name in drop:
            raise OptionError(f"{asked}={name} is the target or a dropped column; name another one")
    dataset, aside = load_table_with_columns(path, spec, target, drop, "classification", skip_bad, names)
    cells = aside[names[option]]
    if int(cells.isna().sum()):
        first = int(cells.isna().to_numpy().argmax()) + 1
        raise DataError(
            f"{path}: {int(cells.isna().sum())} cells of the column {names[option]!r} are empty, first in row {first}; "
            f"write there which {option} the row is in, or remove the row"
        )
    codes, found = cells.astype(str).factorize(sort=True)
    truth = _truth(path, aside[names["truth"]], dataset.classes) if "truth" in names else None
    return dataclasses.replace(
        dataset, groups=torch.from_numpy(codes).long(), group_names=tuple(map(str, found)), truth=truth
    )


def load_bag_folder(path: Path, spec: str, image_size: int | None = None, skip_bad: bool = False) -> Dataset:
    """Read images whose class is the name of their folder, and whose bag is the name of the folder in it.

    Bags of one name under two classes, or in two parts of the data, are two bags.

    Raises:
        DataError: if the folders are not laid out as expected, or images cannot be read.
    """
    dataset, paths = load_folder_with_paths(path, spec, image_size, skip_bad)
    places = [file.relative_to(path).parts for file in paths]
    # A single part, train, leaves nothing in `fixed`.
    above = 1 if not dataset.fixed and all(parts[0] in dataset.classes for parts in places) else 2
    loose = [file for file, parts in zip(paths, places) if len(parts) < above + 2]
    if loose:
        raise DataError(
            f"{len(loose)} of {len(paths)} images are in no bag, such as {loose[0]}; {_LAYOUT}, or leave out "
            "bags=folders"
        )
    bags = ["/".join(parts[: above + 1]) for parts in places]
    folders = {folder for file, parts in zip(paths, places) for folder in _siblings(path, parts, above)}
    if empty := sorted(folders - set(bags)):
        raise DataError(f"{path}: bags without an image: {', '.join(empty[:5])}; add images or remove the folders")
    names = tuple(sorted(set(bags)))
    number = {name: k for k, name in enumerate(names)}
    return dataclasses.replace(dataset, groups=torch.tensor([number[bag] for bag in bags]), group_names=names)


def load_camera_folder(path: Path, spec: str, image_size: int | None = None, skip_bad: bool = False) -> Dataset:
    """Read images whose class is the name of their folder, and whose camera is the name of the folder in it.

    Cameras of one name are one camera, in whatever class and part of the data.

    Raises:
        DataError: if the folders are not laid out as expected, or images cannot be read.
    """
    dataset = load_bag_folder(path, spec, image_size, skip_bad)
    assert dataset.groups is not None
    names, codes = np.unique([name.rpartition("/")[2] for name in dataset.group_names], return_inverse=True)
    return dataclasses.replace(
        dataset, groups=torch.from_numpy(codes)[dataset.groups].long(), group_names=tuple(map(str, names))
    )


def with_array_groups(dataset: Dataset, arrays: Mapping[str, Any], inputs: Sequence[str]) -> Dataset:
    """Return the data with what arrays say of which rows belong together.

    Args:
        dataset: made of the arrays' inputs.
        arrays: `bag`, a number or name a row, and perhaps `truth`, 0, 1 or -1 where unknown; or `bag_train` and the
            same for other parts.
        inputs: names of the arrays of inputs, such as `x_train`.

    Raises:
        DataError: if some parts lack them, or they do not fit.
    """
    found: dict[str, Tensor] = {}
    names: tuple[str, ...] = ()
    for what in ("bag", "truth"):
        keys = [key.replace("x", what, 1) for key in inputs]
        given = [np.asarray(arrays[key]) for key in keys if key in arrays]
        if not given:
            continue
        if len(given) < len(keys) or sum(map(np.size, given)) != len(dataset.targets):
            raise DataError(f"{dataset.name}: {' and '.join(keys)} must have one entry a row of {', '.join(inputs)}")
        values = np.concatenate([part.reshape(-1) for part in given])
        if what == "bag":
            distinct, codes = np.unique(values.astype(str), return_inverse=True)
            found["groups"], names = torch.from_numpy(codes).long(), tuple(map(str, distinct))
        else:
            found["truth"] = torch.from_numpy(values.astype(np.int64))
    groups, truth = found.get("groups"), found.get("truth")
    return dataclasses.replace(dataset, groups=groups, group_names=names, truth=truth) if found else dataset


def _siblings(path: Path, parts: tuple[str, ...], above: int) -> list[str]:
    """The folders of bags beside the one that a file is in."""
    beside = path.joinpath(*parts[:above]).iterdir()
    names = [entry.name for entry in beside if entry.is_dir() and not is_hidden(entry.name)]
    return ["/".join((*parts[:above], name)) for name in names]


def _truth(path: Path, cells: pd.Series[Any], classes: Sequence[str]) -> Tensor:
    names = [_plain(cell) for cell in cells]
    odd = [(row, name) for row, name in enumerate(names, start=1) if name and name not in classes]
    if odd:
        raise DataError(
            f"{path}: the column {cells.name!r} of the truth has {odd[0][1]!r} in row {odd[0][0]}, which is not one of "
            f"the classes {', '.join(classes)}; correct it, or leave the cell empty where nothing is known"
        )
    return torch.tensor([classes.index(name) if name else -1 for name in names])


def _plain(cell: Any) -> str:
    """A cell as classes are named; a column of whole numbers with empty cells holds floats."""
    if cell is None or cell != cell:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()
