"""Masks: the class of every pixel as a target, and the check that they fit their images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from repertory.core.dense import IGNORED
from repertory.errors import DataError, OptionError


def check_masks(name: str, inputs: Tensor, masks: Tensor, classes: tuple[str, ...], pool: Tensor, parts: int) -> None:
    """Refuse masks that nothing can be learnt from.

    Args:
        name: of the data.
        inputs: images `(examples, channels, height, width)`.
        masks: `(examples, height, width)`.
        classes: names of the classes.
        pool: rows that training, and the parts that did not come with the data, are cut from.
        parts: how many parts that is.

    Raises:
        DataError: if they are not int64 masks of the images' size, hold a number that is no class, or are too few.
    """
    if inputs.ndim != 4 or masks.dtype != torch.int64 or masks.shape[1:] != inputs.shape[2:]:
        raise DataError(
            f"{name}: images {tuple(inputs.shape)} and masks {tuple(masks.shape)} {masks.dtype} do not belong "
            "together; give images (examples, channels, height, width) and masks int64 (examples, height, width)"
        )
    if not 2 <= len(classes) <= IGNORED:
        raise DataError(
            f"{name} has {len(classes)} classes ({', '.join(classes[:8])}); segmentation takes 2 to {IGNORED}"
        )
    if len(pool) < parts:
        raise DataError(
            f"{name} has {len(pool)} images to split; the minimum is {parts}, one for each of train, validation and "
            "test; add images"
        )
    wrong = ((masks < 0) | (masks >= len(classes))) & (masks != IGNORED)
    if bool(wrong.any()):
        raise DataError(
            f"{name}: a mask holds {int(masks[wrong][0])}, but there are the classes 0 to {len(classes) - 1}; number "
            f"them from 0, and give pixels without a class {IGNORED}"
        )
    # A pass for each class at most; bincount would need the masks as one flat copy.
    if sum(bool((masks[pool] == label).any()) for label in range(len(classes))) < 2:
        raise DataError(f"{name}: the training masks hold fewer than 2 classes; there is nothing to learn")


def no_masks(images: Tensor) -> Tensor:
    """Return masks without a labelled pixel for images `(examples, channels, height, width)`."""
    return torch.full((len(images), *images.shape[2:]), IGNORED)


def check_corruptions(asked: Mapping[str, str]) -> None:
    """Refuse the damage that masks do not take.

    Raises:
        OptionError: naming it.
    """
    for key in ("noise", "imbalance", "labels"):
        if key in asked:
            raise OptionError(f"{key}={asked[key]} damages one label an example, but the data have masks; leave it out")
    if asked.get("shift", "").startswith("rotate"):
        raise OptionError(
            f"shift={asked['shift']} turns images away from their masks; use noise0.3 (standard deviations) or blur2 "
            "(pixels)"
        )
