"""Find the layers of a network and what lies between them, and draw their weights at criticality."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from repertory.core.modes import evaluating
from repertory.diagnostics.criticality.theory import Activation, Critical, critical_init
from repertory.errors import DataError, OptionError, check_number

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NEUTRAL = (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.dropout._DropoutNd)
_ACTIVATIONS = frozenset(
    ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sin", "sigmoid", "softplus")
)
_NORMS = frozenset(("layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm", "normalize"))
_SUMS = frozenset(("add", "add_", "__add__", "__iadd__", "__radd__"))


@dataclass
class Layer:
    """A call of a linear or convolutional layer, and what follows until the next one.

    Args:
        name: the module's name in the network.
        module: the layer.
        scale: mean square of its input in the traced forward pass.
        activation: the first activation after it, behind the last normalisation; None where there is none.
        label: the activation's name.
        normalised: whether a normalisation follows before the next layer.
        summed: whether a sum of two branches follows before the next layer.
        others: names of other modules that follow, such as pooling.
    """

    name: str
    module: nn.Module
    scale: float = 1.0
    activation: Activation | None = None
    label: str = "linear"
    normalised: bool = False
    summed: bool = False
    others: list[str] = field(default_factory=list)

    @property
    def fan_in(self) -> int:
        """Number of inputs of one output unit."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight[0].numel()

    @property
    def plain(self) -> bool:
        """Whether nothing but an activation lies between this layer and the next."""
        return not (self.normalised or self.summed or self.others)


