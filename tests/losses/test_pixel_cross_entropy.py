"""Cross-entropy of pixels: what it equals, and what ignored pixels do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from repertory.core.criterion import per_example
from repertory.core.dense import IGNORED
from repertory.errors import DataError, OptionError
from repertory.losses import PixelCrossEntropyLoss
from repertory.losses.pixel_cross_entropy import pixel_cross_entropy


def examples(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 6, dtype=dtype, generator=generator)
    return logits, torch.randint(4, (3, 5, 6), generator=generator)


def test_equals_torch_where_every_pixel_has_a_class() -> None:
    logits, target = examples()
    torch.testing.assert_close(PixelCrossEntropyLoss()(logits, target), F.cross_entropy(logits, target))


def test_ignored_pixels_have_no_say_and_each_image_the_same() -> None:
    logits, target = examples()
    target[0, :, :4], target[1] = IGNORED, IGNORED
    by_hand = torch.stack([F.cross_entropy(logits[:1], target[:1], ignore_index=IGNORED), torch.tensor(0.0).double()])
    values = PixelCrossEntropyLoss(reduction="none")(logits, target)
    torch.testing.assert_close(values[:2], by_hand)
    torch.testing.assert_close(values[2], F.cross_entropy(logits[2:], target[2:]))
    torch.testing.assert_close(PixelCrossEntropyLoss()(logits, target), values.mean())


def test_gradient_is_that_of_the_mean_and_none_at_ignored_pixels() -> None:
    logits, target = examples()
    target[:, 0] = IGNORED
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: PixelCrossEntropyLoss()(x, target), logits)
    PixelCrossEntropyLoss()(logits, target).backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, 0].any()
    assert logits.grad[:, :, 1:].abs().sum() > 0


def test_a_step_takes_it_an_example_at_a_time() -> None:
    logits, target = examples()
    alone = torch.stack([PixelCrossEntropyLoss()(logits[n : n + 1], target[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(per_example(PixelCrossEntropyLoss())(logits, target), alone)


def test_half_precision_gives_the_value_of_double() -> None:
    logits, target = examples()
    narrow = (30 * logits).half()
    exact = pixel_cross_entropy(narrow.double(), target)
    torch.testing.assert_close(pixel_cross_entropy(narrow, target).double(), exact, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_named() -> None:
    logits, target = examples()
    with pytest.raises(DataError, match="do not belong together"):
        pixel_cross_entropy(logits, target[:, 1:])
    with pytest.raises(DataError, match="class 4, but the logits are for classes 0 to 3"):
        pixel_cross_entropy(logits, target + 1)
    with pytest.raises(OptionError, match="reduction='sum'"):
        PixelCrossEntropyLoss(reduction="sum")
