"""Which rows of new input are of one bag, by what said so in the training data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from repertory.datasets import columns as tables
from repertory.datasets.raw_arrays import read_arrays
from repertory.errors import DataError

_COLUMN = "bag"
_OTHERWISE = "or ask for single instances with --instances (instances=True)"


def column_of(spec: str) -> str:
    """Return the name of the column that says which rows of the training data are of one bag.

    >>> column_of("tiles.csv?bag=slide&pool=max"), column_of("photos?bags=folders")
    ('slide', 'bag')
    """
    options = dict(item.partition("=")[::2] for item in spec.rpartition("?")[2].split("&"))
    named = options.get("bag") or options.get("group") or _COLUMN
    return _COLUMN if named == "folders" else named


def bags_of(path: str, ids: Sequence[str], kind: str, column: str, *, required: bool = True) -> list[str] | None:
    """Return the bag of each row of new input.

    Args:
        path: of the input: a table with the column, an `.npz` file with the array `bag`, or a folder of images, where
            the folder that an image is in is its bag. A folder that holds images only is one bag.
        ids: the file of each image below the path.
        kind: of the input, such as "image".
        column: its name in a table.
        required: whether it is an error if the input says nothing of bags; else the result is None.

    Raises:
        DataError: if it does not say of each row in which bag it is.
    """
    place = Path(path).expanduser()
    if place.suffix.lower() in {".npy", ".npz"}:
        found = _in_arrays(place, len(ids), required)
    elif kind == "image":
        found = _in_folders(place, ids, required)
    else:
        found = _in_table(place, column, required)
    return found


def _in_table(place: Path, column: str, required: bool) -> list[str] | None:
    frame = tables.read_frame(place, [column])
    if column not in frame.columns:
        if not required:
            return None
        raise DataError(
            f"{str(place)!r} lacks the column {column!r}, which says which rows are of one bag; add it, {_OTHERWISE}"
        )
    cells = frame[column]
    if int(cells.isna().sum()):
        first = int(cells.isna().to_numpy().argmax()) + 1
        raise DataError(
            f"{str(place)!r}: {int(cells.isna().sum())} cells of the column {column!r} are empty, the first in row "
            f"{first}; write there in which bag the row is, or remove the row"
        )
    return cells.astype(str).tolist()


def _in_arrays(place: Path, rows: int, required: bool) -> list[str] | None:
    arrays = read_arrays(place)
    if _COLUMN not in arrays:
        if not required:
            return None
        raise DataError(
            f"{str(place)!r} lacks the array {_COLUMN}, which says which rows of x are of one bag; give an .npz file "
            f"with it, {_OTHERWISE}"
        )
    names = np.asarray(arrays[_COLUMN]).reshape(-1).astype(str).tolist()
    if len(names) != rows:
        raise DataError(f"{str(place)!r}: {_COLUMN} has {len(names)} entries for {rows} rows of x; give one a row")
    return list(names)


def _in_folders(place: Path, ids: Sequence[str], required: bool) -> list[str] | None:
    if not place.is_dir():
        if not required:
            return None
        raise DataError(f"{str(place)!r} is one image; give a folder with a folder for each bag, {_OTHERWISE}")
    bags = [PurePosixPath(file).parent.as_posix() for file in ids]
    loose = [file for file, bag in zip(ids, bags) if bag == "."]
    if len(loose) == len(ids):
        return [place.resolve().name] * len(ids)
    if loose and required:
        raise DataError(
            f"{str(place)!r}: {len(loose)} of {len(ids)} images are in no bag, such as {loose[0]}; put each into the "
            f"folder of its bag, {_OTHERWISE}"
        )
    return None if loose else bags
