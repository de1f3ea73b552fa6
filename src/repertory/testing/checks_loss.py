"""Checks of losses: derivatives, reductions, and independence of examples."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from repertory.testing.assembly import build_step, difference
from repertory.testing.check import NotApplicable, check, require
from repertory.testing.subject import Subject
from repertory.testing.tiny import problem


@check("loss")
def gradcheck(subject: Subject) -> None:
    """The derivatives by the output and by the loss's own parameters agree with finite differences."""
    criterion, output, target = _evaluated(subject)
    names = [name for name, parameter in criterion.named_parameters() if parameter.requires_grad]
    values = [dict(criterion.named_parameters())[name].detach().requires_grad_() for name in names]

    def loss(output: Tensor, *parameters: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(criterion, dict(zip(names, parameters)), (output, target))
        return result.sum()

    agrees = torch.autograd.gradcheck(loss, (output.requires_grad_(), *values), fast_mode=True, raise_exception=False)
    require(agrees, "autograd and finite differences disagree in float64")


@check("loss")
def reduction(subject: Subject) -> None:
    """`mean` and `sum` are the mean and the sum of `none`."""
    none, mean, total = (_reduced(subject, how) for how in ("none", "mean", "sum"))
    require(mean.ndim == 0 and total.ndim == 0, "reduction='mean' or 'sum' does not give one number")
    found = difference(mean, none.mean(), rtol=1e-10, name="the mean") or difference(
        total, none.sum(), rtol=1e-10, name="the sum"
    )
    require(not found, f"of reduction='none', {found}")


@check("loss")
def per_example(subject: Subject) -> None:
    """With `reduction="none"` there is one value an example, which does not depend on the others."""
    if subject.across_batch:
        raise NotApplicable("it compares the examples of a batch with each other")
    values = _reduced(subject, "none")
    require(values.shape == (4,), f"for 4 examples the shape is {tuple(values.shape)}")
    alone = torch.cat([_reduced(subject, "none", slice(i, i + 1)) for i in range(4)])
    found = difference(values, alone, rtol=1e-10, name="the value of an example")
    require(not found, f"in a batch and alone, {found}")


def _reduced(subject: Subject, how: str, rows: slice = slice(None)) -> Tensor:
    if "reduction" not in inspect.signature(type(_evaluated(subject)[0])).parameters:
        raise NotApplicable("it has no reduction")
    criterion, output, target = _evaluated(subject)
    criterion.reduction = how
    result: Tensor = criterion(output[rows], target[rows]).detach()
    return result


def _evaluated(subject: Subject) -> tuple[Any, Tensor, Tensor]:
    """Return the loss in float64, and what the network gives it for four examples."""
    run = build_step(subject).run
    criterion = copy.deepcopy(run.criterion)
    if not isinstance(criterion, nn.Module):
        raise NotApplicable("it is a function")
    made = problem(subject.tiny.in_shape)
    with torch.no_grad():
        output = run.model.double()(made["input"][:4].double())
    return criterion.double(), output, made["target"][:4]
