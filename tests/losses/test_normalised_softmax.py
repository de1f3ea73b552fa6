"""The softmax on cosines against a maintained package and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_low_temperature_is_near_float64(dtype: torch.dtype, as_float64: Any) -> None:
    loss, embedding, target = made(temperature=0.01)
    half = embedding.to(dtype)
    as_float64(
        lambda rows, weight: functional_call(loss, {"weight_of_classes": weight}, (rows, target)),
        half,
        loss.weight_of_classes.detach().to(dtype),
    )
    # The square of a length overflows float16; a loss of cosines does not see it.
    torch.testing.assert_close(loss(8192 * half, target), loss(half, target))


def test_embeddings_of_another_size_are_refused() -> None:
    with pytest.raises(OptionError, match=r"dim=5 .*\(2, 3\)"):
        made()[0](torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
