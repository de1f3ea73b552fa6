r"""Learn fine-grained features from coarse labels: classify coarsely and tell single examples apart, on one embedding.

## Idea
Labels say "dog", but the task to come asks for the breed. Training on the coarse labels alone presses a class together
and fine differences with it; telling examples apart without labels ignores what is known. CoIns minimises both on the
same normalised embedding: the coarse labels fix the rough layout, and telling each example from all others keeps them
apart inside a class. The paper bounds the error of the fine task by these two terms.

## Use it when
- only coarse labels can be had, and search or transfer will be about something finer;
- you would train self-supervised, but have labels of some kind.

## Do not use it when
- labels are as fine as the task: the instance term then works against them;
- no changes of the inputs are known that leave their meaning alone: examples are told apart across two views.

## Equations
With $q_i$ the unit features of one view of $x_i$, $k_i$ those of another by a copy of the network that follows it
slowly, a queue of earlier keys $n_j$, and unit vectors $v_c$ of the coarse classes,
$$ \ell_i = -\log \frac{\exp(q_i^\top k_i / T)}{\exp(q_i^\top k_i / T) + \sum_j \exp(q_i^\top n_j / T)}
   - w \log \frac{\exp(q_i^\top v_{y_i} / T)}{\sum_c \exp(q_i^\top v_c / T)} . $$
The copy's weights move by $1 - m$ of the way to the network's before each step; $k_i$ joins the queue after it.

## Defaults
`weight=0.5` ($w$), `temperature=0.2` ($T$), a queue of `size=65536` and `momentum=0.999` ($m$) are the authors' for
ImageNet, where a run has a million steps; short runs on small data want a momentum of 0.99. The loss that was there
before trains only what comes after the embedding, such as a classifier.

## Cost
One forward pass without gradient more, `batch * size * dim` multiplications, a copy of the weights and the queue.

## Claim
Both terms together find the fine classes better than either alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from repertory.card import Card
from repertory.core.features import FEATURES, NetworkFeatures
from repertory.core.method import Inner, Method
from repertory.core.momentum import MomentumKeys
from repertory.core.randomness import seeded
from repertory.core.state import Run, State
from repertory.errors import DataError, check_choice, check_number
from repertory.layers.embedding import unit_rows
from repertory.losses.normalised_softmax import NormalisedSoftmaxLoss
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="coins",
    name="CoIns",
    title="Weakly Supervised Representation Learning with Coarse Labels",
    authors="Yuanhong Xu et al.",
    year=2021,
    venue="ICCV 2021",
    link="https://arxiv.org/abs/2005.09681",
    kind="algorithm",
    entry="CoIns",
    problems=(
        "coarse labels",
        "fine-grained retrieval",
        "weak supervision",
        "class collapse",
        "image retrieval",
        "self-supervision with labels",
    ),
    defaults={"weight": 0.5, "temperature": 0.2, "size": 65536, "momentum": 0.999, "features": "auto"},
    scenarios=("retrieval",),
    needs=("views", "classes"),
    search={"weight": (0.1, 2.0), "temperature": (0.1, 0.5), "momentum": (0.9, 0.999)},
    tags=("MoCo", "instance discrimination", "momentum encoder", "contrastive", "embedding", "InfoNCE"),
)

_ABSENT = -1e9
"""What stands for the similarity to a key that does not count."""


def instance_loss(
    queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float = 0.2, left_out: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy of finding each query's key among negatives, on cosines.

    Computed in float32 or wider, also under autocast. The gradient reaches the queries only.

    Args:
        queries: `(batch, dim)`, of any length.
        keys: the key of each query, `(batch, dim)`.
        negatives: further keys `(negatives, dim)`.
        temperature: divides the cosines.
        left_out: negatives that do not count for a query, `(batch, negatives)` bool.

    Returns:
        `(batch,)`, in nats; 0 without negatives.

    Raises:
        OptionError: if the temperature is not above 0.
        DataError: if shapes do not match.

    >>> instance_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1.0)
    tensor([0.3133])
    """
    check_number("temperature", temperature, above=0)
    if queries.ndim != 2 or keys.shape != queries.shape or negatives.shape[1:] != queries.shape[1:]:
        raise DataError(
            f"queries {tuple(queries.shape)}, keys {tuple(keys.shape)} and negatives {tuple(negatives.shape)} must be "
            "(batch, dim), (batch, dim) and (negatives, dim) with the same dim"
        )
    with torch.autocast(queries.device.type, enabled=False):
        scaled = unit_rows(queries) / temperature
        keys, negatives = (unit_rows(rows.detach()).to(scaled) for rows in (keys, negatives))
        others = scaled @ negatives.T
        if left_out is not None:
            others = others.masked_fill_(left_out, _ABSENT)
        # The logarithm of one plus the negatives' part over the key's, without a matrix that holds both.
        return functional.softplus(others.logsumexp(1) - (scaled * keys).sum(1))


