"""The vote of the nearest neighbours, as a loss and as an accuracy."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from repertory.core.neighbours import nearest_neighbours
from repertory.errors import DataError, OptionError, check_choice, check_number
from repertory.layers.embedding import unit_rows

_HELD = 2**24
"""Similarities that are held at once: 64 MiB of float32."""
_ABSENT = -1e9
"""What stands for a similarity that does not count: finite, since rows of nothing but -inf have no gradient."""
_COLD = 0.03
"""Temperature from which on one exponential serves both sums: cosines differ by 2 at most, and exp(-2 / 0.03) is still
a number that float32 can hold. Below it each sum is taken against its own largest term, with an exponential of its own.
"""


def look_loss(
    features: Tensor,
    labels: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    *,
    k: int | None = None,
    temperature: float = 0.1,
    index: Tensor | None = None,
    memory_index: Tensor | None = None,
    no_positive: str = "nearest",
) -> Tensor:
    """Return how little the nearest neighbours of each example vote for its label.

    Similarities are cosines, computed in float32 or wider. The gradient reaches `features`, and `memory` where it needs
    one, through the neighbours' similarities; which ones they are is taken as given. With a number for `k` the memory
    is searched in chunks, so that it may be of any length. A zero vector has similarity 0 with everything.

    Args:
        features: `(batch, dim)`, of any length.
        labels: classes `(batch,)`, int64.
        memory: `(entries, dim)`, of any length.
        memory_labels: classes `(entries,)`, int64; a negative one marks an entry that is not there.
        k: number of neighbours; None for all of memory.
        temperature: divides the similarities.
        index: position of each example in the training set `(batch,)`, int64.
        memory_index: that of each entry `(entries,)`; entries of an example itself are left out of its neighbours.
        no_positive: for an example without one of its class among its neighbours, "nearest" lets the most similar entry
            of its class join them, "skip" makes its loss 0. Where all of memory has none of its class, it is 0 too.

    Returns:
        `(batch,)`, in nats.

    Raises:
        OptionError: if an option is outside its range, or `k` is larger than the memory.
        DataError: if shapes do not match, or only one of the two indices is given.

    >>> points = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
    >>> labels, index = torch.tensor([0, 0, 1, 1]), torch.arange(4)
    >>> look_loss(points, labels, points, labels, k=2, temperature=0.5, index=index, memory_index=index)
    tensor([0.1839, 0.5130, 0.5130, 0.1839])
    """
    _check(features, labels, memory, memory_labels, index, memory_index)
    check_number("temperature", temperature, above=0)
    check_choice("no_positive", no_positive, ("nearest", "skip"))
    if k is not None:
        check_number("k", k, minimum=1, integer=True)
        if k > len(memory):
            raise OptionError(f"k={k} is more than the {len(memory)} entries of the memory; lower k, or give None")
    with torch.autocast(features.device.type, enabled=False):
        scaled = unit_rows(features) / temperature
        if k is None:
            near = scaled @ unit_rows(memory).to(scaled).T
            right, absent = _which(slice(None), labels, memory_labels, index, memory_index, scaled.device)
        else:
            wide = torch.promote_types(memory.dtype, torch.float32)
            lengths = torch.linalg.vector_norm(memory, dim=1, dtype=wide).clamp(min=1e-12)
            entries = memory.detach(), lengths.detach(), memory_labels, memory_index
            places, right, absent = _neighbours(scaled, labels, index, entries, k, no_positive == "nearest")
            chosen = places.to(memory.device)
            near = (memory[chosen].to(scaled) @ scaled[:, :, None]).squeeze(2) / lengths[chosen].to(scaled)
        return _against(near, right, absent, temperature)


def _against(near: Tensor, right: Tensor, absent: Tensor, temperature: float) -> Tensor:
    """Return the negative logarithm of the vote for the right class, 0 where no entry has it; all are `(batch, n)`."""
    if temperature < _COLD:
        for_it = near.masked_fill(~right, _ABSENT).logsumexp(1)
        against = near.masked_fill(right | absent, _ABSENT).logsumexp(1)
        return functional.softplus(against - for_it).where(right.any(1), 0.0)
    votes = near.masked_fill(absent, _ABSENT).softmax(1)
    # Products with 0 and 1, since a mask costs a pass more forward and backward.
    mine = right.to(votes)
    for_it, against = (votes * mine).sum(1), (votes * (1 - mine)).sum(1)
    known = for_it > 0
    # No quotient of the two: its derivative squares the smaller one.
    return ((for_it + against).log() - for_it.where(known, 1.0).log()).where(known, 0.0)


def look_accuracy(features: Tensor, labels: Tensor, k: int, temperature: float = 0.1) -> float:
    """Return the share of examples whose label wins the weighted vote of their `k` nearest other examples.

    A measure of pre-training that needs no classifier.

    Args:
        features: `(examples, dim)`, of any length.
        labels: classes `(examples,)`, int64.
        k: number of neighbours.
        temperature: neighbours weigh as much as the exponential of their cosine over it.

    Raises:
        OptionError: if `k` is larger than the number of other examples, or the temperature is not above 0.
        DataError: if features and labels do not match, or a feature is not finite.

    >>> points = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]])
    >>> look_accuracy(points, torch.tensor([0, 0, 1, 1]), k=1)
    1.0
    """
    _check(features, labels, features, labels, None, None)
    check_number("temperature", temperature, above=0)
    if not bool(features.isfinite().all()):
        raise DataError("features holds a number that is not finite; search only where training went well")
    near, places = nearest_neighbours(features, features, k, own=torch.arange(len(features), device=features.device))
    _, names = labels.unique(return_inverse=True)
    weights, voters = (near / temperature).softmax(1), names[places]
    classes = int(names.max()) + 1
    right = 0
    for rows in torch.arange(len(names), device=names.device).split(max(1, _HELD // classes)):
        votes = weights.new_zeros(len(rows), classes).scatter_add_(1, voters[rows], weights[rows])
        right += int((votes.argmax(1) == names[rows]).sum())
    return right / len(names)


@torch.no_grad()
def _neighbours(
    queries: Tensor,
    labels: Tensor,
    index: Tensor | None,
    entries: tuple[Tensor, Tensor, Tensor, Tensor | None],
    k: int,
    joined: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Search the memory, given by its rows, their lengths, labels and index, chunk by chunk.

    Returns:
        Places in memory, whether each has the example's class, and whether it is none at all, all `(batch, k)`, or with
        `joined` `(batch, k + 1)`: the last is the nearest of the class, where none of the others is.
    """
    memory, lengths, memory_labels, memory_index = entries
    width = max(1, _HELD // max(1, len(queries)))
    best: tuple[Tensor, ...] = ()
    for start in range(0, len(memory), width):
        part = slice(start, start + width)
        near = queries @ memory[part].to(queries).T / lengths[part].to(queries)
        right, absent = _which(part, labels, memory_labels, index, memory_index, queries.device)
        near.masked_fill_(absent, -math.inf)
        values, places = near.topk(min(k, near.shape[1]), 1)
        nearest, place = near.masked_fill(~right, -math.inf).max(1, keepdim=True)
        found = values, places + start, right.gather(1, places), nearest, place + start
        best = _merged(best, found, k) if best else found
    values, places, right, nearest, place = best
    absent = values == -math.inf
    if not joined:
        return places, right, absent
    joins = (nearest > -math.inf) & ~right.any(1, keepdim=True)
    return torch.cat([places, place], 1), torch.cat([right, joins], 1), torch.cat([absent, ~joins], 1)


def _merged(best: tuple[Tensor, ...], found: tuple[Tensor, ...], k: int) -> tuple[Tensor, ...]:
    values, places, right, nearest, place = (torch.cat(pair, 1) for pair in zip(best, found))
    values, order = values.topk(min(k, values.shape[1]), 1)
    nearest, which = nearest.max(1, keepdim=True)
    return values, places.gather(1, order), right.gather(1, order), nearest, place.gather(1, which)


def _which(
    part: slice,
    labels: Tensor,
    memory_labels: Tensor,
    index: Tensor | None,
    memory_index: Tensor | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return which entries have the class of each example, and which do not count for it, `(batch, entries)`."""
    theirs = memory_labels[part].to(device)
    absent = (theirs < 0).expand(len(labels), -1)
    if index is not None and memory_index is not None:
        absent = absent | (index[:, None] == memory_index[part].to(device))
    return (labels[:, None] == theirs) & ~absent, absent


def _check(
    features: Tensor,
    labels: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    index: Tensor | None,
    memory_index: Tensor | None,
) -> None:
    if features.ndim != 2 or memory.ndim != 2 or features.shape[1] != memory.shape[1] or not len(memory):
        raise DataError(
            f"features {tuple(features.shape)} and memory {tuple(memory.shape)} must be (batch, dim) and "
            "(entries, dim) with the same dim and at least one entry"
        )
    wanted = {
        "labels": (labels, len(features)),
        "memory_labels": (memory_labels, len(memory)),
        "index": (index, len(features)),
        "memory_index": (memory_index, len(memory)),
    }
    for name, (given, rows) in wanted.items():
        if given is not None and (given.shape != (rows,) or given.is_floating_point()):
            raise DataError(
                f"{name} has shape {tuple(given.shape)} and type {given.dtype}; it must be ({rows},) whole numbers"
            )
    if (index is None) != (memory_index is None):
        raise DataError("index and memory_index belong together, but only one was given; give both, or none of them")
