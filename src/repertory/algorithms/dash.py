r"""Learn from the unlabelled examples whose loss lies under a bar that starts high and falls as training goes on.

## Idea
FixMatch keeps an unlabelled example when its confidence passes a fixed bar: nearly nothing passes early, and the same
errors pass for ever. Dash keeps those whose loss on their own pseudo-label is below a threshold that starts at the loss
reached by a warm-up and shrinks geometrically, so selection starts generous and ends strict. At the floor 0.05 it
selects what FixMatch does with a confidence of $e^{-0.05} = 0.951$.

## Use it when
- labels are very few, and FixMatch selects too little for a long time;
- you know changes of the inputs that keep the class, and the unlabelled examples are of the labelled classes.

## Do not use it when
- the unlabelled examples are of other classes, or in other proportions, than the labelled ones;
- no change of the inputs is known to keep the class (most tables);
- training is so short that the warm-up leaves the network near chance: it then learns from its own first guesses.

## Equations
With weak and strong views $a(u), A(u)$ of $u$, $q = p(a(u))$ without gradient, $\hat y = \arg\max q$, and $m$ completed
intervals since the warm-up, at whose end the loss was $\hat\rho$,
$$ \rho = \max(C \gamma^{-m} \hat\rho,\ \rho_{\min}), \qquad s_u = \mathbb{1}[-\log q_{\hat y} < \rho], \qquad
   L = L_{\text{labelled}} + \lambda\, \frac{\sum_u s_u\, \mathrm{CE}(t_u, p(A(u)))}{\max(1, \sum_u s_u)}, $$
where $t_u \propto q^{1/T}$ until the floor is reached, and the class $\hat y$ from then on.

## Defaults
`gamma=1.27`, `floor=0.05` and `temperature=0.5` are the authors' script's, `factor=1.0001` ($C$) the paper's,
`weight=1` and `ratio=7` both. `warmup=0.01` and `decay_every=0.009` are the script's 10 and 9 of 1024 epochs, as shares
of training: the floor is reached after about a sixth of it. In short trainings take more, such as 0.1 and 0.045.

## Cost
That of FixMatch: one forward and backward pass over the labelled batch and both views of the unlabelled one.

## Claim
Fewer labels suffice than with FixMatch; CIFAR-10 with 40 labels (CTAugment): error 9.2 % against 11.4 %.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repertory.card import Card
from repertory.core.consistency import WeakStrong, wide
from repertory.core.distributed import sum_over_processes, world_size
from repertory.core.method import Inner
from repertory.core.state import Run, State
from repertory.errors import check_choice, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="dash",
    name="Dash",
    title="Dash: Semi-Supervised Learning with Dynamic Thresholding",
    authors="Yi Xu et al.",
    year=2021,
    venue="ICML 2021",
    link="https://arxiv.org/abs/2109.00650",
    kind="algorithm",
    entry="Dash",
    problems=("few labels", "semi-supervised learning", "unlabelled data", "pseudo-label selection"),
    defaults={
        "gamma": 1.27,
        "factor": 1.0001,
        "floor": 0.05,
        "warmup": 0.01,
        "decay_every": 0.009,
        "temperature": 0.5,
        "start": "unlabelled",
        "normalise": "selected",
        "weight": 1.0,
        "ratio": 7,
    },
    scenarios=("semi_supervised",),
    needs=("stream:unlabelled", "views:weak-strong", "classes", "epochs"),
    neutral={"weight": 0.0},
    search={"gamma": (1.05, 1.5)},
    tags=("pseudo-labels", "dynamic threshold", "weak and strong augmentation"),
)

_MOMENTUM = 0.9
"""Of the running mean whose value at the end of the warm-up is the start of the threshold."""


def dynamic_threshold(
    start: Tensor, completed: int, gamma: float, factor: float, floor: float
) -> tuple[Tensor, Tensor]:
    """Return the threshold after some intervals, and whether targets are classes from now on.

    Args:
        start: loss at the end of the warm-up, 0-d.
        completed: intervals since then.
        gamma: the threshold is divided by it with each interval.
        factor: on the start.
        floor: smallest threshold.

    Returns:
        The threshold, 0-d, and a 0-d bool: whether the floor is reached.

    >>> dynamic_threshold(torch.tensor(2.3), 2, gamma=1.27, factor=1.0001, floor=0.05)
    (tensor(1.4261), tensor(False))
    """
    unclipped = start * (factor * gamma**-completed)
    return unclipped.clamp(min=floor), unclipped <= floor


def dash_losses(
    weak: Tensor, strong: Tensor, threshold: Tensor | float, hard: Tensor | bool, temperature: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Return the strong views' cross-entropy with what the weak views say, and which examples are selected.

    Args:
        weak: logits of the weak views `(batch, classes)`; no gradient flows to them.
        strong: logits of the strong views `(batch, classes)`.
        threshold: the loss of the weak view on its own class must be below it.
        hard: whether targets are the weak views' classes; else their probabilities at `temperature`.
        temperature: above 0.

    Returns:
        Values `(batch,)` in float32 or wider, and a bool `(batch,)`.

    >>> weak, strong = torch.tensor([[9.0, 0.0], [0.5, 0.0]]), torch.zeros(2, 2)
    >>> dash_losses(weak, strong, threshold=0.05, hard=True)
    (tensor([0.6931, 0.6931]), tensor([ True, False]))
    """
    weak = wide(weak.detach())
    confidence, labels = weak.log_softmax(1).max(1)
    soft = (weak / temperature).softmax(1)
    classes = F.one_hot(labels, weak.shape[1]).to(soft)
    targets = torch.where(torch.as_tensor(hard, device=weak.device), classes, soft)
    return -(targets * wide(strong).log_softmax(1)).sum(1), -confidence < threshold


