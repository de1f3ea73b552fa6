r"""Segment one kind of object from its extreme points: sure pixels first, then what resembles them, then train anew.

## Idea
An annotator clicks the points of an object that lie farthest out along each axis, four in an image and six in a volume.
Cheapest paths over the gradient between them and a random walker give a first mask that is sure of some pixels and
leaves the others inside the box open. A network is trained on it, with a contrast that makes features of the object
alike. For a short while it is then trained on, and open pixels that resemble nearly all drawn pixels of the object
count as object. What it predicts inside the boxes are full masks, on which a network is trained from scratch.

## Use it when
- masks are too dear, and a few clicks an object are not; images or volumes, one kind of object;
- the object looks alike all over, so that what is open near its border resembles its sure inside.

## Do not use it when
- there are several kinds of object, or objects so close that their boxes overlap by much;
- the object has parts that look different: what resembles none of the drawn pixels is never called object;
- edges are sharp and noise is low: the walker floods the box from the extreme points, and is sure of too much;
- training is short: features that are not alike yet spread nothing, or everything.

## Equations
Of n drawn pixels of the object and n of the background with features $f_i$, and
$q_{ij} = \sigma(\cos(f_i, f_j) / \tau)$,
$$ L_1 = L_\text{CE} - \operatorname{mean}_{i<j}\, [\, y_{ij} \log q_{ij} + (1 - y_{ij}) \log (1 - q_{ij})\, ] , $$
over all pairs but those of two pixels of the background; $y_{ij} = 1$ where both are of the object. Then an open pixel
u counts as object for the step if $\#\{j : \cos(f_u, f_j) > \lambda\} > \alpha N$ among N drawn pixels of the object,
and
$$ L_2 = L_\text{CE} + \omega \operatorname{mean}_u\, [ -\log p_u(\text{object}) ] . $$

## Defaults
All from the authors' code: `n=100` and `temperature=0.1` of the contrast, `similarity=0.96` ($\lambda$),
`agreement=0.96` ($\alpha$), `weight=0.1` ($\omega$), `lr_scale=0.01` while labels spread. They train 200 epochs, spread
for 100 steps and train 200 epochs anew; here `share=0.5` of the budget goes to the first two, and a tenth of that,
`propagation=0.1`, to spreading. The random walker: beta 130, sure above 0.8 and up to 0.1, 8 runs; see `initial_mask`.

## Cost
No more than the baseline's budget, of which training anew gets what `share` leaves. Spreading costs `n` cosines an open
pixel, one matrix product. The first masks cost a sparse solution for each of up to 8 runs, about 0.05 s for 64 x 64.

## Claim
With extreme points alone a network reaches a mean Dice of 81 % on breast tumours in MRI; each stage adds to it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from repertory.card import Card
from repertory.core.dense import IGNORED
from repertory.curation.simple_propagation.contrast import PairContrast, pair_contrast
from repertory.curation.simple_propagation.initial import FOREGROUND, extreme_points, initial_mask
from repertory.curation.simple_propagation.propagation import SimilarityPropagation, propagate
from repertory.errors import DataError, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="simple-propagation",
    name="SimPLe",
    title=("SimPLe: Similarity-Aware Propagation Learning for Weakly-Supervised Breast Cancer Segmentation in DCE-MRI"),
    authors="Yuming Zhong, Yi Wang",
    year=2023,
    venue="MICCAI 2023",
    link="https://arxiv.org/abs/2306.16714",
    kind="curation",
    entry="SimPLe",
    problems=(
        "weakly supervised segmentation",
        "extreme points",
        "segmentation without masks",
        "pseudo-label propagation",
        "3D medical images",
    ),
    defaults={
        "share": 0.5,
        "propagation": 0.1,
        "n": 100,
        "temperature": 0.1,
        "similarity": 0.96,
        "agreement": 0.96,
        "weight": 0.1,
        "lr_scale": 0.01,
    },
    scenarios=("weak_segmentation",),
    search={"share": (0.3, 0.7), "weight": (0.03, 1.0)},
    tags=("clicks", "points", "scribbles", "random walker", "contrastive", "U-Net", "medical imaging", "MRI"),
)

__all__ = [
    "CARD",
    "PairContrast",
    "SimPLe",
    "SimilarityPropagation",
    "edit",
    "extreme_points",
    "initial_mask",
    "pair_contrast",
    "propagate",
]


class SimPLe:
    """Make full masks of masks that leave pixels open: train with contrast, spread labels, predict.

    All examples are kept. From then on the bench's training masks are those that were predicted, with background
    wherever the first masks had it. An image in which the network sees no object keeps its first mask.

    Args:
        share: share of the whole budget for both trainings that lead to the masks.
        propagation: share of that in which labels spread.
        n: pixels that are drawn in each step, of the object and of the background.
        temperature: of the contrast, see `PairContrast`.
        similarity: cosine above which two pixels are alike, see `SimilarityPropagation`.
        agreement: share of the object's pixels that an open one must be like.
        weight: of the loss at pixels to which the label spread.
        lr_scale: factor on the learning rate while labels spread.

    Raises:
        OptionError: if an option is out of range.

    >>> SimPLe().share
    0.5

    Notes:
        The authors cut patches of volumes, half of them around a pixel of the object and half around one of the
        background, and add the cross-entropies of both halves, the contrast of the first alone. Here batches are whole
        images, which show both. Their decoder ends in instance norm, so that features may point in opposite
        directions; where they end in a ReLU, as in the small U-Net, they are at right angles at best. That an image in
        which nothing is found keeps its first mask is not in their code. In volumes, which the scenario does not read,
        give the two methods to a `Step` one after the other, and train anew on what is predicted inside the boxes.

    Reference: Zhong, Wang, https://arxiv.org/abs/2306.16714.
    """

    def __init__(
        self,
        share: float = 0.5,
        propagation: float = 0.1,
        n: int = 100,
        temperature: float = 0.1,
        similarity: float = 0.96,
        agreement: float = 0.96,
        weight: float = 0.1,
        lr_scale: float = 0.01,
    ) -> None:
        check_number("share", share, above=0, below=1)
        check_number("propagation", propagation, minimum=0, maximum=1)
        check_number("lr_scale", lr_scale, above=0)
        self.share = share
        self.propagation = propagation
        self.lr_scale = lr_scale
        self.contrast = PairContrast(n, temperature)
        self.spreading = SimilarityPropagation(n, similarity, agreement, weight)

    def choose(self, bench: Any) -> Tensor:
        """Put full masks in place of the bench's training masks, and return all rows.

        Raises:
            DataError: if a mask holds other values than 0, 1 and 255.
        """
        first = bench.splits.train.targets
        if bool(((first != 0) & (first != FOREGROUND) & (first != IGNORED)).any()):
            raise DataError(
                f"simple-propagation takes masks of one kind of object: 0, {FOREGROUND}, and {IGNORED} where they are "
                f"open, but there is a {int(first[first != IGNORED].max())}; choose the class of the object"
            )
        second = self.share * self.propagation
        model = bench.fresh_model("simple-propagation")
        model = bench.train(model, self.share - second, name="simple-propagation-contrast", objective=self.contrast)
        model = bench.train(
            model,
            second,
            name="simple-propagation-spreading",
            objective=self.spreading,
            lr_scale=self.lr_scale,
        )
        model.eval()
        with torch.no_grad():
            found = torch.cat([model(batch["input"]).argmax(1).cpu() for batch in bench.batches("train")])
        bench.count(forward=len(found))
        masks = (found == FOREGROUND).long() * (first != 0)
        # A network that sees no object anywhere would else teach the next one that there is none.
        unseen = (masks.flatten(1) == FOREGROUND).sum(1) == 0
        masks[unseen] = first[unseen]
        train = dataclasses.replace(bench.splits.train, targets=masks)
        bench.splits = dataclasses.replace(bench.splits, train=train)
        return torch.arange(len(masks))


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Make full masks first, with a share of the budget.

    Raises:
        OptionError: if an option is out of range.
    """
    part = Part("repertory.curation.simple_propagation:SimPLe", options, "simple-propagation")
    return recipe.replace(train_share=recipe.train_share - SimPLe(**options).share).add("curation", part)
