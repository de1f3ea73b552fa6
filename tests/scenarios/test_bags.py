"""Bags: which scenario they mean, what a run reports, and what methods get in their batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from witness import BatchWitness

import repertory
from repertory import datasets
from repertory.core.randomness import seeded
from repertory.datasets import Dataset, Examples, Normaliser
from repertory.errors import DataError, OptionError
from repertory.layers.attention_pooling import AttentionClassifier
from repertory.recipe import Part, Recipe
from repertory.scenarios import bags
from repertory.scenarios.bag_metrics import best_threshold, judged, scores_of
from repertory.scenarios.choices import check_arm
from repertory.scenarios.fit import fit
from repertory.scenarios.methods import arm
from repertory.scenarios.registry import Outcome, suitable
from repertory.training import BatchLoader
from repertory.training.bag_predictions import pooled
from repertory.training.budget import Budget


class Witness(BatchWitness):
    """Asks for the bag of each instance."""

    needs = frozenset({"group"})


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.load("digits?bags=20&positive=0&ratio=0.2")


def recipe_of(dataset: Dataset, **slots: Any) -> Recipe:
    return bags.baseline(dataset, Part("repertory.testing.tiny:network"), epochs=2).replace(**slots)


def learnt(dataset: Dataset, recipe: Recipe, steps: int, seed: int = 0) -> Outcome:
    return bags.run(recipe, dataset, seed=seed, budget=Budget("steps", steps))


def test_data_with_bags_mean_this_scenario_and_no_other(digits: Dataset) -> None:
    assert suitable([], digits) == "bags"
    assert suitable(["instance-mil"]) == "bags"
    with pytest.raises(OptionError, match="--scenario bags"):
        repertory.scenarios.supervised.view(digits)
    with pytest.raises(DataError, match=r"\?bag=NAME.*\?bags=folders.*\?bags=20"):
        bags.view(datasets.load("digits"))


def test_rows_that_belong_together_become_bags_where_the_scenario_is_asked_for() -> None:
    made = datasets.load("digits?bags=20")
    given = {name: getattr(made, name) for name in made.__dataclass_fields__}
    assert bags.view(Dataset(**{**given, "task": "classification"})).task == "bags"


def test_a_run_reports_bags_and_instances_and_keeps_their_scores(digits: Dataset) -> None:
    quick = Part("torch.optim:AdamW", {"lr": 0.05})
    outcome = learnt(digits, recipe_of(digits, optimizer=quick), 60)
    found = outcome.metrics["test"]
    assert set(found) == {"bag_auc", "bag_accuracy", "instance_auc", "instance_f1"}
    assert found["bag_auc"] > 0.8
    assert found["instance_auc"] > 0.8
    tables, test = outcome.tables, outcome.splits.test
    assert len(tables["bags"]["bag"]) == len(test.groups.unique())
    assert tables["instances"]["row"] == outcome.splits.indices["test"]
    first = tables["bags"]["bag"][0]
    own = [p for p, b in zip(tables["instances"]["probability"], tables["instances"]["bag"]) if b == first]
    assert tables["bags"]["score"][0] == pytest.approx(sum(own) / 20, abs=1e-6)


def test_without_truth_only_bags_are_judged(digits: Dataset) -> None:
    given = {name: getattr(digits, name) for name in digits.__dataclass_fields__}
    outcome = learnt(Dataset(**{**given, "truth": None}), recipe_of(digits), 2)
    assert set(outcome.metrics["test"]) == {"bag_auc", "bag_accuracy"}
    assert "truth" not in outcome.tables["instances"]


def test_batches_carry_the_bag_of_each_instance(digits: Dataset) -> None:
    learnt(digits, recipe_of(digits, methods=(Part(f"{__name__}:Witness"),)), 3)
    train = digits.prepare(0).train
    for batch in Witness.last.batches:
        assert torch.equal(batch["group"], train.groups[batch["index"]])


def test_attention_gets_whole_bags_and_scores_them_itself(digits: Dataset) -> None:
    edited = arm("attention-mil:width=8", recipe_of(digits), digits.task, "bags").recipe
    outcome = learnt(digits, edited.replace(methods=(*edited.methods, Part(f"{__name__}:Witness"))), 60)
    for batch in Witness.last.batches:
        assert batch["group"].bincount().unique().tolist() == [0, 20]
    layer = outcome.learner.get_classifier()
    assert isinstance(layer, AttentionClassifier)
    test, normaliser = outcome.splits.test, outcome.splits.normaliser
    network = outcome.learner.network
    numbers, groups = test.groups.unique(return_inverse=True)
    with torch.no_grad():
        features = network[:-1](normaliser(test.inputs))
        expected = layer.bag_logits(features, groups).softmax(1)[:, 1]
    _, scores, _, found = scores_of(outcome.learner, test, normaliser)
    torch.testing.assert_close(scores, expected)
    assert torch.equal(found, numbers)


@pytest.mark.parametrize("method", ["instance-mil:dim=8", "instance-mil:bag_weight=1", "attention-mil", "lion"])
def test_methods_run_by_name(digits: Dataset, method: str) -> None:
    edited = arm(method, recipe_of(digits), digits.task, "bags")
    check_arm(edited, digits)
    outcome = learnt(digits, edited.recipe, 2)
    assert outcome.cost["steps"] == 2


def test_neutral_options_are_the_baseline_bit_for_bit(digits: Dataset) -> None:
    plain = learnt(digits, recipe_of(digits), 5).learner.state_dict()
    edited = arm("instance-mil:weight=0,warmup=99", recipe_of(digits), digits.task, "bags")
    found = learnt(digits, edited.recipe, 5).learner.state_dict()
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_scores_of_bags_by_hand() -> None:
    probabilities, groups = torch.tensor([0.2, 0.6, 0.9]), torch.tensor([0, 0, 1])
    torch.testing.assert_close(pooled(probabilities, groups), torch.tensor([0.4, 0.9]))
    torch.testing.assert_close(pooled(probabilities, groups, "max"), torch.tensor([0.6, 0.9]))
    between = pooled(probabilities, groups, "log-mean-exp")
    assert 0.4 < between[0] < 0.6
    assert between[1] == pytest.approx(0.9)


def test_the_threshold_is_the_best_cut_and_ties_take_the_middle() -> None:
    scores, labels = torch.tensor([0.1, 0.3, 0.2, 0.4]), torch.tensor([0, 1, 0, 1])
    assert best_threshold(scores, labels) == pytest.approx(0.25)
    assert best_threshold(torch.tensor([0.5, 0.5]), torch.tensor([1, 1])) < 0.5
    cut = best_threshold(torch.tensor([0.2, 0.8]), torch.tensor([1, 0]))
    assert judged(torch.rand(2), torch.tensor([0.2, 0.8]), torch.tensor([1, 0]), None, cut)["bag_accuracy"] == 0.5


def test_only_instances_of_known_truth_count() -> None:
    probabilities, truth = torch.tensor([0.9, 0.1, 0.8, 0.7]), torch.tensor([1, 0, -1, 0])
    found = judged(probabilities, torch.tensor([0.1, 0.9]), torch.tensor([0, 1]), truth, 0.5)
    assert found["instance_auc"] == 1.0
    assert found["instance_f1"] == pytest.approx(2 / 3)
    assert "instance_auc" not in judged(probabilities, torch.tensor([0.1, 0.9]), torch.tensor([0, 1]), -(truth**0), 0.5)


def test_bags_of_unequal_sizes_and_scattered_rows_are_pooled() -> None:
    with seeded(0, "network"):
        model = nn.Linear(2, 2)
    groups = torch.tensor([9, 4, 9, 9])
    examples = Examples(torch.randn(4, 2), torch.tensor([1, 0, 1, 1]), groups)
    probabilities, scores, labels, numbers = scores_of(model, examples, Normaliser.none())
    assert numbers.tolist() == [4, 9]
    assert labels.tolist() == [0, 1]
    torch.testing.assert_close(scores, torch.stack([probabilities[1], probabilities[[0, 2, 3]].mean()]))


def test_a_loader_takes_groups_along_and_leaves_them_out_without() -> None:
    given = (torch.arange(6.0)[:, None], torch.zeros(6))
    groups = torch.arange(6) // 2
    for batch in BatchLoader(*given, batch_size=2, groups=groups):
        assert torch.equal(batch["group"], groups[batch["index"]])
    assert "group" not in next(iter(BatchLoader(*given, batch_size=2)))


def test_fit_saves_a_model_of_instances_that_predicts(tmp_path: Path) -> None:
    saved = fit("attention-mil:width=4", data="iris?bags=5&ratio=0.4", out=tmp_path / "model", epochs=1)
    assert saved.classes == ("without virginica", "with virginica")
    found = repertory.load(tmp_path / "model").predict(torch.randn(3, 4), instances=True)
    assert found.outputs.shape == (3, 2)
