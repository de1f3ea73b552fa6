"""Find image files and decode them, in threads, into one tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from repertory.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Endings of the files that are read as images."""

_GREY = {"1", "L", "LA", "La"}
_TURNED = range(5, 9)
"""Orientations, as cameras record them, that exchange width and height."""

_Found = TypeVar("_Found")


def scan(folder: Path) -> tuple[list[Path], int]:
    """List the image files below a folder, sorted, and count the others; hidden ones are passed over."""
    images: list[Path] = []
    others = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            if is_hidden(name):
                continue
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                images.append(Path(place, name))
            else:
                others += 1
    return images, others


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is the operating system's or an archiver's own."""
    return name.startswith(".") or name in {"__MACOSX", "Thumbs.db", "desktop.ini"}


def probe(paths: Sequence[Path]) -> tuple[list[tuple[int, bool]], dict[Path, str]]:
    """Read the headers of images.

    Returns:
        Shorter side in pixels and whether it is greyscale, for each image that can be opened; and the reason
        why for each that cannot.
    """
    return each(_probe_one, paths)


def decode(paths: Sequence[Path], shape: tuple[int, int, int]) -> tuple[Tensor, dict[Path, str]]:
    """Decode images to one size and number of channels.

    The orientation that cameras record is applied, transparency is dropped, and 16-bit values keep their
    upper byte. An image is scaled until it covers the size, and what juts out is cropped evenly.

    Args:
        paths: the files.
        shape: channels (1 or 3), height, width.

    Returns:
        uint8 `(files, channels, height, width)`, zeros where a file cannot be read; and the reason for each
        of those.
    """
    images = torch.zeros(len(paths), *shape, dtype=torch.uint8)
    rows = images.numpy()
    row_of = {path: row for row, path in enumerate(paths)}

    def into_row(path: Path) -> None:
        rows[row_of[path]] = _decode_one(path, shape)

    return images, each(into_row, paths)[1]


def decode_whole(path: Path, shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """Decode one image as `decode` does, but without cropping it.

    Returns:
        uint8 `(channels, rows, columns)`, of which rows or columns may be more than the shape says.
    """
    return _decode_one(path, shape, whole=True)


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height of an image as it is to be looked at."""
    from PIL import Image

    with Image.open(path) as image:
        turned = image.getexif().get(0x0112) in _TURNED
        return (image.height, image.width) if turned else image.size


def unreadable(bad: Mapping[Path, str], total: int, fix: str) -> DataError:
    """Return the error that lists every image that cannot be read."""
    listed = ", ".join(f"{path} ({reason})" for path, reason in bad.items())
    return DataError(f"{len(bad)} of {total} images cannot be read: {listed}; {fix}")


def each(function: Callable[[Path], _Found], paths: Sequence[Path]) -> tuple[list[_Found], dict[Path, str]]:
    """Call a function for each file, in threads.

    Returns:
        What it returned, in order, of the files for which it did; and for each other file the reason why it did not.
    """
    bad: dict[Path, str] = {}

    def attempt(path: Path) -> tuple[_Found] | None:
        try:
            if path.stat().st_size == 0:
                raise ValueError("empty file")
            return (function(path),)
        # A broken file can raise almost anything in a decoder, and all of it means the same here.
        except Exception as error:
            bad[path] = " ".join(str(error).split()).replace(f" {str(path)!r}", "") or type(error).__name__
            return None

    workers = min(16, 2 * (os.cpu_count() or 1))
    with ThreadPool(workers) as pool:
        found = pool.map(attempt, paths, chunksize=max(1, min(64, len(paths) // workers)))
    return [one[0] for one in found if one is not None], {path: bad[path] for path in paths if path in bad}


def _probe_one(path: Path) -> tuple[int, bool]:
    from PIL import Image

    with Image.open(path) as image:
        return min(image.size), image.mode in _GREY or image.mode.startswith("I")


def _decode_one(path: Path, shape: tuple[int, int, int], whole: bool = False) -> np.ndarray[Any, Any]:
    from PIL import Image, ImageOps

    channels, height, width = shape
    with Image.open(path) as opened:
        # JPEG decodes much faster at a fraction of its size; twice the size asked for leaves the resize
        # enough detail.
        opened.draft(None, (2 * max(height, width), 2 * max(height, width)))
        ImageOps.exif_transpose(opened, in_place=True)
        image = _in_mode(opened, "L" if channels == 1 else "RGB")
        if whole:
            scale = max(width / image.width, height / image.height)
            width, height = max(width, round(scale * image.width)), max(height, round(scale * image.height))
            # What is still cropped is less than a pixel.
        image = covering(image, width, height, Image.Resampling.BILINEAR, reducing_gap=3.0)
        pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def covering(image: Image, width: int, height: int, resampling: Any, reducing_gap: float | None = None) -> Image:
    """Return an image scaled until it covers a size, with what juts out cropped evenly.

    Args:
        image: the image.
        width: in pixels.
        height: in pixels.
        resampling: one of `PIL.Image.Resampling`.
        reducing_gap: as in `PIL.Image.Image.resize`.
    """
    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    # Rounding can leave the tight side a hair outside of the image.
    cut_x = max(0.0, (image.width - width / scale) / 2)
    cut_y = max(0.0, (image.height - height / scale) / 2)
    box = (cut_x, cut_y, image.width - cut_x, image.height - cut_y)
    return image.resize((width, height), resampling, box=box, reducing_gap=reducing_gap)


def _in_mode(image: Image, mode: str) -> Image:
    from PIL import Image as images

    if image.mode == mode:
        image.load()
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels; convert to 8 bit")
    if image.mode.startswith("I"):
        image = images.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode in {"P", "PA"}:
        # A palette may hold transparency in a form that only the step through RGBA understands.
        image = image.convert("RGBA")
    return image.convert(mode)