class _Trace(TorchFunctionMode):
    """Notes functional activations, normalisations and sums that are called outside the modules that are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.inside = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.layers and not self.inside:
            last = self.layers[-1]
            plain_name = name.rstrip("_")
            if plain_name in _ACTIVATIONS:
                # In place, the function would change what it is evaluated on.
                options = {key: value for key, value in kwargs.items() if key not in ("input", "inplace")}
                plain = getattr(nn.functional, plain_name, None) or getattr(torch, plain_name)
                self.activate(functools.partial(_with, plain, tuple(args[1:]), options), plain_name)
            elif name in _NORMS:
                last.normalised, last.activation, last.label = True, None, "linear"
            elif name in _SUMS and len(args) == 2 and _two_branches(*args):
                last.summed = True
        return func(*args, **kwargs)

    def activate(self, function: Activation, label: str) -> None:
        if self.layers and self.layers[-1].activation is None:
            self.layers[-1].activation, self.layers[-1].label = function, label

    def enter(self, name: str, module: nn.Module, args: Sequence[Any]) -> None:
        self.inside += 1
        if isinstance(module, LAYERS):
            self.layers.append(Layer(name, module, float(args[0].detach().double().square().mean())))

    def leave(self, module: nn.Module) -> None:
        if self.layers and not isinstance(module, (*LAYERS, *_NEUTRAL)):
            self.note(module)
        self.inside -= 1

    def note(self, module: nn.Module) -> None:
        last, kind = self.layers[-1], type(module).__name__
        if "norm" in kind.lower():
            last.normalised, last.activation, last.label = True, None, "linear"
        elif isinstance(module, nn.PReLU):
            self.activate(module, "prelu")
        else:
            change = _elementwise(module)
            if change is None:
                last.others.append(kind)
            elif change:
                self.activate(module, kind.lower())


def _with(function: Callable[..., Tensor], rest: tuple[Any, ...], options: dict[str, Any], z: Tensor) -> Tensor:
    return function(z, *rest, **options)


def _two_branches(one: Any, other: Any) -> bool:
    both = all(isinstance(part, Tensor) and not isinstance(part, nn.Parameter) for part in (one, other))
    return both and one.shape == other.shape and one.is_floating_point()


@torch.no_grad()
def _elementwise(module: nn.Module) -> bool | None:
    """Whether a module acts on each element alone and changes it; None for what is not element by element."""
    parameter = next(module.parameters(), torch.zeros(()))
    probe = torch.linspace(-2.0, 2.0, 9).to(parameter)
    try:
        whole = module.forward(probe.clone())
        parts = torch.cat([module.forward(element.clone()) for element in probe.split(1)])
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError, NotImplementedError):
        return None
    if not isinstance(whole, Tensor) or whole.shape != probe.shape or not torch.allclose(whole, parts, atol=1e-6):
        return None
    return not torch.equal(whole, probe)


def traced_layers(model: nn.Module, inputs: Tensor) -> list[Layer]:
    """Return the calls of linear and convolutional layers in one forward pass, in order, with what follows each.

    Activations are found as modules and as functions (`torch.relu(x)`); "follows" means in the order of the calls. The
    model is run in evaluation mode, and left as it was.

    Args:
        model: the network.
        inputs: a batch; for the sizes of the layers' inputs, of real data.

    Raises:
        DataError: if no linear or convolutional layer is called.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> [(layer.name, layer.label) for layer in traced_layers(model, torch.ones(1, 4))]
    [('0', 'tanh'), ('2', 'linear')]
    """
    trace = _Trace()
    handles = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            handles.append(module.register_forward_pre_hook(lambda m, args, name=name: trace.enter(name, m, args)))
            handles.append(module.register_forward_hook(lambda m, args, output: trace.leave(m)))
    try:
        with evaluating(model), torch.no_grad(), trace:
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not trace.layers:
        raise DataError(f"{type(model).__name__} calls no nn.Linear or convolution, so there is nothing to initialise")
    return trace.layers


def critical_variances(layers: Sequence[Layer], input_scale: float | None = None) -> list[tuple[float, float]]:
    """Return the critical $C_W$ and $C_b$ of each layer.

    A layer's variances are those of the activation before it. The first layer, before which there is none, brings the
    kernel to the fixed point, or to 1 where any or none but zero is one. The last has $C_W = 1$, $C_b = 0$. Where
    branches are added to what bypasses them, the variances of a branch's last layer are divided by the number of sums,
    so that the kernel grows by no more than a factor e.

    Args:
        layers: from `traced_layers`.
        input_scale: mean square of the inputs' features; None takes it from the traced batch.

    Raises:
        OptionError: if an activation has no critical point, or inputs are zero.
    """
    points: list[Critical] = []
    for layer in layers:
        try:
            points.append(critical_init("linear" if layer.activation is None else layer.activation))
        except OptionError:
            raise OptionError(
                f"the activation {layer.label!r} after layer {layer.name!r} has no critical point; use one that has, "
                "such as tanh, ReLU or GELU"
            ) from None
    scale = layers[0].scale if input_scale is None else input_scale
    check_number("input_scale", scale, above=0)
    sums = max(1, sum(layer.summed for layer in layers))
    found = [((points[0].kernel or 1.0) - points[0].bias, points[0].bias)]
    found[0] = (found[0][0] / scale, found[0][1])
    for place in range(1, len(layers)):
        before = points[place - 1]
        last = place == len(layers) - 1 and not layers[place].summed
        weight, bias = (1.0, 0.0) if last else (before.weight, before.bias)
        share = sums if layers[place].summed else 1
        found.append((weight / share, bias / share))
    return found


@torch.no_grad()
def critical_(
    model: nn.Module,
    inputs: Tensor,
    *,
    input_scale: float | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Draw the weights of the network's linear and convolutional layers anew, at criticality, in place.

    Weights are normal with variance $C_W$ / fan-in, biases with variance $C_b$; see `critical_variances`. Where a
    normalisation follows a layer, the scale of its weights does not matter, and it is drawn like any other. Layers
    that the forward pass does not call (attention of `nn.MultiheadAttention`) stay as they are.

    Args:
        model: the network.
        inputs: a batch of its inputs, of which two are enough.
        input_scale: mean square of the inputs' features; None takes it from `inputs`.
        generator: for the weights; None takes the global one, as `torch.nn.init` does.

    Returns:
        The network.

    Raises:
        OptionError: if an activation has no critical point, or `input_scale` is not above zero.
        DataError: if no linear or convolutional layer is called.

    >>> model = nn.Sequential(nn.Linear(50, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 2))
    >>> _ = critical_(model, torch.ones(1, 50), generator=torch.Generator().manual_seed(0))
    >>> round(model[2].weight.var().item() * 100, 1), model[2].bias.any().item()
    (2.0, False)
    """
    layers = traced_layers(model, inputs)
    seen: set[int] = set()
    for layer, (weight, bias) in zip(layers, critical_variances(layers, input_scale)):
        if id(layer.module) in seen:
            continue
        seen.add(id(layer.module))
        tensors = [(layer.module.weight, weight / layer.fan_in), (layer.module.bias, bias)]
        for tensor, variance in tensors:
            if isinstance(tensor, Tensor):
                drawn = torch.randn(tensor.shape, generator=generator) if variance > 0 else torch.zeros(tensor.shape)
                tensor.copy_(drawn * math.sqrt(variance))
    return model


def initialise_critically(
    model: nn.Module, outputs: int, in_shape: Sequence[int], input_scale: float = 1.0
) -> nn.Module:
    """Initialise a fresh network at criticality, as a recipe's surgery.

    Args:
        model: the network.
        outputs: number of its outputs, which does not matter.
        in_shape: shape of one input.
        input_scale: mean square of the inputs' features; 1 for inputs that are normalised.

    Returns:
        The network.

    Raises:
        OptionError: as `critical_`.
    """
    return critical_(model, torch.zeros(2, *in_shape), input_scale=input_scale)
