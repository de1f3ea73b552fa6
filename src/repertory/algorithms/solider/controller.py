"""A semantic controller: one number that scales and shifts what the stages of a network give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory.core.activations import LayerOutputs
from repertory.core.modes import evaluating
from repertory.errors import ConflictError, OptionError, UserError, check_number

_CONTAINERS = ("stages", "layers", "blocks")
"""Where networks of stages or blocks keep them."""
_MOST = 4
"""Stages that are controlled of more: as many as the authors' backbone has."""


class ControlledStage(nn.Module):
    r"""A stage whose output is scaled and shifted by how much semantics is asked for.

    $x \leftarrow x \cdot \mathrm{softplus}(W_s c) + W_b c$ with the condition $c = (\lambda, 1 - \lambda)$ and both
    maps with a bias, a number a channel. At the start every scale is about ln 2, as in the authors' code.

    Args:
        stage: gives maps `(batch, channels, height, width)`, `(batch, height, width, channels)`, or tokens
            `(batch, tokens, channels)`.
        channels: of its output.
        axis: where they are, 1 or -1.
        grid: height and width of the map; of tokens, how they are laid out.
        prefix: tokens before those of the map, such as a class token.

    >>> stage = ControlledStage(nn.Identity(), channels=3)
    >>> _ = nn.init.zeros_(stage.scale), nn.init.zeros_(stage.shift)
    >>> stage(torch.ones(1, 3, 1, 1)).flatten()
    tensor([0.6931, 0.6931, 0.6931], grad_fn=<ViewBackward0>)
    """

    ratio: Tensor

    def __init__(
        self, stage: nn.Module, channels: int, axis: int = 1, grid: tuple[int, int] = (1, 1), prefix: int = 0
    ) -> None:
        super().__init__()
        check_number("channels", channels, minimum=1, integer=True)
        self.stage = stage
        self.channels = channels
        self.axis = axis
        self.grid = grid
        self.prefix = prefix
        # Not nn.Linear, so that a network's last linear layer stays what it was.
        self.scale = nn.Parameter(nn.init.trunc_normal_(torch.empty(channels, 2), std=0.02))
        self.scale_bias = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(nn.init.trunc_normal_(torch.empty(channels, 2), std=0.02))
        self.shift_bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("ratio", torch.tensor(0.0))
        self.images: Tensor | None = None

    def forward(self, *args: Any, **options: Any) -> Tensor:
        """Return the stage's output, scaled and shifted.

        Raises:
            OptionError: if there is not one ratio an image.
        """
        output: Tensor = self.stage(*args, **options)
        ratio = self.ratio[None] if self.images is None else self.images
        if len(ratio) not in (1, len(output)):
            raise OptionError(f"ratios={len(ratio)} of images do not fit a batch of {len(output)}; give one an image")
        condition = torch.stack([ratio, 1 - ratio], 1).to(self.scale.dtype)
        scale = functional.softplus(functional.linear(condition, self.scale, self.scale_bias))
        shift = functional.linear(condition, self.shift, self.shift_bias)
        shape = [len(ratio), *[1] * (output.ndim - 1)]
        shape[self.axis] = self.channels
        return output * scale.view(shape).to(output.dtype) + shift.view(shape).to(output.dtype)

    def maps(self, output: Tensor) -> Tensor:
        """Return an output of this stage as maps `(batch, channels, height, width)`, without tokens before them.

        Raises:
            UserError: if there are other than the expected number of tokens.
        """
        if output.ndim == 4:
            return output if self.axis == 1 else output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :]
        if tokens.shape[1] != self.grid[0] * self.grid[1]:
            raise UserError(
                f"{tokens.shape[1]} tokens do not make a map of {self.grid[0]} x {self.grid[1]}; give images of the "
                "size that the controller was made for"
            )
        return tokens.transpose(1, 2).unflatten(2, self.grid)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"channels={self.channels}"


class SemanticController:
    """What the controlled stages of a network share: how much semantics is asked for, for all images or for each.

    It is no module, so that a network of any kind can carry it; what it learns lies in the stages, and so does the
    ratio, which is saved with the network.

    Args:
        stages: in the order in which they are passed.
        ratio: share of semantics at first.

    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    >>> model = add_semantic_control(model, in_shape=(1, 4, 4))
    >>> model.controller.ratio = 1.0
    >>> with model.controller.images(torch.tensor([0.0, 1.0])):
    ...     both = model(torch.ones(2, 1, 4, 4))
    >>> torch.allclose(both[1:], model(torch.ones(1, 1, 4, 4))), torch.allclose(both[0], both[1])
    (True, False)
    """

    def __init__(self, stages: Sequence[ControlledStage], ratio: float = 0.2) -> None:
        self.stages = list(stages)
        self.ratio = ratio

    @property
    def ratio(self) -> float:
        """Share of semantics where none is given for each image: 0 for appearance (who), 1 for semantics (what)."""
        return float(self.stages[0].ratio)

    @ratio.setter
    def ratio(self, value: float) -> None:
        """Set it for every stage."""
        check_number("ratio", value, minimum=0, maximum=1)
        for stage in self.stages:
            stage.ratio.fill_(value)

    @contextmanager
    def images(self, ratios: Tensor) -> Iterator[None]:
        """Give each image a share of its own inside the block.

        Args:
            ratios: `(batch,)`, or one for all, `(1,)`.
        """
        for stage in self.stages:
            stage.images = ratios
        try:
            yield
        finally:
            for stage in self.stages:
                stage.images = None


