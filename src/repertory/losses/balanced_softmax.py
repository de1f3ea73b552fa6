r"""Train on a long tail a classifier that treats all classes alike: cross-entropy that knows how frequent each is.

## Idea
A softmax that is trained where some classes are frequent says that they are likely. If each class shall count alike
when the classifier is used, that part of the answer is wrong. So in training the logarithm of each class's count is
added to its logit: the counts then explain how frequent a class is, and the logits learn the rest. In use nothing is
added. It is Bayes' rule for a change of the class frequencies, and costs nothing.

## Use it when
- some classes have many times the examples of others, and all of them matter alike (balanced accuracy, macro F1);
- you want the first thing to try on a long tail, before several experts, resampling or a second stage;
- a trained model predicts rare classes too seldom: `adjusted_logits` with `-tau` corrects its logits after training.

## Do not use it when
- the classes are as frequent in use as in training: plain cross-entropy is then right, and more accurate;
- the imbalance of the labels is due to label noise: the counts are those of the wrong labels;
- the network's probabilities are to be read as they are: they are those of a world with balanced classes.

## Equations
With logits $v$ and $n_c$ training examples of class $c$,
$$ \ell = -\log \frac{n_y^\tau e^{v_y}}{\sum_c n_c^\tau e^{v_c}}
   = -\log \mathrm{softmax}_y (v + \tau \log n) . $$

## Defaults
`tau=1` is balanced softmax, and what is consistent for balanced accuracy; Menon et al. find larger values better on
some data. `tau=0` is cross-entropy. A class without a training example counts as having one. In a comparison the
counts are those of the training part.

## Cost
One addition a logit.

## Claim
More accurate than softmax cross-entropy on a balanced test set: CIFAR-10-LT with an imbalance of 200, 79.8 against
74.0 %; CIFAR-100-LT, 46.7 against 41.2 % (ResNet-32).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.errors import DataError, OptionError, check_choice, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="balanced-softmax",
    name="Balanced softmax",
    title="Balanced Meta-Softmax for Long-Tailed Visual Recognition",
    authors="Jiawei Ren et al.",
    year=2020,
    venue="NeurIPS 2020",
    link="https://arxiv.org/abs/2007.10740",
    kind="loss",
    entry="BalancedSoftmaxLoss",
    problems=("class imbalance", "long-tailed recognition", "rare classes", "balanced accuracy", "label shift"),
    defaults={"tau": 1.0, "reduction": "mean"},
    scenarios=("long_tail", "noisy_long_tail", "supervised"),
    needs=("classes", "class_counts"),
    neutral={"tau": 0.0},
    search={"tau": (0.25, 2.5)},
    tags=("logit adjustment", "prior", "uneven classes"),
    baseline=True,
)


def log_counts(class_counts: Tensor | Sequence[int]) -> Tensor:
    """Return the logarithm of each class's count `(classes,)`, float32 or wider; no example counts as one.

    Args:
        class_counts: training examples of each class `(classes,)`.

    Raises:
        OptionError: if they are not at least two finite numbers from 0 on.

    >>> log_counts([100, 1, 0])
    tensor([4.6052, 0.0000, 0.0000])
    """
    counts = torch.as_tensor(class_counts)
    if counts.ndim != 1 or len(counts) < 2 or not bool((counts.isfinite() & (counts >= 0)).all()):
        given = counts.tolist() if counts.numel() <= 12 else f"a tensor of shape {tuple(counts.shape)}"
        raise OptionError(
            f"class_counts={given} is not allowed: give the number of training examples of each class, (classes,), as "
            "targets.bincount(minlength=classes) does"
        )
    return counts.clamp(min=1).to(torch.promote_types(counts.dtype, torch.float32)).log()


def adjusted_logits(logits: Tensor, class_counts: Tensor | Sequence[int], tau: float = 1.0) -> Tensor:
    """Return the logits plus `tau` times the logarithm of the class counts; for training.

    With a negative `tau` it is the correction after training (Menon et al.): of the logits of a network that was
    trained with plain cross-entropy.

    Args:
        logits: `(..., classes)`.
        class_counts: training examples of each class `(classes,)`.
        tau: factor on the logarithms.

    Returns:
        Of the shape of `logits`, float32 or wider.

    Raises:
        OptionError: if the counts are not allowed.
        DataError: if there are not as many as classes.

    >>> adjusted_logits(torch.tensor([[2.0, 1.0]]), [100, 10], tau=-1.0).argmax(1)
    tensor([1])
    """
    return _adjusted(logits, log_counts(class_counts).to(logits.device), tau)


class BalancedSoftmaxLoss(nn.Module):
    """Cross-entropy of logits to which the logarithms of the class counts are added.

    The network's own logits are what predicts. Computed in float32 or wider, also under autocast. Targets may be
    probabilities too, as for mixup.

    Args:
        class_counts: training examples of each class `(classes,)`; saved with the loss.
        tau: factor on the logarithms; 0 is cross-entropy.
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if logits, targets and counts do not belong together.

    >>> criterion = BalancedSoftmaxLoss(class_counts=[100, 10], reduction="none")
    >>> criterion(torch.zeros(2, 2), torch.tensor([0, 1]))  # -log(100 / 110), -log(10 / 110)
    tensor([0.0953, 2.3979])

    Notes:
        Menon et al. add the logarithm of the class's share, which is the same loss. The paper's second part, a
        sampler that is learnt on a balanced set, is not here.

    Reference: Ren, Yu, Sheng, Ma, Zhao, Yi, Li, https://arxiv.org/abs/2007.10740; Menon, Jayasumana, Rawat, Jain, Veit,
    Kumar, Long-Tail Learning via Logit Adjustment, https://arxiv.org/abs/2007.07314.
    """

    log_counts: Tensor

    def __init__(self, class_counts: Tensor | Sequence[int], tau: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        check_number("tau", tau, minimum=0)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.tau = tau
        self.reduction = reduction
        self.register_buffer("log_counts", log_counts(class_counts))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss: 0-d, or `(batch,)` with `reduction="none"`.

        Args:
            output: logits `(batch, classes)`.
            target: classes `(batch,)`, int64, or their probabilities `(batch, classes)`.
        """
        with torch.autocast(output.device.type, enabled=False):
            adjusted = _adjusted(output, self.log_counts, self.tau)
            _check_target(adjusted, target)
            return nn.functional.cross_entropy(adjusted, target, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"classes={len(self.log_counts)}, tau={self.tau}, reduction={self.reduction!r}"


def _adjusted(logits: Tensor, logarithms: Tensor, tau: float) -> Tensor:
    if logits.shape[-1:] != logarithms.shape:
        raise DataError(
            f"class_counts has {len(logarithms)} classes, but the logits have shape {tuple(logits.shape)}; give one "
            "count for each class that the network tells apart"
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide + tau * logarithms.to(wide.dtype)


def _check_target(logits: Tensor, target: Tensor) -> None:
    soft = target.is_floating_point()
    if logits.ndim != 2 or target.shape != (logits.shape if soft else logits.shape[:1]):
        raise DataError(
            f"logits {tuple(logits.shape)} and targets {tuple(target.shape)} must be (batch, classes) and (batch,), or "
            "both (batch, classes) where targets are probabilities"
        )
    # A compiled graph cannot stop for an error, nor should a GPU wait for one: there torch stops at the lookup.
    if soft or torch.compiler.is_compiling() or target.device.type != "cpu" or not len(target):
        return
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= logits.shape[1]:
        raise DataError(
            f"targets go from {low} to {high}, but class_counts has {logits.shape[1]} classes, 0 to "
            f"{logits.shape[1] - 1}; number the classes from 0 on"
        )


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Train with balanced softmax in place of the recipe's criterion; the bench gives it the class counts."""
    return recipe.replace(
        criterion=Part("repertory.losses.balanced_softmax:BalancedSoftmaxLoss", options, "balanced-softmax")
    )
