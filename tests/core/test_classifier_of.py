"""The last linear layer: found, replaced, and read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repertory.core import classifier_of, features_and_output, replace_classifier
from repertory.errors import UserError


class Told(nn.Module):
    """Says which layer classifies; another linear layer is defined after it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)
        self.gate = nn.Linear(6, 6)

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.body(inputs)
        return self.head(hidden * self.gate(hidden).sigmoid())


def test_a_network_that_says_which_layer_classifies_is_believed() -> None:
    model = Told()
    assert classifier_of(model) == ("head", model.head)


def test_without_being_told_the_last_linear_layer_is_taken() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 3)), nn.Dropout())
    assert classifier_of(model) == ("1.1", model[1][1])


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"Conv2d has no nn\.Linear"):
        classifier_of(nn.Conv2d(1, 1, 1))


def test_the_replacement_takes_the_layer_s_place_and_is_told_its_width() -> None:
    model = Told()
    assert replace_classifier(model, lambda width: nn.Linear(width, 9)) is model
    assert model(torch.zeros(2, 4)).shape == (2, 9)


def test_a_network_that_is_the_layer_itself_is_replaced() -> None:
    made = replace_classifier(nn.Linear(4, 3), lambda width: nn.Linear(width, 9))
    assert made(torch.zeros(2, 4)).shape == (2, 9)


def test_features_are_what_the_layer_multiplies() -> None:
    model, inputs = Told(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    features, output = features_and_output(model, inputs)
    torch.testing.assert_close(model.head(features), output)
    assert torch.equal(output, model(inputs))


def test_reading_features_leaves_no_hook_and_keeps_the_graph() -> None:
    model = Told()
    features, _ = features_and_output(model, torch.ones(2, 4))
    features.sum().backward()
    assert model.body.weight.grad is not None
    assert not model.head._forward_pre_hooks
