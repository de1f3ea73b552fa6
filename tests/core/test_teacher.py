"""The teacher of a step: frozen, in evaluation mode, where the network is, and no part of optimizer or state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repertory import Method, Step
from repertory.core.frozen import Frozen
from repertory.errors import ConflictError


class Listener(Method):
    """Learns what the teacher says."""

    slug = "listener"
    needs = frozenset({"teacher"})

    def setup(self, run: Any) -> None:
        self.place = next(run.teacher.parameters()).device.type

    def loss(self, state: Any, inner: Any) -> Tensor:
        loss = inner(state)
        said = state.run.teacher(state.batch["input"])
        self.said, self.trained = said, state.run.teacher.model.training
        return loss + (state.output - said).square().mean()


class Reader(Method):
    """Goes over the training set once."""

    slug = "reader"
    needs = frozenset({"training"})

    def setup(self, run: Any) -> None:
        self.seen = torch.cat([batch[2] for batch in run.training])


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, 2))


def step_of(model: nn.Module, teacher: nn.Module | None, *methods: Method, **more: Any) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Step(model, optimizer, nn.CrossEntropyLoss(), methods=list(methods), teacher=teacher, **more)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2


def test_the_teacher_stays_as_it_is_while_the_network_learns_from_it() -> None:
    model, teacher, method = network(), network(8), Listener()
    before = copy.deepcopy(teacher.state_dict())
    step = step_of(model, teacher, method)
    for _ in range(3):
        step.run.model.train()
        step.run.teacher.train()
        step(batch())
    assert not method.trained
    assert not method.said.requires_grad
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert torch.equal(method.said, teacher.eval()(batch()[0]))


def test_the_teacher_is_neither_optimised_nor_saved() -> None:
    model, teacher = network(), network(8)
    step = step_of(model, teacher, Listener())
    own = {id(parameter) for parameter in teacher.parameters()}
    held = [id(p) for group in step.optimizer.param_groups for p in group["params"]]
    assert not own & set(held)
    assert not own & {id(p) for p in step.run.parameters}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    without = step_of(network(), None)
    assert step.state_dict()["model"].keys() == without.state_dict()["model"].keys()
    assert step.state_dict()["methods"] == {"listener": {}}


def test_the_teacher_moves_to_where_the_network_is() -> None:
    model, teacher, method = network().to("meta"), network(8), Listener()
    assert next(step_of(model, teacher, method).run.teacher.parameters()).device.type == "meta"
    assert method.place == "meta"


def test_a_frozen_teacher_is_taken_as_it_is() -> None:
    frozen = Frozen(network(8))
    assert step_of(network(), frozen).run.teacher is frozen


def test_a_method_without_its_teacher_says_how_to_give_one() -> None:
    with pytest.raises(ConflictError, match=r"listener needs 'teacher'.*pass teacher=module.*--scenario distillation"):
        step_of(network(), None, Listener())


def test_a_teacher_that_shares_weights_with_the_network_is_refused() -> None:
    model = network()
    with pytest.raises(ConflictError, match=r"shares parameters.*copy\.deepcopy"):
        step_of(model, nn.Sequential(model), Listener())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_method_may_go_over_the_training_set() -> None:
    method, (inputs, targets) = Reader(), batch()
    loader = [(inputs[:4], targets[:4], torch.arange(4)), (inputs[4:], targets[4:], torch.arange(4, 6))]
    step_of(network(), None, method, training=loader)
    assert method.seen.tolist() == list(range(6))
    with pytest.raises(ConflictError, match=r"reader needs 'training'.*pass training=loader"):
        step_of(network(), None, Reader())
