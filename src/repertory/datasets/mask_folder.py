"""Read a folder of images with a folder of masks beside it, which hold the class of every pixel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from repertory.core.dense import IGNORED
from repertory.datasets.dataset import Dataset
from repertory.datasets.encoder import Encoder
from repertory.datasets.folder import PART_NAMES
from repertory.datasets.images import covering, decode, each, probe, scan, size_of, unreadable
from repertory.datasets.points import placed_points
from repertory.errors import DataError, OptionError

IMAGES, MASKS, NAMES = "images", "masks", "classes.txt"
_LAYOUT = (
    f"expected FOLDER/{IMAGES} and FOLDER/{MASKS} with files of the same names (a.jpg and a.png), with or without "
    "folders train, val and test above or below them"
)
_LARGEST = 128
"""Side in pixels up to which images that have one size keep it, and to which others are brought at most."""
_LOSSY = frozenset({".jpg", ".jpeg", ".jfif", ".webp"})


def is_mask_folder(path: Path) -> bool:
    """Say whether a folder holds images and masks of them rather than class folders."""
    if all((path / name).is_dir() for name in (IMAGES, MASKS)):
        return True
    trains = [entry for entry in path.iterdir() if PART_NAMES.get(entry.name.lower()) == "train"]
    return any((entry / IMAGES).is_dir() and (entry / MASKS).is_dir() for entry in trains)


def load_mask_folder(path: Path, spec: str, image_size: int | None = None, skip_bad: bool = False) -> Dataset:
    """Read images and the masks of the same names.

    A mask is a greyscale or palette image whose values are numbers of classes, 255 where a pixel has none; or black and
    white (0 and 255), for one thing and its background. `classes.txt`, a name a line, names the classes.

    Args:
        path: the folder.
        spec: what the user typed.
        image_size: side in pixels; by default images that all have one size of up to 128x128 keep it, and others are
            brought to the median shorter side, as a multiple of 8 from 8 to 128.
        skip_bad: go on without pairs of which a file cannot be read.

    Raises:
        DataError: if the folders are not laid out as expected, an image or mask has no partner, a mask has another size
            than its image, or holds what is no class.
        OptionError: if `image_size` is not at least 1.
    """
    if image_size is not None and image_size < 1:
        raise OptionError(f"image_size={image_size} must be at least 1 pixel, for example 64")
    found = {part: pairs(*places) for part, places in _places(path).items()}
    return read_pairs(path, spec, found, image_size, skip_bad)


def read_pairs(
    path: Path,
    spec: str,
    found: Mapping[str, Sequence[tuple[Path, Path | None]]],
    image_size: int | None = None,
    skip_bad: bool = False,
    points: Mapping[Path, Sequence[tuple[int, int, int]]] | None = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """Read images with their masks.

    Args:
        path: the folder.
        spec: what the user typed.
        found: images with their masks by part, "train" alone where they are to be split; None for the mask of an image
            of which no pixel has a class.
        image_size: side in pixels, None for their own as `load_mask_folder` says.
        skip_bad: go on without pairs of which a file cannot be read.
        points: of images, in place of masks: number of the object, y and x in pixels of the file.
        notes: what is known already and should be said.
    """
    notes = list(notes)
    images = [image for pairs in found.values() for image, _ in pairs]
    masks = [mask for pairs in found.values() for _, mask in pairs]
    parts = torch.arange(len(found)).repeat_interleave(torch.tensor([len(pairs) for pairs in found.values()]))

    shape, closed = _shape(images, image_size, notes)
    readable = [file for file in images if file not in closed]
    pixels, broken = decode(readable, shape)
    labels = torch.full((len(masks), *shape[1:]), IGNORED)
    row_of = {mask: row for row, mask in enumerate(masks) if mask is not None}

    def read(mask: Path) -> tuple[np.ndarray[Any, Any], str]:
        row = row_of[mask]
        values, present, flaw = _read_mask(mask, images[row], shape[1], shape[2])
        if not flaw:
            labels[row] = torch.from_numpy(values)
        return present, flaw

    open_masks = [mask for mask, row in row_of.items() if images[row] not in closed and images[row] not in broken]
    seen, unread = each(read, open_masks)
    read_masks = [mask for mask in open_masks if mask not in unread]
    if flaws := {mask: flaw for mask, (_, flaw) in zip(read_masks, seen) if flaw}:
        raise _unusable(flaws, len(masks))
    bad = {**closed, **broken, **unread}
    if bad and not skip_bad:
        fix = "replace or remove them, or go on without them with --skip-bad (skip_bad=True)"
        raise unreadable(bad, len(images) + len(masks), fix)
    kept = torch.tensor([image not in bad and mask not in bad for image, mask in zip(images, masks)])
    if bad:
        notes.append(f"{int((~kept).sum())} of {len(images)} images left out: they or their masks cannot be read")
    pixels = pixels[kept[[file not in closed for file in images]]]
    labels, parts = labels[kept], parts[kept]
    classes, two_valued = _classes(path, dict(zip(read_masks, (present for present, _ in seen))), notes)
    fixed = {part: (parts == k).nonzero().flatten() for k, part in enumerate(found)} if len(found) > 1 else {}
    if two_valued:
        masked = torch.tensor([mask is not None for mask in masks])[kept]
        labels[masked] = labels[masked].clamp(max=1)
    placed = None
    if points is not None:
        left = [image for image, keep in zip(images, kept.tolist()) if keep]
        sizes = {image: size_of(image) for image in left if image in points}
        placed = placed_points([(row, sizes[i], points[i]) for row, i in enumerate(left) if i in sizes], shape)
    return Dataset(
        name=path.resolve().name,
        spec=spec,
        task="segmentation",
        modality="image",
        inputs=pixels,
        targets=labels,
        classes=classes,
        encoder=Encoder("image", shape),
        fixed=fixed,
        notes=tuple(notes),
        points=placed,
    )


def _places(path: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of images and of masks, by part of the data."""
    if (path / IMAGES).is_dir():
        below = {part: (path / IMAGES / name, path / MASKS / name) for part, name in _parts_in(path / IMAGES)}
        if not below:
            return {"train": (path / IMAGES, path / MASKS)}
    else:
        below = {part: (path / name / IMAGES, path / name / MASKS) for part, name in _parts_in(path)}
    if "train" not in below:
        raise DataError(f"{path} has {' and '.join(below)} but no train folder; {_LAYOUT}")
    for folder in (folder for both in below.values() for folder in both):
        if not folder.is_dir():
            raise DataError(f"{path}: there is no folder {folder}; {_LAYOUT}")
    return {part: below[part] for part in ("train", "validation", "test") if part in below}


