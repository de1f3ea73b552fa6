r"""Step every weight by the same amount, along the sign of a momentum: AdamW's place at half its memory.

## Idea
A program search over update rules found this one, and its authors simplified it by hand. One momentum buffer
is kept. The step is the sign of an interpolation between that buffer and the fresh gradient, so each weight
moves by exactly the learning rate. The interpolation and the buffer have different rates: the fresh gradient
weighs more in the step than in the memory.

## Use it when
- optimizer state is a large part of your memory: Lion keeps one buffer a weight, AdamW two;
- batches are large: the authors' gain over AdamW grew with the batch size;
- you train vision transformers, contrastive or diffusion models, or language models, the authors' settings.

## Do not use it when
- batches are small and gradients noisy: the sign gives a noisy coordinate the same step as a sure one;
- you cannot tune the learning rate: AdamW's is far too large, and a third of it is only a rule of thumb;
- gradients are so small that half precision loses them: their sign is then zero or noise.

## Equations
$$ c_t = \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
   w_t = w_{t-1} - \eta \left( \operatorname{sign}(c_t) + \lambda\, w_{t-1} \right), \qquad
   m_t = \beta_2 m_{t-1} + (1 - \beta_2)\, g_t $$
with $\operatorname{sign}(0) = 0$, without bias correction or epsilon. The step reads the old momentum.

## Defaults
`lr=1e-4, betas=(0.9, 0.99), weight_decay=0` are the authors'; `betas=(0.95, 0.98)` was steadier in language
modelling. Coming from AdamW, take a learning rate 3 to 10 times smaller and a weight decay as many times
larger, so that their product stays, and scale the whole schedule. A comparison takes a third of the
baseline's AdamW learning rate and three times its weight decay, unless you set them; where the baseline has
another optimizer, the authors' defaults.

## Cost
One forward and one backward pass a step. State: one number a weight (AdamW: two), half of that with
`bf16_momentum`. The authors measured 2 to 15 % more steps a second than with AdamW.

## Claim
At a learning rate about three times smaller Lion is as accurate as AdamW, and gains on it as batches grow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _default_to_fused_or_foreach

from repertory.card import Card
from repertory.errors import OptionError, check_choice, check_number
from repertory.optim.groupwise import dense_gradient, real
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="lion",
    name="Lion",
    title="Symbolic Discovery of Optimization Algorithms",
    authors="Xiangning Chen et al.",
    year=2023,
    venue="NeurIPS 2023",
    link="https://arxiv.org/abs/2302.06675",
    kind="optimizer",
    entry="Lion",
    problems=("memory-efficient optimizer", "large batches", "replacement for Adam", "sign updates"),
    defaults={
        "lr": 1e-4,
        "betas": (0.9, 0.99),
        "weight_decay": 0.0,
        "maximize": False,
        "foreach": None,
        "bf16_momentum": False,
    },
    scenarios=("supervised", "online", "retrieval", "continual", "semi_supervised", "segmentation"),
    search={"lr": (1e-4, 3e-3)},
    tags=("optimizer state", "sign descent", "momentum", "program search"),
)


def lion_step(
    weights: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    *,
    lr: float | Tensor,
    betas: Sequence[float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Change `weights` and `momentum` in place by one step of Lion.

    Args:
        weights: any shape, real.
        gradient: of the same shape and type.
        momentum: of the same shape; the arithmetic is done in the type of the gradient.
        lr: how far each weight moves.
        betas: share of the momentum in the step, and in the next momentum.
        weight_decay: decoupled; multiplied by `lr`.
        maximize: step up the gradient.

    >>> weights, momentum = torch.tensor([1.0]), torch.tensor([0.0])
    >>> lion_step(weights, torch.tensor([0.5]), momentum, lr=0.1)
    >>> weights, momentum
    (tensor([0.9000]), tensor([0.0050]))
    """
    wide = momentum.to(gradient.dtype)
    step = torch.lerp(wide, gradient, 1 - betas[0]).sign_()
    if weight_decay:
        weights.mul_(1 - lr * weight_decay)
    if isinstance(lr, Tensor):
        step.mul_(lr)
        lr = 1.0
    # The update is odd in the gradient, so ascent needs no negated copy of it.
    weights.add_(step, alpha=lr if maximize else -lr)
    wide.lerp_(gradient, 1 - betas[1])
    if wide is not momentum:
        momentum.copy_(wide)


