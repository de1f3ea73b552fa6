"""New classes come without labels, and no method is given any; what is found and forgotten is counted as by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repertory
from repertory import Method, datasets
from repertory.algorithms import grow_and_merge
from repertory.algorithms.grow_and_merge.novelty import novelty_scores, novelty_threshold
from repertory.compare.report import write_report
from repertory.core.classifier import classifier_of
from repertory.datasets import Dataset
from repertory.errors import DataError, DivergedError, OptionError, UserError
from repertory.estimators.rejected_clusters import ClusteredRejects, RejectedClusters
from repertory.models.sources import model_part
from repertory.recipe import Part, Recipe
from repertory.scenarios import category_discovery
from repertory.scenarios.category_discovery import DiscoveryBench
from repertory.scenarios.discovery_metrics import discovery_metrics, largest_loss, matched, split_quality
from repertory.scenarios.methods import arm
from repertory.scenarios.registry import Outcome, scenario, suitable
from repertory.training.budget import Budget
from repertory.training.learner import Learner

RELEASED = json.loads((Path(__file__).parents[1] / "algorithms" / "grow_and_merge_released.json").read_text())
SPEC = "digits?known=4&steps=2&mix=0.5"


class Witness(Method):
    """Adds outputs that are never the largest, and notes all that it was given."""

    slug = "witness"
    owns = frozenset({"target"})
    last: Witness

    def __init__(self, outputs: int | None = None) -> None:
        super().__init__()
        self.outputs = outputs
        self.rejected = torch.zeros(0, dtype=torch.bool)
        self.given: list[dict[str, Any]] = []
        Witness.last = self

    def discover(self, learner: Learner, bench: DiscoveryBench) -> Learner:
        parts = {part: getattr(bench.splits, part) for part in ("train", "validation", "test")}
        self.given.append(
            {"inputs": bench.unlabelled, "new": bench.new_classes, "share": bench.share, "parts": parts, "bench": bench}
        )
        self.rejected = torch.ones(len(bench.unlabelled), dtype=torch.bool)
        new = bench.new_classes if self.outputs is None else self.outputs
        grow_and_merge.grow_classifier(learner.network, new, torch.Generator().manual_seed(0))
        layer = classifier_of(learner.network)[1]
        with torch.no_grad():
            layer.weight[-new:], layer.bias[-new:] = 0.0, -1e4
        return learner


class Listener(grow_and_merge.GM):
    """Notes the targets of every batch."""

    last: Listener

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.targets: list[Tensor] = []
        self.batches: set[str] = set()
        Listener.last = self

    def step(self, state: Any, inner: Any) -> Tensor:
        self.targets.append(state.batch["target"])
        self.batches |= set(state.batch)
        return super().step(state, inner)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.load(SPEC)


def recipe_of(dataset: Dataset, epochs: int = 2, **slots: Any) -> Recipe:
    model = Part("repertory.models.small:mlp", {"width": 32})
    return category_discovery.baseline(dataset, model, epochs=epochs).replace(**slots)


def learnt(dataset: Dataset, recipe: Recipe | None = None, **options: Any) -> Outcome:
    recipe = recipe or recipe_of(dataset)
    seed = options.pop("seed", 0)
    splits = dataset.prepare(seed)
    budget = options.pop("budget", None) or category_discovery.budget_of("compute", recipe, dataset, splits)
    return category_discovery.run(recipe, dataset, seed=seed, budget=budget, **options)


def witnessed(dataset: Dataset, **slots: Any) -> tuple[Outcome, list[dict[str, Any]]]:
    outcome = learnt(dataset, recipe_of(dataset, objective=Part(f"{__name__}:Witness"), **slots))
    return outcome, Witness.last.given


def test_a_method_is_given_known_classes_alone(digits: Dataset) -> None:
    outcome, given = witnessed(digits, train_share=0.4)
    assert [each["new"] for each in given] == [3, 3]
    for each in given:
        assert each["inputs"].dtype == torch.uint8
        for examples in each["parts"].values():
            assert set(examples.targets.tolist()) == {0, 1, 2, 3}
        assert each["bench"].splits.unlabelled is None
    sizes = [len(each["inputs"]) for each in given]
    assert [each["share"] for each in given] == pytest.approx([0.6 * size / sum(sizes) for size in sizes])
    assert set(outcome.splits.test.targets.tolist()) == set(range(10))
    rows = torch.tensor(outcome.splits.indices["unlabelled"])
    assert torch.equal(digits.inputs[rows], torch.cat([each["inputs"] for each in given]))


def test_no_batch_has_a_label_of_a_new_class(digits: Dataset) -> None:
    part = Part(f"{__name__}:Listener", {"k": 3, "growing": 0.5}, "grow-and-merge")
    learnt(digits, recipe_of(digits, objective=part, train_share=0.4))
    heard = Listener.last
    assert heard.batches == {"input", "target", "index", "views", "view_parameters"}
    targets = torch.cat(heard.targets)
    # In the second set those found in the first have pseudo-labels.
    assert set(targets.unique().tolist()) <= set(range(-1, 7))
    assert int((targets == -1).sum()) > 100


def test_true_classes_of_the_sets_without_labels_change_nothing(digits: Dataset) -> None:
    def run(names: Tensor) -> dict[str, Tensor]:
        recipe = grow_and_merge.edit(recipe_of(digits), k=3)
        original = category_discovery.deal

        def dealt(targets: Tensor, *more: Any) -> Any:
            stream = original(targets, *more)
            rows = torch.cat(stream.unlabelled)
            targets[rows] = names[targets[rows]]
            return stream

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(category_discovery, "deal", dealt)
            budget = Budget("compute", 20000.0)
            return category_discovery.run(recipe, digits, seed=0, budget=budget).learner.state_dict()

    first, second = run(torch.arange(10)), run(torch.zeros(10, dtype=torch.int64))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_classifier_that_finds_nothing_forgets_nothing(digits: Dataset) -> None:
    outcome, _ = witnessed(digits)
    for part, found in outcome.metrics.items():
        assert found["known_forgetting"] == 0.0
        assert found["discovery"] == 0.0
        targets = getattr(outcome.splits, part).targets
        assert found["accuracy"] == pytest.approx(found["known_accuracy"] * float((targets < 4).double().mean()))
    table = outcome.tables["steps"]
    assert table["step"] == [0, 1, 2]
    assert table["new_classes"] == [0, 3, 3]
    assert table["test_known_accuracy"] == [outcome.metrics["test"]["known_accuracy"]] * 3
    assert table["test_newest"] == [None, 0.0, 0.0]
    assert table["split_recall"] == [None, 1.0, 1.0]
    assert table["split_precision"][1:] == pytest.approx([0.5, 0.5], abs=0.05)


def test_matching_is_the_best_of_all_and_leaves_known_classes_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, targets = torch.randint(6, (2, 200), generator=generator)
    found = discovery_metrics(predicted, targets, known=2)
    best = 0.0
    for order in itertools.permutations(range(2, 6)):
        names = torch.tensor([0, 1, *order])
        best = max(best, float((names[predicted] == targets)[targets >= 2].double().mean()))
    assert found["discovery"] == best
    assert found["known_accuracy"] == float((predicted == targets)[targets < 2].double().mean())
    permuted = torch.tensor([0, 1, 4, 2, 5, 3])[predicted]
    assert discovery_metrics(permuted, targets, known=2) == found


def test_matching_equals_the_released_code() -> None:
    clusters = RELEASED["clusters"]
    found = discovery_metrics(torch.tensor(clusters["predicted"]), torch.tensor(clusters["true"]), known=0)
    assert found["discovery"] == clusters["accuracy"]


def test_outputs_without_a_class_are_wrong() -> None:
    assert matched(torch.tensor([2, 3, 4]), torch.tensor([2, 2, 0]), known=2).tolist() == [2, -1, -1]
    assert matched(torch.tensor([2, 0]), torch.tensor([1, 0]), known=2).tolist() == [-1, 0]
    assert discovery_metrics(torch.tensor([0, 1]), torch.tensor([0, 1]), known=2)["discovery"] == 0.0


def test_forgetting_is_the_largest_loss_and_0_of_what_stays() -> None:
    assert largest_loss([0.9, 0.7, 0.8]) == pytest.approx(0.2)
    assert largest_loss([0.9, 0.9, 0.9]) == 0.0
    assert largest_loss([0.8, 0.9]) == pytest.approx(-0.1)


def test_a_split_that_says_nothing_has_no_precision() -> None:
    none, some = torch.zeros(3, dtype=torch.bool), torch.tensor([True, False, False])
    assert split_quality(none, some) == (None, 0.0)
    assert split_quality(some, none) == (0.0, None)


def test_the_baseline_trains_on_known_classes_alone_and_gives_the_rest_to_clusters(digits: Dataset) -> None:
    recipe = recipe_of(digits, epochs=20)
    splits = digits.prepare(0)
    budget = category_discovery.budget_of("compute", recipe, digits, splits)
    outcome = learnt(digits, recipe)
    network = outcome.learner.network
    assert isinstance(network, ClusteredRejects)
    assert classifier_of(network)[1].out_features == 4
    assert network.centres.shape == (6, 32)
    assert outcome.cost["backward"] * 3 == pytest.approx(budget.amount, rel=0.02)
    found = outcome.metrics["test"]
    assert found["known_accuracy"] > 0.8
    assert found["known_forgetting"] < 0.15
    assert found["discovery"] > 0.4
    table = outcome.tables["steps"]
    # All further sets leave the known classes as the first one did.
    assert len(set(table["validation_known_accuracy"][1:])) == 1
    parts = {"validation": outcome.splits.validation, "test": outcome.splits.test}
    with torch.no_grad():
        outputs = {part: outcome.learner(outcome.splits.normaliser(each.inputs)) for part, each in parts.items()}
        known = network.network(outcome.splits.normaliser(parts["validation"].inputs))[parts["validation"].targets < 4]
    for part, each in parts.items():
        right = matched(outputs[part].argmax(1), each.targets, 4) == each.targets
        assert table[f"{part}_newest"][-1] == float(right[each.targets >= 7].double().mean())
    # The line is drawn, in each step, by examples that were not trained on; each set is looked at once.
    assert torch.equal(network.threshold, novelty_threshold(novelty_scores(known)))
    assert outcome.cost["forward"] - outcome.cost["backward"] == 2 * len(known) + sum(table["examples"])


def test_rejected_examples_go_to_the_nearest_cluster_and_others_to_none() -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for layer in network:
        nn.init.eye_(layer.weight)
    made = ClusteredRejects(network, torch.tensor(0.2))
    assert torch.equal(made(torch.eye(2)), network(torch.eye(2)))
    made.add(torch.tensor([[1.0, 1.0]]))
    made.add(torch.tensor([[5.0, 5.0], [9.0, 9.0]]))
    inputs = torch.tensor([[4.0, 0.0], [0.0, 4.0], [1.2, 1.0], [5.1, 5.0], [8.0, 8.0]])
    outputs = made(inputs)
    assert outputs.argmax(1).tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(outputs.exp().sum(1), torch.ones(5))


def test_budget_is_shared_and_counted(digits: Dataset) -> None:
    recipe = grow_and_merge.edit(recipe_of(digits, epochs=6), k=3)
    budget = category_discovery.budget_of("compute", recipe, digits, digits.prepare(0))
    outcome = learnt(digits, recipe)
    assert outcome.cost["passes"] == pytest.approx(budget.amount, rel=0.06)
    spent = {record["stage"]: record["passes"] for record in outcome.curve}
    assert list(spent) == ["train", "step 1", "step 2"]
    assert spent["train"] == pytest.approx(0.4 * budget.amount, rel=0.05)
    assert spent["step 1"] == pytest.approx(0.7 * budget.amount, rel=0.07)
    shares: list[float] = []
    learnt(digits, recipe, on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_the_same_seed_gives_the_same_numbers_and_split_and_seed_are_apart(digits: Dataset) -> None:
    recipe = grow_and_merge.edit(recipe_of(digits), k=3)
    first, again, other = (learnt(digits, recipe, **more) for more in ({}, {}, {"seed": 1, "split_seed": 0}))
    assert first.metrics == again.metrics
    assert first.splits.indices == other.splits.indices
    assert first.metrics != other.metrics
    assert first.splits.classes == other.splits.classes
    rows = torch.tensor(first.splits.indices["test"])
    for label, row in zip(first.splits.test.targets.tolist(), rows.tolist()):
        assert label >= 4 or first.splits.classes[label] == digits.classes[int(digits.targets[row])]
    assert first.splits.classes[4:] == ("new 1.1", "new 1.2", "new 1.3", "new 2.1", "new 2.2", "new 2.3")
    assert set(first.splits.classes[:4]) < set(digits.classes)


def test_other_optimizers_play_here_with_and_without_it(digits: Dataset) -> None:
    baseline = recipe_of(digits)
    both = arm("grow-and-merge+lion", baseline, digits.task, "category_discovery").recipe
    assert both.objective is not None
    assert both.objective.slug == "grow-and-merge"
    assert both.optimizer.slug == "lion"
    assert learnt(digits, both).metrics != learnt(digits, grow_and_merge.edit(baseline)).metrics
    mine = arm(f"{__name__}:Witness", baseline, digits.task, "category_discovery").recipe
    assert mine.objective == Part(f"{__name__}:Witness", {}, "witness")
    assert suitable(["grow-and-merge"]) == "category_discovery"
    assert suitable(["lion"], digits) == "category_discovery"
    with pytest.raises(UserError, match="plays in the scenario supervised"):
        arm("esam", baseline, digits.task, "category_discovery")
    with pytest.raises(OptionError, match="new=2 is for a Step of your own"):
        arm("grow-and-merge:new=2", baseline, digits.task, "category_discovery")


def test_a_network_with_batch_norm_and_images_learns(digits: Dataset) -> None:
    recipe = recipe_of(digits).replace(model=category_discovery.default_model(digits)[0], augment="shift")
    found = learnt(digits, grow_and_merge.edit(recipe, k=3)).metrics["test"]
    assert found["known_accuracy"] > 0.5
    outcome = learnt(digits, recipe)
    norm = next(layer for layer in outcome.learner.modules() if isinstance(layer, nn.BatchNorm2d))
    # Looking at a set leaves the statistics alone.
    assert int(norm.num_batches_tracked) == outcome.cost["steps"]


def test_rows_of_a_table_are_enough() -> None:
    iris = datasets.load("iris?mix=0")
    found = learnt(iris, grow_and_merge.edit(recipe_of(iris, epochs=10), k=3))
    assert found.tables["steps"]["new_classes"] == [0, 1]
    assert found.metrics["test"]["known_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("diabetes", UserError, "learns classes, but the task is regression"),
        ("breast-cancer", DataError, "has 2 classes; scenario category_discovery needs 3"),
        ("digits?noise=0.2", OptionError, "noise=0.2 has no use in scenario category_discovery"),
        ("digits?labels=40", OptionError, "labels=40 has no use in scenario category_discovery"),
        ("digits?tasks=2", OptionError, "tasks=2 has no use in scenario category_discovery; add --scenario continual"),
    ],
)
def test_data_without_a_use_are_refused(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        category_discovery.view(datasets.load(spec))


@pytest.mark.parametrize("name", ["supervised", "continual", "retrieval"])
def test_other_scenarios_refuse_its_options(name: str) -> None:
    with pytest.raises(OptionError, match=rf"known=4 has no use in scenario {name}; add --scenario category_discovery"):
        scenario(name).view(datasets.load(SPEC))


def test_runs_that_cannot_work_are_refused(digits: Dataset) -> None:
    with pytest.raises(OptionError, match="fabric is not allowed"):
        learnt(digits, fabric=object())
    with pytest.raises(UserError, match="has nothing in its slot objective"):
        learnt(digits, recipe_of(digits, objective=None))
    with pytest.raises(UserError, match="needs a method with discover"):
        learnt(digits, recipe_of(digits, objective=Part("repertory.algorithms:SimCLR")))
    with pytest.raises(UserError, match="after step 1 the model has 5 outputs; there must be 7"):
        learnt(digits, recipe_of(digits, objective=Part(f"{__name__}:Witness", {"outputs": 1})))
    with pytest.raises(DivergedError):
        learnt(digits, recipe_of(digits, optimizer=Part("torch.optim:SGD", {"lr": 1e38}), warmup=0.0))
    with pytest.raises(OptionError, match=r"quantile=1.0 is not allowed"):
        RejectedClusters(quantile=1.0)


@pytest.mark.parametrize("methods", [None, "grow-and-merge"])
def test_what_fit_saves_predicts_as_it_did(methods: str | None, tmp_path: Path, digits: Dataset) -> None:
    given: dict[str, Any] = {"scenario": "category_discovery", "model": "repertory:mlp", "epochs": 2, "device": "cpu"}
    saved = repertory.fit(methods, data=SPEC, out=tmp_path / "model", **given)
    recipe = category_discovery.baseline(digits, model_part("repertory:mlp"), epochs=2)
    budget = category_discovery.budget_of("steps", recipe, digits, digits.prepare(0))
    if methods:
        recipe = arm(methods, recipe, digits.task, "category_discovery").recipe
    outcome = learnt(digits, recipe, budget=budget)
    assert saved.about["metrics"] == outcome.metrics
    assert saved.classes == outcome.splits.classes
    test = outcome.splits.test
    found = discovery_metrics(saved.predict(test.inputs).outputs.argmax(1), test.targets, known=4)
    assert found["accuracy"] == outcome.metrics["test"]["accuracy"]


def test_methods_are_compared_and_reported(tmp_path: Path, inline: list[str]) -> None:
    found = repertory.compare(
        "grow-and-merge:k=3", data=SPEC, seeds=2, epochs=1, out=tmp_path / "run", device="cpu", model="repertory:mlp"
    )
    assert found["settings"]["scenario"] == "category_discovery"
    assert found["metric"] == "accuracy"
    assert {run["status"] for run in found["results"]} == {"finished"}
    write_report(tmp_path / "report.html", found)
    assert "known forgetting" in (tmp_path / "report.html").read_text()
