"""Checks of what works outside the training step: chosen examples, and changes to a trained model."""

from __future__ import annotations

from typing import Any

import torch

from repertory.testing.assembly import difference, through_a_file
from repertory.testing.check import NotApplicable, check, require
from repertory.testing.subject import Subject
from repertory.testing.tiny import CLASSES, EXAMPLES, PER_CLASS
from repertory.testing.use import AFTER, applied, outcome, use


@check("curation")
def selection(subject: Subject) -> None:
    """`choose` returns distinct rows of the training part, fewer than all of them."""
    if hasattr(subject.entry, "condense"):
        raise NotApplicable("it makes examples")
    rows = outcome(subject)["rows"]
    require(
        rows.dtype is torch.int64 and rows.ndim == 1,
        f"choose gives {rows.dtype} of shape {tuple(rows.shape)}",
    )
    require(len(rows.unique()) == len(rows), "a row was chosen twice")
    require(
        len(rows) > 0 and int(rows.min()) >= 0 and int(rows.max()) < EXAMPLES,
        "rows beyond the training part, or none",
    )
    require(len(rows) < EXAMPLES, "all examples were chosen")


@check("curation")
def condensed_set(subject: Subject) -> None:
    """`condense` makes finite examples, as many of each class as were asked for, classes in their order."""
    if not hasattr(subject.entry, "condense"):
        raise NotApplicable("it chooses examples")
    made = use(subject, subject.make(**subject.tiny.options))
    require(made.inputs.shape == (CLASSES * PER_CLASS, *subject.tiny.in_shape), f"inputs of {tuple(made.inputs.shape)}")
    require(made.inputs.isfinite().all() and made.targets.isfinite().all(), "a number is not finite")
    labels = made.targets.argmax(1) if made.targets.ndim > 1 else made.targets
    require(labels.tolist() == [k for k in range(CLASSES) for _ in range(PER_CLASS)], "the classes are not in order")
    require(not made.inputs.requires_grad and made.inputs.device.type == "cpu", "the inputs still hang on the making")


@check(*AFTER)
def apply_gives_a_model(subject: Subject) -> None:
    """`apply` returns a model with one finite output a class, and leaves its mode and gradients in order."""
    changes, model, bench = applied(subject)
    _needs_apply(changes)
    outputs = bench.predict(model, "train")
    require(outputs.shape == (EXAMPLES, CLASSES), f"the outputs have shape {tuple(outputs.shape)}")
    require(outputs.isfinite().all(), "an output is not finite")


@check(*AFTER)
def saved_model_is_rebuilt(subject: Subject) -> None:
    """The changed model's state loads into a model that is built anew, which then gives the same outputs."""
    changes, model, bench = applied(subject)
    _needs_apply(changes)
    fresh = bench.fresh_model("another")
    for change in changes:
        if hasattr(change, "rebuild"):
            fresh = change.rebuild(fresh, CLASSES)
    fresh.load_state_dict(through_a_file(model.state_dict()))
    found = difference(bench.predict(fresh, "train"), bench.predict(model, "train"), name="the output")
    require(not found, f"of the rebuilt model, {found}")


def _needs_apply(changes: list[Any]) -> None:
    if not any(hasattr(change, "apply") for change in changes):
        raise NotApplicable("it changes no model")
