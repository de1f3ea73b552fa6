"""The parameter groups that an optimizer is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from repertory.core.method import Method
from repertory.core.state import Run
from repertory.errors import ConflictError


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


def build_optimizer(
    optimizer: Any, groups: Sequence[dict[str, Any]], model: nn.Module, methods: Sequence[Method]
) -> torch.optim.Optimizer:
    """Make the optimizer from groups, or bring one that the user made up to date with them.

    Args:
        optimizer: a callable that takes parameter groups, or an optimizer, which gets the groups that it lacks.
        groups: from `parameter_groups`.
        model: everything that is trained, as it is after setup.
        methods: the methods of the step.

    Raises:
        ConflictError: if the optimizer holds parameters that are no longer part of the model.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        # Frozen ones are in no group, but may be held.
        gone = held - {id(p) for p in model.parameters()}
        if gone:
            owners = ", ".join(method.slug for method in methods) or "no method"
            raise ConflictError(
                f"the optimizer holds {len(gone)} parameters that the network no longer has after setup of {owners}; "
                "pass a callable, such as functools.partial(torch.optim.SGD, lr=0.1), in place of the optimizer"
            )
        missing = [{**g, "params": [p for p in g["params"] if id(p) not in held]} for g in groups]
        base = optimizer.defaults.get("lr", 1.0)
        for group in missing:
            # The network's own group may be frozen in part on purpose; what methods and losses bring is not.
            if group["params"] and group["name"] != "model":
                optimizer.add_param_group(
                    {"params": group["params"], "name": group["name"], "lr": base * group["lr_scale"]}
                )
        return optimizer
    made: torch.optim.Optimizer = optimizer([{"params": g["params"], "name": g["name"]} for g in groups])
    for group, source in zip(made.param_groups, groups):
        group["lr"] = group["lr"] * source["lr_scale"]
    return made
