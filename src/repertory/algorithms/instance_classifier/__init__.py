r"""Learn without labels by telling every single example from all others, as a classifier with a class for each.

## Idea
Each training example is a class of its own, and a plain softmax classifier learns to name it whatever its version.
Three things make that work. The softmax is computed a block of classes at a time, and can be spread over processes.
The classifier starts from the features that the untrained network gives to the examples, so that each class begins
near those that look like it. And a part of each target goes to the classes that are hardest to tell from its own, so
that near-duplicates are not pushed apart at any price.

## Use it when
- there are many inputs and few labels, or none yet;
- batches are small: unlike in contrastive learning, all examples are negatives in every step;
- you can afford one version of each example only.

## Do not use it when
- each example is seen a few times only: a class learns when its one example comes by;
- examples keep coming: the classes are fixed at the start;
- memory is short: the classifier has a row for each example, and the optimizer its state on top.

## Equations
With $f_i$ the projected features of a version of example $i$ and $w_j$ the row of example $j$, both at length 1,
$$ \ell_i = -\sum_j y_{ij} \log \frac{\exp(f_i^\top w_j / \tau)}{\sum_k \exp(f_i^\top w_k / \tau)} , \qquad
   y_{ij} = \begin{cases} 1 - \alpha & j = i \\ \alpha / K & j \in \mathcal{N}_K(i) \\ 0 & \text{else,} \end{cases} $$
where $\mathcal{N}_K(i)$ are the $K$ rows nearest to $w_i$ at the beginning of the epoch.

## Defaults
`temperature=0.15`, `alpha=0.2` are the paper's; `hardest=100` and `dim=128` are ours, as the paper's could not be
verified. `hardest=100` is for ImageNet: on a few thousand examples 10 is nearer to the same share.

## Cost
One version goes through the network. On top come `batch * examples * dim` multiplications three times, `examples * dim`
weights with their optimizer state, and once an epoch all cosines between the rows, in blocks. Before the first step the
examples go through the network once, or twice where it normalises by the batch.

## Claim
ImageNet, ResNet-50, linear probe: 71.4 %; starting from raw features brings convergence forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.algorithms.instance_classifier.softmax import chunked_softmax_loss, sharded_softmax_loss
from repertory.card import Card
from repertory.core.method import Inner
from repertory.core.neighbours import nearest_neighbours
from repertory.core.objective import Objective, projection
from repertory.core.state import Run, State, batch_size
from repertory.core.tables import ExampleTable
from repertory.errors import DataError, OptionError, check_choice, check_number
from repertory.layers.embedding import unit_rows
from repertory.recipe import Part, Recipe

__all__ = [
    "CARD",
    "InstanceClassifier",
    "chunked_softmax_loss",
    "edit",
    "sharded_softmax_loss",
    "smoothed_targets",
]

CARD = Card(
    slug="instance-classifier",
    name="One-million-way instance classifier",
    title="Train a One-Million-Way Instance Classifier for Unsupervised Visual Representation Learning",
    authors="Yu Liu et al.",
    year=2021,
    venue="AAAI 2021",
    link="https://arxiv.org/abs/2102.04848",
    kind="algorithm",
    entry="InstanceClassifier",
    problems=(
        "self-supervised learning",
        "unlabelled data",
        "few labels",
        "instance discrimination",
        "huge softmax",
        "pretraining",
    ),
    defaults={
        "temperature": 0.15,
        "alpha": 0.2,
        "hardest": 100,
        "dim": 128,
        "views": 1,
        "start": "features",
        "center": False,
        "chunk": None,
    },
    scenarios=("self_supervised",),
    needs=("views", "index", "training"),
    search={"temperature": (0.05, 0.5), "alpha": (0.01, 0.5)},
    tags=("representation learning", "parametric instance classification", "label smoothing", "model parallel"),
)


def smoothed_targets(index: Tensor, neighbours: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return the labels of examples, their own first, and the share of each in the target.

    Args:
        index: the examples `(batch,)`, int64.
        neighbours: classes hardest to tell from each example's own `(batch, k)`, int64.
        alpha: share that these get, all the same.

    Returns:
        Labels `(batch, 1 + k)` and shares of the same shape.

    >>> smoothed_targets(torch.tensor([0]), torch.tensor([[3, 1]]), alpha=0.2)
    (tensor([[0, 3, 1]]), tensor([[0.8000, 0.1000, 0.1000]]))
    """
    shares = torch.full((len(index), 1 + neighbours.shape[1]), alpha / neighbours.shape[1], device=index.device)
    shares[:, 0] = 1 - alpha
    return torch.cat([index[:, None], neighbours], 1), shares


