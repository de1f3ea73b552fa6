"""Read array files, and tell what kind of input an array holds."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from repertory.errors import DataError


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of an `.npz` file, or the one of an `.npy` file under the name `x`.

    Raises:
        DataError: if it is no such file, or holds pickled objects.
    """
    try:
        # Opened here, so that a broken file is closed as well.
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"x": loaded}
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        said = "it holds pickled objects" if "allow_pickle" in str(error) else " ".join(str(error).split())
        raise DataError(f"{path} cannot be read: {said}; save plain numeric arrays with numpy.savez") from None


def array_inputs(values: np.ndarray[Any, Any], what: str) -> tuple[Literal["image", "table", "sequence"], Tensor]:
    """Tell from its shape and type what kind of input an array holds, and turn it into a tensor of that kind.

    Args:
        values: `(examples, columns)`, `(examples, channels, length)`, or whole numbers from 0 to 255 of shape
            `(examples, height, width)` (uint8), `(examples, channels, height, width)` or
            `(examples, height, width, channels)` with 1 or 3 channels.
        what: how messages name it.

    Returns:
        The modality; float32 inputs, or uint8 for images.

    Raises:
        DataError: if it is none of these, or holds values that are not finite.
    """
    if values.dtype.kind not in "biuf" or values.ndim not in (2, 3, 4) or values.size == 0:
        raise DataError(
            f"{what} has shape {values.shape} and type {values.dtype}; it must hold numbers: (N, columns) "
            f"for a table, "
            f"(N, channels, length) for sequences, (N, channels, height, width) for images"
        )
    if values.ndim == 4 or (values.ndim == 3 and values.dtype == np.uint8):
        return "image", _images(values[:, None] if values.ndim == 3 else values, what)
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    finite = np.isfinite(numbers).reshape(len(numbers), -1).all(1)
    if not finite.all():
        rows = (~finite).nonzero()[0]
        raise DataError(
            f"{what} has values that are not finite in {len(rows)} of {len(numbers)} rows, first in row "
            f"{rows[0] + 1}; "
            f"fill them in or remove the rows"
        )
    return ("table" if values.ndim == 2 else "sequence"), torch.from_numpy(numbers)


def _images(values: np.ndarray[Any, Any], what: str) -> Tensor:
    if values.shape[1] not in (1, 3):
        if values.shape[3] not in (1, 3):
            raise DataError(f"{what} has shape {values.shape}; images need 1 or 3 channels, second or last")
        values = values.transpose(0, 3, 1, 2)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise DataError(
            f"{what} has type {values.dtype} with values from {values.min():g} to {values.max():g}; "
            f"images must be whole numbers from 0 to 255: convert them to uint8"
        )
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.uint8))
