"""Dropout whose draws depend on a seed and a count, and on no generator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.core.randomness import derived_seed, uniform_from
from repertory.errors import check_number


class CountedDropout(nn.Module):
    """Dropout that leaves the global generator alone, for layers that a training step brings in.

    The mask is a function of the seed and of the number of calls in training mode, which is saved with the module. So
    the rest of a run draws what it would draw without the layer, a resumed run goes on with the same masks, all
    processes draw the same mask, and the layer compiles.

    Args:
        rate: probability of dropping a number, in [0, 1); what is left is divided by `1 - rate`.
        seed: of the masks.

    Raises:
        OptionError: if an option is outside its range.

    >>> drop = CountedDropout(0.5)
    >>> kept = drop(torch.ones(1000))
    >>> sorted(kept.unique().tolist()), bool(drop(torch.ones(1000)).equal(kept)), drop.eval()(torch.ones(2)).tolist()
    ([0.0, 2.0], False, [1.0, 1.0])
    """

    key: Tensor

    def __init__(self, rate: float, seed: int = 0) -> None:
        super().__init__()
        check_number("rate", rate, minimum=0, below=1)
        check_number("seed", seed, minimum=0, integer=True)
        self.rate = rate
        # Counted on from the seed itself, the second mask of one seed would be the first of the next.
        self.register_buffer("key", torch.tensor(derived_seed(seed, "dropout")))

    def forward(self, values: Tensor) -> Tensor:
        """Return `values`, in training with some of them set to 0 and the others scaled up."""
        if not self.training or self.rate == 0:
            return values
        kept = uniform_from(self.key, values.shape) >= self.rate
        self.key.add_(1)
        return values * (kept.to(values.dtype) / (1 - self.rate))

    def extra_repr(self) -> str:
        """Return the rate, for printing."""
        return f"rate={self.rate}"
