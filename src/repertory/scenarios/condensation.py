"""Dataset condensation: a few made examples of each class take the place of the training part; judged on real data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Unpack

import torch

from repertory.curation.condensing import condensed_by
from repertory.datasets import Dataset, Examples, Splits
from repertory.datasets.condensed import asked_per_class, columns, examples_per_class
from repertory.errors import DivergedError, OptionError, UserError
from repertory.recipe import Part, Recipe
from repertory.scenarios import supervised
from repertory.scenarios.accounts import cost_of, refuse_non_finite
from repertory.scenarios.bench import Bench
from repertory.scenarios.registry import Outcome, Settings, refuse_options, split_seed
from repertory.training.budget import Budget, baseline_amount
from repertory.training.evaluate import main_metric

__all__ = ["NETWORKS", "CondensationBench", "baseline", "budget_of", "default_model", "main_metric", "run", "view"]

NETWORKS = 5
"""Networks that are trained on a condensed set, each from fresh weights; what is reported is their mean."""

_PASSES = 5
"""Passes over the condensed set in an epoch: one over so few examples is soon over, and is judged by validation."""
_LARGEST_BATCH = 64
_MAKING = 0.5
"""Share of a run's progress that is the making of the set."""


def default_model(dataset: Dataset) -> tuple[Part, str]:
    """Return the network that suits the data when the user names none, and why.

    For images it is the one of the literature, which normalises each by itself: a few made examples give poor
    statistics of a batch.
    """
    if dataset.modality != "image":
        return supervised.default_model(dataset)
    size = "x".join(map(str, dataset.in_shape[1:]))
    return Part("repertory.models.small:convnet"), (
        f"a small convolutional network that normalises each image by itself, since the inputs are {size} images"
    )


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are.

    Raises:
        UserError: if they have no classes, or options that only another scenario reads.
    """
    if dataset.task != "classification":
        raise UserError(
            f"{dataset.name}: scenario condensation makes examples of each class, but the task is {dataset.task}; give "
            "data with classes, or leave the scenario out"
        )
    refuse_options(dataset, "condensation")
    return dataset


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    """Return the recipe that every method is compared with: that of scenario supervised, on a few real examples.

    Args:
        dataset: its classes and its option `ipc` set the batch size, its origin the augmentation.
        model: the network.
        epochs: of each network, five passes over the condensed set each; 30 when not given.
    """
    recipe = supervised.baseline(dataset, model, epochs=epochs)
    count = asked_per_class(dataset.asked) * len(dataset.classes)
    recipe = recipe.replace(
        batch_size=min(count, _LARGEST_BATCH),
        sampler=Part("repertory.core.sampling:RepeatedRows", {"times": _PASSES}),
        # What is condensed are no photos: the light of made images may lie beyond black and white.
        views="plain",
    )
    return condensed_by(recipe, Part("repertory.curation.condensing:RealExamples"))


def budget_of(kind: str, recipe: Recipe, dataset: Dataset, splits: Splits, seconds_per_epoch: float = 0.0) -> Budget:
    """Return the budget that training on the condensed set may spend, all networks together.

    What making the set costs is not part of it.

    Args:
        kind: "compute", "steps" or "seconds".
        recipe: the baseline.
        dataset: the data.
        splits: its parts.
        seconds_per_epoch: measured beforehand, for "seconds".

    Raises:
        DataError: if a class has too few examples.
    """
    count = examples_per_class(dataset.asked, splits.train.targets, splits.classes)
    options = dict(recipe.sampler.options) if recipe.sampler is not None else {}
    examples = count * len(splits.classes) * options.get("times", 1)
    amount = baseline_amount(
        kind,
        epochs=recipe.epochs * NETWORKS,
        examples=examples,
        batches=-(-examples // recipe.batch_size),
        seconds=recipe.epochs * NETWORKS * seconds_per_epoch,
    )
    return Budget(kind, amount)  # type: ignore[arg-type]


class CondensationBench(Bench):
    """A bench that also says how many examples of each class are wanted; what is done on it is no part of the budget.

    Args:
        given: as for `Bench`.
        per_class: examples of each class in the condensed set.
    """

    def __init__(self, *given: Any, per_class: int, **more: Any) -> None:
        super().__init__(*given, **more)
        self.per_class = per_class

    def progress(self, share: float) -> None:
        """Tell what share of the making is done, which may take far longer than what comes after it."""
        if self._on_progress is not None:
            self._on_progress(_MAKING * share)

    def condensed(self) -> Examples:
        """Return what the recipe's condenser makes of the training part, checked.

        Raises:
            DivergedError: if an input is not a finite number.
            UserError: if the recipe has no condenser, or what it made does not fit the data.
        """
        for part in self.recipe.curation:
            made = part.build()
            if not hasattr(made, "condense"):
                raise UserError(f"{part.factory!r} has no condense(bench); scenario condensation needs one")
            with self.timed():
                found = made.condense(self)
            examples = Examples(found.inputs, found.targets)
            _check(examples, self, part.factory)
            return examples
        raise UserError("the recipe has nothing in its slot curation to condense with; put RealExamples there")


def run(recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
    """Condense the training part once, train several fresh networks on the result, and judge them on real examples.

    The condenser sees the whole training part and may make networks of its own; those that are judged start from
    weights that it never saw. Inputs are scaled by statistics of the whole training part, for every method alike.

    Args:
        recipe: what to run; the part in its slot `curation` makes the set.
        dataset: the data; their option `ipc` sets the examples a class.
        **settings: of the run, see `Settings`. The budget is what training all the networks may spend; making the set
            is measured, and not taken off it. One process condenses, so there is no fabric; checkpoints are not used: a
            run that is cut off starts afresh. The first half of `on_progress` is the making of the set, if it tells;
            `on_record` hears of the first network alone.

    Returns:
        The first network, the means over all of them, and the tables "synthetic" (the condensed set; read it with
        `repertory.datasets.condensed.read`) and "networks" (each one's metrics). Beside the usual costs, which are
        those of training the networks, there are `condensing_passes` and `condensing_seconds`.

    Raises:
        DataError: if a class has too few examples.
        DivergedError: if a made input, the training loss or a metric is not finite.
        OptionError: if several devices are asked for.
        UserError: if recipe and data do not fit.
    """
    if settings.get("fabric") is not None:
        raise OptionError("fabric is not allowed with scenario condensation: one process condenses; leave it out")
    dataset = view(dataset)
    splits = dataset.prepare(split_seed(settings))
    seed, budget, on_progress = settings["seed"], settings["budget"], settings.get("on_progress")
    given: dict[str, Any] = {name: settings[name] for name in ("device", "precision") if name in settings}
    maker = CondensationBench.of(
        recipe,
        dataset,
        splits,
        seed=seed,
        budget=budget,
        per_class=examples_per_class(dataset.asked, splits.train.targets, splits.classes),
        on_progress=on_progress,
        **given,
    )
    found = maker.condensed()
    condensed = dataclasses.replace(splits, train=found, clean_targets=found.targets)
    benches, learners, judged = [], [], []
    for number in range(NETWORKS):
        bench = Bench.of(
            recipe.replace(curation=()),
            dataset,
            condensed,
            seed=seed * NETWORKS + number,
            budget=budget.part(1 / NETWORKS),
            on_progress=_share_of(on_progress, number),
            on_record=settings.get("on_record") if number == 0 else None,
            **given,
        )
        learner, _ = supervised.trained(bench)
        judged.append({part: bench.evaluate(learner, part) for part in ("validation", "test")})
        refuse_non_finite(judged[-1])
        benches.append(bench)
        learners.append(learner)
    each = [cost_of(bench) for bench in benches]
    cost = {name: sum(one[name] for one in each) for name in each[0]}
    cost["peak_bytes"] = max(one["peak_bytes"] for one in each)
    cost |= {"condensing_passes": maker.counts.passes, "condensing_seconds": maker.seconds}
    tables = {
        "synthetic": columns(found, splits.classes),
        "networks": {
            f"{part}_{name}": [one[part][name] for one in judged] for part in judged[0] for name in judged[0][part]
        },
    }
    means = {part: _means([one[part] for one in judged]) for part in judged[0]}
    return Outcome(learners[0], means, _mean_curve(benches), cost, splits, tables=tables)


def condensing_costs(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each method on what making its condensed sets has cost, none where nothing was made.

    Args:
        results: of the runs.
    """
    costs: dict[str, list[Mapping[str, float]]] = {}
    for result in results:
        if result["cost"].get("condensing_passes"):
            costs.setdefault(result["label"], []).append(result["cost"])
    return [
        f"{label}: making the condensed set took {fmean(c['condensing_passes'] for c in found):,.0f} passes and "
        f"{fmean(c['condensing_seconds'] for c in found):.3g} seconds a run, which are in no budget and no ratio"
        for label, found in costs.items()
    ]


def _share_of(on_progress: Callable[[float], None] | None, number: int) -> Callable[[float], None] | None:
    if on_progress is None:
        return None
    return lambda share: on_progress(_MAKING + (1 - _MAKING) * (number + share) / NETWORKS)


def _means(values: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: fmean(each[name] for each in values) for name in values[0]}


def _mean_curve(benches: Sequence[Bench]) -> list[dict[str, Any]]:
    """The networks' curves as one: means of what they are judged by, sums of what they spent."""
    curve = []
    for records in zip(*(bench.curve for bench in benches)):
        summed = {name: sum(record[name] for record in records) for name in ("passes", "seconds", "steps")}
        validation = _means([record["validation"] for record in records])
        curve.append({**records[0], **summed, "validation": validation})
    return curve


def _check(found: Examples, bench: CondensationBench, name: str) -> None:
    """See that a condensed set is one: inputs as the data's, `per_class` of each class, targets to learn."""
    wanted = bench.per_class * bench.outputs
    if tuple(found.inputs.shape) != (wanted, *bench.in_shape):
        raise UserError(
            f"{name!r} condensed to inputs of shape {tuple(found.inputs.shape)}; they must be "
            f"{(wanted, *bench.in_shape)}, {bench.per_class} of each class"
        )
    allowed = ((wanted,), (wanted, bench.outputs))
    if tuple(found.targets.shape) not in allowed:
        raise UserError(
            f"{name!r} made targets of shape {tuple(found.targets.shape)}; {allowed[0]} for classes and {allowed[1]} "
            "for probabilities are allowed"
        )
    if not bool(torch.isfinite(found.inputs.float()).all()) or not bool(torch.isfinite(found.targets.float()).all()):
        raise DivergedError(f"{name!r} made numbers that are not finite; a smaller learning rate helps most")