def _parts_in(folder: Path) -> list[tuple[str, str]]:
    named = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name.lower() in PART_NAMES)
    return [(PART_NAMES[name.lower()], name) for name in named]


def by_stem(folder: Path) -> dict[str, Path]:
    """Return the images below a folder by their paths there without the ending.

    Raises:
        DataError: if two differ in nothing else.
    """
    files: dict[str, Path] = {}
    for file in scan(folder)[0]:
        stem = file.relative_to(folder).with_suffix("").as_posix()
        if stem in files:
            raise DataError(f"{file} and {files[stem].name} have the same name but for the ending; remove one")
        files[stem] = file
    return files


def pairs(images: Path, masks: Path, passed_over: Collection[str] = ()) -> list[tuple[Path, Path]]:
    """Return each image with the mask whose path below its folder is the same but for the ending.

    Args:
        images: folder of images.
        masks: folder of masks.
        passed_over: paths, as `by_stem` gives them, that are left out of both.

    Raises:
        DataError: if there is no image, an image or mask is alone, or masks are in a lossy format.
    """
    every = [by_stem(images), by_stem(masks)]
    if not every[0]:
        raise DataError(f"{images} has no images; {_LAYOUT}")
    found = [{stem: file for stem, file in files.items() if stem not in passed_over} for files in every]
    for here, there, word in ((found[0], found[1], "mask"), (found[1], found[0], "image")):
        folder = masks if word == "mask" else images
        if alone := sorted(here.keys() - there.keys()):
            listed = ", ".join(str(here[stem]) for stem in alone[:5])
            raise DataError(
                f"{len(alone)} files have no {word} of the same name in {folder}: {listed}"
                f"{', ...' if len(alone) > 5 else ''}; add the {word}s, or remove the files"
            )
    if lossy := [file for file in found[1].values() if file.suffix.lower() in _LOSSY]:
        raise DataError(
            f"{lossy[0]} is a mask in a lossy format, which changes the numbers of classes; save masks as PNG"
        )
    return [(found[0][stem], found[1][stem]) for stem in sorted(found[0])]


