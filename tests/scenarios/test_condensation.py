"""Condensation: what is refused, what the condenser gets, what is trained on what it made, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from repertory import datasets
from repertory.compare.folder import RunFolder, safe_name
from repertory.compare.jobs import run_job
from repertory.compare.sheet import condensed_sheets, picture
from repertory.curation.condensing import Condensed, RealExamples, condensed_by
from repertory.datasets import Dataset, Examples
from repertory.datasets.condensed import columns, read
from repertory.errors import ConflictError, DataError, DivergedError, OptionError, UserError
from repertory.recipe import Part, Recipe
from repertory.scenarios import condensation
from repertory.scenarios.choices import Source
from repertory.scenarios.fit import fit
from repertory.scenarios.methods import arm
from repertory.scenarios.registry import Outcome, suitable

HERE = "test_condensation"


class Means:
    """Condenses a class to noisy copies of its mean, and notes what it was given."""

    last: Any = None

    def __init__(self, soft: bool = False, scale: float = 1.0, drop: int = 0, shift: int = 0) -> None:
        self.soft, self.scale, self.drop, self.shift = soft, scale, drop, shift

    def condense(self, bench: Any) -> Condensed:
        Means.last = bench
        bench.count(forward=7, backward=5)
        bench.progress(0.5)
        train = bench.splits.train
        means = torch.stack([train.inputs[train.targets == k].float().mean(0) for k in range(bench.outputs)])
        inputs = means.repeat_interleave(bench.per_class, 0)
        inputs = self.scale * (inputs + 0.1 * torch.randn(inputs.shape, generator=bench.generator("means")))
        labels = (torch.arange(bench.outputs).repeat_interleave(bench.per_class) + self.shift) % bench.outputs
        targets: Tensor = torch.eye(bench.outputs)[labels] * 0.9 + 0.1 / bench.outputs if self.soft else labels
        return Condensed(inputs[self.drop :], targets[self.drop :])


@pytest.fixture(scope="module")
def iris() -> Dataset:
    return condensation.view(datasets.load("iris?ipc=4"))


def recipe_of(dataset: Dataset, **options: Any) -> Recipe:
    recipe = condensation.baseline(dataset, Part("repertory.testing.tiny:network"), epochs=1)
    return condensed_by(recipe, Part(f"{HERE}:Means", options, "means")) if options else recipe


def learnt(dataset: Dataset, recipe: Recipe, seed: int = 0, kind: str = "compute") -> Outcome:
    budget = condensation.budget_of(kind, recipe, dataset, dataset.prepare(seed))
    return condensation.run(recipe, dataset, seed=seed, budget=budget)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("diabetes", UserError, "the task is regression; give data with classes"),
        ("diabetes?ipc=3", OptionError, "ipc=3 needs classes"),
        ("digits?ipc=0", OptionError, "ipc=0 is not a whole number of examples a class from 1 on"),
        ("digits?ipc=few", OptionError, "ipc=few is not a whole number"),
        ("digits?ipc=5&rehearsal=5", OptionError, "--scenario continual"),
    ],
)
def test_data_that_do_not_suit_are_refused_with_a_way_out(spec: str, error: type[UserError], words: str) -> None:
    with pytest.raises(error, match=words):
        condensation.view(datasets.load(spec))


def test_more_than_a_class_has_is_refused_before_anything_runs() -> None:
    dataset = datasets.load("iris?ipc=40")
    with pytest.raises(DataError, match=r"ipc=40 asks for more than the 3\d training examples .*at most ipc=3\d"):
        condensation.budget_of("steps", recipe_of(dataset), dataset, dataset.prepare(0))


def test_without_the_option_there_are_ten_of_each_or_what_the_smallest_class_has() -> None:
    dataset = datasets.load("iris?imbalance=8")
    smallest = int(dataset.prepare(0).train.targets.bincount().min())
    assert smallest < 10
    assert len(learnt(dataset, recipe_of(dataset)).tables["synthetic"]["class"]) == 3 * smallest
    whole = datasets.load("iris")
    assert len(learnt(whole, recipe_of(whole)).tables["synthetic"]["class"]) == 30


def test_data_with_the_option_belong_to_this_scenario_and_no_other_reads_it() -> None:
    dataset = datasets.load("digits?ipc=3")
    assert suitable([], dataset) == "condensation"
    with pytest.raises(OptionError, match="ipc=3 has no use in scenario supervised; add --scenario condensation"):
        condensation.refuse_options(dataset, "supervised")


def test_the_baseline_keeps_real_examples_of_each_class(iris: Dataset) -> None:
    found, splits = learnt(iris, recipe_of(iris)).tables["synthetic"], iris.prepare(0)
    assert found["target"] == [k for k in range(3) for _ in range(4)]
    real = {tuple(row) for row in splits.train.inputs.tolist()}
    assert all(tuple(row) in real for row in found["input"])


def test_every_network_learns_the_made_set_and_nothing_else(iris: Dataset) -> None:
    # Where classes are moved to each other's place, the networks learn the wrong names.
    steep = Part("torch.optim:AdamW", {"lr": 0.05})
    first, second = (learnt(iris, recipe_of(iris, shift=k).replace(epochs=8, optimizer=steep)) for k in (0, 1))
    assert min(first.tables["networks"]["test_accuracy"]) > 0.6
    assert max(second.tables["networks"]["test_accuracy"]) < 0.3
    assert len(set(first.tables["networks"]["test_nll"])) == condensation.NETWORKS


def test_metrics_are_the_means_over_the_networks(iris: Dataset) -> None:
    outcome = learnt(iris, recipe_of(iris))
    for part in ("validation", "test"):
        for name, value in outcome.metrics[part].items():
            assert value == pytest.approx(sum(outcome.tables["networks"][f"{part}_{name}"]) / condensation.NETWORKS)


def test_condensing_is_counted_beside_the_budget_and_not_taken_off_it(iris: Dataset) -> None:
    plain, made = learnt(iris, recipe_of(iris)), learnt(iris, recipe_of(iris, soft=False))
    # Five networks, one epoch of five passes over 12 examples: forward 1, backward 2.
    assert plain.cost["passes"] == made.cost["passes"] == 5 * 5 * 12 * 3
    assert (plain.cost["condensing_passes"], made.cost["condensing_passes"]) == (0, 7 + 2 * 5)
    assert plain.curve[-1]["passes"] == plain.cost["passes"]
    results = [{"label": "means", "cost": made.cost}, {"label": "baseline", "cost": plain.cost}]
    assert len(notes := condensation.condensing_costs(results)) == 1
    assert notes[0].startswith("means: making the condensed set took 17 passes")


def test_progress_goes_from_the_making_to_the_last_network(iris: Dataset) -> None:
    told: list[float] = []
    recipe, splits = recipe_of(iris, soft=False), iris.prepare(0)
    budget = condensation.budget_of("steps", recipe, iris, splits)
    condensation.run(recipe, iris, seed=0, budget=budget, on_progress=told.append)
    assert told[0] == 0.25
    assert told[-1] == pytest.approx(1.0)
    assert told == sorted(told)


def test_the_condenser_sees_the_training_part_and_how_many_are_wanted(iris: Dataset) -> None:
    learnt(iris, recipe_of(iris, soft=False), seed=3)
    bench = Means.last
    assert bench.per_class == 4
    assert torch.equal(bench.splits.train.inputs, iris.prepare(3).train.inputs)


def test_probabilities_as_targets_are_learnt_and_kept(iris: Dataset, tmp_path: Path) -> None:
    outcome = learnt(iris, recipe_of(iris, soft=True))
    assert outcome.tables["synthetic"]["class"] == [name for name in iris.classes for _ in range(4)]
    assert outcome.tables["synthetic"]["target"][0] == pytest.approx([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"scale": float("nan")}, DivergedError, "made numbers that are not finite"),
        ({"drop": 1}, UserError, r"shape \(11, 4\); they must be \(12, 4\), 4 of each class"),
    ],
)
def test_what_is_no_condensed_set_is_refused(
    iris: Dataset, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        learnt(iris, recipe_of(iris, **options))


def test_two_condensers_cannot_be_combined(iris: Dataset) -> None:
    with pytest.raises(ConflictError, match=f"{HERE}:Means and other both make the condensed set"):
        condensed_by(arm(f"{HERE}:Means", recipe_of(iris), "classification", "condensation").recipe, _other())


def _other() -> Part:
    return Part(f"{HERE}:Means", {}, "other")


def test_same_seed_same_set_and_networks(iris: Dataset) -> None:
    first, second, third = (learnt(iris, recipe_of(iris, soft=False), seed=seed) for seed in (1, 1, 2))
    assert first.tables == second.tables
    assert first.tables != third.tables


def test_a_kept_set_is_read_as_it_was(tmp_path: Path) -> None:
    import pandas as pd

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 2, 3, 5, generator=generator)
    for targets in (torch.tensor([0, 0, 1, 1]), torch.rand(4, 2, generator=generator)):
        path = tmp_path / "set.parquet"
        pd.DataFrame(columns(Examples(inputs, targets), ["a", "b"])).to_parquet(path)
        found = read(path)
        assert torch.equal(found.inputs, inputs)
        assert torch.equal(found.targets, targets)
        assert found.targets.dtype == targets.dtype
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(DataError, match="holds no condensed set"):
        read(path)


def test_a_run_keeps_its_set_and_the_report_shows_it(tmp_path: Path) -> None:
    source, path = Source("digits?ipc=2"), f"{HERE}:Means:scale=3"
    dataset = source.load()
    recipe = arm(path, recipe_of(dataset), "classification", "condensation").recipe
    job = {
        "key": f"{safe_name(path)}/seed-0",
        "label": path,
        "method": "means",
        "scenario": "condensation",
        "recipe": recipe.to_dict(),
        "seed": 0,
        "split_seed": 0,
        "data": dict(vars(source)),
        "fingerprint": dataset.describe()["fingerprint"],
        "budget": {"kind": "steps", "amount": 5},
        "device": "cpu",
        "precision": "32",
    }
    result = run_job(job)
    assert result["error"] is None
    result = RunFolder(tmp_path).save_result(job["key"], {**result, "split_seed": 0})
    found = condensed_sheets([result, {"label": "baseline", "seed": 0}], tmp_path, dataset)
    assert [(sheet["label"], sheet["seed"]) for sheet in found] == [(path, 0)]
    assert [len(row["pictures"]) for row in found[0]["classes"]] == [2] * 10
    made = read(tmp_path / "synthetic" / f"{job['key']}.parquet").inputs
    brightest = int(made.flatten(1).amax(1).argmax())
    assert made[brightest].amax() > 256
    shown = found[0]["classes"][brightest // 2]["pictures"][brightest % 2]
    assert shown == picture(made[brightest].round().clamp(0, 255), "image")


def test_a_fit_keeps_the_set_beside_the_model(tmp_path: Path) -> None:
    saved = fit(data="iris?ipc=2", out=tmp_path / "model", epochs=1, device="cpu")
    assert len(read(tmp_path / "model" / "synthetic.parquet")) == 6
    assert saved.predict(torch.zeros(1, 4)).outputs.shape == (1, 3)
    about = json.loads((tmp_path / "model" / "model.json").read_text(encoding="utf-8"))
    assert about["cost"]["condensing_passes"] == 0


def test_several_devices_are_refused(iris: Dataset) -> None:
    with pytest.raises(OptionError, match="one process condenses"):
        condensation.run(recipe_of(iris), iris, seed=0, budget=condensation.Budget("steps", 1), fabric=object())


def test_images_get_the_network_that_needs_no_batch() -> None:
    assert condensation.default_model(datasets.load("digits"))[0].factory == "repertory.models.small:convnet"
    assert condensation.default_model(datasets.load("iris"))[0].factory == "repertory.models.small:mlp"


def test_rules_choose_from_their_class(iris: Dataset) -> None:
    for rule in ("random", "herding", "k_center"):
        learnt(iris, recipe_of(iris, soft=False))
        rows = RealExamples(rule).rows(Means.last)
        assert len(rows.unique()) == 12
        assert Means.last.splits.train.targets[rows].tolist() == [k for k in range(3) for _ in range(4)]
