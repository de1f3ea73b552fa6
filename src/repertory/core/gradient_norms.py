"""Norms of the gradients of single examples, from one backward pass over the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

Loss = Callable[[Tensor, Tensor], Tensor]
"""Takes output `(batch, ...)` and target `(batch, ...)` and returns the sum of the examples' losses, 0-d."""
_Squares = Callable[[Any, Tensor, Tensor], Tensor]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def example_gradient_norms(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, chunk: int) -> Tensor:
    """Return the norm of each example's gradient in all trainable parameters; the model must be in evaluation mode.

    Where every trainable parameter belongs to a linear, convolutional or normalisation layer that is called once, the
    norms come from what enters the layers and the gradients of what leaves them, and no gradient of an example is ever
    made. Other networks are differentiated an example at a time, by a vectorised map.

    Args:
        model: the network; it is left as it was.
        inputs: `(examples, ...)`.
        targets: `(examples, ...)`.
        loss: sum of the examples' losses, each of which depends on its own output alone.
        chunk: examples that are worked on at a time.

    Returns:
        `(examples,)`, without gradient.

    >>> def error(output, target):
    ...     return (output - target).square().sum() / 2
    >>> model = nn.Linear(2, 1, bias=False)
    >>> inputs = torch.tensor([[3.0, 4.0]])
    >>> norm = example_gradient_norms(model, inputs, model(inputs).detach() + 2, error, chunk=1)
    >>> round(float(norm), 4)  # the error, 2, times the length of the input, 5
    10.0

    Reference: Goodfellow, Efficient per-example gradient computations, https://arxiv.org/abs/1510.01799, for linear
    layers; Rochette et al., https://arxiv.org/abs/1912.06015, for convolutions.
    """
    parts = zip(inputs.split(chunk), targets.split(chunk))
    layers = _layers(model)
    if layers is not None:
        found = []
        for x, y in parts:
            norms = _from_layers(model, layers, x, y, loss)
            if norms is None:
                break
            found.append(norms)
        else:
            return torch.cat(found)
    return _one_by_one(model, inputs, targets, loss, chunk)


def _layers(model: nn.Module) -> dict[nn.Module, _Squares] | None:
    """How each layer with trainable parameters is treated; None where some parameter is of another kind of layer."""
    found: dict[nn.Module, _Squares] = {}
    owners: dict[int, int] = {}
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad]
        for parameter in own:
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        if own:
            squares = next((call for kinds, call in _KINDS if type(module) in kinds), None)
            if squares is None or (isinstance(module, _NORMS) and module.running_mean is None):
                return None
            if isinstance(module, (nn.Conv1d, nn.Conv2d)) and (
                module.padding_mode != "zeros" or isinstance(module.padding, str)
            ):
                return None
            found[module] = squares
    return None if any(count > 1 for count in owners.values()) else found


