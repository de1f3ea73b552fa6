"""The innermost call of a step as one module, and what an optimizer asks of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repertory.core.criterion import per_example, reduce_to_examples
from repertory.core.method import Inner, Method
from repertory.core.precision import Precision
from repertory.core.state import Run, State, batch_size


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step cannot be made without a closure, as that of `torch.optim.LBFGS`."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


class Evaluation(nn.Module):
    """The loss call as one module, so that wrappers for several devices see every parameter in one forward.

    Args:
        run: model and criterion.
        methods: wrapped around the loss, outermost first.
        precision: decides whether it is autocast.
    """

    def __init__(self, run: Run, methods: Sequence[Method], precision: Precision) -> None:
        super().__init__()
        self.model = run.model
        self.criterion = run.criterion if isinstance(run.criterion, nn.Module) else None
        self.methods = nn.ModuleDict({method.slug.replace(".", "-"): method for method in methods})
        self._criterion = (per_example(run.criterion),)
        self._precision = precision
        inner: Inner = self._base
        for method in reversed(list(methods)):
            if method.wraps("loss"):
                inner = functools.partial(method.loss, inner=inner)
        self._call = inner

    def forward(self, state: State) -> Tensor:
        """Return the loss: `(batch,)` where the criterion gives a value an example, else 0-d."""
        if self._precision.dtype is None:
            return self._call(state)
        with self._precision.autocast(state.run.device):
            return self._call(state)

    def _base(self, state: State) -> Tensor:
        if state.run.forward is not None:
            values = state.run.forward(state, self._criterion[0])
        else:
            output = self.model(state.batch["input"])
            state.output = output
            values = self._criterion[0](output, state.batch.get("target"))
        return reduce_to_examples(values, batch_size(state.batch))