class Dash(WeakStrong):
    """Dash around any step with labelled batches.

    Shares of training are of the planned epochs, or of the budget where `fit` and `compare` train. The warm-up lasts
    one step at least.

    Args:
        gamma: the threshold is divided by it at the end of each interval; 1 keeps it.
        factor: on the threshold (C).
        floor: smallest threshold, at which targets become classes.
        warmup: share of training before the first threshold.
        decay_every: length of an interval, as a share of training.
        temperature: of soft targets; selection is always at 1.
        start: "unlabelled" takes all unlabelled examples in the warm-up, and starts at their loss at its end;
            "labelled" warms up on the labels alone, and starts at theirs.
        normalise: "selected" takes the mean over selected examples, "batch" over all.
        weight: factor on the unlabelled loss; 0 trains on the labels alone.
        ratio: unlabelled examples a labelled one in a batch. In a loop of your own it is your loader that decides.

    Raises:
        OptionError: if an option is outside its range.

    >>> from repertory import Step
    >>> model = torch.nn.Linear(2, 3)
    >>> unlabelled = [{"input": torch.zeros(7, 2), "views": [torch.zeros(7, 2), torch.ones(7, 2)]}]
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.CrossEntropyLoss(), [Dash()],
    ...             streams={"unlabelled": unlabelled}, classes=3, epochs=100)
    >>> step.explain()
    'step[dash] > gradient > loss[dash]'

    Notes:
        The paper warms up on labels and starts at the labelled loss; its released code, which its results came from,
        does what is the default here. The loss at the end of the warm-up is a running mean of about ten steps, in the
        code a mean over an epoch. The code counts intervals from the beginning of training, so that its first threshold
        is one interval lower, and multiplies the unlabelled loss by 0.9 (`weight=0.9`). With micro-batches the mean
        over selected examples is one of each micro-batch. Averaged weights are no part of it.

    Reference: Xu, Shang, Ye, Qian, Li, Sun, Li, Jin, https://arxiv.org/abs/2109.00650.
    """

    slug = "dash"
    needs = WeakStrong.needs | {"epochs"}
    running: Tensor

    def __init__(
        self,
        gamma: float = 1.27,
        factor: float = 1.0001,
        floor: float = 0.05,
        warmup: float = 0.01,
        decay_every: float = 0.009,
        temperature: float = 0.5,
        start: str = "unlabelled",
        normalise: str = "selected",
        weight: float = 1.0,
        ratio: int = 7,
    ) -> None:
        super().__init__(weight, ratio)
        check_number("gamma", gamma, minimum=1)
        check_number("factor", factor, above=0)
        check_number("floor", floor, minimum=0)
        check_number("warmup", warmup, minimum=0, below=1)
        check_number("decay_every", decay_every, above=0, maximum=1)
        check_number("temperature", temperature, above=0)
        check_choice("start", start, ("unlabelled", "labelled"))
        check_choice("normalise", normalise, ("selected", "batch"))
        self.gamma, self.factor, self.floor = gamma, factor, floor
        self.warmup, self.decay_every, self.temperature = warmup, decay_every, temperature
        self.start, self.normalise = start, normalise
        self.register_buffer("running", torch.zeros(2))  # mean loss times its weight so far, and that weight
        self.warming = True
        self.threshold: Tensor | float = math.inf
        self.hard: Tensor | bool = False

    def uses_views(self) -> bool:
        """Whether this step has a use for the unlabelled examples: not in a warm-up on labels."""
        return not (self.warming and self.start == "labelled")

    def step(self, state: State, inner: Inner) -> Tensor:
        """Set the threshold, make the step, and note its loss during the warm-up."""
        self._set_threshold(state.run)
        loss = inner(state)
        noted = state.memo.pop(f"{self.slug}/noted", None)
        if noted:
            total = sum_over_processes(torch.stack(noted).sum(0))
            self.running.lerp_(torch.stack([total[0] / total[1], torch.ones_like(total[1])]), 1 - _MOMENTUM)
        return loss

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Add the unlabelled loss to the loss of every labelled example."""
        values = super().loss(state, inner)
        if self.weight > 0 and not self.uses_views():
            self._note(state, values)
        return values

    def unlabelled_loss(self, state: State, weak: Tensor, strong: Tensor) -> Tensor:
        """Return the loss of the unlabelled batch, 0-d."""
        values, selected = dash_losses(weak, strong, self.threshold, self.hard, self.temperature)
        if self.warming:
            self._note(state, values)
        kept = (values * selected).sum()
        if self.normalise == "batch":
            return kept / len(values)
        # Over several processes the mean is one over the examples that all of them selected.
        count = sum_over_processes(selected.sum()) / world_size()
        return kept / count.clamp(min=1 / world_size())

    def _note(self, state: State, values: Tensor) -> None:
        if state.evaluation == 0:
            size = torch.full_like(values.detach().sum(), values.numel(), dtype=torch.float32)
            state.memo.setdefault(f"{self.slug}/noted", []).append(torch.stack([values.detach().sum().float(), size]))

    def _set_threshold(self, run: Run) -> None:
        self.warming = run.counts.steps == 0 or run.progress < self.warmup
        if self.warming:
            self.threshold, self.hard = math.inf, False
            return
        # Rounding must not put off the end of an interval by a step.
        completed = math.floor((run.progress - self.warmup) / self.decay_every + 1e-9)
        loss = self.running[0] / self.running[1]
        self.threshold, self.hard = dynamic_threshold(loss, completed, self.gamma, self.factor, self.floor)


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Add Dash to the recipe's methods."""
    return recipe.add("methods", Part("repertory.algorithms.dash:Dash", options, "dash"))
