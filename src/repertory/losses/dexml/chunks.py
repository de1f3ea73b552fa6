"""Gradients of a loss on more rows than an encoder can differentiate at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.perturbation import frozen_norm_statistics
from repertory.errors import DataError

Side = tuple[Callable[[Any], Tensor], Iterable[Any]]
"""An encoder, and the chunks of its inputs; each gives `(rows, dim)`."""


def backward_in_chunks(loss: Callable[..., Tensor], *sides: Side) -> Tensor:
    """Leave in `.grad` what differentiating the loss of all encoded rows would, in the memory of one chunk.

    Each side is encoded chunk by chunk without a graph; the loss of all embeddings is differentiated by them; then each
    chunk is encoded once more, with a graph and the same random numbers (dropout), and takes its part of that gradient
    back to the encoder. A side of one chunk is encoded once.

    Args:
        loss: called with the embeddings of each side, `(rows, dim)`; returns one number.
        sides: for each side the encoder, and chunks of whatever it takes. Two sides may share an encoder.

    Returns:
        The loss, 0-d, detached. Gradients are added to what is there, in parameters of the loss too.

    Raises:
        DataError: if a side has no chunk, or the loss is not one number.

    >>> encoder = nn.Linear(3, 2)
    >>> queries, labels = torch.randn(4, 3), torch.randn(100, 3)
    >>> contrast = lambda q, l: nn.functional.cross_entropy(q @ l.T, torch.arange(4))
    >>> loss = backward_in_chunks(contrast, (encoder, [queries]), (encoder, labels.split(10)))
    >>> loss.shape, encoder.weight.grad.shape
    (torch.Size([]), torch.Size([2, 3]))

    Notes:
        Keep the encoder in one mode throughout. Batch normalisation sees a chunk at a time, and keeps the statistics of
        the first pass. Under mixed precision call it inside autocast and multiply the loss by the scale.

    Reference: Gao, Zhang, Han, Callan, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup,
    https://arxiv.org/abs/2101.06983.
    """
    encoded = [_Encoded(encode, list(chunks)) for encode, chunks in sides]
    value = loss(*(side.rows for side in encoded))
    if value.ndim:
        raise DataError(f"the loss has shape {tuple(value.shape)}; it must be one number, so take its mean")
    value.backward()
    for side in encoded:
        side.backward()
    return value.detach()


class _Encoded:
    def __init__(self, encode: Callable[[Any], Tensor], chunks: list[Any]) -> None:
        if not chunks:
            raise DataError("a side has no chunk to encode; give at least one")
        self.encode, self.chunks = encode, chunks
        self.states: list[tuple[Tensor, dict[int, Tensor]]] = []
        if len(chunks) == 1:
            self.whole = encode(chunks[0])
            self.rows = self.whole.detach().requires_grad_()
            return
        parts = []
        with torch.no_grad():
            for chunk in chunks:
                self.states.append(_random_state())
                parts.append(encode(chunk))
        self.sizes = [len(part) for part in parts]
        self.rows = torch.cat(parts).requires_grad_()

    def backward(self) -> None:
        gradient = self.rows.grad
        if gradient is None:
            return
        if len(self.chunks) == 1:
            self.whole.backward(gradient)
            return
        frozen = frozen_norm_statistics(self.encode) if isinstance(self.encode, nn.Module) else contextlib.nullcontext()
        with frozen:
            for chunk, state, part in zip(self.chunks, self.states, gradient.split(self.sizes)):
                with _replayed(state):
                    again = self.encode(chunk)
                again.backward(part)


def _random_state() -> tuple[Tensor, dict[int, Tensor]]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    return torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}


@contextlib.contextmanager
def _replayed(state: tuple[Tensor, dict[int, Tensor]]) -> Iterator[None]:
    here, on_devices = state
    with torch.random.fork_rng(devices=list(on_devices)):
        torch.set_rng_state(here)
        for device, own in on_devices.items():
            torch.cuda.set_rng_state(own, device)
        yield
