"""Features and weights of earlier batches, as averages that move at different speeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repertory.errors import check_number


class MomentumGroups(nn.Module):
    """Groups of rows of the size of a batch, each of which follows the batches with a momentum of its own.

    They begin as the first batch. A smaller batch moves the first rows only, of a larger one the first rows count.

    Args:
        momenta: share that each group keeps of itself, in [0, 1); none at all keeps nothing.

    Raises:
        OptionError: if a momentum is outside its range; the option is called `momenta`.

    >>> groups = MomentumGroups([0.9])
    >>> groups.push(torch.tensor([[1.0]]), torch.tensor([0.0]))
    >>> groups.push(torch.tensor([[2.0]]), torch.tensor([1.0]))
    >>> [round(float(each), 3) for each in groups.entries()]
    [1.1, 0.1]
    """

    def __init__(self, momenta: Sequence[float]) -> None:
        super().__init__()
        for momentum in momenta:
            check_number("momenta", momentum, minimum=0, below=1)
        self.momenta = tuple(momenta)
        self.features: Tensor | None = None
        self.logits: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory taken by the rows."""
        held = [each for each in (self.features, self.logits) if each is not None]
        return sum(each.numel() * each.element_size() for each in held)

    @torch.no_grad()
    def push(self, features: Tensor, logits: Tensor) -> None:
        """Move the groups towards a batch.

        Args:
            features: `(rows, dim)`.
            logits: of their weights `(rows,)`.
        """
        if not self.momenta:
            return
        if self.features is None or self.logits is None:
            self.features = features.repeat(len(self.momenta), 1, 1)
            self.logits = logits.repeat(len(self.momenta), 1)
            return
        rows = min(len(features), self.features.shape[1])
        share = 1 - torch.tensor(self.momenta, dtype=features.dtype, device=features.device)
        self.features[:, :rows].lerp_(features[:rows].expand(len(share), -1, -1), share[:, None, None])
        self.logits[:, :rows].lerp_(logits[:rows].expand(len(share), -1), share[:, None])

    def entries(self) -> tuple[Tensor, Tensor] | None:
        """Return features `(groups * rows, dim)` and logits `(groups * rows,)`, None where there are none yet."""
        if self.features is None or self.logits is None:
            return None
        return self.features.flatten(0, 1), self.logits.flatten()

    def get_extra_state(self) -> dict[str, Any]:
        """Return the rows, for the state dict."""
        return {"features": self.features, "logits": self.logits}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over saved rows."""
        device = None if self.features is None else self.features.device
        for name in ("features", "logits"):
            value = state[name]
            setattr(self, name, None if value is None else value.clone().to(device or value.device))
