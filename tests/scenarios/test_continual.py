"""Tasks come one after the other and share the budget; what versions know and find is counted as by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repertory
from repertory import Method, datasets
from repertory.compare.report import write_report
from repertory.core.state import Run, State
from repertory.datasets import Dataset
from repertory.errors import DataError, DivergedError, OptionError
from repertory.recipe import Part, Recipe
from repertory.scenarios import continual
from repertory.scenarios.continual import Rehearsal, Versions, forgetting
from repertory.scenarios.registry import Outcome, scenario
from repertory.training.budget import Budget


class Witness(Method):
    """Notes each batch's classes, rows and learning rate, and each end of a task; the last run's is kept."""

    slug = "witness"
    last: Witness

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[list[dict[str, Any]]] = [[]]
        self.optimizers: set[int] = set()
        Witness.last = self

    def step(self, state: State, inner: Any) -> Tensor:
        optimizer = state.run.optimizer
        assert optimizer is not None
        self.optimizers.add(id(optimizer))
        rate = optimizer.param_groups[0]["lr"] / optimizer.param_groups[0]["initial_lr"]
        self.tasks[-1].append({**state.batch, "rate": rate, "progress": state.run.progress})
        return inner(state)

    def task_end(self, run: Run) -> None:
        self.tasks.append([])


@pytest.fixture(scope="module")
def iris() -> Dataset:
    return datasets.load("iris?rehearsal=5")


def recipe_of(dataset: Dataset, **slots: Any) -> Recipe:
    recipe = continual.baseline(dataset, continual.default_model(dataset)[0], epochs=4)
    return recipe.replace(**slots)


def learnt(dataset: Dataset, recipe: Recipe | None = None, **options: Any) -> Outcome:
    recipe = recipe or recipe_of(dataset)
    seed = options.pop("seed", 0)
    budget = options.pop("budget", None) or continual.budget_of("compute", recipe, dataset, dataset.prepare(seed))
    return continual.run(recipe, dataset, seed=seed, budget=budget, **options)


def witnessed(dataset: Dataset, **options: Any) -> tuple[Outcome, list[list[dict[str, Any]]]]:
    outcome = learnt(dataset, recipe_of(dataset, methods=(Part(f"{__name__}:Witness"),)), **options)
    tasks = Witness.last.tasks
    assert tasks.pop() == []
    return outcome, tasks


def test_each_task_has_classes_of_its_own_and_stored_examples_of_the_ones_before(iris: Dataset) -> None:
    outcome, tasks = witnessed(iris)
    assert len(tasks) == 3
    targets, before = outcome.splits.train.targets, torch.tensor([], dtype=torch.int64)
    stored: dict[int, set[int]] = {}
    for number, batches in enumerate(tasks):
        rows = torch.cat([batch["index"] for batch in batches])
        classes = targets[rows].unique()
        new = classes[~torch.isin(classes, before)]
        assert len(new) == 1
        assert set(rows[torch.isin(targets[rows], new)].tolist()) == set((targets == new).nonzero().flatten().tolist())
        for label in before.tolist():
            kept = set(rows[targets[rows] == label].tolist())
            assert len(kept) == 5
            assert stored.setdefault(label, kept) == kept
        assert len(classes) == number + 1
        before = classes


def test_half_of_each_batch_is_stored_examples(iris: Dataset) -> None:
    outcome, tasks = witnessed(iris)
    targets = outcome.splits.train.targets
    fresh = [set(targets[torch.cat([b["index"] for b in batches])].tolist()) for batches in tasks]
    for number in (1, 2):
        for batch in tasks[number]:
            old = torch.isin(targets[batch["index"]], torch.tensor(sorted(fresh[number - 1])))
            assert abs(int(old.sum()) * 2 - len(old)) <= 1


def test_nothing_is_stored_without_rehearsal() -> None:
    outcome, tasks = witnessed(datasets.load("iris?rehearsal=0"))
    targets = outcome.splits.train.targets
    for batches in tasks:
        assert len(targets[torch.cat([batch["index"] for batch in batches])].unique()) == 1


def test_tasks_share_the_budget_and_one_optimizer(iris: Dataset) -> None:
    outcome, tasks = witnessed(iris)
    sizes = [sum(len(batch["index"]) for batch in batches) for batches in tasks]
    budget = 4 * len(outcome.splits.train)
    assert len(Witness.last.optimizers) == 1
    assert all(abs(size - budget / 3) <= 10 for size in sizes)
    assert outcome.cost["passes"] == 3 * sum(sizes)
    assert outcome.cost["steps"] == sum(map(len, tasks))
    for number, batches in enumerate(tasks):
        assert all(number / 3 - 0.02 <= batch["progress"] < (number + 1) / 3 + 0.02 for batch in batches)


def test_learning_rate_goes_through_its_schedule_in_each_task(iris: Dataset) -> None:
    for batches in witnessed(iris)[1]:
        rates = [batch["rate"] for batch in batches]
        assert max(rates) > 0.95
        assert rates[-1] < 0.15


def test_methods_see_the_same_tasks_and_seeds_others(iris: Dataset) -> None:
    first, again, other = learnt(iris), learnt(iris), learnt(iris, seed=1)
    assert first.metrics == again.metrics
    curves = [[{k: v for k, v in r.items() if k != "seconds"} for r in each.curve] for each in (first, again)]
    assert curves[0] == curves[1]
    assert first.metrics != other.metrics
    kept = learnt(iris, seed=1, split_seed=0)
    assert kept.splits.indices == first.splits.indices
    assert kept.metrics != first.metrics
    _, tasks = witnessed(iris)
    learnt(iris, recipe_of(iris, methods=(Part("repertory.algorithms:SAM"), Part(f"{__name__}:Witness"))))
    for batch, same in zip(tasks[0], Witness.last.tasks[0]):
        assert torch.equal(batch["index"], same["index"])


def test_an_unchanged_network_forgets_nothing_and_every_version_finds_the_same(iris: Dataset) -> None:
    still = learnt(iris, recipe_of(iris, optimizer=Part("torch.optim:SGD", {"lr": 0.0})))
    for found in still.metrics.values():
        assert found["forgetting"] == 0.0
        assert found["compatibility"] == 0.0
        assert found["cross_version"] == pytest.approx(found["new_on_old"])


def test_without_rehearsal_a_plain_network_knows_the_last_task_alone() -> None:
    data = datasets.load("iris?rehearsal=0")
    found = learnt(data, recipe_of(data, optimizer=Part("torch.optim:AdamW", {"lr": 0.1}), epochs=10)).metrics["test"]
    assert found["accuracy"] == pytest.approx(1 / 3, abs=0.05)
    assert found["forgetting"] > 0.9


def test_a_network_that_memorises_knows_every_task() -> None:
    targets = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    versions = Versions(targets, [torch.tensor([2, 0]), torch.tensor([1, 3])])
    for _ in range(2):
        versions.add(nn.functional.one_hot(targets).float(), nn.functional.one_hot(targets).float())
    assert versions.metrics() == {
        "accuracy": 1.0,
        "average_accuracy": 1.0,
        "forgetting": 0.0,
        "compatibility": 0.0,
        "cross_version": 1.0,
        "new_on_old": 1.0,
    }


def test_metrics_of_versions_by_hand() -> None:
    # Classes 2 and 0 come first, then 1. The first version knows both of its classes but for one example; the second
    # knows class 1, and of class 0 one example of three.
    targets = torch.tensor([0, 0, 0, 2, 1, 1])
    versions = Versions(targets, [torch.tensor([2, 0]), torch.tensor([1])])
    first, second = torch.tensor([0, 0, 2, 2, 0, 0]), torch.tensor([0, 1, 1, 1, 1, 1])
    embeddings = torch.eye(3)[targets]
    versions.add(torch.eye(3)[first], embeddings)
    versions.add(torch.eye(3)[second], embeddings)
    torch.testing.assert_close(versions.accuracies(), torch.tensor([[0.75, 0.0], [0.25, 1.0]], dtype=torch.float64))
    found = versions.metrics()
    assert found["accuracy"] == pytest.approx(3 / 6)
    assert found["average_accuracy"] == pytest.approx((3 / 4 + 3 / 6) / 2)
    assert found["forgetting"] == pytest.approx(0.75 - 0.25)
    assert versions.table()["accuracy_on_task"] == [0.75, 0.25, 1.0]


def test_a_version_that_turned_its_embeddings_finds_nothing_in_old_galleries() -> None:
    targets = torch.arange(2).repeat(6)
    versions = Versions(targets, [torch.tensor([0]), torch.tensor([1])])
    outputs, embeddings = torch.eye(2)[targets], torch.eye(2)[targets]
    versions.add(outputs, embeddings)
    versions.add(outputs, embeddings.flip(1))
    found = versions.metrics()
    assert found["new_on_old"] == 0.0
    assert found["cross_version"] == pytest.approx(2 / 3)
    assert found["compatibility"] == 0.0
    versions.add(outputs, embeddings, again=True)
    assert versions.metrics()["new_on_old"] == 1.0


def test_forgetting_is_the_loss_since_the_best_time() -> None:
    accuracies = torch.tensor([[0.8, 0.0, 0.0], [0.9, 0.7, 0.0], [0.5, 0.8, 1.0]])
    assert forgetting(accuracies) == pytest.approx(((0.9 - 0.5) + (0.7 - 0.8)) / 2)


def test_parts_without_queries_have_no_metrics_of_searches() -> None:
    versions = Versions(torch.tensor([0, 1]), [torch.tensor([0]), torch.tensor([1])])
    for _ in range(2):
        versions.add(torch.eye(2), torch.eye(2))
    assert set(versions.metrics()) == {"accuracy", "average_accuracy", "forgetting"}
    lacking = Versions(torch.tensor([0, 0, 0]), [torch.tensor([0]), torch.tensor([1])])
    for _ in range(2):
        lacking.add(torch.eye(2)[[0, 0, 0]], torch.eye(3))
    assert lacking.metrics()["average_accuracy"] == 1.0


def test_every_stored_example_is_replayed_equally_often() -> None:
    stored = torch.zeros(20, dtype=torch.bool).index_fill_(0, torch.tensor([1, 5, 7]), True)
    rows = torch.tensor([1, 5, 7, *range(10, 19)])
    order = Rehearsal(stored)(rows, rows, torch.Generator().manual_seed(0))
    assert sorted(order[::2].tolist()) == list(range(10, 19))
    assert order[1::2].bincount(minlength=8)[[1, 5, 7]].tolist() == [3, 3, 3]


def test_number_of_tasks_is_an_option_of_the_data() -> None:
    assert len(witnessed(datasets.load("iris?tasks=2"))[1]) == 2
    with pytest.raises(OptionError, match="tasks=4 is not from 2 to 3"):
        datasets.load("iris?tasks=4")
    with pytest.raises(OptionError, match="rehearsal=-1 is not a whole number"):
        datasets.load("iris?rehearsal=-1")
    with pytest.raises(OptionError, match="rehearsal=5 needs classes"):
        datasets.load("diabetes?rehearsal=5")


@pytest.mark.parametrize("name", ["supervised", "online", "retrieval"])
def test_other_scenarios_refuse_its_options(name: str) -> None:
    with pytest.raises(OptionError, match=rf"tasks=2 has no use in scenario {name}; add --scenario continual"):
        scenario(name).view(datasets.load("digits?tasks=2"))


def test_numbers_and_several_devices_are_refused(iris: Dataset) -> None:
    numbers = datasets.load("diabetes")
    with pytest.raises(DataError, match="classes come one after the other, but the task is regression"):
        continual.baseline(numbers, Part("m:f"))
    with pytest.raises(DataError, match="choose --scenario supervised"):
        continual.view(numbers)
    with pytest.raises(OptionError, match="fabric is not allowed"):
        learnt(iris, fabric=object())


def test_a_learning_rate_out_of_all_bounds_diverges_by_name(iris: Dataset) -> None:
    with pytest.raises(DivergedError, match=r"is nan|is inf|not finite"):
        learnt(iris, recipe_of(iris, optimizer=Part("torch.optim:SGD", {"lr": 1e38}), warmup=0.0))


def test_a_budget_of_fewer_steps_than_tasks_is_judged_all_the_same(iris: Dataset) -> None:
    outcome = learnt(iris, budget=Budget("steps", 2))
    assert outcome.cost["steps"] == 2
    assert len(outcome.tables["versions"]["version"]) == 6


def test_progress_and_records_are_told(iris: Dataset) -> None:
    shares: list[float] = []
    records: list[dict[str, Any]] = []
    outcome = learnt(iris, on_progress=shares.append, on_record=records.append)
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    assert records == outcome.curve
    assert {record["stage"] for record in records} == {"train/0", "train/1", "train/2"}
    assert all("accuracy" in record["validation"] for record in records)
    passes = [record["passes"] for record in records]
    assert passes == sorted(passes)
    assert passes[-1] == outcome.cost["passes"]


def test_methods_are_compared_and_reported(tmp_path: Path, inline: list[str]) -> None:
    found = repertory.compare(
        "key-value-bottleneck", data="iris", scenario="continual", seeds=2, epochs=2, out=tmp_path / "run", device="cpu"
    )
    assert found["metric"] == "accuracy"
    assert {run["status"] for run in found["results"]} == {"finished"}
    write_report(tmp_path / "report.html", found)
    assert "forgetting" in (tmp_path / "report.html").read_text()
