"""At which noise rate more training turns from helping to hurting."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repertory.errors import DataError, OptionError

Runner = Callable[[float, int], tuple[Sequence[float], int]]
"""Trains at a noise rate with a seed; returns the test accuracy after each epoch, and the epoch, from 0, that ends
phase one."""


@dataclass(frozen=True)
class Transition:
    """How test accuracy changes after phase one, by noise rate.

    Args:
        rates: noise rates, ascending.
        changes: accuracy at the end less that at the end of phase one `(rates, seeds)`.
        curves: test accuracies `(epochs,)` of each run, by rate and seed.
        ends: ends of phase one `(rates, seeds)`.
    """

    rates: tuple[float, ...]
    changes: Tensor
    curves: dict[tuple[float, int], list[float]]
    ends: Tensor

    @property
    def crossing(self) -> float | None:
        """Noise rate at which the mean change first falls below zero, between rates on a straight line.

        None where it does not change its sign.
        """
        mean = self.changes.mean(1).tolist()
        pairs = list(zip(self.rates, mean))
        for (rate, above), (further, below) in itertools.pairwise(pairs):
            if above >= 0 > below:
                return rate + (further - rate) * above / (above - below)
        return None


def transition(
    runner: Runner, rates: Sequence[float], seeds: Sequence[int], watch: Callable[[float], None] | None = None
) -> Transition:
    """Train at every noise rate with every seed, and see where more training turns from helping to hurting.

    Args:
        runner: trains once.
        rates: noise rates to try, ascending.
        seeds: of the runs at each rate.
        watch: told the share that is done.

    Raises:
        OptionError: if there is no rate or seed, or rates do not rise.
        DataError: if a run returns no accuracies, or an end of phase one that is none of its epochs.

    >>> found = transition(lambda rate, seed: ([0.5, 0.7, 0.8 - rate], 1), rates=[0.0, 0.2], seeds=[0])
    >>> round(found.crossing, 3)
    0.1
    """
    if not len(rates) or not len(seeds) or any(b <= a for a, b in itertools.pairwise(rates)):
        raise OptionError(f"rates={list(rates)} must rise and seeds={list(seeds)} must not be empty; give one at least")
    curves: dict[tuple[float, int], list[float]] = {}
    changes, ends = torch.zeros(len(rates), len(seeds)), torch.zeros(len(rates), len(seeds), dtype=torch.int64)
    for row, rate in enumerate(rates):
        for column, seed in enumerate(seeds):
            accuracies, end = runner(rate, seed)
            if not len(accuracies) or not 0 <= end < len(accuracies):
                raise DataError(
                    f"the run at rate {rate} with seed {seed} gave {len(accuracies)} accuracies and {end} as the end "
                    "of phase one; give one an epoch, and the number of an epoch from 0"
                )
            curves[rate, seed] = [float(value) for value in accuracies]
            changes[row, column] = float(accuracies[-1]) - float(accuracies[end])
            ends[row, column] = end
            if watch is not None:
                watch((row * len(seeds) + column + 1) / (len(rates) * len(seeds)))
    return Transition(tuple(map(float, rates)), changes, curves, ends)
