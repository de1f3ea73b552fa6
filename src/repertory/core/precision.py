"""Mixed precision: autocast, and a loss scale that allows any number of gradients a step."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repertory.errors import check_choice

_NAMES = {
    "32": None,
    "32-true": None,
    "bf16": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
    "fp16": torch.float16,
    "16-mixed": torch.float16,
}
_GROWTH_INTERVAL = 2000
"""Good steps after which the scale doubles, as in `torch.amp.GradScaler`."""


class Precision:
    """Which type the forward pass runs in, and the factor that keeps small float16 gradients from vanishing.

    `torch.amp.GradScaler` unscales once a step; methods with two gradients a step need it after each, so the scale is
    divided out at the end of every gradient, and a step in which any gradient was not finite is skipped.

    Args:
        name: "32" (or "32-true"), "bf16" ("bf16-mixed"), "fp16" ("16-mixed").
    """

    def __init__(self, name: str = "32") -> None:
        check_choice("precision", name, _NAMES)
        self.name = name
        self.dtype = _NAMES[name]
        self.scale = 2.0**16 if self.dtype is torch.float16 else 1.0
        self.good_steps = 0
        self.overflow = False

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the loss is evaluated."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide the scale out of the gradients in place, and remember whether any is not finite."""
        if self.dtype is not torch.float16 or not gradients:
            return
        torch._foreach_mul_(list(gradients), 1.0 / self.scale)
        norms = torch.stack(torch._foreach_norm(list(gradients), ord=float("inf")))
        self.overflow = self.overflow or not bool(torch.isfinite(norms).all())

    def take_step(self) -> bool:
        """Return whether the weights may be updated, and adapt the scale."""
        if self.dtype is not torch.float16:
            return True
        good, self.overflow = not self.overflow, False
        if not good:
            self.scale, self.good_steps = max(self.scale / 2.0, 1.0), 0
        else:
            self.good_steps += 1
            if self.good_steps % _GROWTH_INTERVAL == 0:
                self.scale *= 2.0
        return good

    def state_dict(self) -> dict[str, float]:
        """Return the scale and the count that drives it."""
        return {"scale": self.scale, "good_steps": float(self.good_steps)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over a saved scale."""
        self.scale, self.good_steps = state["scale"], int(state["good_steps"])
