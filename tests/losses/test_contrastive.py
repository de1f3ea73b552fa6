"""The supervised contrastive loss against brute force, a maintained package, and limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from repertory.errors import DataError, OptionError
from repertory.losses import ContrastiveLoss


def batch(size: int = 8, dim: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, dim, generator=generator, dtype=torch.float64), torch.arange(size) % 3


def test_equals_a_sum_over_pairs() -> None:
    embedding, target = batch()
    unit = embedding / embedding.norm(dim=1, keepdim=True)
    for i, value in enumerate(ContrastiveLoss(0.3, reduction="none")(embedding, target).tolist()):
        others = [a for a in range(8) if a != i]
        total = sum(math.exp(float(unit[i] @ unit[a]) / 0.3) for a in others)
        shares = [math.exp(float(unit[i] @ unit[p]) / 0.3) / total for p in others if target[p] == target[i]]
        assert value == pytest.approx(-sum(map(math.log, shares)) / len(shares))


def test_equals_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.losses import SupConLoss

    embedding, target = batch()
    left, right = (embedding.clone().requires_grad_() for _ in range(2))
    ours, theirs = ContrastiveLoss(0.2)(left, target), SupConLoss(temperature=0.2)(right, target)
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(left.grad, right.grad)


def test_an_example_alone_in_its_class_counts_nothing_but_is_a_negative() -> None:
    embedding, _ = batch(3)
    values = ContrastiveLoss(reduction="none")(embedding, torch.tensor([0, 0, 1]))
    assert values[2] == 0
    assert values[0] > 0
    assert ContrastiveLoss()(embedding[:1], torch.tensor([0])) == 0


def test_a_batch_without_any_pair_has_a_gradient_of_zero() -> None:
    embedding = batch(3)[0].requires_grad_()
    ContrastiveLoss()(embedding, torch.arange(3)).backward()
    assert embedding.grad is not None
    assert embedding.grad.abs().sum() == 0


def test_gradients_are_those_of_finite_differences() -> None:
    embedding, target = batch()
    assert torch.autograd.gradcheck(lambda e: ContrastiveLoss(0.5)(e, target), (embedding.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_low_temperature_is_near_float64_and_zero_vectors_get_no_gradient(
    dtype: torch.dtype, as_float64: Any
) -> None:
    embedding, target = batch()
    embedding[0] = 0
    half, loss = embedding.to(dtype), ContrastiveLoss(0.01)
    (gradient,) = as_float64(lambda rows: loss(rows, target), half, rtol=1e-4)
    assert not gradient[0].any()
    # The square of a length overflows float16; a loss of cosines does not see it.
    torch.testing.assert_close(loss(8192 * half, target), loss(half, target))


def test_bad_input_is_refused() -> None:
    with pytest.raises(OptionError, match="temperature=0"):
        ContrastiveLoss(0)
    with pytest.raises(DataError, match=r"embeddings \(8, 5\) and targets \(7,\)"):
        ContrastiveLoss()(batch()[0], batch()[1][:7])
