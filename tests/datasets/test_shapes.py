"""Generated scenes: masks are true by construction, and brightness does not tell the classes apart."""

from __future__ import annotations

import pytest
import torch

from repertory.datasets import load
from repertory.datasets.shapes import CLASSES, scenes
from repertory.errors import OptionError


def test_without_noise_the_background_is_dark_and_every_object_bright() -> None:
    images, masks = scenes(50, noise=0.0)
    bright = images[:, 0] >= 64 + round(0.7 * 56)
    assert torch.equal(bright, masks > 0)
    assert (images[:, 0][masks == 0] == 64).all()


def test_a_line_is_one_pixel_wide_and_crosses_the_scene() -> None:
    _, masks = scenes(300)
    alone = [mask for mask in masks == 2 if 20 <= int(mask.sum()) <= 32]
    assert len(alone) > 50
    for mask in alone:
        assert min(int(mask.sum(0).max()), int(mask.sum(1).max())) <= 2


def test_dots_are_squares_of_two_pixels() -> None:
    dots = scenes(300)[1] == 3
    counts = dots.sum((1, 2))
    assert int(counts.min()) >= 4
    assert int(counts.max()) <= 16
    single = dots[counts == 4].flatten(1).long().argmax(1)
    rows, columns = single // 32, single % 32
    square = torch.zeros(len(single), 32, 32, dtype=torch.bool)
    for down in (0, 1):
        for right in (0, 1):
            square[torch.arange(len(single)), rows + down, columns + right] = True
    assert torch.equal(square, dots[counts == 4])


def test_objects_of_all_classes_are_equally_bright() -> None:
    images, masks = scenes(2000, noise=0.0)
    values = images[:, 0].double()
    # Where a single object lies, the brightest possible value is that of strength 1.3.
    means = [values[(masks == label) & (values <= 64 + 1.3 * 56)].mean() for label in (1, 2, 3)]
    assert max(means) - min(means) < 3


def test_options_choose_number_and_size() -> None:
    data = load("shapes?examples=25&side=20")
    assert data.inputs.shape == (25, 1, 20, 20)
    assert data.targets.shape == (25, 20, 20)
    assert data.classes == CLASSES
    assert torch.equal(load("shapes?examples=25&side=20").inputs, data.inputs)
    for option in ("examples=5", "side=8", "side=big"):
        with pytest.raises(OptionError, match=f"{option} must be a whole number"):
            load(f"shapes?{option}")
    with pytest.raises(OptionError, match="examples=25 does not apply to the built-in iris"):
        load("iris?examples=25")
