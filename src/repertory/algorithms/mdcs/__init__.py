r"""Recognise rare classes beside frequent ones by experts that each lean to some of them, and agree with themselves.

## Idea
One classifier for a long tail is a compromise. Here several experts share the first layers, and each is told another
story of how frequent the classes are: the first one's logits are adjusted so that it leans to the frequent classes, the
second so that it treats all alike, the third so that it leans to the rare ones. The mean of their logits has the
strengths of each. Against the variance that comes with few examples, each expert also learns to say of a strongly
changed view what it says of a weakly changed one, wherever it was right about the latter.

## Use it when
- classes range from many examples to few, and accuracy on the rare ones must not cost the frequent ones;
- strong changes of the inputs are known that keep the class (photos, and what looks like them);
- a single balanced classifier (`balanced-softmax`) has been tried, and its variance between runs is high.

## Do not use it when
- the model must be small or fast: all experts are kept;
- classes have a handful of examples: the third expert is then useless for all others; take smaller `lambdas`, as
  `[0, 1, 1.5]` (on the small tail of the claim below `[1, 1, 1]` was a point better), or `balanced-softmax`;
- labels are wrong: the rare classes then consist of errors, which an expert for them learns first.

## Equations
With logits $v_e$ of expert $e$ for weak and strong views, $u_e = v_e + \lambda_e \log n$ for class counts $n$, and
$M_e$ the examples whose weak view has its largest $u_e$ at the label,
$$ \ell = \sum_e \Big[ \mathrm{CE}(u_e, y) + w \min(\tfrac{t}{t_0}, 1) \frac{1}{|M_e|} \sum_{i \in M_e}
   \mathrm{KL}\big(\mathrm{softmax}\, u_e(a(x_i)) \,\|\, \mathrm{softmax}\, u_e(A(x_i))\big) \Big] , $$
cross-entropy as a mean over both views and no gradient to $a(x_i)$; in epoch $t$, from 1. In use the logits are
$\frac{1}{E} \sum_e v_e$: nothing is added to them.

## Defaults
`lambdas=[-0.5, 1, 2.5]`, `weight` ($w$) `=0.6`, `warmup` ($t_0$) `=20` epochs, `temperature=1`, and a cosine `scale`
of 30, as in the released code for CIFAR. It trains 400 epochs there; with as few as 30, take a `warmup` of 2 or so.
`split` is the first module that each expert has for itself.

## Cost
The shared layers on two views, and the later ones once an expert and view: with three experts and a quarter of
the work in the shared layers, 5 times the forward and backward pass of the plain network. Passes are counted as two
an example, whatever the experts cost; compare seconds. In use 2.5 times. All experts are kept.

## Claim
More accurate than other networks of several experts on long-tailed CIFAR-100, ImageNet-LT, Places-LT and iNaturalist
2018, by one to two points, with gains on rare classes that do not cost the frequent ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from repertory.algorithms.mdcs.losses import consistency_loss, diversity_loss, expert_adjustments
from repertory.card import Card
from repertory.core.consistency import wide
from repertory.core.method import Inner, Method
from repertory.core.state import Run, State, batch_size
from repertory.errors import ConflictError, DataError, OptionError, check_number
from repertory.layers.experts import MultiExpertNetwork
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="mdcs",
    name="MDCS",
    title="MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition",
    authors="Qihao Zhao et al.",
    year=2023,
    venue="ICCV 2023",
    link="https://arxiv.org/abs/2308.09922",
    kind="algorithm",
    entry="MDCS",
    problems=("long-tailed recognition", "class imbalance", "rare classes", "mixture of experts", "ensemble diversity"),
    defaults={"lambdas": (-0.5, 1.0, 2.5), "weight": 0.6, "warmup": 20.0, "temperature": 1.0},
    scenarios=("long_tail", "supervised"),
    needs=("classes", "class_counts", "strong"),
    owns=("head",),
    search={"weight": (0.1, 2.0)},
    tags=("logit adjustment", "self-distillation", "weak and strong augmentation", "cosine classifier"),
)

__all__ = [
    "CARD",
    "MDCS",
    "consistency_loss",
    "diversity_loss",
    "edit",
    "expert_adjustments",
]


class MDCS(Method):
    """MDCS around any step whose network is a `MultiExpertNetwork` and whose batches have a strong view of each input.

    `state.output` is the mean of the experts' logits, without adjustment, for the weak views. The criterion sees the
    adjusted logits of every expert and view.

    Args:
        lambdas: factor of each expert on the logarithm of the class counts: below 0 it leans to frequent classes, 1
            treats all alike, above 1 it leans to rare ones; 0 for all with `weight=0` is a plain ensemble.
        weight: factor on the consistency of weak and strong views.
        warmup: epochs over which that factor rises.
        temperature: of the softmaxes that are compared.

    Raises:
        OptionError: if an option is outside its range, or there are more or fewer lambdas than experts.
        ConflictError: if the network has no experts, or a strong view has another shape than its input.

    >>> from torch import nn
    >>> from repertory import Step
    >>> from repertory.layers import split_into_experts
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> model = split_into_experts(model, outputs=3, in_shape=(4,))
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), [MDCS()],
    ...             classes=3, class_counts=torch.tensor([90, 30, 10]))
    >>> inputs = torch.randn(6, 4)
    >>> loss = step({"input": inputs, "target": torch.tensor([0, 0, 0, 1, 1, 2]), "strong": inputs + 0.3})
    >>> step.run.counts.passes
    36.0

    Notes:
        The released networks make the experts' layers narrower than the plain network's (24 and 48 channels in place
        of 32 and 64); here they keep the width they have. The code adds $10^{-9}$ inside the logarithm. Strong views of
        `repertory.training.BatchLoader` are made of fewer operations than AutoAugment's, as it says there.

    Reference: Zhao, Jiang, Hu, Zhang, Liu, https://arxiv.org/abs/2308.09922.
    """

    slug = "mdcs"
    needs = frozenset({"classes", "class_counts", "strong"})
    owns = frozenset({"forward"})
    takes: ClassVar[Mapping[str, str]] = {"target": "hard"}
    adjustments: Tensor

    def __init__(
        self,
        lambdas: Sequence[float] = (-0.5, 1.0, 2.5),
        weight: float = 0.6,
        warmup: float = 20.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_lambdas(lambdas)
        check_number("weight", weight, minimum=0)
        check_number("warmup", warmup, minimum=0)
        check_number("temperature", temperature, above=0)
        self.lambdas = tuple(lambdas)
        self.weight, self.warmup, self.temperature = weight, warmup, temperature

    def setup(self, run: Run) -> None:
        """Take over the evaluation of the network."""
        assert run.class_counts is not None  # checked with the needs
        if not isinstance(run.model, MultiExpertNetwork):
            raise ConflictError(
                f"{self.slug} needs a network of several experts, not a {type(run.model).__name__}; give "
                "repertory.layers.split_into_experts(model, outputs=..., in_shape=...)"
            )
        if len(run.model.experts) != len(self.lambdas):
            raise OptionError(
                f"lambdas={list(self.lambdas)} has {len(self.lambdas)} numbers, but the network has "
                f"{len(run.model.experts)} experts; give one each"
            )
        made = expert_adjustments(run.class_counts, self.lambdas).to(run.device)
        self.register_buffer("adjustments", made, persistent=False)
        run.forward = self._evaluate

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Add what the experts' strong views differ by from their weak ones."""
        values = inner(state)
        weak, strong = state.memo.pop(self.slug)
        weight = self.weight * (min((state.run.epoch + 1) / self.warmup, 1.0) if self.warmup else 1.0)
        if not weight:
            return values
        return values + weight * consistency_loss(weak, strong, state.batch["target"], self.temperature)

    def _evaluate(self, state: State, criterion: Callable[..., Tensor]) -> Tensor:
        run, inputs, target, strong = state.run, state.batch["input"], state.batch["target"], state.batch["strong"]
        size = batch_size(state.batch)
        if strong.shape != inputs.shape:
            raise ConflictError(
                f"{self.slug} passes both views together, but inputs are {tuple(inputs.shape)} and strong ones "
                f"{tuple(strong.shape)}; give them one shape"
            )
        logits = wide(run.model.expert_logits(torch.cat([inputs, strong])))  # type: ignore[operator]
        if logits.shape[2:] != self.adjustments.shape[2:]:
            raise DataError(
                f"class_counts has {self.adjustments.shape[2]} classes, but the experts give {logits.shape[2]} logits; "
                "give one count for each"
            )
        state.output = logits[:, :size].mean(0)
        adjusted = logits + self.adjustments.to(logits.dtype)
        state.memo[self.slug] = adjusted.split(size, 1)
        # The step counts one view.
        run.counts.forward += size
        if torch.is_grad_enabled():
            run.counts.backward += size
        values = diversity_loss(adjusted, target.repeat(2), criterion)
        return values.unflatten(0, (2, size)).mean(0) if values.ndim else values


