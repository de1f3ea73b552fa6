"""The pattern of a layer that doubles the batch in training, with a layer that is easy to compute by hand."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Method, Step
from repertory.algorithms import PSKD, SAF
from repertory.core.features import NetworkFeatures
from repertory.core.state import Run, State
from repertory.errors import ConflictError
from repertory.layers.batchformer import BatchFormerTraining
from repertory.layers.doubled import DoubledBatch, attention, repeated
from repertory.layers.relationship_batch import RBITraining
from repertory.losses import ContrastiveLoss

SIZE, WIDTH, CLASSES = 6, 4, 3


class Reversed(DoubledBatch):
    """Mixes each feature with the mirrored batch, through a trained matrix."""

    slug = "reversed"

    def __init__(self, copies: int = 2) -> None:
        super().__init__()
        self.copies = copies

    def make(self, run: Run, width: int, seed: int) -> nn.Module:
        return nn.Linear(width, width, bias=False)

    def enlarge(self, features: Tensor, inputs: Any) -> Tensor:
        assert self.layer is not None
        mixed: Tensor = features + self.layer(features.flip(0))
        return torch.cat([features, mixed]) if self.copies == 2 else mixed


class Noted(Method):
    """Notes outputs and values as they reach it."""

    slug = "noted"

    def loss(self, state: State, inner: Callable[[State], Tensor]) -> Tensor:
        values = inner(state)
        self.output, self.values = state.output, values
        return values


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))


def made(*methods: Method, criterion: nn.Module | None = None, model: nn.Module | None = None, **options: Any) -> Step:
    sgd = functools.partial(torch.optim.SGD, lr=0.1)
    return Step(model or network(), sgd, criterion or nn.CrossEntropyLoss(), methods=list(methods), **options)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input": torch.randn(SIZE, 5, generator=generator),
        "target": torch.arange(SIZE) % CLASSES,
        "index": torch.arange(SIZE),
    }


def test_loss_of_an_example_is_the_mean_of_its_two_and_others_see_the_plain_output() -> None:
    method, noted = Reversed(), Noted()
    step, entries = made(noted, method), batch()
    model, mix = copy.deepcopy(step.run.model), copy.deepcopy(method.layer)
    assert mix is not None
    features = model[1](model[0](entries["input"]))
    plain, mixed = (model[2](rows) for rows in (features, features + mix(features.flip(0))))
    losses = [functional.cross_entropy(rows, entries["target"], reduction="none") for rows in (plain, mixed)]
    step(entries)
    torch.testing.assert_close(noted.values, (losses[0] + losses[1]) / 2)
    torch.testing.assert_close(noted.output, plain)
    ((losses[0] + losses[1]) / 2).mean().backward()
    for parameter, other in zip(step.run.parameters, [*model.parameters(), *mix.parameters()]):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_one_copy_classifies_the_mixed_features_alone() -> None:
    noted, method = Noted(), Reversed(copies=1)
    step, entries = made(noted, method), batch()
    model, mix = copy.deepcopy(step.run.model), copy.deepcopy(method.layer)
    assert mix is not None
    features = model[1](model[0](entries["input"]))
    output = model[2](features + mix(features.flip(0)))
    step(entries)
    torch.testing.assert_close(noted.output, output)
    torch.testing.assert_close(noted.values, functional.cross_entropy(output, entries["target"], reduction="none"))


@pytest.mark.parametrize("first", [True, False])
def test_methods_on_either_side_record_plain_outputs(first: bool) -> None:
    saf = SAF(weight=0.0001, start=0, lag=1)
    step = made(*([Reversed(), saf] if first else [saf, Reversed()]), epochs=3, examples=SIZE, classes=CLASSES)
    entries = batch()
    plain = copy.deepcopy(step.run.model)(entries["input"]).detach()
    step(entries)
    torch.testing.assert_close(saf.past[0].read(entries["index"]), plain)


@pytest.mark.parametrize("first", [True, False])
def test_soft_targets_of_another_method_are_doubled(first: bool) -> None:
    runs = []
    for order in (first, not first):
        pair = [PSKD(alpha=0.8), Reversed()]
        step = made(*(pair if order else pair[::-1]), epochs=2, examples=SIZE, classes=CLASSES)
        losses = []
        for _ in range(2):
            losses.append(float(step(batch())))
            step.end_epoch()
        runs.append(losses)
    assert runs[0] == runs[1]


def test_a_loss_over_the_batch_gets_both_halves_at_once() -> None:
    method = Reversed()
    step, entries = made(method, criterion=ContrastiveLoss()), batch()
    model, mix = copy.deepcopy(step.run.model), copy.deepcopy(method.layer)
    assert mix is not None
    features = model[1](model[0](entries["input"]))
    output = model[2](torch.cat([features, features + mix(features.flip(0))]))
    target = entries["target"].repeat(2)
    assert float(step(entries)) == pytest.approx(ContrastiveLoss()(output, target).item(), rel=1e-5)


def test_the_network_is_what_it_was_outside_of_a_step_and_in_copies() -> None:
    model = network()
    entries = batch()
    expected = model(entries["input"]).detach()
    names = list(model.state_dict())
    step = made(Reversed(), model=model)
    assert step.run.model is model
    assert torch.equal(model.train()(entries["input"]), expected)
    assert torch.equal(copy.deepcopy(model)(entries["input"]), expected)
    assert list(model.state_dict()) == names
    step(entries)
    assert torch.equal(model(entries["input"]), copy.deepcopy(model)(entries["input"]))


def test_another_method_may_evaluate_the_network_inside_of_a_loss() -> None:
    class Twice(Method):
        slug = "twice"

        def loss(self, state: State, inner: Callable[[State], Tensor]) -> Tensor:
            self.own = state.run.model(state.batch["input"])
            return inner(state)

    twice = Twice()
    made(Reversed(), twice)(batch())
    assert twice.own.shape == (SIZE, CLASSES)


def test_gradients_of_single_examples_are_those_of_batches_of_one() -> None:
    class Each(Method):
        slug = "each"

        def step(self, state: State, inner: Callable[[State], Tensor]) -> Tensor:
            self.found = next(state.run.example_gradients(state))
            return inner(state)

    each = Each()
    step = made(each, BatchFormerTraining(dropout=0.0))
    state, entries = copy.deepcopy(step.state_dict()), batch()
    step(entries)
    alone = made(BatchFormerTraining(dropout=0.0))
    state["methods"].pop("each")
    alone.load_state_dict(state)
    alone({name: value[:1] for name, value in entries.items()})
    for parameter, rows in zip(alone.run.parameters, each.found):
        torch.testing.assert_close(rows[0], parameter.grad, rtol=1e-4, atol=1e-6)


def test_two_such_layers_do_not_go_together() -> None:
    with pytest.raises(ConflictError, match="batchformer and relationship-batch both own the slot 'forward'"):
        made(BatchFormerTraining(), RBITraining())


def test_a_classifier_that_another_method_puts_in_is_the_one_that_counts() -> None:
    class Replaces(Method):
        slug = "replaces"

        def setup(self, run: Run) -> None:
            run.model[2] = nn.Linear(WIDTH, 7)  # type: ignore[index,operator]

    noted = Noted()
    made(noted, Reversed(), Replaces())(batch())
    assert noted.output.shape == (SIZE, 7)


@pytest.mark.parametrize("place", ["output", "penultimate"])
@pytest.mark.parametrize("first", [True, False])
def test_features_that_another_method_takes_from_the_pass_are_plain(place: str, first: bool) -> None:
    class Takes(Method):
        slug = "takes"

        def setup(self, run: Run) -> None:
            self.features = NetworkFeatures(run.model, run.criterion, place)

        def loss(self, state: State, inner: Callable[[State], Tensor]) -> Tensor:
            with self.features.recorded() as seen:
                values = inner(state)
            self.found = seen[-1]
            return values

    takes = Takes()
    step, entries = made(*([Reversed(), takes] if first else [takes, Reversed()])), batch()
    model = copy.deepcopy(step.run.model)
    step(entries)
    torch.testing.assert_close(takes.found, (model if place == "output" else model[:2])(entries["input"]))


def test_networks_that_do_not_fit_are_refused() -> None:
    class Pair(nn.Linear):
        def forward(self, inputs: Tensor) -> Any:
            return (super().forward(inputs),)

    with pytest.raises(ConflictError, match=r"sends 12 rows .* gives a tuple"):
        made(Reversed(), model=Pair(5, CLASSES))(batch())
    pooled = nn.Sequential(nn.Linear(5, CLASSES), nn.Flatten(0), nn.Unflatten(0, (4, 9)))
    with pytest.raises(ConflictError, match=r"sends 12 rows .* gives \(4, 9\)"):
        made(Reversed(), model=pooled)(batch())
    tokens = nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Linear(1, CLASSES))
    with pytest.raises(ConflictError, match=r"\(6, 5, 1\) enters the last linear layer"):
        made(Reversed(), model=tokens)(batch())


def test_repeats_what_has_a_row_an_example() -> None:
    target = {"label": torch.tensor([1, 2]), "pair": [torch.ones(2, 3), torch.ones(3)], "name": "x", "none": None}
    found = repeated(target, 2)
    assert found["label"].tolist() == [1, 2, 1, 2]
    assert found["pair"][0].shape == (4, 3)
    assert found["pair"][1].shape == (3,)
    assert (found["name"], found["none"]) == ("x", None)


def test_attention_equals_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, SIZE, WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(2, SIZE, SIZE, generator=generator, dtype=torch.float64)
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    found = attention(query, key, value, bias)
    torch.testing.assert_close(found, expected.transpose(0, 1).flatten(1), rtol=1e-6, atol=1e-6)
