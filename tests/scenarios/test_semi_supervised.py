"""Few labels: what is refused, what an epoch and the budget are, and what methods get beside the labelled batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from witness import BatchWitness

from repertory import datasets
from repertory.datasets import Dataset
from repertory.errors import DataError, OptionError, UserError
from repertory.recipe import Part, Recipe
from repertory.scenarios import semi_supervised
from repertory.scenarios.choices import check_arm
from repertory.scenarios.methods import arm
from repertory.scenarios.registry import Outcome, suitable
from repertory.training.budget import Budget


class Witness(BatchWitness):
    """Asks for views and five unlabelled examples a labelled one."""

    needs = frozenset({"stream:unlabelled", "views:weak-strong"})
    stream_sizes = {"unlabelled": 5}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.load("digits?labels=40")


def recipe_of(dataset: Dataset, **slots: Any) -> Recipe:
    recipe = semi_supervised.baseline(dataset, Part("repertory.testing.tiny:network"), epochs=2)
    return recipe.replace(**slots)


def learnt(dataset: Dataset, recipe: Recipe, steps: int, seed: int = 0) -> Outcome:
    return semi_supervised.run(recipe, dataset, seed=seed, budget=Budget("steps", steps))


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("digits", DataError, r"every example has a label.*\?labels=40.*folder unlabelled"),
        ("diabetes?labels=40", UserError, "the task is regression"),
        ("digits?labels=9", OptionError, "fewer than the 10 classes"),
        ("digits?labels=40&rehearsal=5", OptionError, "--scenario continual"),
    ],
)
def test_data_that_do_not_suit_are_refused_with_a_way_out(spec: str, error: type[UserError], words: str) -> None:
    with pytest.raises(error, match=words):
        semi_supervised.view(datasets.load(spec))


def test_data_whose_labels_are_all_kept_are_refused() -> None:
    count = len(datasets.load("iris").prepare(0).train)
    dataset = semi_supervised.view(datasets.load(f"iris?labels={count}"))
    with pytest.raises(DataError, match=f"all {count} training examples keep their label"):
        semi_supervised.budget_of("steps", recipe_of(dataset), dataset, dataset.prepare(0))


def test_an_epoch_of_labelled_batches_is_as_long_as_one_over_all_training_examples(digits: Dataset) -> None:
    recipe, splits = recipe_of(digits), digits.prepare(0)
    everything = len(splits.train) + len(splits.unlabelled)
    times = round(everything / 40)
    assert recipe.batch_size == 10
    assert semi_supervised.budget_of("compute", recipe, digits, splits).amount == 2 * 3 * 40 * times
    assert semi_supervised.budget_of("steps", recipe, digits, splits).amount == 2 * 4 * times
    assert abs(40 * times - everything) <= 20
    outcome = learnt(digits, recipe, 4 * times)
    assert [record["epoch"] for record in outcome.curve] == [1]
    assert outcome.cost["forward"] == 40 * times


def test_a_method_gets_weak_and_strong_views_as_many_as_it_asks_for(digits: Dataset) -> None:
    recipe = recipe_of(digits, methods=(Part(f"{__name__}:Witness"),), augment="shift")
    learnt(digits, recipe, 3)
    batches = Witness.last.batches
    for batch in batches:
        stream = batch["unlabelled"]
        weak, strong = stream["views"]
        assert abs(len(weak) - 5 * len(batch["input"])) <= 1
        assert torch.equal(weak, stream["input"])
        assert strong.shape == weak.shape
        assert not (strong == weak).flatten(1).all(1).all()
        assert stream["target"].unique().tolist() == [-1]
    assert not torch.equal(batches[0]["unlabelled"]["index"], batches[1]["unlabelled"]["index"])


def test_views_are_of_the_kind_that_the_recipe_names(digits: Dataset) -> None:
    recipe = recipe_of(digits, methods=(Part(f"{__name__}:Witness"),), augment="shift", views="photo")
    learnt(digits, recipe, 2)
    for batch in Witness.last.batches:
        weak, strong = batch["unlabelled"]["view_parameters"]
        assert weak.keys() == {"mirrored", "shift"}
        assert len(strong["operations"]) == len(batch["unlabelled"]["input"])
        assert "view_parameters" not in batch


def test_views_depend_on_seed_and_place_alone(digits: Dataset) -> None:
    found = []
    for seed in (0, 0, 1):
        learnt(digits, recipe_of(digits, methods=(Part(f"{__name__}:Witness"),)), 2, seed)
        found.append(torch.cat([batch["unlabelled"]["views"][1] for batch in Witness.last.batches]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0][:10], found[2][:10])


@pytest.mark.parametrize("method", ["fixmatch:threshold=0.3", "dash:warmup=0.2"])
def test_methods_run_by_name_and_every_example_is_counted(digits: Dataset, method: str) -> None:
    assert suitable([method], digits) == "semi_supervised"
    edited = arm(method, recipe_of(digits), digits.task, "semi_supervised")
    check_arm(edited, digits)
    steps = 11  # more than two passes over the labels, within one epoch
    outcome = learnt(digits, edited.recipe, steps)
    unlabelled = len(digits.prepare(0).unlabelled)
    size = unlabelled / -(-unlabelled // 70)
    assert outcome.cost["forward"] == pytest.approx(steps * (10 + 2 * size), abs=2 * steps)
    assert outcome.cost["backward"] == outcome.cost["forward"]


def test_without_labels_taken_away_methods_for_unlabelled_examples_are_refused_before_training() -> None:
    dataset = datasets.load("digits")
    edited = arm("fixmatch", recipe_of(dataset), dataset.task, "semi_supervised")
    with pytest.raises(UserError, match="stream:unlabelled"):
        check_arm(edited, dataset)


def test_weight_zero_is_the_baseline_bit_for_bit(digits: Dataset) -> None:
    plain = learnt(digits, recipe_of(digits), 5).learner.state_dict()
    for method in ("fixmatch:weight=0", "dash:weight=0"):
        edited = arm(method, recipe_of(digits), digits.task, "semi_supervised")
        found = learnt(digits, edited.recipe, 5).learner.state_dict()
        assert all(torch.equal(found[name], value) for name, value in plain.items())
