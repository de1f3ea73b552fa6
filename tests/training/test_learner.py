from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.training import Learner


class Distances(nn.Module):
    """A loss whose own centres predict."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.eye(2))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return -self.logits(output).gather(1, target[:, None]).mean()

    def logits(self, output: Tensor) -> Tensor:
        return -torch.cdist(output, self.centres)


def test_predicts_with_the_network_alone_where_the_loss_has_no_say() -> None:
    network = nn.Linear(3, 2)
    inputs = torch.randn(4, 3)
    assert torch.equal(Learner(network, nn.CrossEntropyLoss())(inputs), network(inputs))


def test_predicts_through_the_loss_where_it_holds_the_centres() -> None:
    learner = Learner(nn.Identity(), Distances())
    outputs = learner(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(outputs, -(2**0.5) * (1 - torch.eye(2)))


def test_regression_is_put_back_on_the_scale_of_the_target() -> None:
    learner = Learner(nn.Identity(), nn.MSELoss(), offset=10.0, scale=2.0)
    assert torch.equal(learner(torch.tensor([[0.0], [1.5]])), torch.tensor([[10.0], [13.0]]))


def test_the_scale_and_the_centres_are_part_of_the_state() -> None:
    state = Learner(nn.Identity(), Distances(), 10.0, 2.0).state_dict()
    other = Learner(nn.Identity(), Distances())
    other.load_state_dict(state)
    assert set(state) == {"offset", "scale", "criterion.centres"}
    assert torch.equal(other(torch.eye(2)), Learner(nn.Identity(), Distances(), 10.0, 2.0)(torch.eye(2)))
