"""Build a subject into a training step on the tiny problem, run it, and compare what came out."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.method import Method
from repertory.core.randomness import seeded
from repertory.core.step import Step
from repertory.recipe import locate
from repertory.testing.subject import Subject
from repertory.testing.tiny import BATCH, CLASS_COUNTS, CLASSES, EXAMPLES, STEPS, TinyStream, batch, problem, teacher
from repertory.training.build import build_learner, build_methods

Change = Callable[[dict[str, Any]], dict[str, Any]]


def build_step(
    subject: Subject, options: Mapping[str, Any] | None = None, *, baseline: bool = False, **more: Any
) -> Step:
    """Return a step of the baseline recipe with the subject in it.

    Args:
        subject: what is checked.
        options: for the method, on top of its tiny ones.
        baseline: leave the subject out.
        more: for `Step`.
    """
    recipe, chosen = subject.baseline, {**subject.tiny.options, **(options or {})}
    if not baseline and subject.edit is not None:
        recipe = subject.edit(recipe, **chosen)
    learner = build_learner(
        recipe, subject.tiny.in_shape, CLASSES, seed=0, class_counts=CLASS_COUNTS, dense=subject.tiny.dense
    )
    network, criterion = learner.network, learner.criterion
    optimizer = functools.partial(locate(recipe.optimizer.factory), **recipe.optimizer.options)
    methods: list[Method] = build_methods(recipe)
    if not baseline and subject.edit is None:
        if subject.kind == "optimizer":
            optimizer = functools.partial(subject.entry, **{**subject.tiny.arguments, **chosen})
        elif subject.kind == "algorithm":
            methods = [subject.make(**chosen)]
        else:
            # Initial weights are drawn from the global generator, as torch's modules do.
            with seeded(0, "subject"):
                made = subject.make(**chosen)
            criterion, network = (made, network) if subject.kind == "loss" else (criterion, made)
    needs = {need for method in methods for need in method.needs}
    streams = {
        need.partition(":")[2]: TinyStream(subject.tiny.in_shape, subject.tiny.dense)
        for need in needs
        if need.startswith("stream:")
    }
    network.train()
    given: dict[str, Any] = {
        "epochs": STEPS * BATCH // EXAMPLES,
        "examples": EXAMPLES,
        "classes": CLASSES,
        "class_counts": CLASS_COUNTS,
        "teacher": teacher(subject.tiny.in_shape) if "teacher" in needs else None,
        "training": [problem(subject.tiny.in_shape)] if "training" in needs else None,
        **more,
    }
    return Step(network, optimizer, criterion, methods, streams=streams, **given)


def run_steps(
    step: Step,
    subject: Subject,
    first: int = 0,
    last: int = STEPS,
    change: Change | None = None,
    seed_global: bool = True,
) -> list[float]:
    """Make the updates from `first` to before `last`, with the ends of epochs, and return their losses.

    Args:
        step: the step.
        subject: what it was built of.
        first: number of the first update.
        last: number after the last.
        change: applied to each batch.
        seed_global: seed torch's global generator for the run (networks with dropout), and put it back.
    """
    losses = []
    with seeded(first, "global draws") if seed_global else contextlib.nullcontext():
        for number in range(first, last):
            entries = batch(number, subject.tiny.in_shape, subject.tiny.dense)
            losses.append(step(change(entries) if change else entries))
            if (number + 1) % (EXAMPLES // BATCH) == 0:
                step.end_epoch()
    return torch.stack(losses).tolist()


def trained(
    subject: Subject, options: Mapping[str, Any] | None = None, last: int = STEPS, **more: Any
) -> dict[str, Tensor]:
    """Build, run, and return the weights."""
    step = build_step(subject, options, **more)
    run_steps(step, subject, last=last)
    return weights(step)


def weights(step: Step) -> dict[str, Tensor]:
    """Return copies of the network's parameters and buffers, and of the criterion's."""
    found = dict(step.run.model.state_dict())
    if isinstance(step.run.criterion, nn.Module):
        found |= {f"criterion.{name}": value for name, value in step.run.criterion.state_dict().items()}
    return {name: value.detach().clone() for name, value in found.items() if isinstance(value, Tensor)}


def through_a_file(state: Mapping[str, Any]) -> dict[str, Any]:
    """Save a state, and load it as nothing but tensors and plain values."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return copy.deepcopy(loaded)


def difference(left: Any, right: Any, *, rtol: float = 0.0, atol: float = 0.0, name: str = "") -> str:
    """Return where two nested values first differ, in words; empty where they agree.

    Args:
        left: tensors, plain values, and mappings and sequences of these.
        right: what it is compared with.
        rtol: allowed relative difference of tensors; 0 asks for equal bits.
        atol: allowed absolute difference.
        name: path so far.
    """
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        if set(left) != set(right):
            return f"{name or 'the state'} has {sorted(map(str, set(left) ^ set(right)))} on one side only"
        parts = ((f"{name}.{key}".lstrip("."), left[key], right[key]) for key in left)
        found = (difference(a, b, rtol=rtol, atol=atol, name=path) for path, a, b in parts)
        return next(filter(None, found), "")
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and len(left) == len(right):
        found = (
            difference(a, b, rtol=rtol, atol=atol, name=f"{name}[{i}]") for i, (a, b) in enumerate(zip(left, right))
        )
        return next(filter(None, found), "")
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        if left.shape != right.shape:
            return f"{name} is {tuple(left.shape)} on one side and {tuple(right.shape)} on the other"
        if torch.equal(left, right) or (rtol + atol > 0 and torch.allclose(left, right, rtol=rtol, atol=atol)):
            return ""
        return f"{name} differs by up to {(left.double() - right.double()).abs().max().item():.1e}"
    return "" if left == right else f"{name} is {left!r} on one side and {right!r} on the other"
