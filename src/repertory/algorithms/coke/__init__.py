r"""Learn without labels by predicting clusters that are found on the way, none of which may become too small.

## Idea
The features of a good encoder fall into clusters, and predicting its own cluster teaches an encoder to make them. To
cluster all data anew for every epoch is costly, and the easy solution is one cluster for everything. CoKe clusters each
batch as it comes, and gives every cluster a price that falls while the cluster is smaller than it should be, so that
none runs empty. What the network learns to predict is the cluster that an example had in the *last* epoch, with the
centres of that epoch: the two sides do not chase each other, and one version of each example is enough.

## Use it when
- there are many inputs without a label, and they fall into groups, in numbers you can guess within a factor of a few;
- you can afford one pass an example only: with `views=1` it costs half of what contrastive methods cost;
- batches are small: nothing depends on the other examples of the batch but the assignment.

## Do not use it when
- an example is seen a few times only: the first epoch clusters and learns nothing, and labels are an epoch old;
- there are fewer examples than a few for each cluster;
- the data are a stream that never comes to the end of an epoch.

## Equations
With centres $c_k$ and duals $\rho_k$ of `OnlineConstrainedKMeans`, projection $u = z / \lVert z \rVert$ of a version,
and a prediction $v = q(z) / \lVert q(z) \rVert$, both scored by the centres $c'$ of the epoch before,
$p(u) = \mathrm{softmax}(u^\top c' / \tau)$. With one version
$$ \ell = -\beta \log p_y(v) - (1 - \beta) \log p_y(u) , $$
where $y$ is the cluster of the epoch before. With two, clusters are those of the mean $(u_1 + u_2) / 2$, and each of
$u_1, v_1$ (and likewise $u_2, v_2$) is compared with $\alpha\, y + (1 - \alpha)\, p(u_2)$, through which no gradient
flows. All is averaged over several clusterings with different numbers of clusters.

Second stage, with one version: the centres become an average over its epochs, and the target is a softmax over the
(up to 5) clusters that the example had in them, weighted by how often.

## Defaults
`ratio=0.4`, three clusterings, `dim=128`, `alpha=0.2` (two versions), `beta=1` (one), temperature 0.05 (two) and 0.1
(one), and the second stage in the last fifth of the training with 5 labels at temperature 0.5 are those of the authors'
scripts. Their step of the duals is 20 / 1024 an example, here `dual_step=0.02`, whatever the batch. `clusters=None`
takes 2.65, 3.53 and 4.42 times the root of the number of examples: on ImageNet the authors' 3000, 4000 and 5000.

## Cost
One forward and backward pass a version. The clustering adds a product of the batch with all centres, and a table of
one number an example and clustering.

## Claim
ImageNet, ResNet-50, linear probe: 72.5 % with one version of each example, 74.9 % with two, 76.4 % with multi-crop;
without the constraint clusters run empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repertory.algorithms.coke.clustering import OnlineConstrainedKMeans, averaged_labels, sharpened
from repertory.card import Card
from repertory.core.method import Inner
from repertory.core.objective import Objective
from repertory.core.state import Run, State
from repertory.core.tables import ExampleTable
from repertory.errors import OptionError, check_choice, check_number
from repertory.layers.embedding import unit_rows
from repertory.layers.shared_norm import SharedBatchNorm
from repertory.recipe import Part, Recipe

__all__ = ["CARD", "CoKe", "OnlineConstrainedKMeans", "averaged_labels", "cluster_loss", "edit", "sharpened"]

CARD = Card(
    slug="coke",
    name="CoKe",
    title="Unsupervised Visual Representation Learning by Online Constrained K-Means",
    authors="Qi Qian et al.",
    year=2022,
    venue="CVPR 2022",
    link="https://arxiv.org/abs/2105.11527",
    kind="algorithm",
    entry="CoKe",
    problems=(
        "self-supervised learning",
        "unlabelled data",
        "few labels",
        "clustering without collapse",
        "online k-means",
        "pretraining",
    ),
    defaults={
        "clusters": None,
        "views": 2,
        "ratio": 0.4,
        "dual_step": 0.02,
        "temperature": None,
        "dim": 128,
        "alpha": 0.2,
        "beta": 1.0,
        "second_stage": 0.8,
        "kept": 5,
        "label_temperature": 0.5,
    },
    scenarios=("self_supervised",),
    needs=("views", "index", "epochs"),
    search={"dual_step": (0.002, 0.2), "temperature": (0.02, 0.5)},
    across_batch=True,
    tags=("representation learning", "cluster discrimination", "k-means", "one view", "deep clustering"),
)

_PER_ROOT = tuple(clusters / math.sqrt(1_281_167) for clusters in (3000, 4000, 5000))
"""Clusters of the authors on ImageNet, for the root of its number of examples."""


def cluster_loss(
    projected: Tensor,
    predicted: Tensor,
    centers: Tensor,
    labels: Tensor,
    weights: Tensor,
    temperature: float,
    *,
    alpha: float = 0.2,
    beta: float = 1.0,
) -> Tensor:
    """Return how badly each example's clusters are predicted, in float32 or wider.

    Args:
        projected: unit vectors u `(views, batch, dim)`, of one or two versions.
        predicted: unit vectors v of the same shape.
        centers: of the epoch before `(clusters, dim)`; they get no gradient.
        labels: clusters that each example had `(batch, kept)`, int64.
        weights: of these labels `(batch, kept)`; each row sums to 1.
        temperature: divides the cosines.
        alpha: with two versions, share of the labels in the target; the rest is what the other version's u says.
        beta: with one version, share of v's loss; the rest is u's.

    Returns:
        `(batch,)`.

    >>> u = torch.tensor([[[1.0, 0.0]]])
    >>> cluster_loss(u, u, torch.eye(2), torch.tensor([[0]]), torch.ones(1, 1), temperature=1.0)  # log(1 + 1/e)
    tensor([0.3133])
    """
    logits = torch.stack([projected, predicted]) @ centers.T / temperature
    log_p = logits.log_softmax(-1)
    hard = -(log_p.gather(-1, labels.expand(*log_p.shape[:2], *labels.shape)) * weights).sum(-1)
    if len(projected) == 1:
        return beta * hard[1, 0] + (1 - beta) * hard[0, 0]
    soft = -(log_p * log_p[0].detach().exp().flip(0)).sum(-1)
    return (alpha * hard + (1 - alpha) * soft).mean((0, 1))


class CoKe(Objective):
    """Prediction of the clusters that online constrained k-means found in the epoch before.

    The first epoch clusters the features of the network as it is, and updates no weight. The step must be told of the
    ends of epochs.

    Args:
        clusters: numbers of clusters, one for each clustering; None takes three by the number of examples.
        views: 1 or 2 versions of each example.
        ratio: share of an even size that each cluster keeps at least, in [0, 1].
        dual_step: change of a cluster's dual for one example too few or too many; 0 leaves the sizes free.
        temperature: divides the cosines; None takes 0.05 with two versions and 0.1 with one.
        dim: size of the projection.
        alpha: with two versions, share of the labels in the target.
        beta: with one version, share of the prediction's loss; the rest is the projection's.
        second_stage: with one version, share of the training after which centres and labels settle to averages.
        kept: labels of an example that are averaged in the second stage; with 1 it keeps the newest.
        label_temperature: of the softmax over their weights.

    Raises:
        OptionError: if an option is out of range; in use, if there are more clusters than examples.

    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[CoKe(clusters=[2, 3])], epochs=10, examples=6)
    >>> inputs = torch.randn(6, 4)
    >>> loss = step({"input": inputs, "views": [inputs + 0.1, inputs - 0.1], "index": torch.arange(6)})
    >>> step.end_epoch()

    Notes:
        The authors freeze the weights by a learning rate of 0 in the first epoch; here it makes no backward pass
        either. Both versions share the statistics of a batch, where the authors normalise each by itself.
        Multi-crop is left out. The optimizer is the recipe's, theirs is LARS.

    Reference: Qian, Xu, Hu, Li, Jin, https://arxiv.org/abs/2105.11527.
    """

    slug = "coke"
    needs = frozenset({"views", "index", "epochs"})

    def __init__(
        self,
        clusters: Sequence[int] | None = None,
        views: int = 2,
        ratio: float = 0.4,
        dual_step: float = 0.02,
        temperature: float | None = None,
        dim: int = 128,
        alpha: float = 0.2,
        beta: float = 1.0,
        second_stage: float = 0.8,
        kept: int = 5,
        label_temperature: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("views", views, (1, 2))
        if clusters is not None and (not isinstance(clusters, (list, tuple)) or not clusters):
            raise OptionError(f"clusters={clusters!r} must be a list of whole numbers, as in [30, 40, 50], or None")
        for number in clusters or ():
            check_number("clusters", number, minimum=2, integer=True)
        check_number("dim", dim, minimum=1, integer=True)
        for name, share in (("ratio", ratio), ("alpha", alpha), ("beta", beta), ("second_stage", second_stage)):
            check_number(name, share, minimum=0, maximum=1)
        check_number("dual_step", dual_step, minimum=0)
        check_number("kept", kept, minimum=1, integer=True)
        if temperature is not None:
            check_number("temperature", temperature, above=0)
        check_number("label_temperature", label_temperature, above=0)
        self.clusters = None if clusters is None else tuple(clusters)
        self.views = views
        self.ratio = ratio
        self.dual_step = dual_step
        self.temperature = temperature or (0.05 if views == 2 else 0.1)
        self.dim = dim
        self.alpha = alpha
        self.beta = beta
        self.second_stage = second_stage
        self.kept = kept
        self.label_temperature = label_temperature
        self.kmeans: OnlineConstrainedKMeans | None = None
        self._labelled = False
        self.labels = ExampleTable()
        self.averages = ExampleTable()

    def heads(self, width: int, run: Run) -> None:
        """Make projection, predictor and clusterings, and room for the labels."""
        self.projector = nn.Sequential(
            *(nn.Linear(width, width), SharedBatchNorm(width), nn.ReLU()),
            *(nn.Linear(width, width), SharedBatchNorm(width), nn.ReLU()),
            *(nn.Linear(width, self.dim), SharedBatchNorm(self.dim)),
        )
        self.predictor = nn.Sequential(
            nn.Linear(self.dim, width), SharedBatchNorm(width), nn.ReLU(), nn.Linear(width, self.dim)
        )
        self.kmeans = OnlineConstrainedKMeans(self._numbers(run.examples), self.dim, self.ratio, self.dual_step)
        self.labels.examples = self.averages.examples = run.examples

    def step(self, state: State, inner: Inner) -> Tensor:
        """Update the weights, but in the first epoch, and then assign the batch to clusters."""
        if self._clustering.epochs:
            loss = inner(state)
        else:
            loss = state.run.losses(state).mean()
        for index, features in state.memo.pop(self.slug, ()):
            self._assign(index, features)
        return loss

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Return how badly each example's clusters of the epoch before are predicted."""
        features = self.encode(state, state.batch["views"][: self.views])
        projected = self.projector(features.flatten(0, 1))
        predicted = self.predictor(projected)
        with torch.autocast(projected.device.type, enabled=False):
            unit, guess = (unit_rows(rows).unflatten(0, features.shape[:2]) for rows in (projected, predicted))
            mean = unit.detach().mean(0)
            if state.evaluation == 0:
                state.memo.setdefault(self.slug, []).append((state.batch["index"], mean))
            centers = self._clustering.previous.split(self._clustering.sizes)
            values = [
                cluster_loss(unit, guess, own, labels, weights, self.temperature, alpha=self.alpha, beta=self.beta)
                for own, (labels, weights) in zip(centers, self._targets(state.batch["index"], mean))
            ]
            return torch.stack(values).mean(0)

    def epoch_end(self, run: Run) -> None:
        """Keep the centres for the next epoch, and begin the second stage when it is time."""
        self._clustering.end_epoch()
        if run.examples is not None and not self._labelled:
            self._labelled = bool(self.labels.written(torch.arange(run.examples)).all())
        assert run.epochs is not None
        # In a loop of the user's own the progress is still that of the epoch's start.
        done = max(run.progress, (run.epoch + 1) / run.epochs)
        if self.views == 1 and done >= self.second_stage and not self._clustering.averaged:
            self._clustering.average()

    @property
    def _clustering(self) -> OnlineConstrainedKMeans:
        assert self.kmeans is not None
        return self.kmeans

    def _numbers(self, examples: int | None) -> Sequence[int]:
        if self.clusters is None and examples is None:
            raise OptionError(
                "clusters=None depends on the number of examples, which nobody said; give clusters=[...], or pass "
                "examples=... to Step"
            )
        if self.clusters is None:
            return [max(2, round(factor * math.sqrt(examples or 0))) for factor in _PER_ROOT]
        if examples is not None and max(self.clusters) > examples:
            raise OptionError(
                f"clusters={list(self.clusters)} are more than the {examples} examples; give fewer clusters"
            )
        return self.clusters

    def _targets(self, index: Tensor, mean: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each clustering, the labels of the epoch before `(batch, kept)` and their weights."""
        if self._labelled:
            labels = self.labels.read(index).long()
        else:
            # An example that was not seen before has the cluster that it would get now.
            labels = self._clustering.assign(mean)
            if self.labels.rows is not None:
                labels = torch.where(self.labels.written(index)[:, None], self.labels.read(index).long(), labels)
        weights = torch.ones(len(index), 1, device=labels.device)
        if self.averages.rows is None:
            return [(column[:, None], weights) for column in labels.unbind(1)]
        known = self.averages.written(index)[:, None, None]
        several, shares = self.averages.read(index).unbind(2)
        first = torch.arange(self.kept, device=labels.device) == 0
        several = torch.where(known, several.long(), labels[:, :, None])
        shares = torch.where(known, sharpened(shares, self.label_temperature).nan_to_num(), first.to(shares))
        return list(zip(several.unbind(1), shares.unbind(1)))

    def _assign(self, index: Tensor, features: Tensor) -> None:
        labels = self._clustering.observe(features)
        self.labels.write(index, labels)
        if self._clustering.averaged and self.kept > 1:
            empty = torch.zeros(*labels.shape, 2, self.kept, device=labels.device)
            held = empty if self.averages.rows is None else self.averages.read(index)
            several, shares = held.unbind(2)
            several, shares = averaged_labels(several.long(), shares, labels, 1 / self._clustering.averaged)
            self.averages.write(index, torch.stack([several.to(shares), shares], 2))


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Make CoKe the recipe's objective.

    Raises:
        OptionError: if an option is out of range.
    """
    CoKe(**options)
    return recipe.replace(objective=Part("repertory.algorithms.coke:CoKe", options, "coke"))
