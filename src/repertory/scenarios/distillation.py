"""Distillation: a small network learns from a trained teacher, and is judged as in supervised learning."""

from __future__ import annotations

import dataclasses
from typing import Unpack

from torch import Tensor, nn

from repertory.datasets import Dataset
from repertory.errors import OptionError
from repertory.recipe import Part, Recipe
from repertory.scenarios import supervised
from repertory.scenarios.accounts import cost_of, refuse_non_finite
from repertory.scenarios.bench import Bench
from repertory.scenarios.registry import Outcome, Settings, needs_classes, refuse_options, split_seed
from repertory.scenarios.teachers import (
    SavedTeacher,
    Taught,
    TrainedTeacher,
    teacher_for,
    teacher_part,
    teachers_kept_in,
)
from repertory.training.evaluate import main_metric, predict
from repertory.training.learner import Learner

__all__ = ["DistillationBench", "baseline", "budget_of", "default_model", "main_metric", "run", "view"]

_WIDTHS = {
    "repertory.models.small:small_cnn": 8,
    "repertory.models.small:conv1d": 8,
    "repertory.models.small:mlp": 32,
}
"""A quarter of the width that these networks have elsewhere, which is then the teacher's."""

budget_of = supervised.budget_of


def default_model(dataset: Dataset) -> tuple[Part, str]:
    """Return the network that is to be taught when the user names none, and why."""
    part, reason = supervised.default_model(dataset)
    width = _WIDTHS[part.factory]
    return Part(part.factory, {"width": width}), f"{reason}; a quarter as wide as the usual one, which teaches it"


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are, with a note where the teacher brings its split with it.

    Raises:
        UserError: if they have no classes, or options that only another scenario reads, or if the teacher that they
            name does not fit them.
    """
    refuse_options(dataset, "distillation")
    needs_classes(dataset, "distillation")
    if "teacher" not in dataset.asked or SavedTeacher(dataset.asked["teacher"]).split_seed(dataset) is None:
        return dataset
    note = "the teacher was trained on these data, so every seed has the split of the teacher"
    return dataclasses.replace(dataset, notes=(*dict.fromkeys((*dataset.notes, note)),))


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    """Return the recipe that every method is compared with: the student, trained on labels as in scenario supervised.

    Args:
        dataset: decides batch size and augmentation; its option `teacher` names a saved model that teaches.
        model: the student's network.
        epochs: passes over the training set; 30 when not given.

    Raises:
        OptionError: if no teacher was named for a network that cannot be widened.
    """
    recipe = supervised.baseline(dataset, model, epochs=epochs)
    return recipe.replace(teacher=teacher_for(dataset, model, recipe.epochs))


class DistillationBench(Bench):
    """A bench with a teacher, which also judges how often a model says what the teacher says."""

    def learn_from(self, taught: Taught) -> None:
        """Take a teacher."""
        self.teacher = taught.network
        self._said: dict[str, Tensor] = {}

    def evaluate(self, model: nn.Module, part: str) -> dict[str, float]:
        """Return the metrics on a part of the data, with the agreement; for the record only: nothing is counted."""
        examples = self._examples(part)
        outputs = predict(model, examples.inputs, self.splits.normaliser)
        if part not in self._said:
            assert self.teacher is not None
            self._said[part] = predict(self.teacher, examples.inputs, self.splits.normaliser).argmax(1)
        same = (outputs.argmax(1) == self._said[part]).double().mean()
        return {**self.metrics_of(outputs, examples.targets), "agreement": float(same)}


def run(recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
    """Train a student once; the settings are those of `supervised.run`.

    The recipe's teacher is the same for all methods at a seed. One that has to be trained first sees the students'
    training part, and what that costs is in no budget: it is `teacher_passes` and `teacher_seconds` of the cost. A
    saved teacher that was trained on these very data brings its split with it, for all seeds.

    Returns:
        With the student's metrics, `agreement` and `teacher_accuracy` among them.

    Raises:
        DivergedError: if a training loss, or a metric of a trained model, is not finite.
        OptionError: if a teacher has to be trained and there are several devices.
        UserError: if recipe, teacher and data do not fit.
    """
    dataset = view(dataset)
    source = teacher_part(recipe)
    if settings.get("fabric") is not None and isinstance(source, TrainedTeacher):
        raise OptionError(
            "a teacher is trained on one device; use --devices 1, or train it first with 'repertory fit' and name it "
            "as the data's option ?teacher=PATH"
        )
    cut = source.split_seed(dataset)
    cut = split_seed(settings) if cut is None else cut
    splits = dataset.prepare(cut)
    given = {"device": settings.get("device", "cpu"), "precision": settings.get("precision", "32")}
    with teachers_kept_in(settings.get("checkpoints")):
        taught = source.obtain(dataset, splits, seed=settings["seed"], split_seed=cut, **given)
    bench = DistillationBench.of(recipe, dataset, splits, **settings)
    bench.learn_from(taught)
    learner, _ = supervised.trained(bench)
    found = {part: _judged(bench, learner, part, taught) for part in ("validation", "test")}
    refuse_non_finite(found)
    cost = {**cost_of(bench), "teacher_passes": taught.passes, "teacher_seconds": taught.seconds}
    return Outcome(learner, found, bench.curve, cost, splits)


def _judged(bench: DistillationBench, learner: Learner, part: str, taught: Taught) -> dict[str, float]:
    return {**bench.evaluate(learner, part), "teacher_accuracy": taught.accuracy[part]}
