"""Learning from a teacher: where it comes from, what is refused, what it may cost, and that nothing leaks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repertory import Method, datasets
from repertory.compare.jobs import run_job
from repertory.datasets import Dataset, Normaliser
from repertory.errors import ConflictError, DataError, OptionError, UserError
from repertory.recipe import Part, Recipe
from repertory.scenarios import distillation, supervised
from repertory.scenarios.choices import Source, check_arm
from repertory.scenarios.fit import fit
from repertory.scenarios.methods import arm
from repertory.scenarios.registry import Outcome, asked_for, suitable
from repertory.scenarios.teachers import OnItsOwnScale, SavedTeacher, TrainedTeacher, costs_apart, teachers_kept_in
from repertory.training.budget import Budget
from repertory.training.saved import load

TINY = Part("repertory.models.small:mlp", {"width": 4, "depth": 1})


class Witness(Method):
    """Keeps the last run's teacher."""

    slug = "witness"
    needs = frozenset({"teacher"})
    last: Any

    def setup(self, run: Any) -> None:
        Witness.last = run.teacher.model


@pytest.fixture(scope="module")
def iris() -> Dataset:
    return datasets.load("iris")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teachers") / "iris"
    fit(data="iris", out=folder, epochs=20, seed=3, device="cpu")
    return folder


def recipe_of(dataset: Dataset, *methods: str, epochs: int = 3) -> Recipe:
    recipe = distillation.baseline(dataset, TINY, epochs=epochs)
    return recipe.replace(methods=tuple(Part(f"{__name__}:{name}") for name in methods))


def learnt(dataset: Dataset, recipe: Recipe, seed: int = 0, **more: Any) -> Outcome:
    return distillation.run(recipe, dataset, seed=seed, budget=Budget("steps", 6), **more)