class InstanceClassifier(Objective):
    """Classification of every training example as a class of its own, without labels.

    The step must know the number of examples, and be told of the ends of epochs.

    Args:
        temperature: divides the cosines.
        alpha: share of the target that goes to the classes hardest to tell from the example's own, in [0, 1).
        hardest: number of these classes.
        dim: size of the projection, and of the classifier's rows.
        views: 1 or 2 versions of each example.
        start: of the classifier's rows: "features" of the untrained network, or "random".
        center: take the mean off these features first, which in an untrained network is most of each.
        chunk: classes in a block of the softmax; None takes what fits into 64 MiB.

    Raises:
        OptionError: if an option is out of range; in use, if the number of examples is not known or too small.
        DataError: in use, if an index lies beyond the number of examples.

    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> inputs = torch.randn(6, 4)
    >>> everything = {"input": inputs, "index": torch.arange(6)}
    >>> method = InstanceClassifier(hardest=2)
    >>> optimizer = lambda groups: torch.optim.SGD(groups, lr=0.1)
    >>> step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[method], examples=6, training=[everything])
    >>> loss = step({**everything, "views": [inputs + 0.1]})
    >>> method.weight.shape
    torch.Size([6, 128])

    Notes:
        The paper trains with SGD, under which a row moves little while its own example does not come by; the optimizer
        here is the recipe's. Over several processes each holds all rows; `sharded_softmax_loss`, for a loop of your
        own, spreads them.

    Reference: Liu et al., https://arxiv.org/abs/2102.04848.
    """

    slug = "instance-classifier"
    needs = frozenset({"views", "index", "training"})
    weight: nn.Parameter
    neighbours: Tensor

    def __init__(
        self,
        temperature: float = 0.15,
        alpha: float = 0.2,
        hardest: int = 100,
        dim: int = 128,
        views: int = 1,
        start: str = "features",
        center: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        check_number("alpha", alpha, minimum=0, below=1)
        check_number("hardest", hardest, minimum=1, integer=True)
        check_number("dim", dim, minimum=1, integer=True)
        check_choice("views", views, (1, 2))
        check_choice("start", start, ("features", "random"))
        check_choice("center", center, (True, False))
        if chunk is not None:
            check_number("chunk", chunk, minimum=1, integer=True)
        self.temperature = temperature
        self.alpha = alpha
        self.hardest = hardest
        self.dim = dim
        self.views = views
        self.start = start
        self.center = center
        self.chunk = chunk
        self.projection: nn.Module | None = None
        self.started = False

    def heads(self, width: int, run: Run) -> None:
        """Make the projection, and a row for each example."""
        examples = run.examples
        if examples is None:
            raise OptionError("every example is a class, and nobody said how many there are; pass examples=... to Step")
        if self.alpha and self.hardest >= examples:
            raise OptionError(
                f"hardest={self.hardest} must be below the number of examples, {examples}; give fewer, as hardest=10"
            )
        self.projection = projection(width, width, self.dim)
        self.weight = nn.Parameter(unit_rows(torch.randn(examples, self.dim)))
        self.register_buffer("neighbours", torch.zeros(examples, self.hardest, dtype=torch.int64))

    def step(self, state: State, inner: Inner) -> Tensor:
        """Give the rows their start before the first update."""
        self._check_index(state.batch["index"])
        if not self.started:
            if self.start == "features":
                self._take_features(state.run)
            self._find_neighbours()
            self.started = True
        return inner(state)

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Return how badly each example is told from all others, averaged over its versions."""
        assert self.projection is not None
        index = state.batch["index"]
        features = self.projection(self.encode(state, state.batch["views"][: self.views]))
        labels, shares = index[:, None], None
        if self.alpha:
            labels, shares = smoothed_targets(index, self.neighbours[index], self.alpha)
            shares = shares.repeat(len(features), 1)
        values = chunked_softmax_loss(
            features.flatten(0, 1), self.weight, labels.repeat(len(features), 1), shares, self.temperature, self.chunk
        )
        return values.unflatten(0, features.shape[:2]).mean(0)

    def epoch_end(self, run: Run) -> None:
        """Find the classes that are hardest to tell apart anew."""
        self._find_neighbours()

    def get_extra_state(self) -> dict[str, bool]:
        """Return whether the rows have had their start, for the state dict."""
        return {"started": self.started}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        """Take over what was saved."""
        self.started = state["started"]

    @torch.no_grad()
    def _find_neighbours(self) -> None:
        if self.alpha:
            own = torch.arange(len(self.weight), device=self.weight.device)
            self.neighbours.copy_(nearest_neighbours(self.weight, self.weight, self.hardest, own=own)[1])

    @torch.no_grad()
    def _take_features(self, run: Run) -> None:
        """Pass all examples through the untrained network, and make their projected features the rows."""
        assert self.projection is not None
        normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in run.model.modules())
        was_training, table = run.model.training, ExampleTable(len(self.weight))
        # Features by the statistics that a fresh network starts with would be badly scaled.
        for measuring in (True, False) if normalised else (False,):
            run.model.train(measuring)
            for entries in run.training_batches():
                state = State(run, entries)
                features = self.encode(state, [entries["input"]])[0]
                run.counts.forward += batch_size(entries)
                if not measuring:
                    self._check_index(entries["index"])
                    table.write(entries["index"], self.projection(features))
        run.model.train(was_training)
        places, rows = table.entries()
        if not len(places):
            raise DataError("run.training gave no examples to start from; pass training=loader to Step")
        rows = rows.to(self.weight)
        self.weight[places.to(self.weight.device)] = unit_rows(rows - rows.mean(0) if self.center else rows)

    def _check_index(self, index: Tensor) -> None:
        if int(index.max()) >= len(self.weight) or int(index.min()) < 0:
            raise DataError(
                f"index goes from {int(index.min())} to {int(index.max())}, but the step was told of "
                f"{len(self.weight)} examples; number them from 0, and pass examples=... to Step"
            )


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Make the instance classifier the recipe's objective.

    Raises:
        OptionError: if an option is out of range.
    """
    InstanceClassifier(**options)
    part = Part("repertory.algorithms.instance_classifier:InstanceClassifier", options, "instance-classifier")
    return recipe.replace(objective=part)
