"""Outputs of a network's layers, taken from its ordinary forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from repertory.errors import OptionError, nearest

LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.RNNBase,
    nn.LayerNorm,
    nn.MultiheadAttention,
    nn.TransformerDecoderLayer,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)
"""The layers that are aligned unless others are named: those of the authors' code, in any number of dimensions."""

_COMPILED = "_orig_mod."


class LayerOutputs:
    """Hooks on a network's layers that keep their outputs while `recorded` is entered, and do nothing else.

    The hooks stay, since a compiled network only sees those that were there before it was compiled. A copy of the
    network, or one that is pickled, leaves them behind.

    Args:
        model: the network.
        names: modules to listen to, None for every module of a type in `LAYERS`.
        option: what the names were given as, for the message.

    Raises:
        OptionError: if the network has no module of a name.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> outputs = LayerOutputs(model)
    >>> with outputs.recorded(5) as seen:
    ...     _ = model(torch.zeros(5, 2))
    >>> [(name, tuple(value.shape)) for name, value in seen.items()]
    [('0', (5, 3)), ('2', (5, 1))]
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None = None, option: str = "names") -> None:
        found = {name.removeprefix(_COMPILED): module for name, module in model.named_modules() if name}
        if names is None:
            names = [name for name, module in found.items() if isinstance(module, LAYERS)]
        for name in names:
            if name not in found:
                hint = nearest(name, found) or f"it has {', '.join(list(found)[:12])}"
                raise OptionError(f"{option} names {name!r}, which {type(model).__name__} has not; {hint}")
        self._handles = [found[name].register_forward_hook(_Tap(self, name)) for name in names]
        self._only: frozenset[str] | None = None
        self._seen: dict[str, Tensor] | None = None
        self._calls: dict[str, int] = {}
        self._size = 0

    @contextmanager
    def recorded(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Fill a mapping with the outputs of each layer, in the order of the calls, inside the block.

        A module that is called again appears as `name@2`, `name@3`, ... Outputs without one row an example are left
        out; of several outputs the first is taken.

        Args:
            size: number of examples in the batch.
        """
        seen: dict[str, Tensor] = {}
        self._seen, self._calls, self._size = seen, {}, size
        try:
            yield seen
        finally:
            self._seen = None

    def keep(self, names: Sequence[str]) -> None:
        """Record only these outputs from now on, so that no others are kept alive."""
        self._only = frozenset(names)

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def put(self, name: str, output: Any) -> None:
        """Note an output, if it is wanted; called by the hooks."""
        if self._seen is None:
            return
        calls = self._calls.get(name, 0) + 1
        self._calls[name] = calls
        if calls > 1:
            name = f"{name}@{calls}"
        if self._only is not None and name not in self._only:
            return
        while isinstance(output, (tuple, list)) and output:
            output = output[0]
        if isinstance(output, Tensor):
            rows = _rows_first(output, self._size)
            if rows is not None:
                self._seen[name] = rows


class _Tap:
    """One hook. Copying or pickling gives one that does nothing."""

    def __init__(self, outputs: LayerOutputs | None = None, name: str = "") -> None:
        self.outputs = outputs
        self.name = name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.outputs is not None:
            self.outputs.put(self.name, output)

    def __reduce__(self) -> tuple[type[_Tap], tuple[()]]:
        return _Tap, ()


def _rows_first(output: Tensor, size: int) -> Tensor | None:
    if output.ndim and output.shape[0] == size:
        return output
    axes = [axis for axis, length in enumerate(output.shape) if length == size]
    return output.movedim(axes[0], 0) if len(axes) == 1 else None
