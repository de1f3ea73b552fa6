"""From a network to several that share its first layers: experts, each with its own later layers and classifier."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repertory.core.classifier import classifier_of, replace_classifier
from repertory.core.randomness import generator_for
from repertory.errors import OptionError, UserError, check_choice, check_number, nearest
from repertory.layers.cosine_classifier import CosineClassifier

_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


class MultiExpertNetwork(nn.Module):
    """Networks that share a stem; the output is the mean of their logits.

    Args:
        stem: what all experts share.
        experts: each takes the stem's output and gives logits `(batch, classes)`.

    Raises:
        OptionError: if there is no expert.

    >>> network = MultiExpertNetwork(nn.Linear(4, 8), [nn.Linear(8, 3), nn.Linear(8, 3)])
    >>> network(torch.zeros(5, 4)).shape, network.expert_logits(torch.zeros(5, 4)).shape
    (torch.Size([5, 3]), torch.Size([2, 5, 3]))
    """

    def __init__(self, stem: nn.Module, experts: Sequence[nn.Module]) -> None:
        super().__init__()
        if not experts:
            raise OptionError("experts=[] is not allowed: give at least one network that takes the stem's output")
        self.stem = stem
        self.experts = nn.ModuleList(experts)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the mean of the experts' logits `(batch, classes)`."""
        return self.expert_logits(inputs).mean(0)

    def expert_logits(self, inputs: Tensor) -> Tensor:
        """Return each expert's logits `(experts, batch, classes)`."""
        shared = self.stem(inputs)
        return torch.stack([expert(shared) for expert in self.experts])

    def get_classifier(self) -> nn.Module:
        """Return the classifier of the last expert."""
        return classifier_of(self.experts[-1])[1]


def split_into_experts(
    model: nn.Module,
    outputs: int,
    in_shape: Sequence[int],
    experts: int = 3,
    scale: float = 30.0,
    split: str | None = None,
    fresh: bool = True,
) -> MultiExpertNetwork:
    """Return a network of experts that share the first layers of `model`, with cosine classifiers.

    Works where the layers run one after the other: what is split is compared with the whole network on random inputs.
    Where to split is known for `nn.Sequential` (before the second layer with weights), for ResNets of timm and
    torchvision and what is built alike (before `layer3`, or before `layer2` where there is no `layer4`) and for
    networks with `stages` (in the middle); others need `split`.

    Args:
        model: the network; it is copied, and left as it is.
        outputs: number of classes.
        in_shape: shape of one input.
        experts: number of them.
        scale: of the cosines, see `CosineClassifier`.
        split: name of the first module that each expert has for itself, as in `named_modules()`: "layer4", "stages.3".
        fresh: whether experts begin with different weights: those of all but the first are drawn, with replacement,
            from the entries of each weight of the first, whatever distribution that came from. False keeps what was
            learnt before.

    Raises:
        OptionError: if an option is outside its range, or names no module.
        UserError: if the network cannot be split there, or has no linear layer.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> network = split_into_experts(model, outputs=3, in_shape=(4,))
    >>> network.stem, len(network.experts)
    (Sequential(
      (0): Linear(in_features=4, out_features=8, bias=True)
      (1): ReLU()
    ), 3)
    """
    check_number("outputs", outputs, minimum=1, integer=True)
    check_number("experts", experts, minimum=1, integer=True)
    check_number("scale", scale, above=0)
    check_choice("fresh", fresh, (True, False))
    first = _place(model) if split is None else split
    _check_split(model, first, tuple(in_shape))
    stem, expert = _cut(copy.deepcopy(model), first)
    made = []
    for number in range(experts):
        own = copy.deepcopy(expert)
        if fresh and number:
            _draw_anew(own)
        made.append(replace_classifier(own, functools.partial(CosineClassifier, out_features=outputs, scale=scale)))
        classifier_of(made[-1])[1].to(next(model.parameters()))
    return MultiExpertNetwork(stem, made)


def _place(model: nn.Module) -> str:
    """Return the name of the first module that experts have for themselves."""
    children = dict(model.named_children())
    for last, first in (("layer4", "layer3"), ("layer3", "layer2")):
        if last in children and first in children:
            return first
    stages = children.get("stages")
    if isinstance(stages, (nn.Sequential, nn.ModuleList)) and len(stages) > 1:
        return f"stages.{len(stages) // 2}"
    if isinstance(model, nn.Sequential):
        weighted = [name for name, child in children.items() if any(isinstance(m, _WEIGHTED) for m in child.modules())]
        if len(weighted) > 1:
            return weighted[1]
        raise UserError(
            "a network of one layer with weights cannot be split into experts that share some; use a deeper one"
        )
    raise UserError(
        f"where to split a {type(model).__name__} into experts is not known; name with split the first module that "
        f"each expert has for itself, one of {', '.join(children) or 'its modules'}, or one inside them"
    )


def _cut(model: nn.Module, first: str) -> tuple[nn.Sequential, nn.Module]:
    """Take the modules that run before `first` out of the model, and return them and what is left."""
    before: list[nn.Module] = []
    parent = model
    for part in first.split("."):
        for name, child in list(parent.named_children()):
            if name == part:
                break
            before.append(child)
            setattr(parent, name, nn.Identity())
        parent = getattr(parent, part)
    return nn.Sequential(*before), model


def _check_split(model: nn.Module, first: str, in_shape: tuple[int, ...]) -> None:
    names = [name for name, _ in model.named_modules() if name]
    if first not in names:
        hint = nearest(first, names) or f"it has {', '.join(name for name, _ in model.named_children())}"
        raise OptionError(f"split={first!r} names no module of {type(model).__name__}; {hint}")
    whole = copy.deepcopy(model).eval()
    classifier = classifier_of(whole)[1]
    example = next(whole.parameters())
    inputs = torch.randn(2, *in_shape, generator=generator_for(0, "probe of a split")).to(example)
    with torch.no_grad():
        expected = whole(inputs)
        stem, expert = _cut(whole, first)
        if all(module is not classifier for module in expert.modules()):
            raise OptionError(
                f"split={first!r} leaves the classifier in what the experts share; name a module before it"
            )
        try:
            found = expert(stem(inputs))
            reason = "" if torch.allclose(found, expected, rtol=1e-3, atol=1e-4) else "it computes something else"
        except Exception as error:  # whatever the network's own code raises when it is cut in two
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if reason:
        raise UserError(
            f"{type(model).__name__} cannot be split at {first!r}, since its modules do not run one after the other: "
            f"{reason}; name another module with split, or use an nn.Sequential or a ResNet"
        )


@torch.no_grad()
def _draw_anew(model: nn.Module) -> None:
    """Draw each weight from its own entries; biases and the parameters of norms, which start as constants, stay."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            chosen = torch.randint(parameter.numel(), parameter.shape).to(parameter.device)
            parameter.copy_(parameter.flatten()[chosen])