class CoIns(Method):
    """Coarse classification and instance discrimination on the same embedding.

    The network runs on the first of two views of each example, its slow copy on the second. The features are the
    network's output where its criterion takes embeddings, else what enters its last linear layer. CoIns stands in place
    of the criterion for them, and for everything below; what comes after them, such as a classifier or the criterion's
    own class vectors, goes on learning from the criterion, so that the network predicts as before. The loss returned is
    the sum of both.

    Args:
        weight: of the coarse term (w); 0 is MoCo.
        temperature: divides the cosines of both terms (T).
        size: keys in the queue, at most the number of examples.
        momentum: share of the copy that each step keeps (m).
        features: "auto", or where the features are taken: "output" or "penultimate".

    Raises:
        OptionError: if an option is outside its range.
        DataError: in a step, if a label is not one of the run's classes.

    >>> from repertory import Step
    >>> model = torch.nn.Linear(2, 3)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> criterion = NormalisedSoftmaxLoss(outputs=2, dim=3)
    >>> step = Step(model, optimizer, criterion, methods=[CoIns(size=8)], classes=2)
    >>> views = [torch.randn(4, 2), torch.randn(4, 2)]
    >>> _ = step({"input": views[0], "views": views, "target": torch.tensor([0, 1, 0, 1])})
    >>> step.explain(), len(step.methods[0].keys.queue)
    ('step[coins] > gradient > loss[coins]', 4)

    Notes:
        The authors' queue starts with random keys, which count; this one starts empty. Where batches have an index, an
        example's own earlier keys are not among its negatives; theirs, at a twentieth of the data, holds none. Their
        projection has two layers and is left out for the next task; here the embedding that the network ends in takes
        its place. The copy is in evaluation mode, so that keys do not depend on their batch through batch-norm, for
        which they shuffle keys across devices. The paper's variants with a trained vector for each example are left
        out.

    Reference: Xu, Qian, Li, Jin, Hu, https://arxiv.org/abs/2005.09681.
    """

    slug = "coins"
    needs = frozenset({"views", "classes"})
    takes = {"target": "hard"}

    def __init__(
        self,
        weight: float = 0.5,
        temperature: float = 0.2,
        size: int = 65536,
        momentum: float = 0.999,
        features: str = "auto",
    ) -> None:
        super().__init__()
        check_number("weight", weight, minimum=0)
        check_number("temperature", temperature, above=0)
        check_number("size", size, minimum=1, integer=True)
        check_number("momentum", momentum, minimum=0, maximum=1)
        check_choice("features", features, FEATURES)
        self.weight = weight
        self.temperature = temperature
        self.size = size
        self.momentum = momentum
        self.features = features
        self._features: NetworkFeatures | None = None

    def setup(self, run: Run) -> None:
        """Listen to the features, copy the network, and make the coarse classes' vectors."""
        assert run.classes is not None
        self._features = NetworkFeatures(run.model, run.criterion, self.features)
        self.keys = MomentumKeys(run, self.features, self.size, self.momentum)
        with seeded(run.seed, self.slug):
            coarse = NormalisedSoftmaxLoss(run.classes, self._features.dim, self.temperature, reduction="none")
        self.coarse = coarse.to(run.device)

    def step(self, state: State, inner: Inner) -> Tensor:
        """Let the copy follow the network, and push the step's keys once the step is over."""
        target, classes = state.batch["target"], state.run.classes
        # Elsewhere the look at the labels would have to wait for the device.
        if target.device.type == "cpu" and not bool(((target >= 0) & (target < classes)).all()):
            raise DataError(
                f"target holds {int(target.min())} to {int(target.max())}, but the run has classes={classes}; give the "
                "coarse labels, counted from 0, and their number"
            )
        self.keys.follow()
        loss = inner(state)
        for keys, target, index in state.memo.pop(self.slug, ()):
            self.keys.queue.push(keys, target, index)
        return loss

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Evaluate on one view, add both terms, and keep the criterion's gradient from the features."""
        assert self._features is not None
        first, second = state.batch["views"][:2]
        viewed = state.with_batch(input=first)
        with self._features.recorded(0.0) as seen:
            loss = inner(viewed)
        state.output = viewed.output
        queries, target, index = seen[-1], state.batch["target"], state.batch.get("index")
        keys, queue = self.keys(second), self.keys.queue
        left_out = (~queue.there()).expand(len(keys), -1)
        if index is not None:
            left_out = left_out | (queue.index == index[:, None])
        values = instance_loss(queries, keys, queue.features, self.temperature, left_out)
        values = values + self.weight * self.coarse(queries, target)
        if state.evaluation == 0:
            state.memo.setdefault(self.slug, []).append((keys, target, index))
        return loss + (values if loss.ndim else values.mean())


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Add CoIns to the recipe's methods."""
    return recipe.add("methods", Part("repertory.algorithms.coins:CoIns", options, "coins"))
