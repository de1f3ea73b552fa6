r"""Pre-train on labels without pressing a class to one point: most of an example's nearest neighbours share its label.

## Idea
Cross-entropy draws all examples of a class together and so throws away what differs inside a class, which is what the
next task needs. LOOK asks less: of the nearest neighbours of an example, itself left out, most should have its label. A
vote of the neighbours, weighted by similarity, is trained by its log-likelihood. Same-class examples that are far apart
do not attract each other, so that a class may keep several modes.

## Use it when
- features are to serve another task than the one that has the labels: finer classes, retrieval, transfer;
- labels are coarse, and classes are made of distinct groups;
- you would use the supervised contrastive loss, but fear that it makes classes collapse.

## Do not use it when
- only the accuracy on these very labels counts: cross-entropy is simpler;
- a class has only a few examples in memory: they can never be the majority among `k` neighbours;
- training makes only a pass or two with `memory="bank"`, which fills during the first: use `memory="queue"`.

## Equations
With unit features $z_i$, a memory of unit vectors $m_j$ with labels $y_j$, and $N_i$ the $k$ of them most similar to
$z_i$, those of example i itself left out,
$$ p(y \mid i) = \frac{\sum_{j \in N_i,\, y_j = y} \exp(z_i^\top m_j / \tau)}
   {\sum_{j \in N_i} \exp(z_i^\top m_j / \tau)}, \qquad \ell_i = -\log p(y_i \mid i) . $$
Where $N_i$ has none of the right class, the most similar one of that class in memory joins it. With all of memory as
neighbours this is neighbourhood components analysis on cosines.

## Defaults
The paper's values could not be verified. `k=None` takes half as many neighbours as a class has entries in memory on
average, so that a class can hold the majority in at least two places. `temperature=0.1` is usual for this kind of loss;
a queue of `size=65536` and `momentum=0.999` are MoCo's, for a million images; small data wants 0.99. At `share=1` LOOK
alone trains the features, and the loss that was there before only what comes after them, such as a classifier.

## Cost
Besides the base step `batch * memory * dim` multiplications and a top-k. `memory="bank"` and `"batch"` make no further
pass; `"queue"` makes one forward pass more, of a copy of the network.

## Claim
Features learnt with LOOK transfer better to other tasks than those of cross-entropy and of other supervised
pre-training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repertory.algorithms.look.votes import look_accuracy, look_loss
from repertory.card import Card
from repertory.core.distributed import gather_rows, gather_with_gradient, own_rows
from repertory.core.features import FEATURES, NetworkFeatures
from repertory.core.method import Inner, Method
from repertory.core.momentum import MomentumKeys
from repertory.core.state import Run, State
from repertory.core.tables import ExampleTable
from repertory.errors import check_choice, check_number
from repertory.layers.embedding import unit_rows
from repertory.recipe import Part, Recipe

__all__ = ["LOOK", "edit", "look_accuracy", "look_loss"]

CARD = Card(
    slug="look",
    name="LOOK",
    title="Rethinking Supervised Pre-training for Better Downstream Transferring",
    authors="Yutong Feng et al.",
    year=2022,
    venue="ICLR 2022",
    link="https://arxiv.org/abs/2110.06014",
    kind="algorithm",
    entry="LOOK",
    problems=(
        "supervised pre-training",
        "transfer learning",
        "class collapse",
        "coarse labels",
        "classes with several modes",
        "image retrieval",
    ),
    defaults={
        "k": None,
        "temperature": 0.1,
        "share": 1.0,
        "memory": "bank",
        "no_positive": "nearest",
        "size": 65536,
        "momentum": 0.999,
        "features": "auto",
    },
    scenarios=("retrieval", "supervised"),
    needs=("index", "classes"),
    neutral={"share": 0.0},
    search={"temperature": (0.03, 0.3)},
    tags=("nearest neighbours", "leave-one-out", "memory bank", "momentum encoder", "NCA", "embedding"),
)


class LOOK(Method):
    """Leave-one-out nearest neighbours as the loss that shapes the features.

    The features are the network's output where its criterion takes embeddings, else what enters its last linear layer.
    LOOK stands in place of the criterion for them, and for everything below; what comes after them, such as a
    classifier or the criterion's own class vectors, goes on learning from the criterion, so that the network predicts
    as before. The loss returned is the sum of both.

    Args:
        k: number of neighbours, at most what memory holds; None takes half as many as memory has of a class on
            average. As many as memory holds make it neighbourhood components analysis.
        temperature: divides the similarities.
        share: share of LOOK in what reaches the features; the criterion's gradient has the rest. 0 is the baseline.
        memory: "bank" keeps the latest features of every example, those of the step before at best; "queue" those of
            the latest examples, from a copy of the network that follows it slowly; "batch" compares within the batch,
            over all processes, with a gradient to both sides.
        no_positive: what is done where no neighbour has the right label, see `look_loss`.
        size: entries of the queue, at most the number of examples.
        momentum: share of the copy that each step keeps (queue only).
        features: "auto", or where the features are taken: "output" or "penultimate".

    Raises:
        OptionError: if an option is outside its range.

    >>> from repertory import Step
    >>> from repertory.losses import NormalisedSoftmaxLoss
    >>> model = torch.nn.Linear(2, 3)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> step = Step(model, optimizer, NormalisedSoftmaxLoss(outputs=2, dim=3), methods=[LOOK(k=3)], classes=2)
    >>> batch = {"input": torch.randn(4, 2), "target": torch.tensor([0, 1, 0, 1]), "index": torch.arange(4)}
    >>> _ = step(batch), step(batch)
    >>> step.explain()
    'step[look] > gradient > loss[look]'

    Notes:
        The paper trains with a queue; the bank is for data small enough to keep a row of each example, and needs no
        second network. It fills during the first epoch. What the paper does where no neighbour has the right label, and
        its own k and temperature, could not be verified. There, the loss is on a projection, which is left out for the
        next task; make such a projection the end of your network where you want one. The copy of the network is in
        evaluation mode.

    Reference: Feng, Jiang, Tang, Jin, Gao, https://arxiv.org/abs/2110.06014.
    """

    slug = "look"
    needs = frozenset({"index", "classes"})
    takes = {"target": "hard"}

    def __init__(
        self,
        k: int | None = None,
        temperature: float = 0.1,
        share: float = 1.0,
        memory: str = "bank",
        no_positive: str = "nearest",
        size: int = 65536,
        momentum: float = 0.999,
        features: str = "auto",
    ) -> None:
        super().__init__()
        if k is not None:
            check_number("k", k, minimum=1, integer=True)
        check_number("temperature", temperature, above=0)
        check_number("share", share, minimum=0, maximum=1)
        check_choice("memory", memory, ("bank", "queue", "batch"))
        check_choice("no_positive", no_positive, ("nearest", "skip"))
        check_number("size", size, minimum=1, integer=True)
        check_number("momentum", momentum, minimum=0, maximum=1)
        check_choice("features", features, FEATURES)
        self.k = k
        self.temperature = temperature
        self.share = share
        self.memory = memory
        self.no_positive = no_positive
        self.size = size
        self.momentum = momentum
        self.features = features
        # Only a bank or a queue knows examples by their index, and only k=None counts classes.
        unasked = ({"index"} if memory == "batch" else set()) | (set() if k is None else {"classes"})
        self.needs = self.needs - unasked  # type: ignore[misc]
        self.bank: ExampleTable | None = None
        self.bank_labels: ExampleTable | None = None
        self.keys: MomentumKeys | None = None
        self._features: NetworkFeatures | None = None

    def setup(self, run: Run) -> None:
        """Listen to the features, and make the memory."""
        if self.share == 0:
            return
        self._features = NetworkFeatures(run.model, run.criterion, self.features)
        if self.memory == "bank":
            self.bank, self.bank_labels = ExampleTable(run.examples), ExampleTable(run.examples)
        elif self.memory == "queue":
            self.keys = MomentumKeys(run, self.features, self.size, self.momentum)

    def step(self, state: State, inner: Inner) -> Tensor:
        """Let the copy follow the network, and keep the step's features once the step is over."""
        if self.keys is not None:
            self.keys.follow()
        loss = inner(state)
        for rows, labels, index in state.memo.pop(self.slug, ()):
            if self.keys is not None:
                self.keys.queue.push(rows, labels, index)
            elif self.bank is not None and self.bank_labels is not None:
                self.bank.write(index, rows)
                # One more than the label, since rows that were never written are 0.
                self.bank_labels.write(index, labels + 1)
        return loss

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Add the neighbours' vote, and keep the criterion's gradient from the features."""
        if self._features is None:
            return inner(state)
        with self._features.recorded(1 - self.share) as seen:
            loss = inner(state)
        values = self._votes(seen[-1], state)
        if state.evaluation == 0 and self.memory != "batch":
            rows = unit_rows(seen[-1].detach()) if self.keys is None else self.keys(state.batch["input"])
            state.memo.setdefault(self.slug, []).append((rows, state.batch["target"], state.batch["index"]))
        return torch.add(loss, values if loss.ndim else values.mean(), alpha=self.share)

    def _votes(self, features: Tensor, state: State) -> Tensor:
        labels, index = state.batch["target"], state.batch.get("index")
        if self.keys is not None:
            queue = self.keys.queue
            memory, memory_labels, memory_index = queue.features, queue.labels, queue.index
        elif self.bank is not None and self.bank_labels is not None:
            if self.bank.rows is None or self.bank_labels.rows is None:
                # Still part of the graph, so that every parameter has a gradient.
                return 0 * features.sum(1)
            memory, memory_labels = self.bank.rows, self.bank_labels.rows.long() - 1
            memory_index = torch.arange(len(memory), device=memory.device)
        else:
            memory, memory_labels = gather_with_gradient(features), gather_rows(labels)
            memory_index = torch.arange(len(memory), device=memory.device)
            index = memory_index[own_rows(len(features), features.device)]
        k = self._neighbours(len(memory), state.run)
        return look_loss(
            features,
            labels,
            memory,
            memory_labels,
            k=k if k < len(memory) else None,
            temperature=self.temperature,
            index=index,
            memory_index=memory_index,
            no_positive=self.no_positive,
        )

    def _neighbours(self, entries: int, run: Run) -> int:
        if self.k is not None:
            return self.k
        assert run.classes is not None
        return max(1, round(entries / (2 * run.classes)))


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Add LOOK to the recipe's methods."""
    return recipe.add("methods", Part("repertory.algorithms.look:LOOK", options, "look"))
