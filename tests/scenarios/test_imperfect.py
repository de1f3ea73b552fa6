"""Wrong labels and uneven classes: how models are judged there, what is refused, which methods take part."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from repertory import datasets
from repertory.errors import DataError, OptionError, UserError
from repertory.recipe import Part, Recipe
from repertory.scenarios import long_tail, noisy_labels, noisy_long_tail, supervised
from repertory.scenarios.imperfect import shot_accuracies
from repertory.scenarios.methods import arm
from repertory.scenarios.registry import scenario, suitable
from repertory.training.budget import Budget

NAMES = ("noisy_labels", "long_tail", "noisy_long_tail")


def recipe_of(dataset: datasets.Dataset) -> Recipe:
    return supervised.baseline(dataset, Part("repertory.testing.tiny:network"), epochs=2)


def test_accuracies_of_the_thirds_of_the_classes_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    targets, predicted = (torch.randint(7, (200,), generator=generator) for _ in range(2))
    counts = torch.tensor([5, 90, 40, 1, 300, 41, 7])
    found = shot_accuracies(predicted, targets, counts)
    accuracy = [float((predicted[targets == k] == k).double().mean()) for k in range(7)]
    expected = {"many_shot": [4, 1, 5], "medium_shot": [2, 6], "few_shot": [0, 3]}
    for name, classes in expected.items():
        assert found[name] == pytest.approx(sum(accuracy[k] for k in classes) / len(classes))
    assert found["balanced_accuracy"] == pytest.approx(sum(accuracy) / 7)


def test_classes_without_an_example_are_left_out() -> None:
    found = shot_accuracies(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), torch.tensor([3, 9, 5]))
    assert found == {"balanced_accuracy": 0.75, "many_shot": 1.0, "few_shot": 0.5}


def test_two_classes_are_many_and_few() -> None:
    found = shot_accuracies(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([2, 9]))
    assert found == {"balanced_accuracy": 0.5, "many_shot": 0.0, "few_shot": 1.0}


def test_wrong_training_labels_are_asked_after_and_the_test_labels_are_true() -> None:
    dataset = noisy_labels.view(datasets.load("digits?noise=pair0.3"))
    outcome = noisy_labels.run(recipe_of(dataset), dataset, seed=0, budget=Budget("steps", 60))
    splits, test = outcome.splits, outcome.metrics["test"]
    wrong = splits.train.targets != splits.clean_targets
    outcome.learner.eval()
    with torch.no_grad():
        predicted = outcome.learner(splits.normaliser(splits.train.inputs[wrong])).argmax(1)
    fitted = float((predicted == splits.train.targets[wrong]).double().mean())
    assert test["wrong_labels_fitted"] == pytest.approx(fitted)
    assert test["wrong_labels_corrected"] == pytest.approx(
        float((predicted == splits.clean_targets[wrong]).double().mean())
    )
    assert test["wrong_labels_corrected"] > 0
    assert torch.equal(splits.test.targets, dataset.targets[splits.indices["test"]])
    assert "wrong_labels_fitted" not in outcome.metrics["validation"]


def test_labels_that_nobody_knows_to_be_wrong_leave_those_metrics_out() -> None:
    dataset = noisy_labels.view(datasets.load("iris"))
    outcome = noisy_labels.run(recipe_of(dataset), dataset, seed=0, budget=Budget("steps", 3))
    assert set(outcome.metrics["test"]) == {"accuracy", "nll", "ece"}


def test_a_long_tail_is_judged_by_the_mean_over_classes_on_an_even_test_part() -> None:
    dataset = long_tail.view(datasets.load("digits?imbalance=30"))
    outcome = long_tail.run(recipe_of(dataset), dataset, seed=0, budget=Budget("steps", 40))
    test = outcome.metrics["test"]
    assert test["many_shot"] > test["few_shot"]
    counts = outcome.splits.test.targets.bincount()
    assert counts.max() < 1.2 * counts.min()
    assert "balanced_accuracy" in outcome.curve[0]["validation"]
    assert long_tail.main_metric("classification") == "balanced_accuracy"


def test_noise_and_tail_together_are_judged_by_both() -> None:
    dataset = noisy_long_tail.view(datasets.load("digits?imbalance=10&noise=frequent0.2"))
    outcome = noisy_long_tail.run(recipe_of(dataset), dataset, seed=0, budget=Budget("steps", 5))
    assert {"balanced_accuracy", "few_shot", "wrong_labels_fitted"} <= set(outcome.metrics["test"])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_that_of_supervised_learning(name: str) -> None:
    dataset = datasets.load("iris?noise=0.2&imbalance=5")
    runs = [
        scenario(each).run(recipe_of(dataset), dataset, seed=1, budget=Budget("steps", 4))
        for each in ("supervised", name)
    ]
    first, second = (run.learner.state_dict() for run in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert runs[0].cost["passes"] == runs[1].cost["passes"]


@pytest.mark.parametrize("name", NAMES)
def test_methods_of_supervised_learning_take_part_but_others_do_not(name: str) -> None:
    dataset = datasets.load("digits?imbalance=5")
    assert arm("saf", recipe_of(dataset), "classification", name).slugs == ("saf",)
    with pytest.raises(UserError, match=f"fixmatch plays in the scenario semi_supervised, not in {name}"):
        arm("fixmatch", recipe_of(dataset), "classification", name)


def test_without_a_word_supervised_learning_is_still_what_is_meant() -> None:
    assert suitable(["saf", "lion"], datasets.load("digits?noise=0.4")) == "supervised"


@pytest.mark.parametrize("name", ["long_tail", "noisy_long_tail"])
def test_even_classes_have_no_tail(name: str) -> None:
    with pytest.raises(DataError, match=rf"174 to 183 examples\), and scenario {name} .*digits\?imbalance=20"):
        scenario(name).view(datasets.load("digits"))


def test_classes_that_came_uneven_need_no_option() -> None:
    digits = datasets.load("digits")
    kept = (digits.targets != 3) | (torch.arange(len(digits.targets)) % 9 == 0)
    uneven = dataclasses.replace(digits, inputs=digits.inputs[kept], targets=digits.targets[kept])
    assert long_tail.view(uneven) is uneven


@pytest.mark.parametrize("name", NAMES)
def test_data_that_do_not_suit_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"scenario {name} learns classes, but the task is regression"):
        scenario(name).view(datasets.load("diabetes"))
    with pytest.raises(OptionError, match="--scenario continual"):
        scenario(name).view(datasets.load("digits?tasks=2"))
