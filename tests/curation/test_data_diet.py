"""Data diet: scores against closed forms, plain loops and the authors' numbers; selection against brute force."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repertory.core.classifier import features_and_output
from repertory.curation import DataDiet
from repertory.curation.data_diet import (
    ForgettingCounter,
    edit,
    el2n,
    grand,
    last_layer_norm,
    margin,
    select,
)
from repertory.errors import ConflictError, DataError, OptionError
from repertory.recipe import Part, Recipe

# What the authors' code gives for a tanh network with these weights, inputs and labels, in float64.
LABELS = torch.tensor([0, 3, 1, 2, 1, 0])
AUTHORS = {
    "l2_error": [0.976767, 1.200917, 0.742135, 1.155198, 0.889598, 0.915395],
    "l1_error": [1.536433, 1.799028, 1.236213, 1.869962, 1.535946, 1.469146],
    "max_margin": [0.345438, 0.690797, -0.010138, 0.534772, 0.079621, 0.244217],
    "sum_margin": [0.072867, 0.598056, -0.527574, 0.739923, 0.071892, -0.061708],
    "grad_norm": [2.122941, 3.00456, 1.490314, 2.852499, 1.890357, 2.09721],
}


def wave(size: int, frequency: float, phase: float) -> Tensor:
    return (frequency * torch.arange(size, dtype=torch.float64) + phase).sin()


def authors_problem() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    values = {
        "0.weight": wave(12, 0.7, 0.1).reshape(4, 3),
        "0.bias": wave(4, 1.1, 0.5),
        "2.weight": wave(16, 2.9, 0.4).reshape(4, 4),
        "2.bias": wave(4, 0.9, 1.5),
    }
    model.load_state_dict(values)
    return model, 2 * wave(18, 1.3, 0.2).reshape(6, 3)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for value in (*model.parameters(), *model.buffers()):
        if value.is_floating_point():
            value.data = torch.rand(value.shape, generator=generator) - 0.3 * (value.ndim > 1)
    return model


def mlp() -> nn.Module:
    return drawn(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)))


def cnn() -> nn.Module:
    return drawn(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        )
    )


def looped(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """One backward pass an example."""
    model.eval()
    norms = []
    for example, target in zip(inputs, targets):
        model.zero_grad()
        nn.functional.cross_entropy(model(example[None]), target[None]).backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
    model.zero_grad()
    return torch.stack(norms)


def test_error_by_hand() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert el2n(logits, torch.tensor([0])).item() == pytest.approx(0.14**0.5)
    assert el2n(logits, torch.tensor([0]), order=1).item() == pytest.approx(0.6)
    assert margin(logits, torch.tensor([2])).item() == pytest.approx(0.6)
    assert margin(logits, torch.tensor([2]), "sum").item() == pytest.approx(0.7)


def test_error_of_a_uniform_guess_and_of_certainty() -> None:
    targets = torch.arange(8)
    assert torch.allclose(el2n(torch.zeros(8, 8), targets), torch.tensor((1 - 1 / 8) ** 0.5))
    certain = 1e4 * torch.eye(8)
    assert el2n(certain, targets).max() == 0
    assert torch.allclose(el2n(certain, targets.roll(1)), torch.tensor(2**0.5))


def test_scores_are_those_of_the_authors_code() -> None:
    model, inputs = authors_problem()
    logits = model(inputs).detach()
    found = {
        "l2_error": el2n(logits, LABELS),
        "l1_error": el2n(logits, LABELS, order=1),
        "max_margin": margin(logits, LABELS),
        "sum_margin": margin(logits, LABELS, "sum"),
        "grad_norm": grand(model, inputs, LABELS),
    }
    for name, values in AUTHORS.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)


def test_wrong_label_scores_above_the_right_one() -> None:
    logits = draw(50, 4)
    right, wrong = logits.argmax(1), logits.argmin(1)
    assert (el2n(logits, wrong) > el2n(logits, right)).all()
    assert (margin(logits, wrong) > margin(logits, right)).all()


@pytest.mark.parametrize("bias", [True, False])
def test_gradient_norm_of_softmax_regression_is_the_error_times_the_input(bias: bool) -> None:
    model, inputs, targets = nn.Linear(6, 3, bias=bias).double(), draw(9, 6).double(), torch.arange(9) % 3
    expected = el2n(model(inputs), targets) * (inputs.square().sum(1) + bias).sqrt()
    for mode in ("full", "last_layer"):
        torch.testing.assert_close(grand(model, inputs, targets, mode=mode), expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("make", "shape"), [(mlp, (6,)), (cnn, (1, 4, 4))])
def test_gradient_norms_equal_a_loop_of_backward_passes(make: Any, shape: tuple[int, ...]) -> None:
    model, inputs, targets = make(), draw(10, *shape), torch.arange(10) % 3
    expected = looped(model, inputs, targets)
    for chunk in (None, 1, 4, 100):
        torch.testing.assert_close(grand(model, inputs, targets, chunk=chunk), expected, rtol=1e-5, atol=1e-6)


def test_last_layer_mode_is_the_gradient_of_the_last_layer_alone() -> None:
    model, inputs, targets = cnn(), draw(10, 1, 4, 4), torch.arange(10) % 3
    closed = grand(model, inputs, targets, mode="last_layer", chunk=3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("5."))
    torch.testing.assert_close(grand(model, inputs, targets), closed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["full", "last_layer"])
def test_scoring_leaves_the_network_as_it_was(mode: str) -> None:
    model = cnn().train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not grand(model, draw(5, 1, 4, 4), torch.arange(5) % 3, mode=mode).requires_grad
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_score_of_an_example_does_not_depend_on_its_batch() -> None:
    model, inputs, targets = cnn().train(), draw(8, 1, 4, 4), torch.arange(8) % 3
    together = grand(model, inputs, targets)
    alone = torch.cat([grand(model, inputs[i : i + 1], targets[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_forgetting_counts_are_those_of_the_authors_code() -> None:
    counter = ForgettingCounter(6)
    rounds = [[1, 0, 1, 0, 0, 1], [0, 0, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0]]
    for correct in rounds:
        order = torch.tensor([3, 1, 5, 0, 4, 2])
        for index in order.split(4):
            counter.update(index, torch.tensor(correct)[index])
    assert counter.scores().tolist() == [2.0, torch.inf, 1.0, 1.0, 0.0, 1.0]


def test_forgetting_counts_go_on_from_a_saved_state() -> None:
    first, second, index = ForgettingCounter(3), ForgettingCounter(3), torch.arange(3)
    first.update(index, torch.tensor([1, 1, 0]))
    second.load_state_dict(first.state_dict())
    second.update(index, torch.tensor([0, 1, 0]))
    assert second.scores().tolist() == [1.0, 0.0, torch.inf]


def test_selection_is_the_tail_or_a_window_of_the_ranking() -> None:
    scores = draw(30)
    ranking = np.argsort(scores.numpy())
    assert select(scores, 12).tolist() == sorted(ranking[-12:])
    assert select(scores, 12, "window", 5).tolist() == sorted(ranking[5:17])
    assert select(scores, 12, "window", 18).tolist() == select(scores, 12).tolist()
    assert select(scores, 30).tolist() == list(range(30))
    assert select(scores, 0).tolist() == []


def test_infinite_and_equal_scores_are_ranked() -> None:
    assert select(torch.tensor([torch.inf, 1.0, torch.inf, 0.0]), 2).tolist() == [0, 2]
    assert select(torch.zeros(5), 2).tolist() == [3, 4]


def test_random_selection_depends_on_the_generator_alone() -> None:
    first, second = (
        select(scores, 40, "random", generator=torch.Generator().manual_seed(3))
        for scores in (draw(100), draw(100, seed=1))
    )
    assert torch.equal(first, second)
    assert len(first.unique()) == 40
    assert not torch.equal(first, select(draw(100), 40, "random", generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(("rule", "offset"), [("keep_max", 0), ("window", 6)])
def test_balanced_selection_applies_the_rule_inside_each_class(rule: str, offset: int) -> None:
    # Classes of 20, 10 and 30: a half of each, and of the offset a tenth of each.
    targets = torch.tensor([0] * 20 + [1] * 10 + [2] * 30)[
        torch.randperm(60, generator=torch.Generator().manual_seed(0))
    ]
    scores = draw(60) + targets
    expected: list[int] = []
    for k, size in enumerate((20, 10, 30)):
        members = (targets == k).nonzero().flatten()
        ranked = members[scores[members].argsort()]
        start = size // 2 if rule == "keep_max" else size // 10
        expected += ranked[start : start + size // 2].tolist()
    assert select(scores, 30, rule, offset, balanced=True, targets=targets).tolist() == sorted(expected)


@pytest.mark.parametrize("rule", ["keep_max", "window", "random"])
def test_balanced_selection_keeps_the_count_when_shares_are_not_whole(rule: str) -> None:
    targets = torch.tensor([0] * 7 + [1] * 5 + [3] * 1)
    for count in range(14):
        offset = 13 - count if rule == "window" else 0
        kept = select(draw(13), count, rule, offset, balanced=True, targets=targets)
        assert len(kept) == count == len(kept.unique())
        shares = targets[kept].bincount(minlength=4) - count * targets.bincount(minlength=4) / 13
        assert shares.abs().max() < 1


def test_bad_selections_are_named() -> None:
    scores = draw(10)
    with pytest.raises(OptionError, match="rule='keep_min'"):
        select(scores, 5, "keep_min")
    with pytest.raises(OptionError, match="count=11"):
        select(scores, 11)
    with pytest.raises(OptionError, match="offset=6"):
        select(scores, 5, "window", 6)
    with pytest.raises(OptionError, match="needs targets"):
        select(scores, 5, balanced=True)
    with pytest.raises(DataError, match="1 of 10 scores"):
        select(scores.index_fill(0, torch.tensor([3]), torch.nan), 5)
    with pytest.raises(OptionError, match="mode='first_layer'"):
        grand(mlp(), draw(2, 6), torch.zeros(2, dtype=torch.int64), mode="first_layer")
    with pytest.raises(OptionError, match="chunk=0"):
        grand(mlp(), draw(2, 6), torch.zeros(2, dtype=torch.int64), chunk=0)


class Bench:
    """A run that notes what is asked of it; a training with share s multiplies the weights by 1 + s."""

    def __init__(self) -> None:
        self.inputs = draw(12, 6)
        self.splits = SimpleNamespace(train=SimpleNamespace(targets=torch.arange(12) % 3))
        self.trainings: list[tuple[str, float]] = []
        self.counts = {"forward": 0, "backward": 0}

    def generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(len(name))

    def fresh_model(self, name: str) -> nn.Module:
        return drawn(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), seed=int(name[-1]))

    def train(self, model: nn.Module, share: float, *, name: str) -> nn.Module:
        self.trainings.append((name, share))
        for parameter in model.parameters():
            parameter.data *= 1 + share
        return model

    def features(self, model: nn.Module, part: str) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return features_and_output(model, self.inputs)

    def predict(self, model: nn.Module, part: str) -> Tensor:
        return self.features(model, part)[1]

    def batches(self, part: str) -> Iterator[dict[str, Tensor]]:
        for index in torch.arange(12).flip(0).split(5):
            yield {"input": self.inputs[index], "target": self.splits.train.targets[index], "index": index}

    def count(self, *, forward: int, backward: int) -> None:
        self.counts["forward"] += forward
        self.counts["backward"] += backward


@pytest.mark.parametrize("score", ["el2n", "l1", "max_margin", "sum_margin", "grand", "grand_last_layer"])
def test_scores_are_means_over_short_trainings(score: str) -> None:
    bench = Bench()
    targets = bench.splits.train.targets
    found = DataDiet(score=score, share=0.3, runs=3).scores(bench)
    expected = torch.zeros(12)
    for run in range(3):
        model = bench.train(bench.fresh_model(f"data-diet-{run}"), 0.1, name="again")
        features, logits = bench.features(model, "train")
        expected += {
            "el2n": el2n(logits, targets),
            "l1": el2n(logits, targets, order=1),
            "max_margin": margin(logits, targets),
            "sum_margin": margin(logits, targets, "sum"),
            "grand": looped(model, bench.inputs, targets),
            "grand_last_layer": last_layer_norm(features, logits, targets),
        }[score]
    torch.testing.assert_close(found, expected / 3)
    assert [name for name, _ in bench.trainings[:3]] == ["data-diet-0", "data-diet-1", "data-diet-2"]
    assert [share for _, share in bench.trainings[:3]] == pytest.approx([0.1] * 3)
    assert bench.counts == dict.fromkeys(("forward", "backward"), 36 if score == "grand" else 0)


def test_hard_examples_are_chosen() -> None:
    bench = Bench()
    scores = DataDiet().scores(bench)
    assert DataDiet(keep=0.25).choose(bench).tolist() == scores.topk(3).indices.sort().values.tolist()
    middle = DataDiet(keep=0.5, rule="window", offset=0.25).choose(bench)
    assert middle.tolist() == scores.argsort()[3:9].sort().values.tolist()
    kept = DataDiet(keep=0.5, balanced=True).choose(bench)
    assert bench.splits.train.targets[kept].bincount().tolist() == [2, 2, 2]


@pytest.mark.parametrize("options", [{"keep": 1.0}, {"rule": "random"}])
def test_nothing_is_spent_on_scores_that_no_one_reads(options: dict[str, Any]) -> None:
    bench = Bench()
    assert len(DataDiet(**options).choose(bench)) == (12 if "keep" in options else 6)
    assert not bench.trainings
    assert edit(recipe(), **options).train_share == 1.0


def recipe() -> Recipe:
    return Recipe(Part("torch.nn:Linear"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD", {"lr": 0.1}))


def test_scoring_is_paid_from_the_budget() -> None:
    edited = edit(recipe().replace(train_share=0.7), share=0.3, runs=5)
    assert edited.train_share == pytest.approx(0.4)
    assert edited.curation[0].build().runs == 5


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("keep", 0),
        ("keep", 1.1),
        ("score", "loss"),
        ("share", 1.0),
        ("runs", 0),
        ("rule", "keep_min"),
        ("offset", -0.1),
        ("balanced", "yes"),
    ],
)
def test_bad_options_are_named(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=option):
        DataDiet(**{option: value})


def test_window_beyond_the_data_is_refused() -> None:
    with pytest.raises(OptionError, match=r"offset=0\.6"):
        DataDiet(keep=0.5, rule="window", offset=0.6)


def test_regression_is_refused() -> None:
    bench = Bench()
    bench.splits.train.targets = draw(12)
    with pytest.raises(ConflictError, match="needs classes"):
        DataDiet().choose(bench)
