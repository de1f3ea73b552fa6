"""Losses weighted by a learnt hardness: closed forms, who has which gradient, bounds, the released code's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.errors import DataError, OptionError
from repertory.losses import HardnessWeightedLoss, PixelCrossEntropyLoss, hardness_weighted

RELEASED = json.loads((Path(__file__).parent / "hardness_released.json").read_text(encoding="utf-8"))


def maps(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(3, 4, 5, dtype=dtype, generator=generator) * 2
    return losses, torch.randn(3, 4, 5, dtype=dtype, generator=generator)


def conv(layer: dict[str, Any], **options: Any) -> nn.Conv2d:
    outputs, inputs, side, _ = torch.tensor(layer["weight"]).shape
    made = nn.Conv2d(inputs, outputs, side, **options).double()
    made.load_state_dict({name: torch.tensor(value, dtype=torch.float64) for name, value in layer.items()})
    return made


def test_agrees_with_the_released_code() -> None:
    backbone = conv(RELEASED["backbone"], stride=2, padding=1)
    classifier, head = conv(RELEASED["classifier"]), conv(RELEASED["head"])
    features = backbone(torch.tensor(RELEASED["image"], dtype=torch.float64))
    target = torch.tensor(RELEASED["target"])
    logits = F.interpolate(classifier(features), size=target.shape[1:], mode="bilinear", align_corners=False)
    found = HardnessWeightedLoss(head)(features, *PixelCrossEntropyLoss().elements(logits, target))
    assert found.task.mean().item() == pytest.approx(RELEASED["task"])
    assert found.hardness.mean().item() == pytest.approx(RELEASED["hardness"])
    (found.task + found.hardness).mean().backward()
    for name, module in {"backbone": backbone, "classifier": classifier, "head": head}.items():
        expected = torch.tensor(RELEASED["gradients"][name], dtype=torch.float64)
        torch.testing.assert_close(module.weight.grad, expected)


def test_constant_hardness_gives_the_mean_loss() -> None:
    losses, raw = maps()
    found = hardness_weighted(losses, torch.full_like(raw, 0.7))
    torch.testing.assert_close(found.task.mean(), losses.mean())
    torch.testing.assert_close(found.task, losses.flatten(1).mean(1))
    torch.testing.assert_close(found.hardness.mean(), -0.01 * losses.mean())


def test_two_elements_by_hand() -> None:
    losses, raw = torch.tensor([1.0, 2.0]).double(), torch.tensor([0.0, torch.inf]).double()
    found = hardness_weighted(losses, raw)
    torch.testing.assert_close(found.weights, torch.tensor([0.6, 1.1]).double() / 1.7)
    assert found.task.mean().item() == pytest.approx((0.6 + 2.2) / 1.7)
    assert found.hardness.mean().item() == pytest.approx(-0.01 * (0.6 + 2.2) / 1.7)


def test_each_side_has_its_own_gradient() -> None:
    losses, raw = (each.requires_grad_() for each in maps())
    found = hardness_weighted(losses, raw, weight=0.3)
    torch.testing.assert_close(torch.autograd.grad(found.task.mean(), losses, retain_graph=True)[0], found.weights)
    assert torch.autograd.grad(found.task.mean(), raw, retain_graph=True, allow_unused=True)[0] is None
    assert torch.autograd.grad(found.hardness.mean(), losses, retain_graph=True, allow_unused=True)[0] is None
    slope = torch.autograd.grad(found.hardness.mean(), raw)[0]
    share = raw.sigmoid()
    total = (share + 0.1).sum()
    by_hand = -0.3 * (losses - (found.weights * losses).sum()) / total * share * (1 - share)
    torch.testing.assert_close(slope, by_hand.detach())


def test_gradient_of_the_head_agrees_with_finite_differences() -> None:
    losses, raw = maps()
    assert torch.autograd.gradcheck(lambda raw: hardness_weighted(losses, raw).hardness.sum(), raw.requires_grad_())


def test_hardness_alone_goes_to_its_bounds() -> None:
    """On a fixed map of losses, weights above and below the weighted mean end a factor of 11 apart."""
    losses, _ = maps()
    losses = losses.round() + losses / 10
    raw = torch.zeros_like(losses).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.3)
    for _ in range(40):
        optimizer.zero_grad()
        hardness_weighted(losses, raw, weight=1.0).hardness.mean().backward()
        optimizer.step()
    found = hardness_weighted(losses, raw)
    above = losses > found.task.mean()
    assert 5 < int(above.sum()) < 55
    ratio = found.weights[above].min() / found.weights[~above].max()
    assert ratio.item() == pytest.approx(11, rel=0.02)


def test_the_order_of_examples_does_not_matter_and_weights_sum_to_one() -> None:
    losses, raw = maps()
    order = torch.tensor([2, 0, 1])
    found, turned = hardness_weighted(losses, raw), hardness_weighted(losses[order], raw[order])
    torch.testing.assert_close(found.task[order], turned.task)
    assert found.weights.sum().item() == pytest.approx(1)


def test_elements_left_out_change_nothing() -> None:
    losses, raw = maps()
    valid = torch.ones_like(losses, dtype=torch.bool)
    valid[:, 1:3] = False
    found = hardness_weighted(losses, raw, valid)
    kept = hardness_weighted(losses[:, [0, 3]], raw[:, [0, 3]])
    torch.testing.assert_close(found.task, kept.task)
    torch.testing.assert_close(found.weights[:, [0, 3]], kept.weights)
    nothing = hardness_weighted(losses, raw, torch.zeros_like(valid))
    assert nothing.task.tolist() == [0.0, 0.0, 0.0]


def test_ignored_pixels_are_counted_unless_asked_otherwise() -> None:
    features, losses = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 4, 4)
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[0], losses[0] = False, 0.0
    head = nn.Conv2d(3, 1, 1)
    counted = HardnessWeightedLoss(head)(features, losses, valid).task.mean()
    left_out = HardnessWeightedLoss(head, count_ignored=False)(features, losses, valid).task.mean()
    assert left_out.item() == pytest.approx(1)
    assert 0.1 < counted.item() < 0.9


def test_features_get_no_gradient_from_the_head() -> None:
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = HardnessWeightedLoss(nn.Conv2d(3, 1, 1))
    loss(features, torch.rand(2, 8, 8)).hardness.mean().backward()
    assert features.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_examples_are_elements_too() -> None:
    losses = torch.rand(5, generator=torch.Generator().manual_seed(0))
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    found = HardnessWeightedLoss(nn.Linear(3, 1))(features, losses)
    torch.testing.assert_close(found.task, 5 * found.weights * losses)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_value_of_double(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    losses = (torch.rand(4, 200, 200, generator=generator) * 50).to(dtype)
    raw = torch.randn(4, 200, 200, generator=generator).to(dtype)
    exact = hardness_weighted(losses.double(), raw.double())
    found = hardness_weighted(losses, raw)
    torch.testing.assert_close(found.task.double(), exact.task, rtol=1e-4, atol=1e-4)


def test_bad_input_is_named() -> None:
    losses, raw = maps()
    with pytest.raises(DataError, match=r"losses \(3, 4, 5\), raw \(3, 4, 4\) must have one shape"):
        hardness_weighted(losses, raw[..., 1:])
    with pytest.raises(DataError, match=r"head gives \(2, 3, 4, 4\).*end it in a layer with one output"):
        HardnessWeightedLoss(nn.Conv2d(3, 3, 1))(torch.zeros(2, 3, 4, 4), torch.zeros(2, 8, 8))
    with pytest.raises(OptionError, match=r"eps=0\.0"):
        HardnessWeightedLoss(nn.Identity(), eps=0.0)
    with pytest.raises(OptionError, match=r"weight=-1\.0"):
        HardnessWeightedLoss(nn.Identity(), weight=-1.0)
