"""Random streams: one generator a consumer, derived from the run's seed and a name, so that nothing shares draws."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
"""Constants of SplitMix64 (Steele, Lea, Flood 2014), as signed numbers of 64 bits."""


def derived_seed(seed: int, name: str) -> int:
    """Return a seed in [0, 2**63) that depends on `seed` and `name` only, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def generator_for(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator seeded from the run's seed and a name.

    >>> a, b = generator_for(0, "esam"), generator_for(0, "saf")
    >>> a.initial_seed() == b.initial_seed()
    False
    """
    return torch.Generator().manual_seed(derived_seed(seed, name))


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Seed torch's global generators inside the block and put their states back afterwards.

    For code that only draws from the global generator: weight initialisation and dropout of ordinary modules.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derived_seed(seed, name))
        yield


def uniform_from(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Return numbers in [0, 1) that depend on `key` alone: no generator is read or moved.

    For draws inside the evaluation of a loss. They are made of ordinary tensor operations, so they are the same on
    every device and process, and compile into the graph around them, which draws from a generator do not.

    Args:
        key: 0-d, int64. Keys next to each other give unrelated numbers.
        shape: of the result.

    Returns:
        float32, in steps of 2^-24.

    >>> uniform_from(torch.tensor(0), (2, 3)).shape
    torch.Size([2, 3])
    """
    places = torch.arange(1, math.prod(shape) + 1, device=key.device)
    bits = _scattered(places * _GOLDEN + _scattered(key + _GOLDEN))
    return (_shifted(bits, 40).float() * 2.0**-24).view(*shape)


def _scattered(numbers: Tensor) -> Tensor:
    """The finaliser of SplitMix64."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift to the right, filling with zeros: torch's own shift repeats the sign."""
    return (numbers >> bits) & (2 ** (64 - bits) - 1)
