"""Checks of what a method does to training, most of them of what takes part in the training step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from repertory.core.randomness import generator_for, seeded
from repertory.core.state import State
from repertory.core.step import Step
from repertory.testing.assembly import build_step, difference, run_steps, through_a_file, trained, weights
from repertory.testing.check import TRAINED, NotApplicable, check, require
from repertory.testing.pair import pair
from repertory.testing.subject import Subject
from repertory.testing.tiny import STEPS, batch, problem
from repertory.testing.use import AFTER, outcome

_INTERRUPTED = 5
"""Updates before an interruption: in the middle of the third pass."""
_RTOL, _ATOL = 1e-4, 1e-5


@check(*TRAINED, *AFTER, "curation")
def same_seed_same_numbers(subject: Subject) -> None:
    """Two runs from the same seed give the same weights, bit for bit."""
    found = difference(outcome(subject), outcome(subject))
    require(not found, f"two runs from one seed differ: {found}")


@check(*TRAINED)
def loss_finite_and_falls(subject: Subject) -> None:
    """The loss is finite throughout, and lower after training than before."""
    step = build_step(subject)
    before = _loss(step, subject)
    losses = [loss for _ in range(4) for loss in run_steps(step, subject)]
    after = _loss(step, subject)
    require(all(map(math.isfinite, losses)), "the loss is not finite in every step")
    require(
        after < before,
        f"the loss on the training examples went from {before:.6g} to {after:.6g} in {4 * STEPS} steps",
    )


@check("algorithm", "optimizer", "loss", "layer", *AFTER, "curation")
def differs_from_baseline(subject: Subject) -> None:
    """The weights differ from the baseline's within a few steps."""
    found = difference(outcome(subject), outcome(subject, baseline=True), rtol=1e-5, atol=1e-7)
    require(found, f"after {STEPS} steps the result is the baseline's: the method does nothing")


@check(*TRAINED, *AFTER, "curation")
def neutral_equals_baseline(subject: Subject) -> None:
    """At its neutral setting the method is the baseline, bit for bit."""
    if subject.card is None or subject.card.neutral is None:
        raise NotApplicable("there is no setting at which it is the baseline")
    neutral, baseline = outcome(subject, subject.card.neutral), outcome(subject, baseline=True)
    # A loss may bring state of its own, which the baseline does not have.
    found = difference({name: value for name, value in neutral.items() if name in baseline}, baseline)
    require(not found, f"at {dict(subject.card.neutral)} the result is not the baseline's: {found}")


@check(*TRAINED)
def state_round_trip(subject: Subject) -> None:
    """The state saves as tensors and plain values, and a fresh step takes it over whole."""
    step, fresh = build_step(subject), build_step(subject)
    run_steps(step, subject, last=_INTERRUPTED)
    fresh.load_state_dict(through_a_file(step.state_dict()))
    found = difference(fresh.state_dict(), step.state_dict())
    require(not found, f"the loaded state is not the saved one: {found}")


@check(*TRAINED)
def resume_mid_epoch_is_exact(subject: Subject) -> None:
    """A run that is interrupted in the middle of an epoch ends with the same bits as one that is not."""
    straight, first, second = build_step(subject), build_step(subject), build_step(subject)
    run_steps(straight, subject, last=_INTERRUPTED)
    run_steps(straight, subject, first=_INTERRUPTED)
    run_steps(first, subject, last=_INTERRUPTED)
    second.load_state_dict(through_a_file(first.state_dict()))
    run_steps(second, subject, first=_INTERRUPTED)
    found = difference(second.state_dict(), straight.state_dict())
    require(not found, f"the resumed run is not the uninterrupted one: {found}")


@check(*TRAINED)
def accumulate_equals_one_batch(subject: Subject) -> None:
    """Two micro-batches make the update of one whole batch."""
    if subject.across_batch:
        raise NotApplicable("the examples of a micro-batch are compared with each other only")
    found = difference(trained(subject), trained(subject, accumulate=2), rtol=_RTOL, atol=_ATOL)
    require(not found, f"two micro-batches give another update than one batch: {found}")


@check(*TRAINED)
def bfloat16_is_finite(subject: Subject) -> None:
    """With bfloat16 autocast the loss and the weights stay finite, and the weights stay float32."""
    step = build_step(subject, precision="bf16")
    start = weights(step)
    losses = run_steps(step, subject)
    end = weights(step)
    bad = [name for name, value in end.items() if not value.isfinite().all() or value.dtype != start[name].dtype]
    require(all(map(math.isfinite, losses)), "the loss is not finite")
    require(not bad, f"{', '.join(bad)} is not finite, or changed its type")
    require(difference(start, end), "the weights did not move")


@check(*TRAINED)
def two_processes_equal_one(subject: Subject) -> None:
    """Two processes with half of each batch make the update of one process with all of it."""
    if subject.reference is None:
        raise NotApplicable("other processes cannot import a class that is defined inside a function or a script")
    first, second = pair().trained(subject.reference)
    found = difference(first, second)
    require(not found, f"the two processes end with different weights: {found}")
    found = difference(first, trained(subject), rtol=_RTOL, atol=_ATOL)
    require(not found, f"two processes end with other weights than one: {found}")


@check("algorithm", "loss", "layer", "model")
def no_graph_break(subject: Subject) -> None:
    """The evaluation of the loss compiles into one graph."""
    if subject.kind == "algorithm" and not any(method.wraps("loss") for method in build_step(subject).methods):
        raise NotApplicable("it does not change the loss")
    torch._dynamo.reset()
    losses = []
    for compiled in (False, True):
        step = build_step(subject)
        run_steps(step, subject, last=_INTERRUPTED)
        entries = {
            **batch(_INTERRUPTED, subject.tiny.in_shape, subject.tiny.dense),
            **{name: next(stream) for name, stream in step.streams.items()},
        }
        call: Callable[[State], Tensor] = step._evaluation
        call = torch.compile(call, fullgraph=True, backend="eager") if compiled else call
        with seeded(0, "global draws"):
            losses.append(call(State(step.run, entries)).detach())
    found = difference(*losses, rtol=1e-5, atol=1e-6, name="the loss")
    require(not found, f"compiled, {found}")


def _loss(step: Step, subject: Subject) -> float:
    everything = problem(subject.tiny.in_shape, subject.tiny.dense)
    if subject.objective:
        return _objective(step, everything)
    network = copy.deepcopy(step.run.model).train()
    criterion = step.run.criterion
    if isinstance(criterion, nn.Module):
        criterion = copy.deepcopy(criterion).train()
    with torch.no_grad():
        return float(criterion(network(everything["input"]), everything["target"]).mean())


def _objective(step: Step, everything: dict[str, Tensor]) -> float:
    """The objective on two versions of every example; what is recorded in a first pass is not."""
    versions = torch.randn(2, *everything["input"].shape, generator=generator_for(0, "tiny versions")) / 10
    known = {"change": torch.ones(len(everything["input"]), 2)}
    state = State(step.run, {**everything, **known, "views": list(everything["input"] + versions)}, evaluation=1)
    with torch.no_grad():
        return float(step._evaluation(state).mean())