def test_methods_that_need_a_teacher_play_here_and_so_do_those_of_supervised_learning(iris: Dataset) -> None:
    assert suitable(["kd"], iris) == "distillation"
    assert suitable(["kd+sam"], iris) == "distillation"
    assert asked_for(datasets.load("iris?teacher=there")) == ("distillation",)
    with pytest.raises(UserError, match="kd plays in the scenario distillation, not in supervised"):
        arm("kd", supervised.baseline(iris, TINY), iris.task, "supervised")
    check_arm(arm("kd+sam", recipe_of(iris), iris.task, "distillation"), iris)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("diabetes", "scenario distillation learns classes, but the task is regression"),
        ("iris?rehearsal=5", "--scenario continual"),
        ("iris?teacher=nowhere", "nowhere is not a saved model.*repertory fit"),
    ],
)
def test_data_that_do_not_suit_are_refused_with_a_way_out(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        distillation.view(datasets.load(spec))


def test_a_teacher_has_no_use_elsewhere_or_without_classes() -> None:
    with pytest.raises(
        OptionError, match="teacher=there has no use in scenario supervised; add --scenario distillation"
    ):
        supervised.view(datasets.load("iris?teacher=there"))
    with pytest.raises(OptionError, match="teacher=there needs classes"):
        datasets.load("diabetes?teacher=there")


def test_the_student_is_the_usual_network_a_quarter_as_wide_and_the_usual_one_teaches_it(iris: Dataset) -> None:
    for name, width in (("iris", 32), ("digits", 8)):
        dataset = datasets.load(name)
        part, reason = distillation.default_model(dataset)
        assert part.options == {"width": width}
        assert "a quarter as wide" in reason
        teacher = distillation.baseline(dataset, part, epochs=7).teacher
        assert teacher.options["epochs"] == 7
        assert teacher.options["model"]["options"]["width"] == 4 * width
    with pytest.raises(OptionError, match=r"'torch\.nn:Identity' has no width.*repertory fit.*\?teacher=PATH"):
        distillation.baseline(iris, Part("torch.nn:Identity"))


def test_the_recipe_says_where_the_teacher_comes_from_and_survives_being_written_down(iris: Dataset) -> None:
    recipe = recipe_of(iris)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert isinstance(recipe.teacher.build(), TrainedTeacher)
    with pytest.raises(UserError, match="the recipe has no teacher"):
        learnt(iris, recipe.replace(teacher=None))


def test_a_trained_teacher_is_the_supervised_baseline_on_the_students_training_part(iris: Dataset) -> None:
    outcome = learnt(iris, recipe_of(iris, "Witness"), seed=2)
    wide = dataclasses.replace(TINY, options={**TINY.options, "width": 16})
    recipe, splits = supervised.baseline(iris, wide, epochs=3), iris.prepare(2)
    alone = supervised.run(recipe, iris, seed=2, budget=supervised.budget_of("steps", recipe, iris, splits))
    assert all(torch.equal(a, b) for a, b in zip(Witness.last.parameters(), alone.learner.parameters()))
    assert outcome.metrics["test"]["teacher_accuracy"] == alone.metrics["test"]["accuracy"]
    assert outcome.metrics["validation"]["teacher_accuracy"] == alone.metrics["validation"]["accuracy"]
    assert outcome.cost["teacher_passes"] == alone.cost["passes"]


def test_what_the_teacher_costs_is_in_no_students_budget(iris: Dataset) -> None:
    outcome, alone = (
        learnt(iris, recipe_of(iris)),
        supervised.run(supervised.baseline(iris, TINY, epochs=3), iris, seed=0, budget=Budget("steps", 6)),
    )
    assert outcome.cost["passes"] == alone.cost["passes"]
    assert outcome.metrics["test"]["accuracy"] == alone.metrics["test"]["accuracy"]
    assert all(torch.equal(a, b) for a, b in zip(outcome.learner.parameters(), alone.learner.parameters()))
    results = [{"seed": seed, "cost": {"teacher_passes": 90.0, "teacher_seconds": 2.0}} for seed in (0, 0, 1)]
    (sentence,) = costs_apart(results)
    assert "90 passes and 2 seconds" in sentence
    assert costs_apart([{"seed": 0, "cost": {"passes": 1.0}}, {"seed": 1, "cost": {}}]) == []


def test_agreement_is_the_share_of_examples_with_the_teachers_class(iris: Dataset) -> None:
    outcome = learnt(iris, recipe_of(iris, "Witness"))
    examples = outcome.splits.test
    inputs = outcome.splits.normaliser(examples.inputs)
    with torch.no_grad():
        same = outcome.learner.eval()(inputs).argmax(1) == Witness.last(inputs).argmax(1)
    assert outcome.metrics["test"]["agreement"] == float(same.double().mean())
    assert {"agreement", "accuracy"} <= set(outcome.curve[0]["validation"])


def test_a_teacher_is_trained_once_for_all_runs_that_share_a_folder(tmp_path: Path, monkeypatch: Any) -> None:
    dataset = datasets.load("iris")
    recipe, times = recipe_of(dataset, "Witness"), []
    trained = supervised.trained
    monkeypatch.setattr(
        supervised, "trained", lambda bench: times.append(bench.recipe.model.options["width"]) or trained(bench)
    )
    job = {
        "key": "a",
        "label": "a",
        "method": "a",
        "scenario": "distillation",
        "recipe": recipe.to_dict(),
        "seed": 0,
        "split_seed": 0,
        "data": dataclasses.asdict(Source("iris")),
        "fingerprint": dataset.describe()["fingerprint"],
        "budget": {"kind": "steps", "amount": 6},
        "device": "cpu",
        "precision": "32",
        "folder": str(tmp_path),
    }
    first, weights = run_job(job), [p.clone() for p in _last_weights()]
    second = run_job(job)
    assert first["error"] is None
    assert times == [16, 4, 4]
    assert all(torch.equal(a, b) for a, b in zip(weights, _last_weights()))
    assert second["metrics"] == first["metrics"]
    assert second["cost"]["teacher_seconds"] == first["cost"]["teacher_seconds"] > 0
    # Another seed is another teacher, on another split as on the same one.
    for changes in ({"seed": 1}, {"seed": 1, "split_seed": 1}):
        run_job({**job, **changes})
    assert times == [16, 4, 4, 16, 4, 16, 4]
    assert len(list((tmp_path / "teachers").glob("*.pt"))) == 3
    assert set(torch.load(next((tmp_path / "teachers").glob("*.pt")), weights_only=True)) == {
        "weights",
        "passes",
        "seconds",
    }


def _last_weights() -> list[Tensor]:
    return [p.detach() for p in Witness.last.parameters()]


def test_a_saved_teacher_predicts_as_it_did_whatever_the_students_scale(saved: Path, iris: Dataset) -> None:
    model, splits = load(saved), iris.prepare(11)
    taught = SavedTeacher(str(saved)).obtain(iris, splits)
    with torch.no_grad():
        found = taught.network(splits.normaliser(splits.test.inputs))
        torch.testing.assert_close(found, model(splits.test.inputs), rtol=1e-4, atol=1e-4)
    assert (taught.passes, taught.seconds) == (0.0, 0.0)
    constant = Normaliser(torch.tensor([[3.0]]), torch.tensor([[2.0]]))
    same = OnItsOwnScale(nn.Identity(), constant, constant)
    inputs = torch.randn(4, 1)
    assert torch.equal(same(inputs), inputs)


def test_a_teacher_of_the_same_data_brings_its_split_so_that_it_has_not_seen_what_is_tested(saved: Path) -> None:
    dataset = distillation.view(datasets.load(f"iris?teacher={saved}"))
    assert any("split of the teacher" in note for note in dataset.notes)
    recipe = recipe_of(dataset)
    for seed in (0, 1):
        assert learnt(dataset, recipe, seed).splits.indices == dataset.prepare(3).indices
    outcome = learnt(dataset, recipe, 5, split_seed=7)
    assert outcome.splits.indices["test"] == dataset.prepare(3).indices["test"]
    accuracy = json.loads((saved / "model.json").read_text())["metrics"]["test"]["accuracy"]
    assert outcome.metrics["test"]["teacher_accuracy"] == pytest.approx(accuracy)
    assert outcome.cost["teacher_passes"] == 0


def test_a_teacher_of_other_data_leaves_the_splits_alone(saved: Path, iris: Dataset) -> None:
    other = dataclasses.replace(iris, inputs=iris.inputs + 0.1, asked={"teacher": str(saved)})
    assert distillation.view(other).notes == other.notes
    assert learnt(other, recipe_of(other), 1).splits.indices == other.prepare(1).indices


def test_a_teacher_of_other_classes_or_inputs_is_refused_with_both_named(saved: Path, iris: Dataset) -> None:
    asked = {"teacher": str(saved)}
    renamed = dataclasses.replace(iris, classes=("a", "b", "c"), asked=asked)
    with pytest.raises(
        DataError, match="knows the 3 classes setosa, versicolor, virginica, but iris has the 3 classes a, b, c"
    ):
        distillation.view(renamed)
    narrow = dataclasses.replace(iris, inputs=iris.inputs[:, :3], asked=asked)
    with pytest.raises(DataError, match=r"takes inputs of shape \(4,\), but those of iris are \(3,\)"):
        distillation.view(narrow)
    (saved.parent / "broken").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="not a saved model"):
        distillation.view(dataclasses.replace(iris, asked={"teacher": str(saved.parent / "broken")}))


