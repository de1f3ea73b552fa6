"""Features are those of the network's own pass, and gradients from behind them are let through as far as asked."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from repertory.core.features import NetworkFeatures, takes_embeddings
from repertory.errors import DataError, OptionError, UserError
from repertory.losses import ContrastiveLoss, NormalisedSoftmaxLoss, SoftTripleLoss


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_criteria_on_embeddings_are_told_from_others() -> None:
    assert takes_embeddings(NormalisedSoftmaxLoss(3))
    assert takes_embeddings(ContrastiveLoss())
    assert takes_embeddings(SoftTripleLoss)
    assert not takes_embeddings(nn.CrossEntropyLoss())
    assert not takes_embeddings(nn.functional.cross_entropy)


@pytest.mark.parametrize(
    ("criterion", "where", "width"),
    [
        (nn.CrossEntropyLoss(), "auto", 4),
        (ContrastiveLoss(), "auto", 2),
        (nn.CrossEntropyLoss(), "output", 2),
        (ContrastiveLoss(), "penultimate", 4),
    ],
)
def test_features_are_what_enters_the_classifier_or_the_output(criterion: nn.Module, where: str, width: int) -> None:
    model, inputs = network(), torch.randn(5, 3)
    features = NetworkFeatures(model, criterion, where)
    with features.recorded() as seen:
        output = model(inputs)
    expected = model[:2](inputs) if width == 4 else output
    assert torch.equal(seen[-1], expected)
    assert features.dim == width


@pytest.mark.parametrize("where", ["output", "penultimate"])
@pytest.mark.parametrize("passed", [0.0, 0.25, 1.0])
def test_a_share_of_the_gradient_passes_and_no_value_changes(where: str, passed: float) -> None:
    model, inputs = network(), torch.randn(5, 3)

    def gradients(output: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(output.square().sum(), list(model.parameters()), allow_unused=True))

    whole, expected = gradients(model(inputs)), model(inputs)
    features = NetworkFeatures(model, nn.MSELoss(), where)
    with features.recorded(passed):
        output = model(inputs)
        assert torch.equal(output, expected)
        # What comes after the features keeps all of its gradient.
        below = len(whole) if where == "output" else 2
        found = gradients(output) if output.requires_grad else [None] * below
    for number, (part, full) in enumerate(zip(found, whole)):
        share = passed if number < below else 1.0
        torch.testing.assert_close(torch.zeros_like(full) if part is None else part, share * full)


def test_nothing_happens_outside_of_the_block_and_to_copies() -> None:
    model, inputs = network(), torch.randn(5, 3)
    features = NetworkFeatures(model, nn.MSELoss())
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with features.recorded(0.0) as seen:
        for other in copies:
            assert other(inputs)[0].grad_fn is not None
        assert not seen
        model(inputs)
    model(inputs)
    assert len(seen) == 1


def test_misuse_is_refused() -> None:
    with pytest.raises(OptionError, match="features='middle'"):
        NetworkFeatures(network(), nn.MSELoss(), "middle")
    with pytest.raises(UserError, match=r"no nn\.Linear"):
        NetworkFeatures(nn.Identity(), nn.MSELoss())
    features = NetworkFeatures(network(), nn.MSELoss())
    with pytest.raises(UserError, match="were not seen"), features.recorded():
        pass
    model = network()
    with pytest.raises(DataError, match=r"must be a tensor"), NetworkFeatures(model, None, "output").recorded():
        model(torch.zeros(3))
