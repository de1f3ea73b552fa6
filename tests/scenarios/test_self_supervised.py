"""Features without labels: what pretraining sees, what the probe gets, what it costs, and what is left after `fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repertory import datasets
from repertory.core.objective import Objective
from repertory.datasets import Dataset
from repertory.errors import ConflictError, OptionError, UserError
from repertory.recipe import Part, Recipe
from repertory.scenarios import self_supervised
from repertory.scenarios.choices import check_arm
from repertory.scenarios.fit import fit
from repertory.scenarios.methods import arm
from repertory.scenarios.registry import Outcome, suitable
from repertory.training.budget import Budget


class Witness(Objective):
    """Notes the batches of the last run, and pulls the versions of an example together."""

    slug = "witness"
    last: Witness

    def __init__(self, pull: float = 1.0) -> None:
        super().__init__()
        self.pull = pull
        self.batches: list[dict[str, Any]] = []
        Witness.last = self

    def loss(self, state: Any, inner: Any) -> Tensor:
        self.batches.append(state.batch)
        first, second = self.encode(state, state.batch["views"])
        return self.pull * (first - second).square().sum(1)


def headless(in_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs, bias=False))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return self_supervised.view(datasets.load("digits?labels=40"))


def recipe_of(dataset: Dataset, **slots: Any) -> Recipe:
    recipe = self_supervised.baseline(dataset, Part("repertory.testing.tiny:network"), epochs=2)
    return recipe.replace(**slots)


def learnt(dataset: Dataset, recipe: Recipe, steps: int, seed: int = 0) -> Outcome:
    return self_supervised.run(recipe, dataset, seed=seed, budget=Budget("steps", steps))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("diabetes", "the task is regression"),
        ("digits?tasks=5", "--scenario continual"),
    ],
)
def test_data_that_do_not_suit_are_refused_with_a_way_out(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        self_supervised.view(datasets.load(spec))


def test_pretraining_sees_all_inputs_and_no_label(digits: Dataset) -> None:
    splits = digits.prepare(0)
    everything = len(splits.train) + len(splits.unlabelled)
    recipe = recipe_of(digits, objective=Part(f"{__name__}:Witness"))
    learnt(digits, recipe, -(-everything // recipe.batch_size))
    batches = Witness.last.batches
    index = torch.cat([batch["index"] for batch in batches])
    assert index.sort().values.tolist() == list(range(everything))
    assert {value for batch in batches for value in batch["target"].tolist()} == {-1}
    assert all(len(batch["views"]) == 2 for batch in batches)


def test_views_are_of_the_kind_that_the_recipe_names(digits: Dataset) -> None:
    learnt(digits, recipe_of(digits, objective=Part(f"{__name__}:Witness"), views="photo"), 2)
    for batch in Witness.last.batches:
        assert [len(drawn["crop"]) for drawn in batch["view_parameters"]] == [len(batch["input"])] * 2


def test_only_the_labels_that_are_left_reach_the_probe(digits: Dataset) -> None:
    few, many = (learnt(self_supervised.view(data), recipe_of(data), 1) for data in (digits, datasets.load("digits")))
    assert few.metrics["test"]["probe_accuracy"] < many.metrics["test"]["probe_accuracy"] - 0.05


def test_the_budget_is_that_of_two_versions_of_every_input(digits: Dataset) -> None:
    recipe, splits = recipe_of(digits), digits.prepare(0)
    everything = len(splits.train) + len(splits.unlabelled)
    budget = self_supervised.budget_of("compute", recipe, digits, splits)
    assert budget.amount == 2 * 2 * 3 * everything
    cost = self_supervised.run(recipe, digits, seed=0, budget=budget).cost
    assert cost["passes"] == budget.amount
    assert cost["steps"] == self_supervised.budget_of("steps", recipe, digits, splits).amount


def test_the_last_layer_is_the_probe_and_the_model_predicts_what_was_judged(digits: Dataset) -> None:
    outcome = learnt(digits, recipe_of(digits), 3)
    test = outcome.splits.test
    with torch.no_grad():
        output = outcome.learner(outcome.splits.normaliser(test.inputs))
    assert float((output.argmax(1) == test.targets).double().mean()) == outcome.metrics["test"]["probe_accuracy"]
    assert outcome.curve[-1]["validation"].keys() == {"probe_accuracy", "knn_accuracy"}


def test_training_leaves_the_last_layer_alone_and_moves_what_is_below(digits: Dataset) -> None:
    recipe = recipe_of(digits, objective=Part(f"{__name__}:Witness"))
    bench = self_supervised.PretrainingBench.of(
        recipe, digits, digits.prepare(0), seed=0, budget=Budget("steps", 2), device="cpu"
    )
    before, after = bench.fresh_model().state_dict(), bench.train(bench.fresh_model(), 1.0).state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"network.1.weight", "network.1.bias"}


def test_a_network_whose_last_layer_cannot_hold_the_probe_is_refused(digits: Dataset) -> None:
    with pytest.raises(UserError, match="no bias"):
        learnt(digits, recipe_of(digits, model=Part(f"{__name__}:headless")), 1)


def test_a_method_takes_the_baselines_place_by_name_or_by_path(digits: Dataset) -> None:
    assert suitable(["simclr"], digits) == "self_supervised"
    edited = arm("simclr:temperature=0.2", recipe_of(digits), digits.task, "self_supervised")
    assert edited.recipe.objective == Part("repertory.algorithms.simclr:SimCLR", {"temperature": 0.2}, "simclr")
    own = arm(f"{__name__}:Witness:pull=2.0", recipe_of(digits), digits.task, "self_supervised").recipe
    assert own.objective == Part(f"{__name__}:Witness", {"pull": 2.0}, "witness")
    assert own.methods == ()
    check_arm(edited, digits)
    with pytest.raises(OptionError, match="has no option 'heat'"):
        arm("simclr:heat=1", recipe_of(digits), digits.task, "self_supervised")


def test_two_objectives_at_once_are_refused(digits: Dataset) -> None:
    with pytest.raises(ConflictError, match="both replace the objective"):
        arm(f"simclr:temperature=0.2+{__name__}:Witness", recipe_of(digits), digits.task, "self_supervised")


def test_a_recipe_with_an_objective_is_kept_whole_as_plain_data(digits: Dataset) -> None:
    recipe = recipe_of(digits)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_fit_leaves_an_encoder_that_embeds_and_predicts(tmp_path: Path) -> None:
    saved = fit(
        data="digits?labels=40", out=tmp_path / "encoder", scenario="self_supervised", epochs=1, device="cpu",
        model="repertory:mlp",
    )  # fmt: skip
    test = datasets.load("digits?labels=40").prepare(0).test
    features, _ = saved.embed(test.inputs)
    assert features.shape == (len(test), 128)
    found = saved.predict(test.inputs).outputs.argmax(1)
    assert float((found == test.targets).double().mean()) == saved.about["metrics"]["test"]["probe_accuracy"]
