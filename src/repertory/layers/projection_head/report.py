"""Which layer holds what: the accuracy of linear probes on several layers and several targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from repertory.core.activations import LayerOutputs
from repertory.core.modes import evaluating
from repertory.core.randomness import generator_for
from repertory.errors import DataError, check_number
from repertory.layers.projection_head.network import ProjectedNetwork

_CHUNK = 1024
_PATIENCE = 5000
"""Iterations a probe may take; one that needs more would be a warning of scikit-learn's."""


def linear_probe(features: Tensor, targets: Tensor, test_features: Tensor, test_targets: Tensor) -> float:
    """Return the test accuracy of logistic regression on standardised features.

    Standardised, since a regularised probe would else prefer features for their scale.

    Args:
        features: `(n, ...)`.
        targets: classes `(n,)`.
        test_features: `(m, ...)`.
        test_targets: classes `(m,)`.

    Raises:
        DataError: if features are not finite, or there is only one class to learn.
    """
    from sklearn.linear_model import LogisticRegression

    rows, test_rows = (f.detach().cpu().flatten(1).double() for f in (features, test_features))
    if not bool(rows.isfinite().all() & test_rows.isfinite().all()):
        raise DataError("features are not finite; a probe needs numbers")
    if len(targets.unique()) < 2:
        raise DataError(
            f"a probe needs two classes to tell apart, but all {len(targets)} targets are the same; give others"
        )
    mean, spread = rows.mean(0), rows.std(0).clamp(min=1e-12)
    probe = LogisticRegression(max_iter=_PATIENCE)
    probe.fit(((rows - mean) / spread).numpy(), targets.cpu().numpy())
    return float(probe.score(((test_rows - mean) / spread).numpy(), test_targets.cpu().numpy()))


def layer_report(
    model: nn.Module,
    inputs: Tensor,
    probes: Mapping[str, Tensor],
    layers: Sequence[str] | None = None,
    held_out: float = 0.5,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Return how well each layer of a network predicts each target through a linear probe.

    Take the targets of the task at hand where you have them, and else finer classes, or what should not matter. The
    layer to transfer is the one whose probe does best on them.

    Args:
        model: the network, evaluated in evaluation mode.
        inputs: `(n, ...)`, best examples that it was not trained on.
        probes: by name, classes `(n,)`.
        layers: names of modules whose outputs are probed. None probes before and after the head of a
            `ProjectedNetwork`, and of another network every layer with weights.
        held_out: share of the examples that probes are judged on.
        seed: of the split.

    Returns:
        By layer, by probe, the accuracy on held-out examples.

    Raises:
        OptionError: if an option is outside its range, or the network has no module of a name.
        DataError: if targets do not fit the inputs.

    >>> from repertory.layers.projection_head import add_projection_head
    >>> model = add_projection_head(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2)), outputs=2)
    >>> list(layer_report(model, torch.randn(20, 2), {"side": torch.arange(20) % 2}))
    ['before the head', 'after the head']
    """
    check_number("held_out", held_out, above=0, below=1)
    check_number("seed", seed, minimum=0, integer=True)
    for name, targets in probes.items():
        if targets.shape != (len(inputs),) or targets.is_floating_point():
            raise DataError(
                f"probe {name!r} has targets of type {targets.dtype} and shape {tuple(targets.shape)}; it needs "
                f"a class for each of {len(inputs)} inputs"
            )
    order = torch.randperm(len(inputs), generator=generator_for(seed, "probes"))
    cut = max(1, min(len(order) - 1, round(held_out * len(order))))
    test, train = order[:cut], order[cut:]
    return {
        layer: {
            name: linear_probe(rows[train], targets[train], rows[test], targets[test])
            for name, targets in probes.items()
        }
        for layer, rows in _outputs(model, inputs, layers).items()
    }


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor, layers: Sequence[str] | None) -> dict[str, Tensor]:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    found: list[dict[str, Tensor]] = []
    listening = None
    if layers is not None or not isinstance(model, ProjectedNetwork):
        listening = LayerOutputs(model, layers, "layers")
    try:
        with evaluating(model):
            for chunk in inputs.split(_CHUNK):
                chunk = chunk.to(device)
                if listening is None:
                    assert isinstance(model, ProjectedNetwork)
                    found.append(dict(zip(("before the head", "after the head"), model.both(chunk))))
                else:
                    with listening.recorded(len(chunk)) as seen:
                        model(chunk)
                    found.append(seen)
    finally:
        if listening is not None:
            listening.remove()
    return {name: torch.cat([part[name].cpu() for part in found]) for name in found[0]}
