"""Put a method to its use on the tiny problem, whatever its kind, and keep what came out."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.core.dense import IGNORED
from repertory.core.randomness import seeded
from repertory.datasets import Examples, Normaliser, Splits
from repertory.recipe import Recipe, locate
from repertory.record import Record
from repertory.scenarios.bench import Bench
from repertory.scenarios.condensation import CondensationBench
from repertory.scenarios.segmentation import SegmentationBench
from repertory.testing.assembly import trained
from repertory.testing.check import TRAINED, NotApplicable
from repertory.testing.subject import Subject
from repertory.testing.tiny import CLASSES, EXAMPLES, PER_CLASS, STEPS, network, problem
from repertory.training.budget import Budget
from repertory.training.learner import Learner

AFTER = ("transform", "adapter", "estimator")
"""Kinds that change a trained model."""


def outcome(subject: Subject, options: Mapping[str, Any] | None = None, *, baseline: bool = False) -> dict[str, Tensor]:
    """Run the baseline recipe with the subject in it, and return what can be compared.

    Args:
        subject: what is checked.
        options: for the method, on top of its tiny ones.
        baseline: leave the subject out.

    Returns:
        The weights, where the subject takes part in training; else the final outputs (of what refines embeddings, the
        refined embeddings) and the chosen rows.
    """
    if subject.kind in TRAINED:
        return trained(subject, options, baseline=baseline)
    if subject.edit is None and subject.kind == "estimator" and not hasattr(subject.entry, "apply"):
        if baseline:
            raise NotApplicable("it changes no model")
        inputs, targets = arrays(subject)
        return {"outputs": torch.as_tensor(answers(subject.make(**(options or {})).fit(inputs, targets), inputs))}
    bench = tiny_bench(subject, subject.baseline if baseline else edited(subject, options))
    parts = [part.build() for part in bench.recipe.curation]
    changes = [part.build() for part in bench.recipe.after]
    if subject.edit is None and not baseline:
        made = subject.make(**{**subject.tiny.options, **(options or {})})
        parts, changes = ([made], []) if subject.kind == "curation" else ([], [made])
    learner, rows = bench.fresh_model(), torch.arange(EXAMPLES)
    for part in parts:
        rows = condensed(bench, part) if hasattr(part, "condense") else part.choose(bench)
    learner = _changed(bench.train(learner, bench.recipe.train_share, rows=rows), changes, bench)
    if not any(hasattr(locate(part.factory), "refine") for part in edited(subject).after):
        return {"outputs": bench.predict(learner, "train"), "rows": rows}
    return {"outputs": refined(changes, bench.embeddings(learner, "train")), "rows": rows}


def condensed(bench: Bench, part: Any) -> Tensor:
    """Let a part make the condensed set, put that in place of the bench's training part, and return its rows."""
    made = part.condense(bench)
    bench.splits = dataclasses.replace(bench.splits, train=Examples(made.inputs, made.targets))
    return torch.arange(len(made.targets))


def edited(subject: Subject, options: Mapping[str, Any] | None = None) -> Recipe:
    """Return the baseline recipe as the subject edits it; as it is for a class that cannot."""
    if subject.edit is None:
        return subject.baseline
    return subject.edit(subject.baseline, **{**subject.tiny.options, **(options or {})})


def applied(subject: Subject) -> tuple[list[Any], Learner, Bench]:
    """Return the parts that change a trained model, the model they made, and the bench it was made on."""
    bench = tiny_bench(subject, edited(subject))
    changes = [part.build() for part in bench.recipe.after] or [subject.make(**subject.tiny.options)]
    model = bench.train(bench.fresh_model(), bench.recipe.train_share)
    return changes, _changed(model, changes, bench), bench


def refined(changes: list[Any], embeddings: Tensor, groups: Tensor | None = None) -> Tensor:
    """Return embeddings after what the parts do to all of them together."""
    for change in changes:
        if hasattr(change, "refine"):
            embeddings = change.refine(embeddings, groups=groups)
    return embeddings


def answers(made: Any, inputs: np.ndarray) -> np.ndarray:
    """Return what a fitted estimator says of the inputs: predictions, or features if it is a transformer."""
    found: np.ndarray = made.predict(inputs) if hasattr(made, "predict") else made.transform(inputs)
    return found


def _changed(learner: Learner, changes: list[Any], bench: Bench) -> Learner:
    for change in changes:
        if hasattr(change, "apply"):
            learner = change.apply(learner, bench)
    return learner


def tiny_bench(subject: Subject, recipe: Recipe) -> Bench:
    """Return a bench on the tiny problem; its validation part are the training examples in another order."""
    dense = subject.tiny.dense
    made = problem(subject.tiny.in_shape, dense)
    if subject.card is not None and "weak_segmentation" in subject.card.scenarios:
        # One kind of object, and pixels that are open.
        made["target"] = made["target"].where(made["target"] < 2, IGNORED)
    order = torch.arange(EXAMPLES).flip(0)
    train = Examples(made["input"], made["target"])
    splits = Splits(
        train=train,
        validation=train.subset(order),
        test=train.subset(order),
        unlabelled=None,
        normaliser=Normaliser(torch.zeros(()), torch.ones(())),
        indices={"train": list(range(EXAMPLES)), "validation": [], "test": []},
        clean_targets=train.targets,
    )
    condenses = any(hasattr(locate(part.factory), "condense") for part in recipe.curation)
    made_by = functools.partial(CondensationBench, per_class=PER_CLASS) if condenses else Bench
    made_by = SegmentationBench if dense else made_by
    return made_by(
        recipe,
        splits,
        in_shape=subject.tiny.in_shape,
        outputs=CLASSES,
        task="segmentation" if dense else "classification",
        seed=0,
        budget=Budget("steps", STEPS),
    )


def measured_on(subject: Subject) -> dict[str, Any]:
    """Return what an instrument is given to measure: the tiny network and problem, as far as it takes them."""
    made = problem(subject.tiny.in_shape)
    with seeded(0, "measured network"):
        model = network(subject.tiny.in_shape, CLASSES)
    held_out = {name: values.flip(0) for name, values in made.items()}
    given = {
        "model": model,
        "data": (made["input"], made["target"]),
        "held_out": (held_out["input"], held_out["target"]),
    }
    needed = inspect.signature(subject.entry.measure).parameters  # type: ignore[attr-defined]
    if needed["data"].default is None:
        return {}
    return {name: value for name, value in given.items() if name != "model" or needed["model"].default is not None}


def measured(subject: Subject) -> Record:
    """Return the record of an instrument on the tiny problem."""
    found: Record = subject.make().measure(**measured_on(subject))
    return found


def use(subject: Subject, made: Any) -> Any:
    """Do with a built object what reads all its options: choose, change a model, fit, measure; else nothing."""
    if subject.kind == "diagnostic":
        return made.measure(**measured_on(subject))
    if subject.kind == "estimator":
        return made.fit(*arrays(subject))
    bench = tiny_bench(subject, subject.baseline)
    if subject.kind == "curation":
        return made.condense(bench) if hasattr(made, "condense") else made.choose(bench)
    if subject.kind in AFTER and hasattr(made, "apply"):
        return made.apply(bench.fresh_model(), bench)
    return made


def arrays(subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiny problem as NumPy arrays: inputs `(12, width)` and classes `(12,)`."""
    made = problem(subject.tiny.in_shape)
    return made["input"].flatten(1).numpy(), made["target"].numpy()
