"""One classifier for known and new classes, and one set of weights of two branches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from repertory.core.classifier import classifier_of, replace_classifier
from repertory.core.frozen import FrozenCopy
from repertory.errors import UserError, check_number


def grow_classifier(model: nn.Module, new: int, generator: torch.Generator | None = None) -> nn.Module:
    """Give the network's last linear layer further outputs, in place; the old ones stay as they are.

    Args:
        model: the network.
        new: number of outputs to add; 0 leaves it as it is.
        generator: CPU generator of the new weights; None takes the global one.

    Returns:
        The network; another module only where it is nothing but a linear layer.

    Raises:
        OptionError: if `new` is no whole number from 0 on.
        UserError: if the last linear layer is not a plain `nn.Linear`.

    >>> grow_classifier(nn.Sequential(nn.Linear(4, 3)), 2)
    Sequential(
      (0): Linear(in_features=4, out_features=5, bias=True)
    )
    """
    check_number("new", new, minimum=0, integer=True)
    name, old = classifier_of(model)
    if type(old) is not nn.Linear:
        raise UserError(
            f"the network's last linear layer {name!r} is a {type(old).__name__}, which takes no new classes; "
            "give a network that ends in a plain nn.Linear"
        )
    if not new:
        return model

    def larger(width: int) -> nn.Module:
        made = nn.utils.skip_init(
            nn.Linear, width, old.out_features + new, bias=old.bias is not None,
            device=old.weight.device, dtype=old.weight.dtype,
        )  # fmt: skip
        bound = 1 / math.sqrt(width)
        pairs = [(old.weight, made.weight), *([(old.bias, made.bias)] if old.bias is not None else [])]
        with torch.no_grad():
            for before, after in pairs:
                # As torch draws a linear layer's weights and biases.
                drawn = torch.empty(new, *after.shape[1:]).uniform_(-bound, bound, generator=generator)
                after.copy_(torch.cat([before, drawn.to(before)]))
        return made

    return replace_classifier(model, larger)


@torch.no_grad()
def align_rows(weight: Tensor, bias: Tensor | None, new: int) -> None:
    """Scale the last `new` rows of a linear layer, in place, so that their mean length is that of the others.

    Without it new classes, whose rows were trained apart, win or lose by the size of their logits.

    Args:
        weight: `(outputs, width)`.
        bias: `(outputs,)` or None; scaled alike.
        new: number of rows, below that of outputs.

    >>> weight = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    >>> align_rows(weight, None, 1)
    >>> weight
    tensor([[3., 4.],
            [0., 5.]])
    """
    lengths = weight.norm(dim=1)
    factor = lengths[:-new].mean() / lengths[-new:].mean().clamp(min=torch.finfo(weight.dtype).tiny)
    weight[-new:] *= factor
    if bias is not None:
        bias[-new:] *= factor


@torch.no_grad()
def merge_branches(static: FrozenCopy, dynamic: nn.Module, momentum: float, new: int) -> None:
    r"""Move the static branch to the dynamic one, unify their classifiers, and put the result into both.

    $$ \theta_f \leftarrow m\, \theta_f + (1 - m)\, \theta_g $$
    of all weights, and of buffers such as the running statistics of batch norm; whole-number buffers are the dynamic
    branch's. The classifier's last `new` rows are the dynamic branch's alone, at the mean length of the others.

    Args:
        static: the branch that classifies.
        dynamic: the branch that has grown, of the same structure.
        momentum: $m$ in [0, 1]: 1 keeps the static branch, but for the new rows, 0 takes the dynamic one.
        new: number of new classes, the last outputs.

    Raises:
        OptionError: if the momentum is out of range.

    >>> network = nn.Linear(2, 3)
    >>> static = FrozenCopy(network)
    >>> _ = nn.init.ones_(network.weight), nn.init.zeros_(static.model.weight)
    >>> merge_branches(static, network, momentum=0.75, new=1)
    >>> network.weight.round(decimals=2)[:, 0]
    tensor([0.2500, 0.2500, 0.2500], grad_fn=<SelectBackward0>)
    """
    check_number("momentum", momentum, minimum=0, maximum=1)
    head, unified = classifier_of(dynamic)[1], classifier_of(static.model)[1]
    static.follow(dynamic, 1 - momentum)
    if new:
        unified.weight[-new:] = head.weight[-new:]
        if head.bias is not None:
            unified.bias[-new:] = head.bias[-new:]
        align_rows(unified.weight, unified.bias, new)
    dynamic.load_state_dict(static.model.state_dict())
