"""From the parts of a recipe to a network and a loss that fit the data."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.method import Method
from repertory.core.modes import evaluating
from repertory.core.randomness import seeded
from repertory.errors import UserError
from repertory.recipe import Part, Recipe, locate
from repertory.training.learner import Learner

_FOR_TEXTS = "use --model hf:NAME or repertory:HashedText, or a factory that chooses outputs by itself"


def build_part(part: Part, **context: Any) -> Any:
    """Build a part, passing those entries of `context` that its factory has parameters for."""
    parameters = inspect.signature(locate(part.factory)).parameters
    return part.build(**{name: value for name, value in context.items() if name in parameters})


def build_network(part: Part, in_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build the network of a recipe.

    Args:
        part: its factory is called with `in_shape` and `outputs` where it has such parameters.
        in_shape: shape of one input.
        outputs: number of classes, or 1; 0 leaves it to the factory.

    Raises:
        UserError: if the result is not a module.
    """
    wanted = inspect.signature(locate(part.factory)).parameters.get("outputs")
    if not outputs and wanted is not None and wanted.default is wanted.empty and "outputs" not in part.options:
        raise UserError(f"model {part.factory!r} is not made for pairs of texts; {_FOR_TEXTS}")
    network = build_part(part, in_shape=in_shape, **({"outputs": outputs} if outputs else {}))
    if not isinstance(network, nn.Module):
        raise UserError(f"model {part.factory!r} made a {type(network).__name__}; it must return a torch.nn.Module")
    return network


def build_learner(
    recipe: Recipe, in_shape: tuple[int, ...], outputs: int, seed: int, *, name: str = "model",
    offset: float = 0.0, scale: float = 1.0, class_counts: Tensor | None = None, dense: bool = False,
) -> Learner:  # fmt: skip
    """Build network, surgery and criterion of a recipe with weights drawn from (seed, name).

    Args:
        recipe: what to build.
        in_shape: shape of one input.
        outputs: number of classes, or 1; for pairs 0, which leaves the size of the embedding to the network.
        seed: the run's seed.
        name: further name of the draw; "model" is what every method of a comparison starts from.
        offset: mean of the training targets, for regression.
        scale: their standard deviation, for regression.
        class_counts: training examples of each class `(outputs,)`, for criteria that have such a parameter; all alike
            where nobody says.
        dense: whether the data have a class for each pixel, which the network must give logits for.

    Raises:
        UserError: if the network cannot take the inputs, or its output does not fit the classes.
    """
    with seeded(seed, name):
        network = build_network(recipe.model, in_shape, outputs)
    _check_output(network, recipe.model, in_shape, outputs, in_shape[1:] if dense else ())
    with seeded(seed, f"{name}/surgery"):
        for part in recipe.surgery:
            asks = inspect.signature(locate(part.factory)).parameters
            given = {"in_shape": in_shape} if "in_shape" in asks else {}
            network = part.build(network, outputs=outputs, **given)
        counts = torch.ones(outputs, dtype=torch.int64) if class_counts is None else class_counts
        criterion = build_part(recipe.criterion, outputs=outputs, class_counts=counts)
    return Learner(network, criterion, offset, scale)


def build_methods(recipe: Recipe) -> list[Method]:
    """Build what a recipe puts around the training step, outermost first; its objective comes last."""
    innermost = () if recipe.objective is None else (recipe.objective,)
    return [part.build() for part in (*recipe.methods, *innermost)]


def _check_output(
    network: nn.Module, part: Part, in_shape: tuple[int, ...], outputs: int, pixels: tuple[int, ...] = ()
) -> None:
    try:
        with evaluating(network), torch.no_grad():
            output = network(torch.zeros(2, *in_shape))
    except Exception as error:  # whatever the network's own code raises, the shape is what it was asked
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"model {part.factory!r} cannot take inputs of shape {in_shape}: {reason}; choose another --model"
        ) from error
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if not outputs and len(shape) == 3 and shape[:2] == (2, in_shape[0]):
        return
    if not outputs:
        raise UserError(
            f"model {part.factory!r} gives {shape} for 2 examples of {in_shape[0]} texts; it must give an embedding of "
            f"each, (2, {in_shape[0]}, size); {_FOR_TEXTS}"
        )
    if pixels and shape != (2, outputs, *pixels):
        raise UserError(
            f"model {part.factory!r} gives {shape} for 2 images, but masks need logits (2, {outputs}, "
            f"{', '.join(map(str, pixels))}): a class for each pixel; use --model repertory:small_unet, "
            "torchvision:fcn_resnet50, or a factory of your own"
        )
    if not pixels and shape != (2, outputs):
        raise UserError(
            f"model {part.factory!r} gives {shape} for 2 inputs, but this data needs (2, {outputs}); "
            "give its factory a "
            f"parameter named outputs and let it make the last layer that wide"
        )
