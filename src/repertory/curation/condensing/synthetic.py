"""The condensed set: where it starts, how it goes back to the units of the data, and how a recipe gets it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from repertory.curation.condensing.real import RealExamples
from repertory.errors import ConflictError
from repertory.recipe import Part, Recipe, locate


class Condensed(NamedTuple):
    """A condensed set.

    Args:
        inputs: `(classes * per_class, ...)`, in the units of the data before normalisation (images count from 0 to
            255, and may lie outside); the examples of a class stand together, classes in their order.
        targets: classes int64 `(classes * per_class,)`, or probabilities float32 `(classes * per_class, classes)`.
    """

    inputs: Tensor
    targets: Tensor


def synthetic_start(bench: Any, rule: str = "random") -> tuple[Tensor, Tensor]:
    """Return real examples to begin with: normalised inputs that want gradients, and their classes, on the device.

    Args:
        bench: with `per_class`, the examples of each class.
        rule: which ones, see `RealExamples`.

    Returns:
        float32 `(classes * per_class, ...)`, a leaf, and int64 `(classes * per_class,)`, classes in their order.
    """
    chosen = bench.splits.train.subset(RealExamples(rule).rows(bench))
    inputs = bench.splits.normaliser(chosen.inputs).to(bench.device)
    return inputs.clone().requires_grad_(), chosen.targets.to(bench.device)


def to_raw(bench: Any, inputs: Tensor, targets: Tensor) -> Condensed:
    """Return a set made of normalised inputs in the units of the data, on the CPU.

    Args:
        bench: its normaliser is undone.
        inputs: normalised `(n, ...)`.
        targets: classes or probabilities.
    """
    return Condensed(bench.splits.normaliser.undo(inputs.detach().float().cpu()), targets.detach().cpu())


def condensed_by(recipe: Recipe, part: Part) -> Recipe:
    """Return a copy of a recipe in which `part` makes the condensed set, in place of the baseline's real examples.

    Args:
        recipe: what to edit.
        part: its class has `condense(bench)`.

    Raises:
        ConflictError: if another method makes the set already.

    >>> empty = Recipe(Part("torch.nn:Linear"), Part("torch.nn:MSELoss"), Part("torch.optim:SGD"))
    >>> made = condensed_by(empty, Part("repertory.curation.condensing:RealExamples"))
    >>> [part.factory for part in made.curation]
    ['repertory.curation.condensing:RealExamples']
    """
    makers = [each for each in recipe.curation if hasattr(locate(each.factory), "condense")]
    for each in makers:
        if each.slug is not None:
            raise ConflictError(
                f"{each.slug} and {part.slug} both make the condensed set and cannot be combined; compare them side by "
                f"side instead: {each.slug} {part.slug}"
            )
    return recipe.replace(curation=(*(each for each in recipe.curation if each not in makers), part))
