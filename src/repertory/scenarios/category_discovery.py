"""Category discovery over time: some classes have labels, new ones come in sets of examples without any."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol, Unpack, cast

import torch
from torch import Tensor, nn

from repertory.core.classifier import features_and_output
from repertory.core.method import Method
from repertory.core.modes import evaluating
from repertory.core.randomness import generator_for
from repertory.datasets import Dataset, Examples, Normaliser, Splits
from repertory.datasets.discovery import CategoryStream, deal
from repertory.errors import DataError, DivergedError, OptionError, UserError
from repertory.recipe import Part, Recipe
from repertory.scenarios import supervised
from repertory.scenarios.accounts import cost_of, refuse_non_finite
from repertory.scenarios.bench import Bench
from repertory.scenarios.discovery_metrics import discovery_metrics, largest_loss, matched, split_quality
from repertory.scenarios.registry import Outcome, Settings, needs_classes, refuse_options, split_seed
from repertory.training.budget import Budget, baseline_amount
from repertory.training.evaluate import predict
from repertory.training.learner import Learner

__all__ = ["Discoverer", "DiscoveryBench", "baseline", "budget_of", "default_model", "main_metric", "run", "view"]

_EPOCHS = 60
_STAGE = "stage"
"""The part that a time step is trained on: what a discoverer gave to `learn`."""
_NOTED = ("validation", "test")

default_model = supervised.default_model


def main_metric(task: str) -> str:
    """Return the metric a comparison is judged by: accuracy over all classes at the end, new ones matched.

    Both forgetting and poor discovery lower it, so that neither can be bought with the other.
    """
    return "accuracy"


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are.

    Raises:
        DataError: if they have too few classes.
        UserError: if they have no classes, or options that have no use here.
    """
    refuse_options(dataset, "category_discovery")
    needs_classes(dataset, "category_discovery")
    for key in ("noise", "validation_noise", "labels"):
        if key in dataset.corruptions:
            raise OptionError(
                f"{key}={dataset.corruptions[key]} has no use in scenario category_discovery, where the known classes' "
                "labels are right and new classes have none; leave it out"
            )
    if len(dataset.classes) < 3:
        raise DataError(
            f"{dataset.name} has {len(dataset.classes)} classes; scenario category_discovery needs 3, two known ones "
            "and a new one"
        )
    return dataset


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    """Return the recipe that every method is compared with: a classifier of the known classes, and k-means on the rest.

    It spends the whole budget on the known classes, and forgets nothing.

    Args:
        dataset: decides batch size and augmentation.
        model: the network.
        epochs: passes over all training examples, labelled or not; 60 when not given.
    """
    recipe = supervised.baseline(view(dataset), model, epochs=epochs or _EPOCHS)
    return recipe.replace(objective=Part("repertory.estimators.rejected_clusters:RejectedClusters", {}))


def budget_of(kind: str, recipe: Recipe, dataset: Dataset, splits: Splits, seconds_per_epoch: float = 0.0) -> Budget:
    """Return the budget: the recipe's epochs over the labelled set and all sets without labels together.

    Args:
        kind: "compute", "steps" or "seconds".
        recipe: the baseline.
        dataset: the data.
        splits: its parts.
        seconds_per_epoch: measured beforehand, for "seconds".
    """
    # Which classes are dealt hardly matters for how many examples there are.
    stream = deal(splits.train.targets, dataset.classes, dataset.asked, generator_for(0, "categories"))
    examples = len(stream.labelled) + sum(map(len, stream.unlabelled))
    amount = baseline_amount(
        kind,
        epochs=recipe.epochs,
        examples=examples,
        batches=math.ceil(examples / recipe.batch_size),
        seconds=recipe.epochs * seconds_per_epoch,
    )
    return Budget(kind, amount)  # type: ignore[arg-type]


class Discoverer(Protocol):
    """What a recipe's slot `objective` holds in this scenario.

    Attributes:
        rejected: which examples of the last set without labels it took for new ones `(n,)`, bool; for the record.
    """

    rejected: Tensor

    def discover(self, learner: Learner, bench: DiscoveryBench) -> Learner:
        """Learn from the present set, and return the model with an output more for each new class, after the others."""
        ...