def _shape(
    images: Sequence[Path], image_size: int | None, notes: list[str]
) -> tuple[tuple[int, int, int], dict[Path, str]]:
    """Channels and sides to bring the images to, and why some of them cannot be opened."""
    headers, closed = probe(images)
    if not headers:
        raise unreadable(closed, len(images), "replace them")
    grey = sum(is_grey for _, is_grey in headers)
    channels = 1 if grey == len(headers) else 3
    if grey and channels == 3:
        notes.append(f"{grey} greyscale images of {len(headers)} were converted to RGB")
    if image_size is not None:
        return (channels, image_size, image_size), closed
    sizes = set(each(size_of, images)[0])
    if len(sizes) == 1 and max(size := sizes.pop()) <= _LARGEST:
        return (channels, size[1], size[0]), closed
    typical = median(shorter for shorter, _ in headers)
    side = min(_LARGEST, max(8, 8 * round(typical / 8)))
    notes.append(f"images and masks were brought to {side}x{side} (image_size changes it)")
    return (channels, side, side), closed


def _read_mask(mask: Path, image: Path, height: int, width: int) -> tuple[Any, Any, str]:
    """Read a mask as an image is read.

    Returns:
        The numbers `(height, width)`, which of the 256 there are in the whole file, and what makes it unusable.
    """
    from PIL import Image, ImageOps

    with Image.open(mask) as opened:
        ImageOps.exif_transpose(opened, in_place=True)
        values = np.asarray(opened)
        colours = 1 if opened.mode == "LA" else 3
        if values.ndim == 3 and (values[..., :colours] == values[..., :1]).all():
            values = values[..., 0]
    if values.ndim != 2:
        return None, None, "it is in colour; save it as a greyscale or palette PNG with the number of a class a pixel"
    if values.shape[::-1] != (size := size_of(image)):
        given = "x".join(map(str, values.shape[::-1]))
        return None, None, f"it is {given} and its image {size[0]}x{size[1]}; save it at the size of its image"
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if int(values.min()) < 0 or int(values.max()) > IGNORED:
        return None, None, f"it holds {int(values.max())}; numbers of classes are below {IGNORED}, and that is ignored"
    whole = Image.fromarray(values.astype(np.uint8))
    present = np.bincount(values.ravel(), minlength=IGNORED + 1) > 0
    return np.array(covering(whole, width, height, Image.Resampling.NEAREST)), present, ""


def _classes(path: Path, present: Mapping[Path, Any], notes: list[str]) -> tuple[tuple[str, ...], bool]:
    """The names of the classes, and whether 255 means the second of two."""
    listing = path / NAMES
    names: tuple[str, ...] = ()
    if listing.is_file():
        names = tuple(filter(None, map(str.strip, listing.read_text(encoding="utf-8-sig").splitlines())))
        if len(set(names)) < len(names) or not 2 <= len(names) <= IGNORED:
            raise DataError(f"{listing} must name 2 to {IGNORED} classes, each on a line of its own, and none twice")
    together = np.logical_or.reduce(list(present.values()))
    found = np.flatnonzero(together).tolist()
    two_valued = found == [0, IGNORED]
    if two_valued:
        notes.append(f"masks are black and white: {IGNORED} counts as class 1")
        if len(names) > 2:
            raise DataError(f"{listing} names {len(names)} classes, but the masks are black and white; name 2")
        return names or ("background", "object"), True
    numbers = [number for number in found if number != IGNORED]
    if names:
        wrong = {
            mask: f"it holds {flaw[-1]}"
            for mask, there in present.items()
            if len(flaw := np.flatnonzero(there[len(names) : IGNORED]) + len(names))
        }
        if wrong:
            raise _unusable(
                wrong, len(present), f"; {NAMES} names the classes 0 to {len(names) - 1}: add a line, or mend the masks"
            )
        return names, False
    missing = sorted(set(range(max(numbers, default=0) + 1)) - set(numbers))
    if missing:
        holder = next(mask for mask, there in present.items() if there[numbers[-1]])
        raise DataError(
            f"{path}: {holder} holds {numbers[-1]}, but no mask holds {', '.join(map(str, missing[:5]))}"
            f"{', ...' if len(missing) > 5 else ''}; number the classes from 0 on, or name all of them in {listing}"
        )
    return tuple(map(str, numbers)), False


def _unusable(flaws: Mapping[Path, str], total: int, fix: str = "") -> DataError:
    shown = ", ".join(f"{mask} ({flaw})" for mask, flaw in list(flaws.items())[:8])
    return DataError(f"{len(flaws)} of {total} masks cannot be used: {shown}{', ...' if len(flaws) > 8 else ''}{fix}")
