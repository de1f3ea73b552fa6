"""Read a folder of images of which those for training have extreme points in place of masks."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from repertory.datasets.dataset import Dataset
from repertory.datasets.folder import PART_NAMES
from repertory.datasets.images import size_of
from repertory.datasets.mask_folder import IMAGES, MASKS, by_stem, pairs, read_pairs
from repertory.errors import DataError, OptionError, nearest

POINTS = "points.csv"
_LAYOUT = (
    f"expected FOLDER/{IMAGES}, FOLDER/{POINTS} with the columns image, y and x for the training images, and "
    f"FOLDER/{MASKS} for the others; or FOLDER/train/{IMAGES} and FOLDER/train/{POINTS} with {IMAGES} and {MASKS} in "
    "FOLDER/val and FOLDER/test"
)

Points = dict[str, list[tuple[int, int, int]]]


def is_point_folder(path: Path) -> bool:
    """Say whether a folder holds images with a table of points."""
    return _train_folder(path) is not None


def load_point_folder(path: Path, spec: str, image_size: int | None = None, skip_bad: bool = False) -> Dataset:
    """Read images with points for training, and with masks for validation and testing.

    The table `points.csv` has the columns image (the path below `images`, with or without its ending), y and x (pixels
    from 0 at the top left), and object where an image shows several, a number of each; four rows an object, or those
    that differ. In a folder without parts, images that the table names are for training, and the others, which need
    masks, are dealt to validation and test in turn. In train, an image that the table does not name shows no object.

    Args:
        path: the folder.
        spec: what the user typed.
        image_size: side in pixels, None for the images' own, as `load_mask_folder` says.
        skip_bad: go on without images that cannot be read.

    Raises:
        DataError: if the folders are not laid out as expected, the table cannot be read, names an image that is not
            there or a point outside of it, or no image has a mask.
        OptionError: if `image_size` is not at least 1.
    """
    if image_size is not None and image_size < 1:
        raise OptionError(f"image_size={image_size} must be at least 1 pixel, for example 64")
    home = _train_folder(path)
    if home is None:
        raise DataError(f"{path}: there is no {POINTS}; {_LAYOUT}")
    images = by_stem(home / IMAGES)
    points = _read(home / POINTS, images)
    notes: list[str] = []
    if home == path:
        train = {stem: images[stem] for stem in sorted(points)}
        judged = {"test": pairs(path / IMAGES, path / MASKS, points)} if len(train) < len(images) else {}
    else:
        train = dict(sorted(images.items()))
        judged = {
            PART_NAMES[each.name.lower()]: pairs(each / IMAGES, each / MASKS)
            for each in sorted(path.iterdir())
            if PART_NAMES.get(each.name.lower()) in ("validation", "test")
        }
        if bare := len(train) - len(points):
            notes.append(f"{bare} of {len(train)} training images have no point in {POINTS}: they show no object")
    if len(judged) == 1:
        both = next(iter(judged.values()))
        judged = {"validation": both[::2], "test": both[1::2]}
        notes.append("images with a mask were dealt to validation and test in turn")
    if not all(judged.get(part) for part in ("validation", "test")):
        raise DataError(f"{path}: at least 2 images need a mask, one for validation and one to test; {_LAYOUT}")
    found: dict[str, list[tuple[Path, Path | None]]] = {"train": [(image, None) for image in train.values()]}
    found |= {part: list(judged[part]) for part in ("validation", "test")}
    clicks = {images[stem]: rows for stem, rows in points.items()}
    return read_pairs(path, spec, found, image_size, skip_bad, clicks, notes)


def _train_folder(path: Path) -> Path | None:
    """Where the table and the training images are."""
    inside = [entry for entry in path.iterdir() if PART_NAMES.get(entry.name.lower()) == "train"]
    return next((each for each in (path, *inside) if (each / POINTS).is_file() and (each / IMAGES).is_dir()), None)


def _read(table: Path, images: dict[str, Path]) -> Points:
    """The points of each image, as (object, y, x)."""
    with table.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.DictReader(opened)
        missing = [name for name in ("image", "y", "x") if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{table} has no column {' or '.join(missing)}; give image, y and x in its first line, and object "
                "where an image shows several"
            )
        found: Points = {}
        sizes: dict[str, tuple[float, float]] = {}
        for line, row in enumerate(reader, start=2):
            name = (row["image"] or "").strip()
            stem = name if name in images else Path(name).with_suffix("").as_posix()
            if stem not in images:
                hint = nearest(stem, images) or f"give the path below {IMAGES}"
                raise DataError(f"{table}, line {line}: there is no image {name!r}; {hint}")
            try:
                y, x = (int(float(row[axis])) for axis in ("y", "x"))
                number = int(row.get("object") or 0)
            except (TypeError, ValueError):
                raise DataError(
                    f"{table}, line {line}: y={row['y']!r}, x={row['x']!r} and object={row.get('object')!r} must be "
                    "whole numbers"
                ) from None
            if stem not in sizes:
                sizes[stem] = _size(images[stem])
            width, height = sizes[stem]
            if not (0 <= y < height and 0 <= x < width) or number < 0:
                raise DataError(
                    f"{table}, line {line}: y={y}, x={x} of object {number} lies outside of {images[stem].name}, which "
                    f"is {width} wide and {height} high; count from 0 at the top left, and objects from 0"
                )
            found.setdefault(stem, []).append((number, y, x))
    if not found:
        raise DataError(f"{table} has no row; name the extreme points of the training images")
    return found


def _size(image: Path) -> tuple[float, float]:
    try:
        return size_of(image)
    except OSError:
        # An image that cannot be opened is reported, or left out, when it is read.
        return math.inf, math.inf