def check_lambdas(lambdas: Any) -> None:
    """Check that there is a finite number for each expert.

    Raises:
        OptionError: if not.
    """
    if not isinstance(lambdas, (list, tuple)) or not lambdas:
        raise OptionError(f"lambdas={lambdas!r} is not allowed: give a number for each expert, as in [-0.5, 1, 2.5]")
    for number in lambdas:
        check_number("lambdas", number)


def edit(
    recipe: Recipe,
    lambdas: Sequence[float] = (-0.5, 1.0, 2.5),
    scale: float = 30.0,
    split: str | None = None,
    **options: Any,
) -> Recipe:
    """Split the network into an expert for each of `lambdas`, and train them with MDCS.

    Args:
        recipe: the baseline; where its model is `pretrained`, all experts begin with what was learnt.
        lambdas: of `MDCS`.
        scale: of the cosine classifiers.
        split: first module that each expert has for itself, see `split_into_experts`.
        **options: of `MDCS`.

    Raises:
        OptionError: if an option is outside its range.
    """
    check_lambdas(lambdas)
    surgery = {"experts": len(lambdas), "scale": scale, "split": split}
    if recipe.model.options.get("pretrained") is True:
        surgery["fresh"] = False
    recipe = recipe.add("surgery", Part("repertory.layers.experts:split_into_experts", surgery, "mdcs"))
    options = {"lambdas": list(lambdas), **options}
    return recipe.add("methods", Part("repertory.algorithms.mdcs:MDCS", options, "mdcs"))
