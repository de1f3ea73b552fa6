"""StableMax cross-entropy against closed forms, softmax, and the authors' figures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from repertory.errors import DataError, OptionError
from repertory.losses import StableMaxCrossEntropy
from repertory.losses.stablemax import stablemax_logits
from repertory.training.learner import Learner


def s(x: Tensor) -> Tensor:
    return torch.where(x >= 0, x + 1, 1 / (1 - x))


def logits(rows: int = 50, classes: int = 7, scale: float = 4.0) -> Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_losses_by_hand() -> None:
    losses = StableMaxCrossEntropy(reduction="none")(torch.tensor([[0.0, 1.0, -1.0]] * 3), torch.arange(3))
    assert losses.tolist() == pytest.approx([math.log(3.5), math.log(3.5 / 2), math.log(7)], rel=1e-12)


def test_equals_the_definition() -> None:
    x, y = logits(), torch.arange(50) % 7
    expected = -(s(x) / s(x).sum(1, keepdim=True)).log()[torch.arange(50), y]
    torch.testing.assert_close(StableMaxCrossEntropy(reduction="none")(x, y), expected)


def test_gradient_is_that_of_the_closed_form_also_at_zero() -> None:
    x, y = logits(), torch.arange(50) % 7
    x[:, 3] = 0.0
    x.requires_grad_()
    StableMaxCrossEntropy(reduction="sum")(x, y).backward()
    with torch.no_grad():
        slope = torch.where(x >= 0, 1.0, s(x).square())
        expected = slope / s(x).sum(1, keepdim=True) - nn.functional.one_hot(y, 7) * slope / s(x)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("value", [1.0, 0.0, -1.0, 1e30, -1e30])
def test_gradient_in_float32_at_the_poles_of_the_two_halves_is_that_of_the_logarithm(value: float) -> None:
    x = torch.tensor([[value, 0.5]], requires_grad=True)
    stablemax_logits(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[1 / (1 + abs(value)), 1 / 1.5]]), rtol=1e-6, atol=0.0)


def test_stays_above_zero_where_softmax_collapses() -> None:
    x = torch.zeros(1, 10)
    x[0, 0] = 40.0
    x.requires_grad_()
    for criterion, zero in ((nn.CrossEntropyLoss(), True), (StableMaxCrossEntropy(), False)):
        x.grad = None
        loss = criterion(x, torch.tensor([0]))
        loss.backward()
        assert ((loss.item() == 0.0), (x.grad[0, 0].item() == 0.0)) == (zero, zero)  # type: ignore[index]


def test_agrees_with_the_authors_code() -> None:
    """Values of stablemax_cross_entropy of their utils.py on this network, which is drawn below."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    inputs = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    losses = StableMaxCrossEntropy(reduction="none")(model(inputs), torch.tensor([0, 1, 2, 0, 1, 2]))
    theirs = [3.8819836222, 1.5573993366, 0.546985269, 2.2199489082, 0.8374950851, 0.5087687087]
    assert losses.tolist() == pytest.approx(theirs, abs=1e-9)


def test_one_hot_targets_give_the_loss_of_their_classes() -> None:
    x, y = logits(), torch.arange(50) % 7
    soft = nn.functional.one_hot(y, 7).float()
    torch.testing.assert_close(StableMaxCrossEntropy()(x, soft), StableMaxCrossEntropy()(x, y))


def test_half_precision_logits_are_widened_before_the_logarithm() -> None:
    x = torch.tensor([[600.0, 0.0]], dtype=torch.bfloat16)
    loss = StableMaxCrossEntropy()(x, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log1p(1 / (1 + x[0, 0].item())), rel=1e-12)


def test_a_learner_predicts_the_probabilities_that_were_trained() -> None:
    network = nn.Linear(3, 4)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    output = network(x)
    expected = s(output) / s(output).sum(1, keepdim=True)
    torch.testing.assert_close(Learner(network, StableMaxCrossEntropy())(x).softmax(1), expected)


def test_refuses_values_as_targets_and_unknown_reductions() -> None:
    with pytest.raises(DataError, match=r"target has type torch\.float32.*use another loss for regression"):
        StableMaxCrossEntropy()(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(OptionError, match="reduction='avg'"):
        StableMaxCrossEntropy(reduction="avg")
