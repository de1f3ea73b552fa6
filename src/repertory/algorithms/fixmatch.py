r"""Learn from unlabelled examples by giving a strongly changed view the class that a weakly changed one is sure of.

## Idea
What the network says of a lightly changed input is more often right than what it says of a heavily changed one. So
each unlabelled example is seen twice: the class of the weak view, where its probability passes a bar, is the label on
which the strong view is trained. At first few examples pass; as the network gets better, more do.

## Use it when
- you have few labels a class, and many more inputs of the same kind without;
- you know changes of the inputs that keep the class: crops, flips, colours of photos;
- you need a strong, simple baseline for semi-supervised learning.

## Do not use it when
- the unlabelled examples are of other classes, or in other proportions, than the labelled ones;
- no change of the inputs is known to keep the class (most tables): strong views then teach errors;
- training is limited by compute: a step costs `1 + 2 ratio` times that of its labelled batch.

## Equations
With labelled $(x, y)$, weak and strong views $a(u), A(u)$ of $u$, $q = p(a(u))$ without gradient and
$\hat y = \arg\max q$,
$$ L = \frac1B \sum_x \mathrm{CE}(y, p(x)) + \lambda\, \frac{1}{\mu B} \sum_u
   \mathbb{1}[\max q \ge \tau]\; \mathrm{CE}(\hat y, p(A(u))). $$

## Defaults
`threshold=0.95` ($\tau$), `weight=1` ($\lambda$) and `ratio=7` ($\mu$) are the paper's for CIFAR and SVHN, with SGD
(0.03, Nesterov momentum 0.9), $\mathrm{lr}\cos(7\pi t / 16T)$, and weights averaged with 0.999 for evaluation.

## Cost
One forward and backward pass over the labelled batch and both views of the unlabelled one.

## Claim
Far fewer errors than training on the labels alone; CIFAR-10 with 40 labels: error 13.8 % (RandAugment), 11.4 %
(CTAugment).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from repertory.card import Card
from repertory.core.consistency import WeakStrong, wide
from repertory.core.state import State
from repertory.errors import check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="fixmatch",
    name="FixMatch",
    title="FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence",
    authors="Kihyuk Sohn et al.",
    year=2020,
    venue="NeurIPS 2020",
    link="https://arxiv.org/abs/2001.07685",
    kind="algorithm",
    entry="FixMatch",
    problems=("few labels", "semi-supervised learning", "unlabelled data", "pseudo-labels", "consistency"),
    defaults={"threshold": 0.95, "weight": 1.0, "ratio": 7},
    scenarios=("semi_supervised",),
    needs=("stream:unlabelled", "views:weak-strong", "classes"),
    neutral={"weight": 0.0},
    tags=("pseudo-label selection", "weak and strong augmentation"),
    baseline=True,
)


def fixmatch_loss(weak: Tensor, strong: Tensor, threshold: float = 0.95) -> Tensor:
    """Return the mean over the batch of the strong views' cross-entropy where the weak view is sure, 0 elsewhere.

    Args:
        weak: logits of the weak views `(batch, classes)`; no gradient flows to them.
        strong: logits of the strong views `(batch, classes)`.
        threshold: smallest probability of the weak view's class.

    Returns:
        0-d, in float32 or wider.

    >>> import torch
    >>> weak, strong = torch.tensor([[9.0, 0.0], [0.5, 0.0]]), torch.zeros(2, 2)
    >>> fixmatch_loss(weak, strong)  # log(2) / 2: the second example is not sure
    tensor(0.3466)
    """
    confidence, labels = wide(weak.detach()).softmax(1).max(1)
    return (F.cross_entropy(wide(strong), labels, reduction="none") * (confidence >= threshold)).mean()


class FixMatch(WeakStrong):
    """FixMatch around any step with labelled batches.

    Args:
        threshold: smallest probability at which the class of a weak view is taken as a label, in [0, 1].
        weight: factor on the unlabelled loss; 0 trains on the labels alone.
        ratio: unlabelled examples a labelled one in a batch. In a loop of your own it is your loader that decides.

    Raises:
        OptionError: if an option is outside its range.

    >>> import torch
    >>> from repertory import Step
    >>> model = torch.nn.Linear(2, 3)
    >>> unlabelled = [{"input": torch.zeros(7, 2), "views": [torch.zeros(7, 2), torch.ones(7, 2)]}]
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.CrossEntropyLoss(), [FixMatch()],
    ...             streams={"unlabelled": unlabelled}, classes=3)
    >>> step.explain()
    'step > gradient > loss[fixmatch]'

    Notes:
        Averaged weights are no part of it: it leaves training and evaluation to the recipe. The strong views of
        `repertory.training.BatchLoader` are made of fewer operations than RandAugment's, as it says there.

    Reference: Sohn, Berthelot, Li, Zhang, Carlini, Cubuk, Kurakin, Zhang, Raffel, https://arxiv.org/abs/2001.07685.
    """

    slug = "fixmatch"

    def __init__(self, threshold: float = 0.95, weight: float = 1.0, ratio: int = 7) -> None:
        super().__init__(weight, ratio)
        check_number("threshold", threshold, minimum=0, maximum=1)
        self.threshold = threshold

    def unlabelled_loss(self, state: State, weak: Tensor, strong: Tensor) -> Tensor:
        """Return the loss of the unlabelled batch, 0-d."""
        return fixmatch_loss(weak, strong, self.threshold)


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Add FixMatch to the recipe's methods."""
    return recipe.add("methods", Part("repertory.algorithms.fixmatch:FixMatch", options, "fixmatch"))
