r"""Keep the examples whose embeddings move least when a self-supervised model is adapted to the data you care about.

## Idea
Pre-train on data that resemble those you will use. A model trained without labels on a large pool is trained on for a
short while on unlabelled examples of the target. What resembles the target keeps its place; what does not is
forgotten. The distance by which each example's embedding moves, its catastrophic-forgetting score (CFS), ranks the
pool: keep the lowest half and train anew on it. The mean score says how far a whole data set is from the target. The
paper's second part is a stem for vision transformers (ICS): three convolutions with instance and batch norm in place
of cutting an image into patches.

## Use it when
- a large pool of mixed origin is to pre-train a model for one kind of data, of which you have unlabelled examples;
- you want one number for the gap between two data sets that no labels describe;
- a vision transformer is trained from scratch on few images, or contrast and brightness differ between cameras: take
  the stem, `stem=true` or `repertory.layers.ConvStem`.

## Do not use it when
- the pool is of the target's kind already: every example moves alike, and half of the data is lost for nothing;
- the target's examples are so few that a short adaptation is noise, or so many that you can train on them alone;
- classes are rare in the target: they may go whole, since the choice does not look at labels;
- you cannot look at what it drops: on the small pool of the claim below the score did not find the foreign half.

## Equations
With $\theta_s$ trained without labels on the pool and $\theta_t$ trained on from it on the target,
$$ \mathrm{CFS}(x) = 1 - \frac{f(x; \theta_s)^\top f(x; \theta_t)}{\lVert f(x; \theta_s) \rVert\,
   \lVert f(x; \theta_t) \rVert} . $$

## Defaults
`keep=0.5` is the authors' half of LUPerson, at which nothing was lost; they found 0.6 a little better. They
pre-trained with DINO for 100 epochs; here the two trainings without labels share `share=0.2` of the budget, a quarter
of it (`adaptation`) on the target at a tenth of the learning rate: long adaptation makes every example forget. The
objective is contrastive, with `temperature=0.2`. In a comparison the pool is the training part, and the target the
unlabelled examples where the data have some, else the inputs of the validation part. The stem's width is 64 and its
stride 2.

## Cost
`share` of the budget, and two passes over the pool. The training on what is kept makes as many steps as on all of it.
The stem costs about 0.9 billion multiplications for an image of 256 x 128 and tokens of 384 numbers.

## Claim
Pre-training on the half that moves least is as good as on all of the pool, and far better than on the other half.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repertory.algorithms.simclr import SimCLR
from repertory.card import Card
from repertory.curation.transreid_ssl.forgetting import cfs_scores, dataset_gap, forgetting, select
from repertory.errors import check_choice, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="transreid-ssl",
    name="TransReID-SSL (CFS + ICS)",
    title="Self-Supervised Pre-Training for Transformer-Based Person Re-Identification",
    authors="Hao Luo et al.",
    year=2021,
    venue="arXiv 2021",
    link="https://arxiv.org/abs/2111.12084",
    kind="curation",
    entry="CFS",
    problems=(
        "pre-training data selection",
        "domain gap",
        "data pruning",
        "self-supervised pre-training",
        "convolutional stem for vision transformers",
        "person re-identification",
    ),
    defaults={"keep": 0.5, "share": 0.2, "adaptation": 0.25, "temperature": 0.2},
    scenarios=("supervised", "retrieval"),
    neutral={"keep": 1.0},
    tags=(
        "catastrophic forgetting score",
        "ICS",
        "IBN",
        "instance norm",
        "coreset selection",
        "transfer",
        "unlabelled",
    ),
)

__all__ = ["CARD", "CFS", "cfs_scores", "dataset_gap", "edit", "forgetting", "select"]

_ADAPTATION_LR = 0.1
"""Factor on the learning rate while the model is adapted: a pull towards the target, not a training of its own."""
_PROJECTION = 64
"""Numbers in which views are compared."""


class CFS:
    """Choose the training examples that are close to the unlabelled ones, by how little they are forgotten.

    Args:
        keep: share of the training examples to keep, in (0, 1]; 1 keeps all and trains nothing.
        share: share of the whole budget that the two trainings without labels spend together.
        adaptation: share of that which is spent on the target.
        temperature: of the contrastive objective.

    Raises:
        OptionError: if an option is out of range.

    >>> CFS(keep=1.0).spends, CFS().spends
    (0.0, 0.2)

    Notes:
        The released code ships a sorted list of files, not how it was made; distance and schedules here follow the
        paper's outline. Self-supervised training there is DINO on vision transformers; here it is whatever network the
        recipe has, with the contrastive objective of SimCLR.

    Reference: Luo, Wang, Xu, Ding, Zhou, Wang, Li, Jin, https://arxiv.org/abs/2111.12084.
    """

    def __init__(
        self, keep: float = 0.5, share: float = 0.2, adaptation: float = 0.25, temperature: float = 0.2
    ) -> None:
        check_number("keep", keep, above=0, maximum=1)
        check_number("share", share, above=0, below=1)
        check_number("adaptation", adaptation, above=0, below=1)
        check_number("temperature", temperature, above=0)
        self.keep = keep
        self.share = share
        self.adaptation = adaptation
        self.temperature = temperature

    @property
    def spends(self) -> float:
        """Share of the whole budget that `choose` spends: nothing where all examples are kept."""
        return 0.0 if self.keep == 1 else self.share

    def choose(self, bench: Any) -> Tensor:
        """Score the training examples of `bench` and return the rows to keep, ascending."""
        if self.keep == 1:
            return torch.arange(len(bench.splits.train.targets))
        return select(self.scores(bench), self.keep)

    def scores(self, bench: Any) -> Tensor:
        """Return each training example's score `(examples,)`, on the CPU."""
        target = "validation" if bench.splits.unlabelled is None else "unlabelled"
        objective, name = SimCLR(self.temperature, _PROJECTION), "transreid-ssl"
        spent = self.share * self.adaptation
        model = bench.train(bench.fresh_model(name), self.share - spent, name=f"{name}-source", objective=objective)
        before, _ = bench.features(model, "train")
        model = bench.train(
            model, spent, name=f"{name}-target", objective=objective, part=target, lr_scale=_ADAPTATION_LR
        )
        return forgetting(before, bench.features(model, "train")[0])


def edit(recipe: Recipe, stem: bool = False, **options: Any) -> Recipe:
    """Choose the training examples first, with a share of the budget; with `stem=True` also give a transformer the ICS.

    Raises:
        OptionError: if an option is out of range.
    """
    check_choice("stem", stem, (True, False))
    spends = CFS(**options).spends
    recipe = recipe.replace(train_share=recipe.train_share - spends)
    if stem:
        recipe = recipe.add("surgery", Part("repertory.layers.conv_stem:replace_patch_embed", {}, "transreid-ssl"))
    return recipe.add("curation", Part("repertory.curation.transreid_ssl:CFS", options, "transreid-ssl"))