class DiscoveryBench(Bench):
    """A bench on the known classes, with one set without labels after the other.

    Whatever a method may ask for, `splits` included, is of the known classes alone; of the sets it is given inputs and
    the number of new classes.

    Attributes:
        unlabelled: inputs of the present set `(n, ...)`, as the data have them.
        new_classes: number of new classes in it.
        step: its number, from 1 on; 0 while the known classes are learnt.
        judged: the "validation" and "test" parts with all classes, for the record alone.
    """

    def __init__(self, *given: Any, stream: CategoryStream, judged: dict[str, Examples], **more: Any) -> None:
        super().__init__(*given, **more)
        self.step = 0
        self.new_classes = 0
        self.unlabelled = self.splits.train.inputs[:0]
        self._known = stream.known
        self.judged = judged
        self._part = self.splits.train.subset([])
        self._shares = [len(rows) / sum(map(len, stream.unlabelled)) for rows in stream.unlabelled]

    def begin(self, inputs: Tensor, new_classes: int) -> None:
        """Go on to the next set without labels."""
        self.step += 1
        self.unlabelled, self.new_classes = inputs, new_classes
        self.outputs += new_classes

    @property
    def share(self) -> float:
        """Share of the budget for the present set: of what the known classes left, in proportion to its size."""
        return max(0.0, 1 - self.recipe.train_share) * self._shares[self.step - 1]

    def learn(self, learner: Learner, method: Method, inputs: Tensor, targets: Tensor) -> Learner:
        """Train the model in place with the present set's share of the budget, and return it.

        Args:
            learner: the model.
            method: takes the place of the criterion, and gets batches of what it needs.
            inputs: `(n, ...)`, as the data have them.
            targets: `(n,)`, int64, -1 where there is none.

        Raises:
            DivergedError: if the loss stops being finite.
        """
        self._part = Examples(inputs, targets)
        return self.train(learner, self.share, name=f"step {self.step}", objective=method, part=_STAGE)

    def look(self, model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what enters the last linear layer `(n, width)`, and the outputs `(n, outputs)`; counted."""
        self.count(forward=len(inputs))
        with evaluating(model), torch.no_grad():
            found = [
                features_and_output(model, self.splits.normaliser(chunk).to(self.device))
                for chunk in inputs.split(1024)
            ]
        features, outputs = (torch.cat(parts).float().cpu() for parts in zip(*found))
        return features, outputs

    def targets(self, part: str) -> Tensor:
        """Return the classes of "validation" or "test", new ones too `(examples,)`, for the record."""
        return self.judged[part].targets

    def predicted(self, model: nn.Module, part: str, checked: bool = False) -> Tensor:
        """Return which output is the largest on "validation" or "test", for the record: nothing is counted.

        Args:
            model: the network.
            part: of the data.
            checked: see that there is an output for every class so far.

        Returns:
            `(examples,)`, int64.

        Raises:
            DivergedError: if an output is not finite.
            UserError: if there are too many or too few outputs.
        """
        outputs = predict(model, self.judged[part].inputs, self.splits.normaliser)
        if not bool(outputs.isfinite().all()):
            raise DivergedError(f"an output is not finite after step {self.step}; a smaller learning rate helps most")
        if checked and (width := outputs.shape[1]) != self.outputs:
            raise UserError(
                f"after step {self.step} the model has {width} outputs; there must be {self.outputs}, one for each "
                "class so far"
            )
        return outputs.argmax(1)

    def evaluate(self, model: nn.Module, part: str) -> dict[str, float]:
        """Return the metrics on "validation" or "test", over all classes, for the record: nothing is counted."""
        return discovery_metrics(self.predicted(model, part), self.targets(part), self._known)

    def score(self, model: nn.Module) -> float:
        """Return the accuracy on the validation examples of known classes; the passes are counted."""
        validation = self.splits.validation
        self.count(forward=len(validation))
        found = predict(model, validation.inputs, self.splits.normaliser).argmax(1)
        return float((found == validation.targets).double().mean())

    def _examples(self, part: str) -> Examples:
        return self._part if part == _STAGE else super()._examples(part)


def run(recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
    """Learn the known classes from labels, then find new ones in one set without labels after the other.

    Which classes are known, and in which order others come, is drawn from the seed of the split. The network has an
    output for each known class, in the order in which they come; a discoverer adds one for each new class.

    Args:
        recipe: what to run; its slot `objective` holds the discoverer, a method with `discover(learner, bench)`.
        dataset: the data; their options `known`, `steps` and `mix` say how classes come.
        **settings: of the run, see `Settings`. One process learns, so there is no fabric; checkpoints are not used: a
            run that is cut off starts afresh.

    Returns:
        With the table "steps": what was known, found and rejected after each set. New classes of the model are named by
        their step, since nobody said what they are.

    Raises:
        DataError: if a class lacks examples.
        DivergedError: if the training loss, or an output, is not finite.
        OptionError: if several devices are asked for.
        UserError: if recipe and data do not fit.
    """
    if settings.get("fabric") is not None:
        raise OptionError(
            "fabric is not allowed with scenario category_discovery: one process learns the sets; leave it out"
        )
    dataset = view(dataset)
    splits = dataset.prepare(split_seed(settings))
    stream = deal(
        splits.train.targets, dataset.classes, dataset.asked, generator_for(split_seed(settings), "categories")
    )
    bench, sets = _bench(recipe, dataset, splits, stream, settings)
    discoverer = _discoverer(recipe)
    learner, after = supervised.trained(bench)
    record = _Record(bench, stream, sets)
    record.add(learner, None)
    for number, rows in enumerate(stream.unlabelled):
        bench.begin(splits.train.inputs[rows], stream.new[number])
        with bench.timed():
            learner = discoverer.discover(learner, bench)
        record.add(learner, discoverer.rejected)
    found = record.metrics()
    refuse_non_finite(found)
    judged = dataclasses.replace(
        bench.splits,
        validation=bench.judged["validation"],
        test=bench.judged["test"],
        classes=_names(dataset, stream),
    )
    return Outcome(learner, found, bench.curve, cost_of(bench), judged, tables={"steps": record.table}, after=after)


def _bench(
    recipe: Recipe, dataset: Dataset, splits: Splits, stream: CategoryStream, settings: Settings
) -> tuple[DiscoveryBench, list[Tensor]]:
    """The bench of the known classes, and which class the examples of each set without labels are of."""
    places = stream.places()
    named = [dataclasses.replace(each, targets=places[each.targets]) for each in (splits.validation, splits.test)]
    judged = dict(zip(_NOTED, named))
    for part, examples in judged.items():
        known = examples.targets < stream.known
        if not bool(known.any()) or bool(known.all()):
            raise DataError(
                f"the {part} part has no example of {'new' if bool(known.any()) else 'known'} classes; add some"
            )
    train = dataclasses.replace(splits.train, targets=places[splits.train.targets]).subset(stream.labelled)
    own = [each.subset((each.targets < stream.known).nonzero().flatten()) for each in named]
    text = dataset.modality == "text"
    shown = dataclasses.replace(
        splits,
        train=train,
        validation=own[0],
        test=own[1],
        unlabelled=None,
        normaliser=Normaliser.none() if text else Normaliser.fit(train.inputs),
        indices={
            **splits.indices,
            "train": [splits.indices["train"][row] for row in stream.labelled.tolist()],
            "unlabelled": [splits.indices["train"][row] for row in torch.cat(stream.unlabelled).tolist()],
        },
        clean_targets=train.targets,
    )
    given = {name: value for name, value in settings.items() if name != "split_seed"}
    bench = DiscoveryBench(
        recipe.replace(objective=None),
        shown,
        in_shape=dataset.in_shape,
        outputs=stream.known,
        task=dataset.task,
        stream=stream,
        judged=judged,
        **given,
    )
    return bench, [places[splits.train.targets[rows]] for rows in stream.unlabelled]


def _discoverer(recipe: Recipe) -> Discoverer:
    made = None if recipe.objective is None else recipe.objective.build()
    if not hasattr(made, "discover"):
        what = "nothing" if recipe.objective is None else repr(recipe.objective.factory)
        raise UserError(
            f"the recipe has {what} in its slot objective; scenario category_discovery needs a method with "
            "discover(learner, bench) there, such as repertory.algorithms:GM"
        )
    return cast(Discoverer, made)


def _names(dataset: Dataset, stream: CategoryStream) -> tuple[str, ...]:
    known = [dataset.classes[label] for label in stream.order[: stream.known].tolist()]
    new = [f"new {step}.{place}" for step, count in enumerate(stream.new, 1) for place in range(1, count + 1)]
    return (*known, *new)


class _Record:
    """What the model was worth after each set."""

    def __init__(self, bench: DiscoveryBench, stream: CategoryStream, sets: list[Tensor]) -> None:
        self._bench, self._stream, self._sets = bench, stream, sets
        self._known: dict[str, list[float]] = {part: [] for part in _NOTED}
        self._last: dict[str, dict[str, float]] = {}
        self.table: dict[str, list[Any]] = {}

    def add(self, learner: Learner, rejected: Tensor | None) -> None:
        """Judge the model as it is now; `rejected` is what was taken for new in the set that it last learnt from."""
        bench, known = self._bench, self._stream.known
        row: dict[str, Any] = {"step": bench.step, "new_classes": bench.new_classes, "examples": len(bench.unlabelled)}
        for part in _NOTED:
            targets, found = bench.targets(part), bench.predicted(learner, part, checked=True)
            self._last[part] = discovery_metrics(found, targets, known)
            self._known[part].append(self._last[part]["known_accuracy"])
            seen = targets < bench.outputs
            targets, found = targets[seen], found[seen]
            newest = targets >= bench.outputs - bench.new_classes
            right = matched(found, targets, known) == targets
            row |= {f"{part}_{name}": value for name, value in discovery_metrics(found, targets, known).items()}
            row[f"{part}_newest"] = float(right[newest].double().mean()) if bool(newest.any()) else None
        new = None if rejected is None else self._sets[bench.step - 1] >= known
        precision, recall = (None, None) if rejected is None or new is None else split_quality(rejected, new)
        row |= {"split_precision": precision, "split_recall": recall}
        for name, value in row.items():
            self.table.setdefault(name, []).append(value)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return what is reported at the end."""
        return {part: {**self._last[part], "known_forgetting": largest_loss(self._known[part])} for part in _NOTED}
