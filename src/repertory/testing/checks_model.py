"""Checks of networks, and of surgery on networks: timm's protocol, shapes, sizes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from repertory.testing.assembly import build_step, difference
from repertory.testing.check import NotApplicable, check, require
from repertory.testing.subject import Subject
from repertory.testing.tiny import CLASSES, problem


@check("model", "layer")
def output_shape(subject: Subject) -> None:
    """The network gives one row of numbers an example, and in evaluation the same row alone as in a batch."""
    network, inputs = _network(subject)
    output = network(inputs)
    require(
        output.shape == (len(inputs), CLASSES),
        f"{len(inputs)} inputs and {CLASSES} classes give {tuple(output.shape)}",
    )
    found = difference(network(inputs[:1]), output[:1], rtol=1e-4, atol=1e-5, name="the output of an example")
    require(not found, f"in a batch and alone, {found}")


@check("model")
def timm_protocol(subject: Subject) -> None:
    """`forward` is `forward_head(forward_features)`; the classifier can be read, replaced and taken away."""
    network, inputs = _network(subject)
    words = ("forward_features", "forward_head", "reset_classifier", "get_classifier", "num_features")
    missing = [word for word in words if not hasattr(network, word)]
    require(not missing, f"missing: {', '.join(missing)}")
    features = network.forward_features(inputs)
    found = difference(network.forward_head(features), network(inputs), rtol=1e-5, atol=1e-6, name="the output")
    require(not found, f"by forward and by forward_head(forward_features), {found}")
    pooled = network.forward_head(features, pre_logits=True)
    require(pooled.shape == (len(inputs), network.num_features), f"pre_logits gives {tuple(pooled.shape)}")
    require(isinstance(network.get_classifier(), nn.Linear), "get_classifier() is not an nn.Linear")
    network.reset_classifier(5)
    require(network(inputs).shape == (len(inputs), 5), "reset_classifier(5) does not give 5 outputs")
    network.reset_classifier(0)
    require(network(inputs).shape == pooled.shape, "reset_classifier(0) does not give the pooled features")


@check("model")
def odd_input_sizes(subject: Subject) -> None:
    """Inputs of other and odd sizes go through."""
    if len(subject.tiny.in_shape) < 2:
        raise NotApplicable("its inputs are vectors of one length")
    network, _ = _network(subject)
    channels, *sizes = subject.tiny.in_shape
    for change in (1, 3):
        shape = [size + change * (place + 1) for place, size in enumerate(sizes)]
        output = network(torch.zeros(2, channels, *shape))
        require(output.shape == (2, CLASSES), f"inputs of {shape} give {tuple(output.shape)}")


@torch.no_grad()
def _network(subject: Subject) -> tuple[Any, Tensor]:
    network = copy.deepcopy(build_step(subject).run.model).eval().requires_grad_(False)
    return network, problem(subject.tiny.in_shape)["input"]
