"""The softmax on cosines against a maintained package and by hand."""

from __future__ import annotations

import pytest
import torch

from repertory.errors import OptionError
from repertory.losses import NormalisedSoftmaxLoss


def made(**options: object) -> tuple[NormalisedSoftmaxLoss, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    loss = NormalisedSoftmaxLoss(4, **{"dim": 5, **options}).double()
    loss.weight_of_classes.data = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    return loss, torch.randn(6, 5, generator=generator, dtype=torch.float64), torch.arange(6) % 4


def test_equals_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.losses import NormalizedSoftmaxLoss

    loss, embedding, target = made(temperature=0.1)
    theirs = NormalizedSoftmaxLoss(4, 5, temperature=0.1).double()
    theirs.W.data = loss.weight_of_classes.detach().T.clone()
    torch.testing.assert_close(loss(embedding, target), theirs(embedding, target))


def test_length_does_not_matter() -> None:
    loss, embedding, target = made()
    before = loss(embedding, target)
    loss.weight_of_classes.data *= 3
    torch.testing.assert_close(loss(7 * embedding, target), before)


def test_reductions_agree() -> None:
    loss, embedding, target = made(reduction="none")
    values = loss(embedding, target)
    assert values.shape == (6,)
    loss.reduction = "mean"
    torch.testing.assert_close(loss(embedding, target), values.mean())


def test_half_precision_stays_finite_at_low_temperature() -> None:
    loss, embedding, target = made(temperature=0.01)
    half = (1e4 * embedding).half().requires_grad_()
    loss.half()
    value = loss(half, target)
    value.backward()
    assert value.dtype == torch.float32
    # The same rounded numbers, computed in double precision.
    exact = loss.double()(half.detach().double(), target)
    torch.testing.assert_close(value.double(), exact, rtol=1e-3, atol=1e-3)
    assert half.grad is not None
    assert bool(half.grad.isfinite().all())


def test_embeddings_of_another_size_are_refused() -> None:
    with pytest.raises(OptionError, match=r"dim=5 .*\(2, 3\)"):
        made()[0](torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
