"""Random streams: one generator a consumer, derived from the run's seed and a name, so that nothing shares draws."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