class Lion(Optimizer):
    r"""Sign descent on an interpolation of momentum and gradient, with decoupled weight decay.

    A parameter without a gradient is skipped. Complex parameters are stepped as pairs of real numbers. Where a
    gradient was NaN once, weights stay where they are from then on, since the sign of NaN is 0. The
    learning rate may be a 0-d tensor: a compiled step is then not compiled again when a schedule changes it.

    Args:
        params: parameters, named parameters, or groups of them with options of their own.
        lr: how far each weight moves in a step.
        betas: share of the momentum in the step, and in the next momentum, each in [0, 1).
        weight_decay: decoupled weight decay, multiplied by `lr`.
        maximize: step up the gradient.
        foreach: step all tensors of a device and type together; None does so on accelerators, like
            `torch.optim`. The numbers are the same either way.
        bf16_momentum: keep the momentum in bfloat16; the arithmetic stays in the type of the gradient.

    Raises:
        OptionError: if an option, of the optimizer or of a group, is outside its range.
        UserError: in a step, if a gradient is sparse.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    >>> optimizer = Lion([weight], lr=0.5)
    >>> weight.grad = torch.tensor([10.0, -0.001, 0.0])
    >>> optimizer.step()
    >>> weight.tolist()
    [0.5, -1.5, 3.0]

    Notes:
        The authors' code interpolates as `b * m + (1 - b) * g`; here it is one pass, `m + (1 - b) * (g - m)`,
        the same up to rounding. With `maximize` the momentum keeps the sign of the gradients it was given.

    Reference: Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu, Le,
    https://arxiv.org/abs/2302.06675.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: Sequence[float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        bf16_momentum: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "bf16_momentum": bf16_momentum,
        }
        _check_options(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own where it has any."""
        _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            # States of other implementations know less.
            for name in ("maximize", "foreach", "bf16_momentum"):
                group.setdefault(name, self.defaults[name])
            if group["bf16_momentum"]:
                # Loading a state widens it to the parameters' type.
                for kept in (self.state[p] for p in group["params"] if p in self.state):
                    kept["exp_avg"] = kept["exp_avg"].to(torch.bfloat16)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: evaluates the loss again, with its gradients, and returns it.

        Returns:
            What `closure` returned, None without one.

        Raises:
            UserError: if a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights, gradients, momenta = self._tensors(group)
            if not weights:
                continue
            options = {name: group[name] for name in ("lr", "betas", "weight_decay", "maximize")}
            foreach = group["foreach"]
            if foreach is None:
                foreach = _default_to_fused_or_foreach(weights, differentiable=False)[1]
            if not foreach:
                for tensors in zip(weights, gradients, momenta):
                    lion_step(*tensors, **options)
                continue
            alike: Any = self._group_tensors_by_device_and_dtype([[*weights], [*gradients]], with_indices=True)
            for (some, theirs), places in alike.values():
                _foreach_step(some, theirs, [momenta[i] for i in places], **options)
        return loss

    def _tensors(self, group: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        weights, gradients, momenta = [], [], []
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            gradient = dense_gradient(parameter, self)
            state = self.state[parameter]
            if not state:
                if group["bf16_momentum"]:
                    state["exp_avg"] = torch.zeros_like(real(parameter), dtype=torch.bfloat16)
                else:
                    state["exp_avg"] = torch.zeros_like(parameter)
            weights.append(real(parameter))
            gradients.append(real(gradient))
            momenta.append(real(state["exp_avg"]))
        return weights, gradients, momenta


def _foreach_step(
    weights: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    lr: float | Tensor,
    betas: Sequence[float],
    weight_decay: float,
    maximize: bool,
) -> None:
    """Do what `lion_step` does, operation by operation, to many tensors of one device and type."""
    wide = [momentum.to(gradient.dtype) for momentum, gradient in zip(momenta, gradients)]
    steps = torch._foreach_lerp(wide, gradients, 1 - betas[0])
    torch._foreach_sign_(steps)
    if weight_decay:
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
    if isinstance(lr, Tensor):
        torch._foreach_mul_(steps, lr)
        lr = 1.0
    torch._foreach_add_(weights, steps, alpha=lr if maximize else -lr)
    torch._foreach_lerp_(wide, gradients, 1 - betas[1])
    if any(new is not old for new, old in zip(wide, momenta)):
        torch._foreach_copy_(momenta, wide)


def _check_options(options: Mapping[str, Any]) -> None:
    lr, betas = options["lr"], options["betas"]
    check_number("lr", lr.item() if isinstance(lr, Tensor) else lr, minimum=0)
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise OptionError(f"betas={betas!r} is not allowed: betas must be two numbers in [0, 1), such as (0.9, 0.99)")
    for beta in betas:
        check_number("betas", beta, minimum=0, below=1)
    check_number("weight_decay", options["weight_decay"], minimum=0)
    check_choice("maximize", options["maximize"], (True, False))
    check_choice("foreach", options["foreach"], (None, True, False))
    check_choice("bf16_momentum", options["bf16_momentum"], (True, False))


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Replace the optimizer; after AdamW at a third of its learning rate and three times its weight decay."""
    base = recipe.optimizer
    if base.factory == "torch.optim:AdamW":
        lr, decay = base.options.get("lr", 1e-3), base.options.get("weight_decay", 1e-2)
        options = {"lr": lr / 3, "weight_decay": 3 * decay, **options}
    return recipe.replace(optimizer=Part("repertory.optim.lion:Lion", options, "lion"))
