"""Keys come from a copy that follows the network, without gradient, and the queue keeps no more than the data has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repertory.core.momentum import MomentumKeys
from repertory.core.state import Run
from repertory.errors import DataError, OptionError
from repertory.losses import ContrastiveLoss


def run(model: nn.Module, **more: int) -> Run:
    return Run(model, ContrastiveLoss(), **more)


def test_the_copy_keeps_its_share_of_itself_in_each_update() -> None:
    model = nn.Linear(2, 3)
    keys = MomentumKeys(run(model), "auto", size=4, momentum=0.75)
    before = [p.clone() for p in keys.encoder.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    keys.follow()
    for old, now, target in zip(before, keys.encoder.parameters(), model.parameters()):
        torch.testing.assert_close(now, 0.75 * old + 0.25 * target)
        assert not now.requires_grad


def test_keys_are_unit_vectors_without_gradient_and_their_pass_is_counted() -> None:
    model = nn.Linear(2, 3)
    given = run(model)
    keys, inputs = MomentumKeys(given, "auto", size=4, momentum=0.9), torch.randn(5, 2)
    found = keys(inputs)
    torch.testing.assert_close(found, nn.functional.normalize(model(inputs), dim=1).detach())
    assert not found.requires_grad
    assert given.counts.forward == 5


@pytest.mark.parametrize(("examples", "held"), [(3, 3), (100, 8), (None, 8)])
def test_the_queue_is_no_longer_than_the_data(examples: int | None, held: int) -> None:
    given = Run(nn.Linear(2, 3), ContrastiveLoss(), examples=examples)
    assert len(MomentumKeys(given, "auto", size=8, momentum=0.9).queue.features) == held


def test_which_places_of_the_queue_are_taken_is_known() -> None:
    queue = MomentumKeys(run(nn.Linear(2, 3)), "auto", size=3, momentum=0.9).queue
    for count, taken in ((0, 0), (2, 2), (2, 3)):
        queue.push(torch.ones(count, 3))
        assert queue.there().tolist() == [place < taken for place in range(3)]


def test_misuse_is_refused() -> None:
    for options in ({"size": 0, "momentum": 0.9}, {"size": 4, "momentum": 1.5}):
        with pytest.raises(OptionError, match=r"size=0|momentum=1\.5"):
            MomentumKeys(run(nn.Linear(2, 3)), "auto", **options)
    model = nn.Sequential(nn.Linear(2, 3), nn.Flatten(0), nn.Unflatten(0, (-1, 6)))
    with pytest.raises(DataError, match=r"features are \(2, 6\).* tells 3"):
        MomentumKeys(run(model), "output", size=4, momentum=0.9)(torch.zeros(4, 2))
