r"""Learn embeddings for retrieval with several centres a class, and without mining triplets.

## Idea
A softmax classifier on unit vectors is a smoothed triplet loss with one centre a class. SoftTriple gives each class
several centres and scores a class by a soft maximum over their similarities, so that a class with several modes need
not be pressed into one. A regulariser draws the centres of a class together, so that those it does not need merge.

## Use it when
- you train embeddings to search with, or to recognise classes that were not in training;
- classes are made of distinct groups (poses, sub-types, coarse labels);
- triplet mining is slow or unstable for you.

## Do not use it when
- you only need the class, and each class looks alike throughout: cross-entropy does that with less to tune;
- there are so many classes that `classes * centers` vectors no longer fit beside the network;
- targets are soft (mixup, distillation).

## Equations
For a unit embedding $x$ and unit centres $w_{c,k}$, $s_{c,k} = x^\top w_{c,k}$:
$$ S_c = \sum_k \frac{\exp(s_{c,k} / \gamma)}{\sum_l \exp(s_{c,l} / \gamma)} \, s_{c,k}, \qquad
   \ell = -\log \frac{\exp(\lambda (S_y - \delta))}{\exp(\lambda (S_y - \delta)) + \sum_{c \ne y} \exp(\lambda S_c)}
   + \tau R, $$
$$ R = \frac{1}{C K (K - 1)} \sum_c \sum_{k < l} \sqrt{2 + 10^{-5} - 2\, w_{c,k}^\top w_{c,l}} . $$

## Defaults
`dim=64, centers=10, scale` ($\lambda$) `=20, gamma=0.1, tau=0.2, margin` ($\delta$) `=0.01` and a learning rate of the
centres 100 times the network's (1e-2 and 1e-4, Adam with `eps=0.01`) are the authors'. In a comparison the centres keep
the authors' learning rate of 1e-2, whatever the network's, unless you set `lr_scale`.

## Cost
One forward and one backward pass a step, plus `batch * dim * classes * centers` multiplications, and
`classes * centers^2 * dim` for the regulariser.

## Claim
Several centres a class retrieve better than one, where classes have several modes, and for classes never seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.errors import OptionError, check_choice, check_number
from repertory.layers.embedding import unit_rows, with_embedding
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="softtriple",
    name="SoftTriple",
    title="SoftTriple Loss: Deep Metric Learning Without Triplet Sampling",
    authors="Qi Qian et al.",
    year=2019,
    venue="ICCV 2019",
    link="https://arxiv.org/abs/1909.05235",
    kind="loss",
    entry="SoftTripleLoss",
    problems=("deep metric learning", "image retrieval", "unseen classes", "classes with several modes"),
    defaults={
        "dim": 64,
        "centers": 10,
        "scale": 20.0,
        "gamma": 0.1,
        "tau": 0.2,
        "margin": 0.01,
        "lr_scale": 100.0,
        "reduction": "mean",
    },
    scenarios=("supervised", "retrieval"),
    needs=("classes",),
    owns=("head",),
    search={"scale": (5.0, 40.0), "gamma": (0.03, 0.3)},
    tags=("embedding", "proxies", "triplet loss", "zero-shot retrieval"),
)

_CENTER_LR = 1e-2
"""The authors' learning rate of the centres."""


def relaxed_similarity(similarities: Tensor, gamma: float, dim: int = -1) -> Tensor:
    """Return the similarity to each class: the mean over its centres, weighted by a softmax.

    Args:
        similarities: to each centre of each class, `(..., classes, centers)`.
        gamma: temperature of the softmax; towards 0 the result is the largest similarity.
        dim: which dimension holds the centres.

    Returns:
        `(..., classes)`.

    >>> relaxed_similarity(torch.tensor([[1.0, 0.0]]), gamma=1.0)
    tensor([0.7311])
    """
    return ((similarities / gamma).softmax(dim) * similarities).sum(dim)


def center_spread(centers: Tensor) -> Tensor:
    """Return the regulariser: half the mean distance between two centres of a class, 0-d.

    Args:
        centers: unit vectors `(classes, centers, dim)` with at least two centres.
    """
    classes, count, _ = centers.shape
    first, second = torch.triu_indices(count, count, 1, device=centers.device)
    cosines = torch.bmm(centers, centers.transpose(1, 2))[:, first, second]
    # The constant keeps the gradient finite where centres coincide.
    return (2 + 1e-5 - 2 * cosines).sqrt().sum() / (classes * count * (count - 1))


