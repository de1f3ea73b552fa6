"""Wrong training labels of a stated kind: evenly drawn, of the next class, of frequent classes, or by what is seen."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from repertory.errors import OptionError

KINDS = ("symmetric", "pair", "frequent", "instance")
"""How a wrong label is drawn: any other class alike; the next class; other classes by their counts; by the input."""

_SPREAD = 0.1
"""Standard deviation of the noise rates of examples, where the input decides (Xia et al., 2020)."""
_ALLOWED = "a share of at least 0 and below 1, alone or after a kind, as in 0.4 or " + ", ".join(
    f"{kind}0.4" for kind in KINDS
)


def parse_noise(text: str, key: str = "noise") -> tuple[str, float]:
    """Read a kind and a rate.

    Args:
        text: a share of the labels in [0, 1), alone or after one of `KINDS`.
        key: what the option is called.

    Raises:
        OptionError: if it is not of that form.

    >>> parse_noise("0.4"), parse_noise("pair0.2")
    (('symmetric', 0.4), ('pair', 0.2))
    """
    match = re.fullmatch(rf"({'|'.join(KINDS)})?(\d*\.?\d+)", text)
    if match is None or not float(match[2]) < 1:
        raise OptionError(f"{key}={text} is not {_ALLOWED}")
    return match[1] or KINDS[0], float(match[2])


def flip_labels(
    targets: Tensor,
    rate: float,
    classes: int,
    generator: torch.Generator,
    *,
    kind: str = "symmetric",
    inputs: Tensor | None = None,
) -> Tensor:
    """Move exactly `round(rate * n)` labels to another class each.

    Args:
        targets: classes `(n,)` int64.
        rate: share of labels to move, in [0, 1).
        classes: number of classes.
        generator: source of the choice.
        kind: "symmetric", any other class alike; "pair", the next class, and the first after the last; "frequent",
            other classes in proportion to their counts, so that rare ones lose most; "instance", both which examples
            and to which class by random projections of the inputs, as in Xia et al.
        inputs: `(n, ...)`, for "instance".

    Returns:
        New labels `(n,)`, none of the moved ones as it was.

    Raises:
        OptionError: if a kind needs what is not there.

    Reference: Xia et al., Part-dependent label noise, https://arxiv.org/abs/2006.07836, for "instance".
    """
    moved = round(rate * len(targets))
    chances = None if kind == "symmetric" else _chances(targets, classes, kind, inputs, generator)
    if kind == "instance":
        # Some examples are easier to take for another class than others; weighted draws keep the count exact.
        weights = (rate + _SPREAD * torch.randn(len(targets), generator=generator)).clamp(1e-6, 1.0)
        keys = torch.rand(len(targets), generator=generator).log() / weights
        chosen = keys.topk(moved).indices
    else:
        chosen = torch.randperm(len(targets), generator=generator)[:moved]
    noisy = targets.clone()
    if chances is None:
        noisy[chosen] += torch.randint(1, classes, (moved,), generator=generator)
        return noisy % classes
    if moved:
        noisy[chosen] = torch.multinomial(chances[chosen], 1, generator=generator)[:, 0]
    return noisy


def _chances(targets: Tensor, classes: int, kind: str, inputs: Tensor | None, generator: torch.Generator) -> Tensor:
    """How likely each wrong class is `(n, classes)`, zero for the right one."""
    right = torch.nn.functional.one_hot(targets, classes).bool()
    if kind == "pair":
        return right.roll(1, dims=1).double()
    if kind == "frequent":
        counts = targets.bincount(minlength=classes).double().expand(len(targets), classes).masked_fill(right, 0.0)
        if bool((counts.sum(1) == 0).any()):
            raise OptionError("noise=frequent needs a second class to move labels to, but all labels are of one class")
        return counts
    if inputs is None:
        raise OptionError("kind='instance' needs inputs=..., the inputs that decide on the wrong class")
    flat = inputs.flatten(1).double()
    flat = (flat - flat.mean(0)) / flat.std(0, correction=0).clamp(min=1e-6)
    projections = torch.randn(classes, flat.shape[1], classes, generator=generator, dtype=torch.float64)
    scores = torch.empty(len(targets), classes, dtype=torch.float64)
    for label in range(classes):
        rows = targets == label
        scores[rows] = flat[rows] @ projections[label]
    return scores.div(flat.shape[1] ** 0.5).masked_fill(right, -torch.inf).softmax(1)
