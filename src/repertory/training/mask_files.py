"""Predicted masks, and how they are written: palette PNGs that hold the numbers of the classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from repertory.errors import UserError


@dataclasses.dataclass
class MaskPredictions:
    """The class of each pixel of some images.

    Args:
        ids: name of each image: its file, or its row.
        masks: uint8 `(height, width)` of each, of the size of its file, or else of what the network takes. Those of
            files are predicted as they are asked for.
        classes: names of the classes.
    """

    ids: list[str]
    masks: Sequence[Tensor] | Tensor
    classes: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping an image: `input`, and the share of its pixels of each class, `share(name)`."""
        rows: list[dict[str, Any]] = []
        for name, mask in zip(self.ids, self.masks):
            shares = mask.flatten().bincount(minlength=len(self.classes)) / mask.numel()
            rows.append({"input": name} | {f"share({c})": round(s, 6) for c, s in zip(self.classes, shares.tolist())})
        return rows

    def write(self, folder: str | Path) -> list[Path]:
        """Write one PNG an image, named as the image is, and return their paths.

        A pixel's value is the number of its class; the palette is for the eye. A folder of images and these masks can
        be learnt from.

        Args:
            folder: made if it is not there.

        Raises:
            UserError: if it cannot be written to.
        """
        from PIL import Image

        folder, written = Path(folder), dict[Path, None]()
        for name, mask in zip(self.ids, self.masks):
            path = folder / Path(name).with_suffix(".png")
            if path in written:
                # Another image has the same name but for the ending.
                path = folder / f"{name}.png"
            image = Image.fromarray(mask.numpy())
            image.putpalette([level for number in range(256) for level in _colour(number)])
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
            except OSError as error:
                raise UserError(
                    f"masks cannot be written to {str(folder)!r}: {error.strerror or error}; name another folder"
                ) from error
            written[path] = None
        return list(written)


def _colour(number: int) -> tuple[int, int, int]:
    """The colour of a class in the palette of PASCAL VOC: the bits of its number, dealt to red, green and blue."""
    levels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            levels[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
    return levels[0], levels[1], levels[2]