def test_fit_distils_and_saves_a_model_that_predicts_by_itself(tmp_path: Path, saved: Path) -> None:
    for data in ("iris", f"iris?teacher={saved}"):
        folder = tmp_path / ("given" if "?" in data else "trained")
        model = fit("kd", data=data, out=folder, epochs=2, device="cpu")
        assert model.about["metrics"]["test"].keys() >= {"accuracy", "agreement", "teacher_accuracy"}
        assert load(folder).predict(torch.zeros(1, 4)).outputs.shape == (1, 3)


def test_several_devices_take_a_teacher_that_is_there_already(iris: Dataset) -> None:
    with pytest.raises(OptionError, match=r"--devices 1, or train it first .*\?teacher=PATH"):
        learnt(iris, recipe_of(iris), fabric=object())


def test_a_method_of_images_is_refused_before_anything_is_trained(iris: Dataset) -> None:
    with pytest.raises(ConflictError, match="ferkd: ferkd needs images, but the data are a table"):
        check_arm(arm("ferkd", recipe_of(iris), iris.task, "distillation"), iris)


def test_ferkd_spends_what_the_baseline_spends_its_bank_included() -> None:
    dataset = datasets.load("digits")
    recipe = distillation.baseline(dataset, Part("repertory.models.small:mlp", {"width": 4}), epochs=2)
    edited = arm("ferkd:stored=4,low=0,middle=0,top=1", recipe, dataset.task, "distillation")
    check_arm(edited, dataset)
    budget = distillation.budget_of("compute", recipe, dataset, dataset.prepare(0))
    outcome = distillation.run(edited.recipe, dataset, seed=0, budget=budget)
    count = len(dataset.prepare(0).train)
    assert outcome.cost["passes"] == pytest.approx(budget.amount, rel=0.05)
    assert outcome.cost["forward"] == 4 * count + outcome.cost["backward"]


def test_teachers_stay_in_the_outer_folder_where_no_other_is_named(tmp_path: Path, iris: Dataset) -> None:
    with teachers_kept_in(tmp_path), teachers_kept_in(None):
        learnt(iris, recipe_of(iris))
    assert len(list((tmp_path / "teachers").iterdir())) == 1
