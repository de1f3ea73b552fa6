"""The parameter groups that an optimizer is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from repertory.core.method import Method
from repertory.core.state import Run


def parameter_groups(run: Run, methods: Sequence[Method]) -> list[dict[str, Any]]:
    """Return the groups that the optimizer is made of: the network, the criterion, and one a method with parameters.

    A criterion or method may set `lr_scale`, a factor on the learning rate of its own parameters.

    Returns:
        Mappings with `params`, `name` and `lr_scale`; groups without parameters are left out.
    """
    owners: list[tuple[str, Any]] = [("model", run.model), ("criterion", run.criterion)]
    owners += [(method.slug, method) for method in methods]
    groups: list[dict[str, Any]] = []
    taken: set[int] = set()
    for name, owner in owners:
        if not isinstance(owner, nn.Module):
            continue
        parameters = [p for p in owner.parameters() if p.requires_grad and id(p) not in taken]
        taken.update(id(p) for p in parameters)
        if parameters:
            scale = 1.0 if name == "model" else float(getattr(owner, "lr_scale", 1.0))
            groups.append({"params": parameters, "name": name, "lr_scale": scale})
    return groups