class SoftTripleLoss(nn.Module):
    """Softmax loss on unit embeddings with several learnt centres a class.

    Embeddings are scaled to length 1 here; retrieve with unit embeddings too. Everything is computed in float32 or
    wider, also under autocast.

    Args:
        outputs: number of classes.
        dim: size of the embeddings.
        centers: centres a class.
        scale: multiplies the similarities before the softmax over classes (the paper's lambda).
        gamma: temperature of the softmax over the centres of a class.
        tau: weight of the regulariser; without effect for one centre.
        margin: subtracted from the similarity to the right class (the paper's delta).
        lr_scale: factor on the learning rate of the centres, where the optimizer is made by `Step`.
        reduction: "mean", "sum" or "none". The regulariser, which belongs to no example, is added in full to each
            example's value, so that the mean is the paper's loss.

    Raises:
        OptionError: if an option is outside its range; in use, if embeddings are not of size `dim`.

    >>> criterion = SoftTripleLoss(outputs=3, dim=4, reduction="none")
    >>> criterion(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])).shape
    torch.Size([5])

    Notes:
        The authors' network normalises its output and their loss does not; normalising twice changes nothing.

    Reference: Qian, Shang, Sun, Hu, Li, Jin, https://arxiv.org/abs/1909.05235.
    """

    takes: ClassVar[Mapping[str, str]] = {"target": "hard"}

    def __init__(
        self,
        outputs: int,
        dim: int = 64,
        centers: int = 10,
        scale: float = 20.0,
        gamma: float = 0.1,
        tau: float = 0.2,
        margin: float = 0.01,
        lr_scale: float = 100.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_number("outputs", outputs, minimum=2, integer=True)
        check_number("dim", dim, minimum=1, integer=True)
        check_number("centers", centers, minimum=1, integer=True)
        check_number("scale", scale, above=0)
        check_number("gamma", gamma, above=0)
        check_number("tau", tau, minimum=0)
        check_number("margin", margin, minimum=0)
        check_number("lr_scale", lr_scale, minimum=0)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.scale = scale
        self.gamma = gamma
        self.tau = tau
        self.margin = margin
        self.lr_scale = lr_scale
        self.reduction = reduction
        # The authors' range; only the direction counts, but the length sets how fast it turns.
        bound = (outputs * centers) ** -0.5
        self.centers = nn.Parameter(torch.empty(outputs, centers, dim).uniform_(-bound, bound))

    def forward(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            embedding: `(batch, dim)`.
            target: classes `(batch,)`, int64.

        Returns:
            0-d, or `(batch,)` with `reduction="none"`.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            centers = unit_rows(self.centers)
            logits = self._logits(embedding, centers)
            margins = torch.zeros_like(logits).scatter_(1, target[:, None], self.scale * self.margin)
            values = nn.functional.cross_entropy(logits - margins, target, reduction="none")
            if self.tau > 0 and centers.shape[1] > 1:
                values = values + self.tau * center_spread(centers)
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()

    def logits(self, embedding: Tensor) -> Tensor:
        """Return the relaxed similarity of each embedding to each class, times `scale`, `(batch, classes)`."""
        with torch.autocast(embedding.device.type, enabled=False):
            return self._logits(embedding, unit_rows(self.centers))

    def _logits(self, embedding: Tensor, centers: Tensor) -> Tensor:
        classes, count, dim = centers.shape
        if embedding.ndim != 2 or embedding.shape[1] != dim:
            raise OptionError(
                f"dim={dim} does not fit embeddings of shape {tuple(embedding.shape)}; they must be (batch, {dim})"
            )
        unit = unit_rows(embedding).to(centers.dtype)
        # Centre by centre, since a softmax over a short last dimension takes four times as long.
        similarities = unit @ centers.transpose(0, 1).reshape(count * classes, dim).T
        return self.scale * relaxed_similarity(similarities.view(-1, count, classes), self.gamma, dim=1)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        classes, count, dim = self.centers.shape
        return f"outputs={classes}, dim={dim}, centers={count}, reduction={self.reduction!r}"


def edit(recipe: Recipe, dim: int = 64, **options: Any) -> Recipe:
    """Embed instead of classifying, and train with SoftTriple; its centres keep the authors' learning rate."""
    rate = recipe.optimizer.options.get("lr") or _CENTER_LR
    options = {"dim": dim, "lr_scale": _CENTER_LR / rate, **options}
    recipe = with_embedding(recipe, dim, "softtriple")
    return recipe.replace(criterion=Part("repertory.losses.softtriple:SoftTripleLoss", options, "softtriple"))
