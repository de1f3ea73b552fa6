r"""Find new classes in one set of unlabelled examples after the other, without losing the classes that are known.

## Idea
Unlabelled examples keep coming, and among them are classes that nobody has named. Features that tell known classes
apart are poor at finding new ones, and training on what is new overwrites what is known. So at each time step the
network has two branches. The static one classifies as before. The dynamic one starts as its copy and grows on the
examples that look new: two of them are taken for one class where their largest features are in the same places. Then
both are merged, by an average of their weights, with one classifier for known and new classes, and the merged network
is trained shortly on labels kept, pseudo-labels and what the static branch had said.

## Use it when
- sets of unlabelled examples come one after the other, with a number of new classes in each that you know;
- labels of the known classes are there, and some examples of them can be kept;
- one network must tell all classes apart at the end: it costs at prediction what it did before.

## Do not use it when
- the number of new classes is unknown: it has to be given;
- a set has one new class only and that is all you expect: there are no pairs to tell apart, and it is then no more
  than a split by novelty with pseudo-labels;
- the network is hardly trained, or its last features are not those after a ReLU: the places of their largest entries
  then mean little, and all pairs count as different;
- a set is passed a few times only: with ten passes over all digits it found almost nothing of what k-means found, with
  sixty it found more. In a comparison raise `--epochs` until it does;
- known classes must not lose anything: a static classifier with k-means on what it rejects forgets nothing.

## Equations
The set is split by how new an example looks to the static branch $f$, at a quantile of known classes' examples. With
$g \leftarrow f$, $p$ and $p'$ the new outputs' probabilities for two changed versions, $s_{ij} = 1$ where the $k$
largest features of $g(x_i)$ and $g(x_j)$ are in the same places, new examples $N$ and all others $K$:
$$ L_{grow} = -\operatorname*{mean}_{i,j \in N} \left[ s_{ij} \log p_i^\top p'_j
   + (1 - s_{ij}) \log (1 - p_i^\top p'_j) \right] + w \lVert p - p' \rVert^2
   + b \, T^2 \mathrm{KL}(f(K) / T \,\|\, g(K) / T) . $$
Merging: $\theta_f \leftarrow m\, \theta_f + (1 - m)\, \theta_g$, new rows of the classifier from $g$ at the mean length
of the others, then
$$ L_{merge} = \mathrm{CE}(\text{labels, sure pseudo-labels})
   + b \, T^2 \mathrm{KL}(f_{old}(K) / T \,\|\, f(K) / T) . $$

## Defaults
`k=5`, `consistency=50` and its ramp (to three quarters of growing, where AutoNovel has 150 of 200 epochs) are
AutoNovel's. The paper's own values were not at hand. Designed here: `growing=0.5` of a time step's budget,
`momentum` ($m$) `=0.5` once, `distillation` ($b$) `=1` at `temperature` ($T$) `=2`, the split by the largest
`"probability"` at `quantile=0.95`, the surest `confident=0.7` of the pseudo-labels, 20 `exemplars` a class. In a
comparison `share=0.6` of the budget is for the time steps. `k=5` is for features of a few hundred numbers: with 64 to
128 of them try 3.

## Cost
While growing two versions of each example, forward and backward, and products of all pairs in a batch; while merging
one. Two more forward passes over the set, and one to choose what is kept. A copy of the weights, and
`examples * known classes` numbers, during a time step only.

## Claim
Less forgetting, and better discovery, than methods of category discovery combined with incremental learning.
"""

from __future__ import annotations

from typing import Any

from repertory.algorithms.grow_and_merge.merging import align_rows, grow_classifier, merge_branches
from repertory.algorithms.grow_and_merge.method import GM
from repertory.algorithms.grow_and_merge.novelty import novelty_scores, novelty_split
from repertory.algorithms.grow_and_merge.pairs import pair_bce, pair_targets
from repertory.algorithms.grow_and_merge.stream import GrowMerge, PlainTraining
from repertory.card import Card
from repertory.errors import OptionError, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="grow-and-merge",
    name="Grow and Merge",
    title="Grow and Merge: A Unified Framework for Continuous Categories Discovery",
    authors="Xinwei Zhang et al.",
    year=2022,
    venue="NeurIPS 2022",
    link="https://arxiv.org/abs/2210.04174",
    kind="algorithm",
    entry="GM",
    problems=(
        "novel category discovery",
        "new classes in unlabelled data",
        "continual learning",
        "forgetting",
        "unknown classes",
        "open-world recognition",
    ),
    defaults={
        "new": None,
        "k": 5,
        "growing": 0.5,
        "momentum": 0.5,
        "consistency": 50.0,
        "distillation": 1.0,
        "temperature": 2.0,
        "novelty": "probability",
        "quantile": 0.95,
        "confident": 0.7,
        "exemplars": 20,
    },
    scenarios=("category_discovery",),
    needs=("views", "index", "epochs", "training"),
    search={"momentum": (0.1, 0.9), "consistency": (1.0, 100.0), "distillation": (0.1, 10.0)},
    across_batch=True,
    tags=("rank statistics", "pseudo-labels", "weight averaging", "class-incremental", "stream", "clustering"),
)

__all__ = [
    "CARD",
    "GM",
    "GrowMerge",
    "PlainTraining",
    "align_rows",
    "edit",
    "grow_classifier",
    "merge_branches",
    "novelty_scores",
    "novelty_split",
    "pair_bce",
    "pair_targets",
]


def edit(recipe: Recipe, share: float = 0.6, **options: Any) -> Recipe:
    """Find new classes with Grow and Merge, with a share of the budget.

    Args:
        recipe: the baseline.
        share: share of the budget for the time steps, in (0, 1); the rest is for the known classes before them.
        **options: of `GM`, but for `new` where the data say it.

    Raises:
        OptionError: if the share is out of range, or `new` is given to a scenario of category discovery.
    """
    check_number("share", share, above=0, below=1)
    if recipe.objective is not None and options.get("new") is not None:
        raise OptionError(f"new={options['new']} is for a Step of your own: here each set says how many; leave it out")
    part = Part("repertory.algorithms.grow_and_merge:GM", options, "grow-and-merge")
    return recipe.replace(objective=part, train_share=recipe.train_share - share)
