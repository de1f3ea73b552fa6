"""Means of several models' weights: of all, of those that help, or with weights that are learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repertory.core.modes import evaluating
from repertory.errors import DataError, OptionError, check_choice, check_number

StateDict = Mapping[str, Tensor]
"""Tensors by name, as `nn.Module.state_dict` returns them."""


def uniform_soup(state_dicts: Iterable[StateDict]) -> dict[str, Tensor]:
    """Return the mean of all models, by a running average, so that an iterator holds two in memory at most.

    Args:
        state_dicts: state dicts of the same keys and shapes. Floating-point entries are averaged, in float32
            where they are of lower precision; others, such as counters, are those of the first.

    Returns:
        A new state dict in the types of the first.

    Raises:
        DataError: if there is none, or if keys or shapes differ.

    >>> soup = uniform_soup([{"w": torch.tensor([1.0, 4.0])}, {"w": torch.tensor([3.0, 0.0])}])
    >>> soup["w"]
    tensor([2., 2.])
    """
    first: StateDict | None = None
    means: dict[str, Tensor] = {}
    for count, state in enumerate(state_dicts):
        if first is None:
            first = state
            means = _start(state)
        else:
            _check_same(first, state, count)
            _add(means, state, count)
    if first is None:
        raise DataError("state_dicts is empty; a soup needs at least one model")
    return _narrow(means, first)


def greedy_soup(
    state_dicts: Sequence[StateDict],
    evaluate: Callable[[StateDict], float],
    order: Sequence[int] | None = None,
    accept: Literal[">=", ">"] = ">=",
) -> tuple[dict[str, Tensor], list[int], list[float]]:
    """Add models to the mean one by one, and keep each that does not lower the validation score.

    Args:
        state_dicts: state dicts of the same keys and shapes.
        evaluate: returns the validation score of a state dict, higher is better. A single model is handed
            over as the very object from `state_dicts`, a mean as a new one.
        order: in which to try them, as positions in `state_dicts`; by default from the best single model to
            the worst, which costs one evaluation more for each; equal ones keep their order.
        accept: ">=" as in the paper, or ">" as in the authors' code: whether an equal score is good enough.

    Returns:
        The soup; the positions of its ingredients in the order they were added; and the score after each,
        never falling.

    Raises:
        DataError: if there is no model, or if keys or shapes differ.
        OptionError: if `order` or `accept` is not allowed.

    >>> models = [{"w": torch.tensor(value)} for value in (1.5, 0.5, 6.0)]
    >>> soup, ingredients, scores = greedy_soup(models, lambda state: -abs(float(state["w"]) - 1.0))
    >>> float(soup["w"]), ingredients, scores
    (1.0, [0, 1], [-0.5, -0.0])
    """
    check_choice("accept", accept, (">=", ">"))
    if not state_dicts:
        raise DataError("state_dicts is empty; a soup needs at least one model")
    first = state_dicts[0]
    for position, state in enumerate(state_dicts[1:], start=1):
        _check_same(first, state, position)
    if order is None:
        singles = [_score(evaluate, state) for state in state_dicts]
        order = sorted(range(len(singles)), key=lambda position: -singles[position])
        best = singles[order[0]]
    else:
        _check_order(order, len(state_dicts))
        best = _score(evaluate, state_dicts[order[0]])
    start = state_dicts[order[0]]
    means = _start(start)
    ingredients, scores = [order[0]], [best]
    for position in order[1:]:
        tried = {name: value.clone() for name, value in means.items()}
        _add(tried, state_dicts[position], len(ingredients))
        score = _score(evaluate, _narrow(tried, start))
        if score > best or (accept == ">=" and score == best):
            means, best = tried, score
            ingredients.append(position)
            scores.append(score)
    return _narrow(means, start), ingredients, scores


def learned_soup(
    model: nn.Module,
    state_dicts: Sequence[StateDict],
    batches: Iterable[Any],
    per: Literal["model", "tensor"] = "tensor",
    *,
    epochs: int = 5,
    lr: float = 0.05,
    weight_decay: float = 0.0,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> tuple[dict[str, Tensor], Tensor, float]:
    """Learn how much of each model to take, with a scale on the output, by gradient descent on held-out data.

    Args:
        model: a network of the models' structure; it runs in evaluation mode and is not changed.
        state_dicts: state dicts of the same keys and shapes; all are held in memory.
        batches: held-out data, gone through `epochs` times: mappings with "input" and "target", or pairs of
            these.
        per: one weight a model, or one a model for each parameter tensor.
        epochs: passes over the batches.
        lr: learning rate of AdamW.
        weight_decay: its weight decay.
        loss: of scaled outputs and targets.

    Returns:
        The soup; the weights, `(models,)` or `(tensors, models)` in the order of `model.named_parameters()`,
        which sum to 1 over models; and the scale. Buffers in the soup are those of the uniform soup.

    Raises:
        DataError: if there is no model, if keys or shapes differ, or if they do not fit the network.
        OptionError: if an option is outside its range.
    """
    check_choice("per", per, ("model", "tensor"))
    check_number("epochs", epochs, minimum=0, integer=True)
    check_number("lr", lr, above=0)
    check_number("weight_decay", weight_decay, minimum=0)
    soup = uniform_soup(state_dicts)
    _check_same(model.state_dict(), soup, 0, "the model's state dict")
    stacked = {
        name: torch.stack([state[name].to(_wide(state[name])) for state in state_dicts])
        for name, _ in model.named_parameters()
    }
    shape = (len(state_dicts),) if per == "model" else (len(stacked), len(state_dicts))
    device = next(iter(stacked.values())).device
    raw = torch.zeros(shape, device=device, requires_grad=True)
    scale = torch.ones((), device=device, requires_grad=True)
    optimizer = torch.optim.AdamW([raw, scale], lr=lr, weight_decay=weight_decay)
    buffers = {name: soup[name] for name, _ in model.named_buffers() if name in soup}
    batches = list(batches) if isinstance(batches, Iterator) else batches
    with evaluating(model):
        for _ in range(epochs):
            for batch in batches:
                inputs, targets = _pair(batch)
                mixed = _mix(stacked, raw.softmax(-1), soup)
                output = torch.func.functional_call(model, {**mixed, **buffers}, (inputs,))
                optimizer.zero_grad()
                loss(scale * output, targets).backward()
                optimizer.step()
    weights = raw.detach().softmax(-1)
    mixed = _mix(stacked, weights, soup)
    # A tensor shared by two names is learnt once.
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        soup[name] = mixed[names[id(parameter)]]
    return soup, weights, float(scale.detach())


def _start(state: StateDict) -> dict[str, Tensor]:
    numbers = {name: value for name, value in state.items() if value.is_floating_point() or value.is_complex()}
    return {name: value.detach().to(_wide(value), copy=True) for name, value in numbers.items()}


def _wide(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def _add(means: dict[str, Tensor], state: StateDict, count: int) -> None:
    """Turn means of `count` models into those of one more, in place."""
    if means:
        values = [state[name].detach().to(mean) for name, mean in means.items()]
        # A step towards the new model, not a sum: equal models then stay equal bit for bit.
        torch._foreach_lerp_(list(means.values()), values, 1 / (count + 1))


def _narrow(means: Mapping[str, Tensor], like: StateDict) -> dict[str, Tensor]:
    return {
        name: means[name].to(value.dtype) if name in means else value.detach().clone() for name, value in like.items()
    }


def _mix(stacked: Mapping[str, Tensor], weights: Tensor, like: StateDict) -> dict[str, Tensor]:
    rows = weights.expand(len(stacked), -1)
    return {
        name: torch.tensordot(row.to(values.dtype), values, 1).to(like[name].dtype)
        for row, (name, values) in zip(rows, stacked.items())
    }


def _score(evaluate: Callable[[StateDict], float], state: StateDict) -> float:
    score = float(evaluate(state))
    return -math.inf if math.isnan(score) else score


def _check_same(first: StateDict, other: StateDict, position: int, name: str = "state_dicts[0]") -> None:
    where = f"state_dicts[{position}]"
    odd = sorted(first.keys() ^ other.keys())
    if odd:
        has, lacks = (name, where) if odd[0] in first else (where, name)
        raise DataError(f"{has} has {odd[0]!r}, which {lacks} lacks; give state dicts of one architecture")
    for key, value in first.items():
        if value.shape != other[key].shape:
            raise DataError(
                f"{key!r} is {tuple(value.shape)} in {name} and {tuple(other[key].shape)} in {where}; "
                f"give state dicts of one architecture"
            )


def _check_order(order: Sequence[int], count: int) -> None:
    if not order or len(set(order)) < len(order) or not all(0 <= position < count for position in order):
        raise OptionError(
            f"order={list(order)} is not allowed: give positions from 0 to {count - 1}, none of them twice"
        )


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    return (batch["input"], batch["target"]) if isinstance(batch, Mapping) else (batch[0], batch[1])
