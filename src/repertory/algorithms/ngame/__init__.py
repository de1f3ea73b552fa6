r"""Make batches of similar examples, so that the others in the batch are hard negatives at no extra cost.

## Idea
Losses that take negatives from the batch learn little from random batches, where negatives are easy, and mining hard
ones from an index costs time, memory and freshness. NGAME clusters the training examples by their embeddings every
few epochs, into small clusters of equal size, and fills each batch with whole clusters at random. Batch-mates are
then each other's hard negatives. Clusters start at one example and double along a curriculum, as the embeddings
become good. The embeddings are those of ordinary training, kept in a table: there is no extra pass.

## Use it when
- you train embeddings with in-batch negatives and there are far more labels or classes than fit in a batch;
- points have sets of labels (extreme classification, dense retrieval): use the parts alone, as in the paper;
- an index of hard negatives is too slow or too stale for you.

## Do not use it when
- there are few classes: a batch of any kind holds the hard ones already, and similar examples are mostly positives;
- labels are some thousands and the network is small: in the claim below the harder negatives cost precision;
- labels are incomplete: the nearest "negatives" of a cluster are then often unlabelled positives;
- clusters would be about as large as the batch, or come before the embeddings are any good: both hurt;
- training is shorter than the curriculum; give it other epochs with `grow_at`.

## Equations
Every `refresh` epochs the $n$ unit embeddings are cut into $2^m \ge n / c$ balanced clusters by spherical 2-means,
halved again and again: rows sorted by $x^\top (\mu_1 - \mu_2)$, the upper half to 1, the lower to 2. The size $c$
doubles at each epoch of `grow_at`. With point $x_i$, its drawn label $z_i$, and the labels of the batch that are not
relevant to $i$:
$$ \ell_i = \frac1k \sum_{j \in N_i} w_{ij} \big[ x_i^\top z_j - x_i^\top z_i + \gamma \big]_+ , $$
$N_i$ the $k$ of the largest $x_i^\top z_j$, and $w_i$ a softmax over it of the violators' $x_i^\top z_j / \tau$.

## Defaults
`grow_at` (`10,20,25,50,...,200`, of 300 epochs), `refresh=5`, `margin` ($\gamma$) `=0.3`, `negatives` ($k$) `=10` and
`temperature` ($\tau$) `=0.1` are those of the authors' LF-AmazonTitles-131K, at batches of 1600. The default of 30
epochs here gets clusters of up to 8. In a comparison labels are classes: an example's positives are the others of its
class, and each is followed in the batch by a random one of them, which stands for the label that the paper draws.
`own_loss=false` leaves network and loss as they are and changes the batches alone.

## Cost
One row of `dim` numbers an example, and the clustering: for 100,000 examples of 128 numbers about 6 seconds of one
core, every `refresh` epochs. The loss compares all examples of a batch.

## Claim
Negatives are harder than in random batches of the same size, and the network ends up more accurate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from repertory.algorithms.ngame.batches import ClusterBatches, WithPartners, cluster_size
from repertory.algorithms.ngame.clustering import balanced_clusters, halve
from repertory.algorithms.ngame.negatives import NGAMELoss, draw_positives, in_batch_margin_loss, relevance
from repertory.card import Card
from repertory.core.method import Inner, Method
from repertory.core.state import Run, State
from repertory.core.tables import ExampleTable
from repertory.errors import OptionError, check_choice, check_number
from repertory.layers.embedding import with_embedding
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="ngame",
    name="NGAME",
    title="NGAME: Negative Mining-aware Mini-batching for Extreme Classification",
    authors="Kunal Dahiya et al.",
    year=2023,
    venue="WSDM 2023",
    link="https://arxiv.org/abs/2207.04452",
    kind="algorithm",
    entry="NGAME",
    problems=(
        "hard negatives",
        "in-batch negatives",
        "batch construction",
        "extreme classification",
        "dense retrieval",
        "deep metric learning",
    ),
    defaults={
        "grow_at": (10, 20, 25, 50, 75, 100, 125, 150, 200),
        "refresh": 5,
        "partners": False,
    },
    scenarios=("retrieval",),
    needs=("index",),
    neutral={"own_loss": False, "grow_at": ()},
    across_batch=True,
    tags=("hard negative mining", "sampler", "curriculum", "clustering", "multi-label", "triplet loss", "memory bank"),
)

__all__ = [
    "CARD",
    "NGAME",
    "ClusterBatches",
    "NGAMELoss",
    "WithPartners",
    "balanced_clusters",
    "cluster_size",
    "draw_positives",
    "edit",
    "halve",
    "in_batch_margin_loss",
    "relevance",
]


class NGAME(Method):
    """Batches of similar examples, from the embeddings that training produces anyway.

    The network's output, or the first of several, is the embedding of an example. Those of the first pass of each step
    are kept, and at the ends of some epochs the order of the next ones is made of them: `run.sampler`, which
    `repertory.training.train` follows. In a loop of your own, ask it at the start of each epoch for the order:
    `run.sampler(rows, targets, generator)`.

    Args:
        grow_at: epochs, counted from 0, at which the size of clusters doubles, beginning with 1. Before the first of
            them the order is random; none leaves it random for good.
        refresh: examples are clustered anew at the start of epochs that are a multiple of this.
        partners: follow each example by a random one of its class, for losses that need a positive in the batch.

    Raises:
        OptionError: if an option is out of range, or the planned epochs end before the first clusters.

    >>> import torch
    >>> from repertory import Step
    >>> model = torch.nn.Linear(2, 2)
    >>> method = NGAME(grow_at=[1], refresh=1)
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), NGAMELoss(), methods=[method], epochs=3)
    >>> _ = step((torch.randn(8, 2), torch.arange(8) % 2, torch.arange(8)))
    >>> step.end_epoch()
    >>> method.batches.clusters.bincount().tolist()
    [2, 2, 2, 2]

    Notes:
        As in the authors' code, clusters follow the size of their epoch only when they are made anew, and their number
        is rounded up to a power of two, so that their mean size lies between half of the nominal one and that. What is
        clustered is the table that training filled ("asynchronous" there), in which a row may be some epochs old. The
        second stage of the paper, classifiers on frozen embeddings, is not part of this.

    Reference: Dahiya et al., https://arxiv.org/abs/2207.04452.
    """

    slug = "ngame"
    needs = frozenset({"index"})
    owns = frozenset({"sampler"})

    def __init__(
        self,
        grow_at: Sequence[int] = (10, 20, 25, 50, 75, 100, 125, 150, 200),
        refresh: int = 5,
        partners: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(grow_at, (tuple, list)):
            raise OptionError(f"grow_at={grow_at!r} is not allowed: grow_at must be a list of epochs, as in [10,20,25]")
        for epoch in grow_at:
            check_number("grow_at", epoch, minimum=0, integer=True)
        check_number("refresh", refresh, minimum=1, integer=True)
        check_choice("partners", partners, (True, False))
        self.grow_at = tuple(grow_at)
        self.refresh = refresh
        self.partners = partners
        self.table = ExampleTable()
        self.batches = ClusterBatches()

    def setup(self, run: Run) -> None:
        """Make the table, and take over the order of the examples."""
        if self.grow_at and run.epochs is not None and run.epochs <= min(self.grow_at):
            raise OptionError(
                f"grow_at={list(self.grow_at)} leaves nothing of {run.epochs:g} epochs: the first clusters come with "
                f"epoch {min(self.grow_at)}; train for more epochs, or give smaller values"
            )
        self.table = ExampleTable(run.examples)
        self.batches = ClusterBatches(run.examples, seed=run.seed)
        run.sampler = WithPartners(self.batches) if self.partners else self.batches

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Keep the embeddings of the first pass."""
        loss = inner(state)
        if self.grow_at and state.evaluation == 0:
            output = state.output
            while isinstance(output, (tuple, list)):
                output = output[0]
            self.table.write(state.batch["index"], output.flatten(1))
        return loss

    def epoch_end(self, run: Run) -> None:
        """Cluster the examples for the next epoch, where it is due."""
        coming = run.epoch + 1
        size = cluster_size(coming, self.grow_at)
        if size == 1 or coming % self.refresh:
            return
        index, rows = self.table.entries()
        # A run that has diverged is stopped by the loop, which says so.
        if len(index) > 1 and bool(rows.isfinite().all()):
            self.batches.update(rows, size, index=index, generator=run.generator(self.slug))

    def get_extra_state(self) -> dict[str, Any]:
        """Return the clusters, for the state dict."""
        return self.batches.state_dict()

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over saved clusters."""
        self.batches.load_state_dict(dict(state))


def edit(
    recipe: Recipe,
    dim: int = 64,
    own_loss: bool = True,
    margin: float = 0.3,
    negatives: int = 10,
    temperature: float | None = 0.1,
    **options: Any,
) -> Recipe:
    """Make batches of similar examples, and train an embedding with the margin loss on them unless `own_loss=False`."""
    check_choice("own_loss", own_loss, (True, False))
    # Named in the recipe too, so that it prints and another method that orders the examples is refused.
    order = Part("repertory.algorithms.ngame.batches:ClusterBatches", {}, "ngame")
    recipe = recipe.replace(sampler=order)
    recipe = recipe.add("methods", Part("repertory.algorithms.ngame:NGAME", {"partners": own_loss, **options}, "ngame"))
    if not own_loss:
        return recipe
    loss = {"margin": margin, "negatives": negatives, "temperature": temperature}
    recipe = with_embedding(recipe, dim, "ngame")
    return recipe.replace(criterion=Part("repertory.algorithms.ngame.negatives:NGAMELoss", loss, "ngame"))
