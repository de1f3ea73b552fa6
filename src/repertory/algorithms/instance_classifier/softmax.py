"""Cross-entropy over very many classes, a block of them at a time, in one process or spread over several."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from repertory.core.distributed import gather_rows, gather_with_gradient, own_rows, world_size
from repertory.errors import DataError, check_number
from repertory.layers.embedding import unit_rows

_HELD = 2**24
"""Logits that are held at once where nobody says: 64 MiB of float32."""


def chunked_softmax_loss(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    shares: Tensor | None = None,
    temperature: float = 0.15,
    chunk: int | None = None,
) -> Tensor:
    r"""Return the cross-entropy of each example on cosines with all classes, without ever holding all logits.

    With unit rows $f_i$ and $w_j$, and $L_i = \log \sum_j \exp(f_i^\top w_j / \tau)$ put together from blocks,
    $$ \ell_i = \sum_k s_{ik} \big( L_i - f_i^\top w_{y_{ik}} / \tau \big) . $$
    The backward pass computes the logits of a block once more, so that time is bought with memory. Computed in float32
    or wider, also under autocast.

    Args:
        features: `(batch, dim)` of any length.
        weight: a row for each class `(classes, dim)` of any length.
        labels: class `(batch,)`, or several of them `(batch, k)`, int64.
        shares: of each label in the target `(batch, k)`; None gives all to one label.
        temperature: divides the cosines.
        chunk: classes in a block; None takes as many as keep a block of logits at 64 MiB.

    Returns:
        `(batch,)`.

    Raises:
        DataError: if shapes do not match, or a label is no class.
        OptionError: if temperature or chunk are out of range.

    >>> loss = chunked_softmax_loss(torch.eye(1, 1000), torch.eye(1000), torch.tensor([0]))
    >>> round(float(loss), 4)  # log(1 + 999 exp(-1 / 0.15))
    0.8204

    Reference: Liu et al., https://arxiv.org/abs/2102.04848.
    """
    return _loss(features, weight, labels, shares, temperature, chunk, sharded=False)


def sharded_softmax_loss(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    shares: Tensor | None = None,
    temperature: float = 0.15,
    chunk: int | None = None,
) -> Tensor:
    """Return what `chunked_softmax_loss` does, with each process holding the rows of its own classes only.

    Data-parallel in the features and model-parallel in the classes: features are gathered, each process computes the
    logits of its classes, and only maxima and sums go round. Gradients of the encoder are to be averaged over
    processes, as DDP does. That of `weight` is already the one of the mean over all processes' examples: keep it out
    of any averaging. In one process it is `chunked_softmax_loss`.

    Args:
        features: of this process's examples `(batch, dim)`; their number may differ between processes.
        weight: rows of this process's classes `(own classes, dim)`; the classes are numbered in order of rank.
        labels: as in `chunked_softmax_loss`, numbered over the classes of all processes.
        shares: as in `chunked_softmax_loss`.
        temperature: divides the cosines.
        chunk: classes in a block.

    Returns:
        Of this process's examples `(batch,)`.

    Raises:
        DataError: if shapes do not match, or a label is no class.
        OptionError: if temperature or chunk are out of range.
    """
    return _loss(features, weight, labels, shares, temperature, chunk, sharded=world_size() > 1)


def _loss(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    shares: Tensor | None,
    temperature: float,
    chunk: int | None,
    sharded: bool,
) -> Tensor:
    check_number("temperature", temperature, above=0)
    if chunk is not None:
        check_number("chunk", chunk, minimum=1, integer=True)
    labels = labels[:, None] if labels.ndim == 1 else labels
    with torch.autocast(features.device.type, enabled=False):
        unit, rows = unit_rows(features), unit_rows(weight)
        shares = torch.ones_like(labels, dtype=unit.dtype) if shares is None else shares.to(unit.dtype)
        _check(unit, rows, labels, shares)
        first = own_rows(len(rows), rows.device).start if sharded else 0
        if not torch.compiler.is_compiling():
            _check_labels(labels, len(gather_rows(rows[:, :0])) if sharded else len(rows))
        if not sharded:
            blocks = chunk or max(1, _HELD // max(1, len(unit)))
            values: Tensor = _Softmax.apply(unit, rows, labels, shares, temperature, blocks, 0, False)
            return values
        everyone = gather_with_gradient(unit)
        blocks = chunk or max(1, _HELD // max(1, len(everyone)))
        values = _Softmax.apply(
            everyone, rows, gather_rows(labels), gather_rows(shares), temperature, blocks, first, True
        )
        return values[own_rows(len(unit), unit.device)]


def _check(unit: Tensor, rows: Tensor, labels: Tensor, shares: Tensor) -> None:
    if unit.ndim != 2 or rows.ndim != 2 or unit.shape[1] != rows.shape[1]:
        raise DataError(
            f"features {tuple(unit.shape)} and weight {tuple(rows.shape)} must be (batch, dim) and (classes, dim) with "
            "the same dim"
        )
    if len(labels) != len(unit) or shares.shape != labels.shape:
        raise DataError(
            f"labels {tuple(labels.shape)} and shares {tuple(shares.shape)} must both be (batch, k) for features "
            f"{tuple(unit.shape)}"
        )


def _check_labels(labels: Tensor, classes: int) -> None:
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise DataError(
            f"labels go from {int(labels.min())} to {int(labels.max())}, but there are rows for {classes} classes; "
            "number the classes from 0, and give weight a row for each"
        )


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        unit: Tensor,
        rows: Tensor,
        labels: Tensor,
        shares: Tensor,
        temperature: float,
        chunk: int,
        first: int,
        sharded: bool,
    ) -> Tensor:
        most = unit.new_full((len(unit),), -math.inf)
        total, aimed = torch.zeros_like(most), torch.zeros_like(most)
        for start in range(0, len(rows), chunk):
            logits = unit @ rows[start : start + chunk].T / temperature
            place, here = _within(labels, first + start, logits.shape[1])
            aimed += (logits.gather(1, place) * shares * here).sum(1)
            higher = torch.maximum(most, logits.amax(1))
            total = total * (most - higher).exp() + (logits - higher[:, None]).exp().sum(1)
            most = higher
        if sharded:
            highest = most.clone()
            dist.all_reduce(highest, dist.ReduceOp.MAX)
            total = total * (most - highest).exp()
            dist.all_reduce(total)
            dist.all_reduce(aimed)
            most = highest
        whole = most + total.log()
        ctx.save_for_backward(unit, rows, labels, shares, whole)
        ctx.settings = temperature, chunk, first, sharded
        return whole * shares.sum(1) - aimed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        unit, rows, labels, shares, whole = ctx.saved_tensors
        temperature, chunk, first, sharded = ctx.settings
        if sharded:
            # Each process has that of its own examples.
            gradient = gradient.clone()
            dist.all_reduce(gradient)
        gradient = (gradient / temperature)[:, None]
        of_unit, of_rows = torch.zeros_like(unit), torch.empty_like(rows)
        sums = shares.sum(1, keepdim=True)
        for start in range(0, len(rows), chunk):
            block = rows[start : start + chunk]
            slope = (unit @ block.T / temperature - whole[:, None]).exp_().mul_(sums)
            place, here = _within(labels, first + start, len(block))
            slope.scatter_add_(1, place, -shares * here)
            slope.mul_(gradient)
            of_unit += slope @ block
            of_rows[start : start + chunk] = slope.T @ unit
        if sharded:
            # The sum over processes of the part of each comes with the gathering; encoders are averaged after it.
            of_rows /= world_size()
        return of_unit, of_rows, None, None, None, None, None, None


def _within(labels: Tensor, first: int, size: int) -> tuple[Tensor, Tensor]:
    """Where in a block of classes each label is, 0 where it is not in it, and whether it is."""
    place = labels - first
    here = (place >= 0) & (place < size)
    return torch.where(here, place, 0), here
