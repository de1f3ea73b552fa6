"""The cosine classifier: only directions count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from repertory.core.classifier import classifier_of, features_and_output
from repertory.errors import OptionError
from repertory.layers import CosineClassifier


def rows(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_equals_scaled_cosines() -> None:
    layer = CosineClassifier(5, 3, scale=7.0).double()
    layer.weight.data *= torch.tensor([[0.1], [1.0], [20.0]])
    expected = 7 * nn.functional.cosine_similarity(rows()[:, None], layer.weight[None], dim=-1)
    torch.testing.assert_close(layer(rows()), expected)


def test_the_length_of_features_does_not_matter_and_zero_features_have_no_gradient() -> None:
    layer = CosineClassifier(5, 3).double()
    torch.testing.assert_close(layer(rows()), layer(1e6 * rows()))
    zero = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    layer(zero).sum().backward()
    assert torch.equal(layer(zero), torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(zero.grad, torch.zeros_like(zero))


def test_initial_weights_are_unit_vectors() -> None:
    torch.testing.assert_close(CosineClassifier(5, 40).weight.norm(dim=1), torch.ones(40))


def test_gradients_are_those_of_finite_differences() -> None:
    layer = CosineClassifier(5, 3, scale=2.0).double()

    def logits(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (features,))

    assert torch.autograd.gradcheck(logits, (rows().requires_grad_(), layer.weight.detach().requires_grad_()))


def test_half_precision_equals_float64_on_the_same_numbers() -> None:
    layer = CosineClassifier(5, 3).bfloat16()
    features = (1e4 * rows()).bfloat16()
    found, exact = layer(features), layer.double()(features.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(features.float()), layer(features))


def test_counts_as_a_networks_classifier() -> None:
    model = nn.Sequential(nn.Linear(5, 4), CosineClassifier(4, 3))
    assert classifier_of(model)[1] is model[1]
    features, _ = features_and_output(model, rows().float())
    assert features.shape == (6, 4)


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"in_features": 0}, {"out_features": 1.5}])
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        CosineClassifier(**{"in_features": 2, "out_features": 2, **options})


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(OptionError, match=r"in_features=5 .*\(6, 4\)"):
        CosineClassifier(5, 3)(torch.zeros(6, 4))
