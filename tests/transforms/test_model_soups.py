"""Model soups against closed forms, torch's own averages, and a greedy search by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from repertory.errors import DataError, OptionError
from repertory.recipe import Part, Recipe
from repertory.transforms import ModelSoup
from repertory.transforms.model_soups import (
    edit,
    greedy_soup,
    learned_soup,
    refresh_norm_statistics,
    uniform_soup,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def networks(count: int) -> list[nn.Sequential]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)))
    return made


def states(count: int) -> list[dict[str, Tensor]]:
    return [network.state_dict() for network in networks(count)]


def points(*values: float) -> list[dict[str, Tensor]]:
    return [{"w": torch.tensor(value)} for value in values]


def assert_same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_equal_models_make_the_same_model_bit_for_bit(count: int) -> None:
    state = states(1)[0]
    assert_same(uniform_soup([state] * count), state)
    assert_same(greedy_soup([state] * count, lambda _: 1.0)[0], state)


def test_uniform_soup_is_the_mean_in_any_order() -> None:
    given = states(5)
    soup = uniform_soup(given)
    for name, value in soup.items():
        torch.testing.assert_close(value, torch.stack([state[name] for state in given]).mean(0))
    torch.testing.assert_close(soup, uniform_soup(given[::-1]))


def test_uniform_soup_equals_torchs_averaged_model() -> None:
    made = networks(4)
    averaged = AveragedModel(made[0])
    for network in made:
        averaged.update_parameters(network)
    torch.testing.assert_close(uniform_soup(n.state_dict() for n in made), averaged.module.state_dict())


def test_soup_of_linear_models_is_their_ensemble() -> None:
    models = [nn.Linear(4, 3) for _ in range(3)]
    soup = nn.Linear(4, 3)
    soup.load_state_dict(uniform_soup([model.state_dict() for model in models]))
    x = random(6, 4)
    torch.testing.assert_close(soup(x), torch.stack([model(x) for model in models]).mean(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_averaged_in_float32(dtype: torch.dtype) -> None:
    given = [{"w": random(50, seed=seed).to(dtype)} for seed in range(200)]
    soup = uniform_soup(given)
    assert soup["w"].dtype is dtype
    exact = torch.stack([state["w"].double() for state in given]).mean(0)
    assert torch.equal(soup["w"], exact.to(dtype))


def test_integer_entries_come_from_the_first_model_and_inputs_stay_as_they_are() -> None:
    given = [{"steps": torch.tensor(3), "w": torch.tensor(1.0)}, {"steps": torch.tensor(8), "w": torch.tensor(2.0)}]
    soup = uniform_soup(given)
    assert (soup["steps"].item(), soup["w"].item()) == (3, 1.5)
    soup["steps"] += 1
    soup["w"] += 1
    assert (given[0]["steps"].item(), given[0]["w"].item(), given[1]["w"].item()) == (3, 1.0, 2.0)


def test_greedy_soup_picks_the_two_around_the_target() -> None:
    target, step = random(6), random(6, seed=1)
    given = [{"w": target + step}, {"w": target - step}, {"w": target + 5 * step}]
    soup, ingredients, scores = greedy_soup(given, lambda state: -float((state["w"] - target).square().sum()))
    assert ingredients == [0, 1]
    torch.testing.assert_close(soup["w"], target)
    assert scores == pytest.approx([-float(step.square().sum()), 0.0], abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_soup_equals_a_search_that_averages_from_scratch(seed: int) -> None:
    target = random(8, seed=99)
    given = [{"w": target + random(8, seed=100 * seed + i)} for i in range(8)]

    def evaluate(state: Mapping[str, Tensor]) -> float:
        return -float((state["w"] - target).norm())

    best_first = sorted(range(8), key=lambda i: -evaluate(given[i]))
    chosen = best_first[:1]
    for i in best_first[1:]:
        means = [torch.stack([given[j]["w"] for j in group]).mean(0) for group in (chosen, [*chosen, i])]
        if evaluate({"w": means[1]}) >= evaluate({"w": means[0]}):
            chosen.append(i)
    soup, ingredients, scores = greedy_soup(given, evaluate)
    assert ingredients == chosen
    assert len(chosen) > 1
    torch.testing.assert_close(soup["w"], torch.stack([given[j]["w"] for j in chosen]).mean(0))
    assert scores == sorted(scores)
    assert scores[-1] == pytest.approx(evaluate(soup))


@pytest.mark.parametrize(("accept", "ingredients"), [(">=", [0, 1, 2]), (">", [0])])
def test_an_equal_score_is_good_enough_only_if_accepted(accept: Any, ingredients: list[int]) -> None:
    assert greedy_soup(points(1.0, 2.0, 3.0), lambda _: 0.5, accept=accept)[1] == ingredients


def test_greedy_soup_follows_a_given_order_and_then_skips_the_single_evaluations() -> None:
    seen: list[float] = []

    def evaluate(state: Mapping[str, Tensor]) -> float:
        seen.append(float(state["w"]))
        return float(state["w"])

    _, ingredients, scores = greedy_soup(points(1.0, 3.0, 5.0), evaluate, order=[1, 2, 0])
    assert (ingredients, scores) == ([1, 2], [3.0, 4.0])
    assert seen == [3.0, 4.0, 3.0]


def test_greedy_soup_never_takes_a_model_without_a_score() -> None:
    given = points(math.nan, 2.0, 1.0)
    assert greedy_soup(given, lambda state: float(state["w"]))[1] == [1]


def test_greedy_soup_hands_single_models_over_as_they_are() -> None:
    given, seen = points(1.0, 2.0), []
    greedy_soup(given, lambda state: seen.append(state) or 0.0)
    assert seen[0] is given[0]
    assert seen[1] is given[1]
    assert not any(seen[2] is state for state in given)


def test_a_network_and_its_permutation_make_no_soup() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))
    permuted, order = copy.deepcopy(network), torch.randperm(32)
    with torch.no_grad():
        permuted[0].weight.copy_(network[0].weight[order])
        permuted[0].bias.copy_(network[0].bias[order])
        permuted[2].weight.copy_(network[2].weight[:, order])
    x = random(1000, 10)
    labels = network(x).argmax(1)
    assert torch.equal(permuted(x).argmax(1), labels)
    permuted.load_state_dict(uniform_soup([network.state_dict(), permuted.state_dict()]))
    assert (permuted(x).argmax(1) == labels).double().mean() < 0.9


def held_out(network: nn.Module, count: int = 64) -> list[dict[str, Tensor]]:
    x = random(count, 5, seed=7)
    return [{"input": x, "target": network(x).argmax(1)}]


@pytest.mark.parametrize(("per", "shape"), [("model", (3,)), ("tensor", (4, 3))])
def test_learned_soup_starts_at_the_uniform_soup(per: Any, shape: tuple[int, ...]) -> None:
    made = networks(3)
    soup, weights, scale = learned_soup(made[0], states(3), held_out(made[0]), per, epochs=0)
    torch.testing.assert_close(weights, torch.full(shape, 1 / 3))
    assert scale == 1.0
    torch.testing.assert_close(soup, uniform_soup(states(3)))


@pytest.mark.parametrize("per", ["model", "tensor"])
def test_first_learned_step_follows_the_finite_difference_gradient(per: Any) -> None:
    made, given = networks(4), states(3)
    data = held_out(made[3])
    names = list(given[0])
    rows = 1 if per == "model" else len(names)

    def loss(raw: Tensor, scale: float = 1.0) -> float:
        mixed = {
            name: sum(a * state[name].double() for a, state in zip(raw[i % rows].softmax(0), given))
            for i, name in enumerate(names)
        }
        output = torch.func.functional_call(copy.deepcopy(made[0]).double(), mixed, data[0]["input"].double())
        return nn.functional.cross_entropy(scale * output, data[0]["target"]).item()

    raw, eps = torch.zeros(rows, 3, dtype=torch.float64), 1e-5
    gradient = torch.zeros_like(raw)
    for index in [(i, j) for i in range(rows) for j in range(3)]:
        shift = torch.zeros_like(raw)
        shift[index] = eps
        gradient[index] = (loss(raw + shift) - loss(raw - shift)) / (2 * eps)
    _, weights, scale = learned_soup(made[0], given, data, per, epochs=1, lr=0.01)
    # AdamW's first step is lr * g / (|g| + 1e-8): of one size, against the sign of the gradient.
    expected = (-0.01 * gradient / (gradient.abs() + 1e-8)).softmax(1).float().squeeze(0)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    slope = (loss(raw, 1 + eps) - loss(raw, 1 - eps)) / (2 * eps)
    assert scale == pytest.approx(1 - 0.01 * slope / abs(slope), rel=1e-4)


@pytest.mark.parametrize("per", ["model", "tensor"])
def test_learned_soup_finds_the_one_model_that_is_right(per: Any) -> None:
    made = networks(3)
    before = copy.deepcopy(made[0].state_dict())
    soup, weights, scale = learned_soup(made[0], states(3), iter(held_out(made[1])), per, epochs=200, lr=0.3)
    torch.testing.assert_close(weights, torch.tensor([0.0, 1.0, 0.0]).expand_as(weights), rtol=0, atol=0.02)
    torch.testing.assert_close(soup, states(3)[1], rtol=0, atol=0.03)
    assert scale > 1
    assert_same(made[0].state_dict(), before)


def test_learned_soup_takes_pairs_and_learns_a_shared_tensor_once() -> None:
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        layer = nn.Linear(4, 4)
        made.append(nn.Sequential(layer, nn.ReLU(), layer))
    x = random(32, 4)
    given = [network.state_dict() for network in made]
    soup, weights, _ = learned_soup(made[0], given, [(x, made[1](x).argmax(1))], epochs=3)
    assert weights.shape == (2, 2)
    assert torch.equal(soup["0.weight"], soup["2.weight"])
    assert not torch.equal(soup["0.weight"], uniform_soup(given)["0.weight"])


def norm_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=0.3), nn.ReLU(), nn.Linear(6, 2))


def test_norm_statistics_equal_torchs_update_bn() -> None:
    ours, theirs = norm_network(), norm_network()
    data = [random(8, 5, seed=seed) + seed for seed in range(3)]
    ours[1].running_mean.fill_(50)
    ours.eval()
    ours[0].train()
    assert refresh_norm_statistics(ours, ({"input": x} for x in data)) == 24
    update_bn(data, theirs)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert ours[1].momentum == 0.3
    assert [module.training for module in ours] == [True, False, False, False]


def test_norm_statistics_ignore_dropout_and_batches_of_one() -> None:
    plain, noisy = norm_network(), nn.Sequential(nn.Dropout(0.9), *norm_network())
    x = random(8, 5)
    refresh_norm_statistics(plain, [x])
    assert refresh_norm_statistics(noisy, [(x, None), (x[:1], None)]) == 8
    torch.testing.assert_close(plain[1].running_var, noisy[2].running_var)


def test_a_network_without_norm_statistics_is_not_even_run() -> None:
    def never() -> Iterator[Tensor]:
        raise AssertionError
        yield

    assert refresh_norm_statistics(networks(1)[0], never()) == 0


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"v": torch.zeros(2)}, r"state_dicts\[1\] has 'v', which state_dicts\[0\] lacks"),
        ({}, r"state_dicts\[0\] has 'w', which state_dicts\[1\] lacks"),
        ({"w": torch.zeros(3)}, r"'w' is \(2,\) in state_dicts\[0\] and \(3,\) in state_dicts\[1\]"),
    ],
)
def test_models_of_different_structure_are_refused(other: dict[str, Tensor], message: str) -> None:
    given = [{"w": torch.zeros(2)}, other]
    with pytest.raises(DataError, match=message):
        uniform_soup(given)
    with pytest.raises(DataError, match=message):
        greedy_soup(given, lambda _: 0.0)


def test_an_empty_soup_is_refused() -> None:
    with pytest.raises(DataError, match="state_dicts is empty"):
        uniform_soup([])
    with pytest.raises(DataError, match="state_dicts is empty"):
        greedy_soup([], lambda _: 0.0)


def test_models_that_do_not_fit_the_network_are_refused() -> None:
    with pytest.raises(DataError, match="the model's state dict"):
        learned_soup(nn.Linear(2, 2), states(2), [])


@pytest.mark.parametrize("order", [[], [0, 0], [2], [-1]])
def test_a_wrong_order_is_refused(order: list[int]) -> None:
    with pytest.raises(OptionError, match="order="):
        greedy_soup(points(1.0, 2.0), lambda _: 0.0, order=order)


class Bench:
    """What a run offers, with a training that moves every weight to a place that depends on its name alone."""

    def __init__(self, scores: Any, train_share: float = 0.5, epochs: int = 10) -> None:
        self.recipe = SimpleNamespace(train_share=train_share, epochs=epochs)
        self.trained: list[dict[str, Any]] = []
        self.forward = 0
        self._scores = scores

    def generator(self, name: str) -> torch.Generator:
        assert name == "model-soups"
        return torch.Generator().manual_seed(3)

    def train(self, model: nn.Module, share: float, *, name: str, **scales: float) -> nn.Module:
        self.trained.append({"share": share, "name": name, "start": copy.deepcopy(model.state_dict()), **scales})
        number = int(name.removeprefix("soup-"))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0 + number)
        return model

    def score(self, model: nn.Module) -> float:
        return float(self._scores(model))

    def batches(self, part: str) -> Iterator[dict[str, Tensor]]:
        assert part == "train"
        return iter([{"input": random(8, 5)}, {"input": random(8, 5, seed=1)}])

    def count(self, *, forward: int = 0, backward: int = 0) -> None:
        self.forward += forward


def shifted(model: nn.Module, by: float) -> dict[str, Tensor]:
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(by)
    return moved.state_dict()


def first_bias(model: nn.Module) -> float:
    return float(model[0].bias[0].detach())


@pytest.mark.parametrize(
    ("wish", "moved"),
    [(0.0, 0.0), (1.4, 1.5), (2.2, 2.0), (3.1, 3.0)],
    ids=["the trunk alone", "one and two", "the second alone", "the last alone"],
)
def test_the_greedy_soup_is_made_of_the_trunk_and_its_continuations(wish: float, moved: float) -> None:
    model = networks(1)[0]
    trunk = copy.deepcopy(model)
    bench = Bench(lambda made: -abs(first_bias(made) - first_bias(trunk) - wish))
    made = ModelSoup(ingredients=3).apply(model, bench)
    torch.testing.assert_close(made.state_dict(), shifted(trunk, moved))
    assert bench.score(made) >= bench.score(trunk)


def test_every_training_starts_from_the_trunk_with_its_own_scales_and_share() -> None:
    model, bench = networks(1)[0], Bench(lambda _: 0.0)
    trunk = copy.deepcopy(model.state_dict())
    ModelSoup(ingredients=50, trunk=0.5, spread=8.0).apply(model, bench)
    assert [run["name"] for run in bench.trained] == [f"soup-{i}" for i in range(50)]
    for run in bench.trained:
        assert_same(run["start"], trunk)
        assert run["share"] == pytest.approx(0.01)
    rates = torch.tensor([run["lr_scale"] for run in bench.trained]).log() / math.log(8.0)
    decays = torch.tensor([run["weight_decay_scale"] for run in bench.trained]).log() / math.log(8.0)
    for draws, low, high in ((rates, -1.0, 0.0), (decays, -1.0, 1.0)):
        assert low <= draws.min() < low + 0.2 * (high - low)
        assert high - 0.2 * (high - low) < draws.max() <= high


def test_shares_add_up_to_the_budget_that_the_trunk_was_taken_from() -> None:
    bench = Bench(lambda _: 0.0, train_share=0.6)
    ModelSoup(ingredients=4, trunk=0.75).apply(networks(1)[0], bench)
    assert sum(run["share"] for run in bench.trained) + 0.6 == pytest.approx(0.8)


def test_the_uniform_soup_is_the_mean_of_the_continuations() -> None:
    model = networks(1)[0]
    trunk = copy.deepcopy(model)
    made = ModelSoup(ingredients=3, kind="uniform").apply(model, Bench(lambda _: 0.0))
    torch.testing.assert_close(made.state_dict(), shifted(trunk, 2.0))


@pytest.mark.parametrize(("kind", "passes"), [("greedy", 3), ("uniform", 1)])
def test_soups_with_batch_norm_get_statistics_of_the_training_data_paid_from_the_budget(kind: str, passes: int) -> None:
    model, bench = norm_network(), Bench(lambda _: 0.0)
    made = ModelSoup(ingredients=2, kind=kind).apply(model, bench)
    expected = copy.deepcopy(made)
    refresh_norm_statistics(expected, bench.batches("train"))
    assert_same(made.state_dict(), expected.state_dict())
    assert bench.forward == passes * 16
    # Two trainings on half the budget, which is 10 epochs of three passes.
    assert sum(run["share"] for run in bench.trained) == pytest.approx(0.5 - passes / 30)


def test_a_single_model_keeps_its_own_norm_statistics() -> None:
    model = norm_network()
    model[1].running_mean.fill_(7)
    trunk = copy.deepcopy(model)
    bench = Bench(lambda made: -abs(first_bias(made) - first_bias(trunk)))
    assert_same(ModelSoup(ingredients=2).apply(model, bench).state_dict(), trunk.state_dict())


def test_a_trunk_of_the_whole_budget_leaves_the_model_alone() -> None:
    model, bench = networks(1)[0], Bench(lambda _: 0.0)
    trunk = copy.deepcopy(model.state_dict())
    assert_same(ModelSoup(trunk=1.0).apply(model, bench).state_dict(), trunk)
    assert bench.trained == []


def test_edit_leaves_the_soup_its_share_of_the_budget() -> None:
    recipe = Recipe(model=Part("m:m"), criterion=Part("c:c"), optimizer=Part("o:o"), train_share=0.8)
    edited = edit(recipe, trunk=0.25)
    assert edited.train_share == pytest.approx(0.2)
    assert isinstance(edited.after[0].build(), ModelSoup)
    assert edited.after[0].build().trunk == 0.25
    assert edited == recipe.replace(train_share=edited.train_share, after=edited.after)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ingredients": 0}, "ingredients=0"),
        ({"ingredients": 2.5}, r"ingredients=2\.5"),
        ({"trunk": 0.0}, r"trunk=0\.0"),
        ({"trunk": 1.5}, r"trunk=1\.5"),
        ({"kind": "learned"}, "kind='learned'"),
        ({"spread": 0.5}, r"spread=0\.5"),
        ({"accept": "="}, "accept='='"),
    ],
)
def test_bad_options_name_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ModelSoup(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "layer"}, "per='layer'"),
        ({"epochs": -1}, "epochs=-1"),
        ({"lr": 0.0}, r"lr=0\.0"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_bad_options_of_the_learned_soup_name_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        learned_soup(networks(1)[0], states(2), [], **options)
