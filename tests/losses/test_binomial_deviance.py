"""Binomial deviance against a sum over pairs, its gradient against the released code, and its limits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from repertory.errors import DataError, OptionError
from repertory.losses import BinomialDevianceLoss

RELEASED = json.loads((Path(__file__).parents[1] / "algorithms" / "ecaml_released.json").read_text(encoding="utf-8"))


def batch(size: int = 7, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(size, 4, generator=generator, dtype=torch.float64)
    return embedding, torch.randint(classes, (size,), generator=generator)


def test_equals_the_means_over_both_kinds_of_pairs() -> None:
    embedding, target = batch()
    sums = {True: [], False: []}
    for i in range(len(target)):
        for j in range(i + 1, len(target)):
            s = float(functional.cosine_similarity(embedding[i], embedding[j], dim=0))
            same = bool(target[i] == target[j])
            sums[same].append(math.log1p(math.exp((-1.5 if same else 1.5 * 4.0) * (s - 0.3))))
    expected = sum(sums[True]) / len(sums[True]) + sum(sums[False]) / len(sums[False])
    found = BinomialDevianceLoss(alpha=1.5, beta=0.3, negative_cost=4.0)(embedding, target)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_is_that_of_the_released_code() -> None:
    embedding = torch.tensor(RELEASED["embeddings"], dtype=torch.float64, requires_grad=True)
    BinomialDevianceLoss()(embedding, torch.tensor(RELEASED["targets"])).backward()
    expected = torch.tensor(RELEASED["deviance_gradient"], dtype=torch.float64)
    torch.testing.assert_close(embedding.grad, expected, rtol=1e-7, atol=1e-9)


def test_gradients_are_those_of_finite_differences() -> None:
    embedding, target = batch()
    loss = BinomialDevianceLoss(negative_cost=3.0, reduction="none")
    assert torch.autograd.gradcheck(lambda rows: loss(rows, target), (embedding.requires_grad_(),))


def test_reductions_agree() -> None:
    embedding, target = batch()
    values = BinomialDevianceLoss(reduction="none")(embedding, target)
    assert values.shape == target.shape
    torch.testing.assert_close(values.mean(), BinomialDevianceLoss()(embedding, target))
    torch.testing.assert_close(values.sum(), BinomialDevianceLoss(reduction="sum")(embedding, target))


def test_a_batch_without_pairs_of_a_kind_has_no_sum_over_them() -> None:
    embedding = torch.eye(3, dtype=torch.float64)
    alone = BinomialDevianceLoss()(embedding, torch.arange(3))
    together = BinomialDevianceLoss()(embedding, torch.zeros(3, dtype=torch.int64))
    # All cosines are 0, half below the threshold.
    assert alone.item() == pytest.approx(math.log1p(math.exp(-25.0)))
    assert together.item() == pytest.approx(math.log1p(math.exp(1.0)))
    assert BinomialDevianceLoss()(embedding[:1], torch.zeros(1, dtype=torch.int64)).item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_float64_and_zero_vectors_get_no_gradient(dtype: torch.dtype, as_float64: Any) -> None:
    embedding, target = batch()
    embedding = embedding.to(dtype)
    embedding[0] = 0
    loss = BinomialDevianceLoss(alpha=50.0)
    (gradient,) = as_float64(lambda rows: loss(rows, target), embedding)
    assert not gradient[0].any()
    # The square of a length overflows float16; a loss of cosines does not see it.
    torch.testing.assert_close(loss(8192 * embedding, target), loss(embedding, target))


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"beta": 2.0}, {"negative_cost": -1.0}, {"reduction": "max"}])
def test_bad_options_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        BinomialDevianceLoss(**options)  # type: ignore[arg-type]


def test_mismatched_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(3, 2\) and targets \(4,\)"):
        BinomialDevianceLoss()(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64))