@contextmanager
def _seen(layers: dict[nn.Module, _Squares]) -> Iterator[dict[nn.Module, list[tuple[Tensor, Tensor]]]]:
    """Note what enters and what leaves each layer."""
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {module: [] for module in layers}

    def note(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        seen[module].append((given[0].detach(), output))
        # What follows may change its input in place, and must not change what was noted.
        return output.clone()

    handles = [module.register_forward_hook(note) for module in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _from_layers(
    model: nn.Module, layers: dict[nn.Module, _Squares], inputs: Tensor, targets: Tensor, loss: Loss
) -> Tensor | None:
    """The norms; None where a layer was called several times, or does not see the examples one by one."""
    with torch.enable_grad(), _seen(layers) as seen:
        total = loss(model(inputs), targets)
        used = [(module, calls[0]) for module, calls in seen.items() if calls]
        if any(len(calls) > 1 for calls in seen.values()):
            return None
        if any(len(x) != len(inputs) or len(output) != len(inputs) for _, (x, output) in used):
            return None
        gradients = torch.autograd.grad(total, [output for _, (_, output) in used], allow_unused=True)
    squares = torch.zeros(len(inputs), dtype=torch.promote_types(inputs.dtype, torch.float32), device=inputs.device)
    for (module, (entered, _)), gradient in zip(used, gradients):
        if gradient is not None:
            squares += layers[module](module, entered, gradient)
    return squares.sqrt()


def _product_squares(left: Tensor, right: Tensor) -> Tensor:
    """The squared norm of `left.T @ right` for each example: `(batch, places, m)` and `(batch, places, n)`."""
    places, m, n = left.shape[1], left.shape[2], right.shape[2]
    if places * (m + n) < m * n:
        return ((left @ left.mT) * (right @ right.mT)).sum((1, 2))
    return (left.mT @ right).square().sum((1, 2))


def _linear(layer: nn.Linear, entered: Tensor, gradient: Tensor) -> Tensor:
    entered, gradient = (t.reshape(len(t), -1, t.shape[-1]) for t in (entered, gradient))
    total = torch.zeros(len(entered), dtype=gradient.dtype, device=gradient.device)
    if layer.weight.requires_grad:
        total = total + _product_squares(gradient, entered)
    if layer.bias is not None and layer.bias.requires_grad:
        total = total + gradient.sum(1).square().sum(1)
    return total


def _convolution(layer: nn.Conv1d | nn.Conv2d, entered: Tensor, gradient: Tensor) -> Tensor:
    settings = [layer.kernel_size, layer.dilation, layer.padding, layer.stride]
    if entered.ndim == 3:
        entered, gradient = entered[:, :, None], gradient[:, :, None]
        fills = (1, 1, 0, 1)
        settings = [(fill, *setting) for fill, setting in zip(fills, settings)]
    kernel, dilation, padding, stride = settings
    patches = F.unfold(entered, kernel, dilation=dilation, padding=padding, stride=stride)  # type: ignore[arg-type]
    flat = gradient.flatten(2)
    total = torch.zeros(len(entered), dtype=flat.dtype, device=flat.device)
    if layer.weight.requires_grad:
        groups = layer.groups
        by_group = [t.unflatten(1, (groups, -1)).flatten(0, 1).mT for t in (flat, patches)]
        total = total + _product_squares(*by_group).view(len(entered), groups).sum(1)
    if layer.bias is not None and layer.bias.requires_grad:
        total = total + flat.sum(2).square().sum(1)
    return total


def _scaled(layer: Any, standard: Tensor, gradient: Tensor, over: list[int]) -> Tensor:
    """For layers that scale and shift a standardised input, summed over the dimensions that share a scale."""
    total = torch.zeros(len(gradient), dtype=gradient.dtype, device=gradient.device)
    for parameter, terms in ((layer.weight, gradient * standard), (layer.bias, gradient)):
        if parameter is not None and parameter.requires_grad:
            summed = terms.sum(over) if over else terms
            total = total + summed.flatten(1).square().sum(1)
    return total


def _batch_norm(layer: nn.BatchNorm2d, entered: Tensor, gradient: Tensor) -> Tensor:
    standard = F.batch_norm(entered, layer.running_mean, layer.running_var, eps=layer.eps)
    return _scaled(layer, standard, gradient, list(range(2, entered.ndim)))


def _group_norm(layer: nn.GroupNorm, entered: Tensor, gradient: Tensor) -> Tensor:
    standard = F.group_norm(entered, layer.num_groups, eps=layer.eps)
    return _scaled(layer, standard, gradient, list(range(2, entered.ndim)))


def _layer_norm(layer: nn.LayerNorm, entered: Tensor, gradient: Tensor) -> Tensor:
    standard = F.layer_norm(entered, layer.normalized_shape, eps=layer.eps)
    return _scaled(layer, standard, gradient, list(range(1, entered.ndim - len(layer.normalized_shape))))


_KINDS: tuple[tuple[tuple[type, ...], _Squares], ...] = (
    ((nn.Linear,), _linear),
    ((nn.Conv1d, nn.Conv2d), _convolution),
    (_NORMS, _batch_norm),
    ((nn.GroupNorm,), _group_norm),
    ((nn.LayerNorm,), _layer_norm),
)


def _one_by_one(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss, chunk: int) -> Tensor:
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fixed = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    fixed |= dict(model.named_buffers())

    def single(parameters: dict[str, Tensor], example: Tensor, target: Tensor) -> Tensor:
        output = functional_call(model, {**parameters, **fixed}, (example[None],))
        return loss(output, target[None])

    def norm(example: Tensor, target: Tensor) -> Tensor:
        # The norm inside the mapped function lets a chunk's gradients go before the next chunk.
        gradients = grad(single)(trained, example, target)
        return torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()

    return vmap(norm, chunk_size=chunk)(inputs, targets)
