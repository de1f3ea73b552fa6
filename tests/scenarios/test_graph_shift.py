"""Graphs under a shift: what a run reports of which graphs, what plays, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from witness import BatchWitness

from repertory import Method, datasets
from repertory.compare.plan import make_plan
from repertory.datasets import Dataset
from repertory.errors import ConflictError, DataError, OptionError
from repertory.recipe import Part, Recipe
from repertory.scenarios import bags, graph_shift, noisy_labels, supervised
from repertory.scenarios.choices import Source, check_arm
from repertory.scenarios.fit import fit
from repertory.scenarios.methods import Arm, arm
from repertory.scenarios.registry import Outcome, suitable
from repertory.training.budget import Budget
from repertory.training.evaluate import higher_is_better, predict


class Witness(BatchWitness):
    """Asks for nothing."""


class Viewer(Method):
    """Asks for what graphs have not."""

    slug = "viewer"
    needs = frozenset({"views"})


@pytest.fixture(scope="module")
def motifs() -> Dataset:
    return datasets.load("motif-graphs?examples=120&bias=0.9&test=reversed")


@pytest.fixture(scope="module")
def years(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rings with and without a chord, of four years, as a table of graphs."""
    path = tmp_path_factory.mktemp("graphs") / "rings.jsonl"
    rows = []
    for number in range(80):
        nodes = 4 + number % 5
        edges = [[n, (n + 1) % nodes] for n in range(nodes)] + [[0, nodes // 2]] * (number % 2)
        rows.append({"edges": edges, "label": number % 2, "year": 2018 + number // 2 % 4})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(dataset: Dataset, **slots: Any) -> Recipe:
    model = Part("repertory.models:GIN", {"hidden": 4, "layers": 1})
    return graph_shift.baseline(dataset, model, epochs=2).replace(**slots)


def learnt(dataset: Dataset, recipe: Recipe, steps: int = 2, seed: int = 0) -> Outcome:
    return graph_shift.run(recipe, dataset, seed=seed, budget=Budget("steps", steps))


def test_graphs_mean_this_scenario_and_no_other(motifs: Dataset) -> None:
    assert suitable([], motifs) == "graph_shift"
    assert suitable(["l2r-gnn", "lion"], motifs) == "graph_shift"
    assert suitable(["l2r-gnn"], datasets.load("iris")) == "supervised"
    for other in (supervised, bags, noisy_labels):
        with pytest.raises(OptionError, match="add --scenario graph_shift"):
            other.view(motifs)
    with pytest.raises(DataError, match=r"needs graphs, but the data are a table.*motif-graphs"):
        graph_shift.view(datasets.load("iris"))


def test_the_default_is_a_network_on_graphs_with_adam(motifs: Dataset) -> None:
    part, reason = graph_shift.default_model(motifs)
    assert part.factory == "repertory.models.gin:GIN"
    assert "graphs" in reason
    recipe = graph_shift.baseline(motifs, part)
    assert (recipe.optimizer.factory, recipe.augment, recipe.epochs) == ("torch.optim:Adam", "none", 50)


def test_the_test_metrics_are_of_shifted_graphs_and_of_those_alike_apart(motifs: Dataset) -> None:
    outcome = learnt(motifs, recipe_of(motifs), steps=6)
    test, found = outcome.splits.test, outcome.metrics["test"]
    right = predict(outcome.learner, test.inputs).argmax(1) == test.targets
    outside = test.groups == motifs.group_names.index("reversed")
    assert 0 < int(outside.sum()) < len(test)
    assert found["accuracy"] == pytest.approx(float(right[outside].double().mean()))
    assert found["in_distribution_accuracy"] == pytest.approx(float(right[~outside].double().mean()))
    assert set(found) == {"accuracy", "nll", "ece", "in_distribution_accuracy"}
    assert set(outcome.metrics["validation"]) == {"accuracy", "nll", "ece"}
    assert set(found) <= set(higher_is_better)
    table = pd.DataFrame(outcome.tables["graphs"])
    shifted = table[table["shifted"]]
    assert (shifted["label"] == shifted["prediction"]).mean() == pytest.approx(found["accuracy"])
    assert table["row"].tolist() == outcome.splits.indices["test"]
    assert set(shifted["environment"]) == {"reversed"}


def test_with_several_environments_the_worst_counts_too(years: Path) -> None:
    dataset = datasets.load(f"{years}?environment=year&held=2020,2021")
    outcome = learnt(dataset, recipe_of(dataset), steps=4)
    test = outcome.splits.test
    right = (predict(outcome.learner, test.inputs).argmax(1) == test.targets).double()
    each = [float(right[test.groups == number].mean()) for number in test.groups.unique()]
    assert len(each) == 4
    assert outcome.metrics["test"]["worst_environment_accuracy"] == pytest.approx(min(each))
    assert higher_is_better["worst_environment_accuracy"]


def test_training_sees_graphs_as_they_are_with_their_environments_and_never_a_shifted_one(years: Path) -> None:
    dataset = datasets.load(f"{years}?environment=year")
    learnt(dataset, recipe_of(dataset, methods=(Part(f"{__name__}:Witness"),)), steps=5)
    train = dataset.prepare(0).train
    for batch in Witness.last.batches:
        assert torch.equal(batch["input"], train.inputs[batch["index"]])
        assert torch.equal(batch["group"], train.groups[batch["index"]])
        assert int(batch["group"].max()) < 3


@pytest.mark.parametrize("method", ["l2r-gnn:clusters=2,warmup=0", "l2r-gnn:clusters=0,functions=3", "esam+lion"])
def test_methods_run_by_name(motifs: Dataset, method: str) -> None:
    edited = arm(method, recipe_of(motifs), motifs.task, "graph_shift")
    check_arm(edited, motifs)
    assert learnt(motifs, edited.recipe, steps=3).cost["steps"] == 3


def test_neutral_options_are_the_baseline_bit_for_bit(motifs: Dataset) -> None:
    plain = learnt(motifs, recipe_of(motifs), steps=4).learner.state_dict()
    edited = arm("l2r-gnn:strength=0", recipe_of(motifs), motifs.task, "graph_shift").recipe
    found = learnt(motifs, edited, steps=4).learner.state_dict()
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_what_changes_inputs_is_refused_before_any_training(motifs: Dataset) -> None:
    viewed = recipe_of(motifs, methods=(Part(f"{__name__}:Viewer"),))
    with pytest.raises(ConflictError, match=r"viewer needs changed versions of the inputs .*of graphs there are none"):
        check_arm(Arm("viewer", (), viewed), motifs)


def test_data_that_say_nothing_of_a_shift_are_refused(motifs: Dataset) -> None:
    with pytest.raises(DataError, match="nothing says which graphs are shifted"):
        graph_shift.view(dataclasses.replace(motifs, groups=None))
    with pytest.raises(DataError, match="all environments of the test part are in the training part"):
        graph_shift.view(dataclasses.replace(motifs, groups=torch.zeros_like(motifs.groups)))


def test_a_plan_for_own_graphs_and_a_fit_with_its_table(years: Path, tmp_path: Path) -> None:
    spec, model = f"{years}?environment=year", "repertory:GIN:hidden=4,layers=1"
    plan = make_plan(["l2r-gnn:clusters=2"], Source(spec), model=model, epochs=2)
    assert plan.settings["scenario"] == "graph_shift"
    assert [each.label for each in plan.arms] == ["baseline", "l2r-gnn:clusters=2"]
    saved = fit("l2r-gnn:clusters=2", data=spec, model=model, epochs=1, out=tmp_path / "model", scenario="graph_shift")
    assert "in_distribution_accuracy" in saved.about["metrics"]["test"]
    table = pd.read_parquet(tmp_path / "model" / "graphs.parquet")
    assert set(table[table["shifted"]]["environment"]) == {"2021"}