def controller_of(model: nn.Module) -> SemanticController:
    """Return a network's semantic controller.

    Raises:
        ConflictError: if it has none.
    """
    found = getattr(model, "controller", None)
    if not isinstance(found, SemanticController):
        raise ConflictError(
            f"solider needs a network with a semantic controller, but {type(model).__name__} has none; call "
            "repertory.algorithms.solider.add_semantic_control(model, in_shape=(channels, height, width)) first"
        )
    return found


def add_semantic_control(
    model: nn.Module,
    in_shape: tuple[int, ...],
    outputs: int | None = None,
    ratio: float = 0.2,
    layers: Sequence[str] | None = None,
) -> nn.Module:
    """Put a controller behind the stages of a network, in place; it is then `model.controller`.

    Args:
        model: a network for images: convolutional, or a transformer over patches.
        in_shape: `(channels, height, width)` of an image, for one pass that finds the sizes.
        outputs: number of classes, which the controller does not depend on; recipes name it to all surgery.
        ratio: share of semantics in use, `model.controller.ratio`.
        layers: names of the stages, in the order of the passes. None takes the network's `stages`, `layers` or
            `blocks`, four of them, evenly spaced, where there are more; else those of its parts after which the size
            of the map changes.

    Returns:
        The network.

    Raises:
        OptionError: if a layer does not exist, gives no map, or `ratio` is out of range.
        UserError: if the network has no feature map, or the inputs are no images.

    >>> import timm
    >>> model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=6, num_classes=3)
    >>> model = add_semantic_control(model, in_shape=(3, 32, 32))
    >>> [name for name, part in model.named_modules() if isinstance(part, ControlledStage)]
    ['blocks.0', 'blocks.2', 'blocks.3', 'blocks.5']
    """
    check_number("ratio", ratio, minimum=0, maximum=1)
    if len(in_shape) != 3:
        raise UserError(
            f"solider finds parts of images, (channels, height, width), but one input has the shape {tuple(in_shape)}"
            "; give it images"
        )
    if isinstance(getattr(model, "controller", None), SemanticController):
        raise UserError(f"{type(model).__name__} has a semantic controller already; set model.controller.ratio")
    names = _contained(model) if layers is None else list(layers)
    seen = _outputs(model, in_shape, names or [name for name, _ in model.named_children()])
    if not names:
        names = _ends(seen)[-_MOST:]
    stages = []
    for name in names:
        if name not in seen or not _is_map(seen[name]):
            shape = tuple(seen[name].shape) if name in seen else "nothing"
            raise OptionError(f"layers names {name!r}, which gives {shape} for two images and no map; name others")
        stages.append(_control(model, name, seen[name], in_shape))
    if not stages:
        raise UserError(
            f"{type(model).__name__} has no feature map that solider could find parts in; give a convolutional network "
            "or a vision transformer, or name its stages with layers"
        )
    model.controller = SemanticController(stages, ratio)  # type: ignore[assignment]
    return model


def _contained(model: nn.Module) -> list[str]:
    """Names of the stages of a network that keeps them in one container."""
    for container in _CONTAINERS:
        found = getattr(model, container, None)
        if isinstance(found, (nn.ModuleList, nn.Sequential)) and len(found) > 1:
            count = min(_MOST, len(found))
            names = [name for name, _ in found.named_children()]
            return [f"{container}.{names[(place + 1) * len(found) // count - 1]}" for place in range(count)]
    return []


@torch.no_grad()
def _outputs(model: nn.Module, in_shape: tuple[int, ...], names: Sequence[str]) -> dict[str, Tensor]:
    """What layers give for two images, in the order of the passes."""
    taps = LayerOutputs(model, names, "layers")
    parameter = next(model.parameters(), torch.zeros(()))
    try:
        with evaluating(model), taps.recorded(2) as seen:
            model(torch.zeros(2, *in_shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        taps.remove()
    return seen


def _is_map(output: Tensor) -> bool:
    return output.ndim in (3, 4) and output[0].numel() > 0 and output.shape[1:].numel() > max(output.shape[1:])


def _ends(seen: dict[str, Tensor]) -> list[str]:
    """Of parts in a row, those after which the shape changes, as long as there is a map with more than one place."""
    maps = [(name, output.shape) for name, output in seen.items() if output.ndim == 4 and output[0, 0].numel() > 1]
    return [name for (name, shape), follower in zip(maps, [*maps[1:], ("", None)]) if follower[1] != shape]


def _control(model: nn.Module, name: str, output: Tensor, in_shape: tuple[int, ...]) -> ControlledStage:
    parent, _, attribute = name.rpartition(".")
    stage = model.get_submodule(name)
    if output.ndim == 4:
        last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        sizes = output.shape[1:3] if last else output.shape[2:]
        axis, grid, prefix = (-1 if last else 1), (int(sizes[0]), int(sizes[1])), 0
    else:
        axis, (grid, prefix) = -1, _grid(model, output.shape[1], in_shape)
    made = ControlledStage(stage, output.shape[axis], axis, grid, prefix).to(output.device)
    setattr(model.get_submodule(parent), attribute, made)
    return made


def _grid(model: nn.Module, tokens: int, in_shape: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """How tokens are laid out, and how many stand before them."""
    told = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    height, width = in_shape[1:]
    for prefix in range(min(tokens, 8)):
        left = tokens - prefix
        if told is not None and left == told[0] * told[1]:
            return (told[0], told[1]), prefix
        rows = round((left * height / width) ** 0.5)
        if told is None and rows and left % rows == 0 and rows * width == left // rows * height:
            return (rows, left // rows), prefix
    raise UserError(f"{tokens} tokens of an image of {height} x {width} do not make a map; name other layers")
