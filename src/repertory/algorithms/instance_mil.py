r"""Learn to classify instances from the labels of their bags: contrast, prototypes, and labels that clear up over time.

## Idea
Every instance of a negative bag is negative, and one of a positive bag may be either. An instance classifier is
trained on soft labels that begin as the bag says and clear up: each step, the class whose prototype an instance is
nearer to, of those that its bag allows, is blended into its label. Meanwhile a contrast against a queue of keys from a
slowly following copy pulls together what is predicted alike, so that prototypes mean something. Bags are then scored
by pooling their instances.

## Use it when
- you want to know which instances are positive, and labels exist for groups only (slides, videos, documents);
- few instances of a positive bag are positive, so that taking its label for all of them is mostly wrong;
- negative bags are certain: their instances are what anchors the rest.

## Do not use it when
- only bags are to be classified and attention to some of their instances will do (`attention-mil` is simpler);
- a bag is positive by what its instances make together: there is then no positive instance;
- instances cannot be changed without changing what they are: the contrast needs two versions of each.

## Equations
With candidates $Y_i$ (negative, and the bag's label), probabilities $p_i$, unit features $q_i$ of a projection,
prototypes $\mu$ and pool $A$ = queries, keys and queue of the batch, after the warm-up
$$ l_i = \arg\max_k Y_{ik} p_{ik}, \qquad z_i = \arg\max_k Y_{ik} \operatorname{softmax}_k(q_i^\top \mu_k), \qquad
   c_i \leftarrow \phi\, c_i + (1 - \phi)\, e_{z_i}, $$
$$ \ell_i = -\sum_k c_{ik} \log p_{ik} - \frac{w}{|P_i|} \sum_{j \in P_i}
   \log \frac{\exp(q_i^\top a_j / \tau)}{\sum_{a \in A \setminus i} \exp(q_i^\top a / \tau)}, \qquad
   P_i = \{ j \ne i : l_j = l_i \}, $$
then $\mu_{l_i} \leftarrow m_p \mu_{l_i} + (1 - m_p) q_i$ one after the other, of unit length again. Labels of negative
bags stay negative. In the warm-up labels stand still and only an instance's own key is in $P_i$, against the queue.

## Defaults
`dim=128`, `queue=8192`, `temperature=0.07`, `momentum=0.999`, `prototype_momentum=0.9`, `weight=0.5`, `phi` from 0.95
to 0.8 over training and `warmup=1` epoch are those of the authors' code for CAMELYON16; synthetic bags had longer
warm-ups. With `init="bag"` labels of positive bags begin as positive; the authors' even ones are `init="uniform"`.
`bag_weight` is off: their code keeps a bag loss for the warm-up, of a form that cannot be told from the paper.

## Cost
One more forward pass without gradient, a projection, and `batch * (2 batch + queue)` products of features. A copy of
the network, and `classes` numbers an instance.

## Claim
Instances are told apart better than by attention or by labels taken from the bag, most of all when few of a positive
bag are positive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory.card import Card
from repertory.core.bag_pooling import BatchBags
from repertory.core.consistency import wide
from repertory.core.distributed import gather_rows, gather_with_gradient, own_rows
from repertory.core.features import NetworkFeatures
from repertory.core.frozen import FrozenCopy
from repertory.core.method import Inner, Method
from repertory.core.queues import FeatureQueue
from repertory.core.randomness import seeded
from repertory.core.state import Run, State, batch_size
from repertory.core.tables import ExampleTable
from repertory.errors import DataError, check_choice, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="instance-mil",
    name="INS",
    title="Rethinking Multiple Instance Learning for Whole Slide Image Classification: A Good Instance Classifier is "
    "All You Need",
    authors="Linhao Qu et al.",
    year=2023,
    venue="IEEE TCSVT 2024",
    link="https://arxiv.org/abs/2307.02249",
    kind="algorithm",
    entry="INS",
    problems=(
        "multiple instance learning",
        "weak labels",
        "bag labels",
        "instance-level detection from bag labels",
        "histopathology",
    ),
    defaults={
        "weight": 0.5,
        "init": "bag",
        "warmup": 1,
        "phi": 0.95,
        "last_phi": 0.8,
        "temperature": 0.07,
        "momentum": 0.999,
        "prototype_momentum": 0.9,
        "queue": 8192,
        "dim": 128,
        "bag_weight": 0.0,
    },
    scenarios=("bags",),
    needs=("index", "classes", "epochs", "strong"),
    neutral={"weight": 0.0, "warmup": 1000000},
    across_batch=True,
    tags=("prototypes", "pseudo-labels", "momentum encoder", "whole slide images", "instances", "partial labels"),
)


def candidates(targets: Tensor, classes: int) -> Tensor:
    """Return which classes an instance may have: the first, negative, and that of its bag.

    Args:
        targets: labels of the instances' bags `(batch,)`, int64; 0 is negative.
        classes: number of classes.

    Returns:
        0 or 1 `(batch, classes)`, float32.

    >>> candidates(torch.tensor([0, 1]), 2).tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    allowed = functional.one_hot(targets, classes).float()
    return torch.cat([torch.ones_like(allowed[:, :1]), allowed[:, 1:]], 1)


def cleared_labels(labels: Tensor, scores: Tensor, allowed: Tensor, phi: float) -> Tensor:
    """Return soft labels moved towards the class of the highest score among those allowed.

    Where one class alone is allowed, the label is that class.

    Args:
        labels: soft labels `(batch, classes)`.
        scores: above zero `(batch, classes)`.
        allowed: 0 or 1 `(batch, classes)`.
        phi: share of the labels that is kept, in [0, 1].

    >>> both = torch.ones(1, 2)
    >>> cleared_labels(both / 2, torch.tensor([[0.4, 0.6]]), both, phi=0.95)
    tensor([[0.4750, 0.5250]])
    """
    nearest = functional.one_hot((scores * allowed).argmax(1), labels.shape[1]).to(labels)
    return torch.where(allowed.sum(1, keepdim=True) > 1, phi * labels + (1 - phi) * nearest, allowed.to(labels))


def moved_prototypes(prototypes: Tensor, features: Tensor, members: Tensor, momentum: float) -> Tensor:
    r"""Return prototypes after each feature in turn has moved that of its class, of unit length.

    $\mu \leftarrow m \mu + (1 - m) q$ for one after the other is $m^n \mu + (1 - m) \sum_j m^{n - j} q_j$.

    Args:
        prototypes: `(classes, dim)`; zero where there is none yet.
        features: in turn `(batch, dim)`.
        members: 0 or 1, which class each moves `(batch, classes)`.
        momentum: share that is kept each time, in [0, 1].

    >>> moved_prototypes(torch.zeros(2, 2), torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 1.0]]), 0.9)
    tensor([[0., 0.],
            [0., 1.]])
    """
    later = members.sum(0) - members.cumsum(0)
    shares = members * (1 - momentum) * momentum**later
    moved = momentum ** members.sum(0)[:, None] * prototypes + shares.T @ features
    return functional.normalize(moved, dim=1)


def contrast(cosines: Tensor, positive: Tensor, counted: Tensor, temperature: float) -> Tensor:
    """Return how badly each query finds its positives among everything that it is compared with.

    Args:
        cosines: `(batch, pool)`.
        positive: which are to be found `(batch, pool)` bool, at least one a row.
        counted: which are compared with `(batch, pool)` bool.
        temperature: divides the cosines.

    Returns:
        `(batch,)`: the mean over the positives of minus the logarithm of their shares.

    >>> contrast(torch.tensor([[1.0, 0.0]]), torch.tensor([[True, False]]), torch.tensor([[True, True]]), 1.0)
    tensor([0.3133])
    """
    logits = (cosines / temperature).masked_fill(~counted, torch.finfo(cosines.dtype).min / 2)
    shares = logits.log_softmax(1).masked_fill(~positive, 0.0)
    return -shares.sum(1) / positive.sum(1).clamp(min=1)


class INS(Method):
    """An instance classifier from bag labels, by contrast, prototypes and labels that clear up.

    Targets are the labels of the bags, 0 for negative; several kinds of positive bags have several labels, and an
    instance is then negative or of its bag's kind. A class without a prototype takes the instance that the classifier
    likes most for it among those allowed.

    Args:
        weight: factor on the contrast (w); 0 leaves it out.
        init: labels of instances of positive bags at first: "bag", positive; or "uniform", even over both candidates.
        warmup: epochs before labels begin to clear up.
        phi: share of a label that an update keeps, at the start of training.
        last_phi: the same at its end; linear in between.
        temperature: divides the cosines of the contrast (tau).
        momentum: share of the copy of the network that each step keeps (m), in [0, 1].
        prototype_momentum: share of a prototype that each feature keeps (m_p), in [0, 1].
        queue: keys to contrast with; no more than there are training examples.
        dim: size of the projection.
        bag_weight: factor on the cross-entropy of the mean probability of a bag, in the warm-up; needs "group".

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if the strong views are not of the shape of the inputs.

    >>> from functools import partial
    >>> from repertory import Step
    >>> model, optimizer, loss = nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.1), nn.CrossEntropyLoss()
    >>> step = Step(model, optimizer, loss, methods=[INS()], classes=2, epochs=10, examples=4)
    >>> x, bag_labels = torch.randn(4, 2), torch.tensor([0, 0, 1, 1])
    >>> _ = step({"input": x, "strong": x + 0.1, "target": bag_labels, "index": torch.arange(4)})

    Notes:
        The queue begins empty, where the authors' begins with noise. The copy of the network is in evaluation mode;
        theirs is in training mode with shuffled batches. Their warm-up passes over positive bags alone, here over all.

    Reference: Qu, Ma, Luo, Guo, Wang, Song, https://arxiv.org/abs/2307.02249.
    """

    slug = "instance-mil"
    needs = frozenset({"index", "classes", "epochs", "strong"})
    owns = frozenset({"forward", "target"})
    takes = {"target": "hard"}
    gives = {"target": "soft"}
    prototypes: Tensor

    def __init__(
        self,
        weight: float = 0.5,
        init: str = "bag",
        warmup: int = 1,
        phi: float = 0.95,
        last_phi: float = 0.8,
        temperature: float = 0.07,
        momentum: float = 0.999,
        prototype_momentum: float = 0.9,
        queue: int = 8192,
        dim: int = 128,
        bag_weight: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("bag_weight", bag_weight), ("warmup", warmup)):
            check_number(name, value, minimum=0, integer=name == "warmup")
        check_choice("init", init, ("bag", "uniform"))
        shares = {"phi": phi, "last_phi": last_phi, "momentum": momentum, "prototype_momentum": prototype_momentum}
        for name, share in shares.items():
            check_number(name, share, minimum=0, maximum=1)
        check_number("temperature", temperature, above=0)
        for name, size in (("queue", queue), ("dim", dim)):
            check_number(name, size, minimum=1, integer=True)
        self.weight, self.init, self.warmup = weight, init, warmup
        self.phi, self.last_phi = phi, last_phi
        self.temperature, self.momentum, self.prototype_momentum = temperature, momentum, prototype_momentum
        self.size, self.dim, self.bag_weight = queue, dim, bag_weight
        if bag_weight > 0:
            self.needs = self.needs | {"group"}  # type: ignore[misc]
        self.labels = ExampleTable()

    def setup(self, run: Run) -> None:
        """Make projection, copies, queue and table of labels, and take over the network's evaluation."""
        assert run.classes is not None
        self._features = NetworkFeatures(run.model, run.criterion, "penultimate")
        width = self._features.dim
        with seeded(run.seed, self.slug):
            self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.dim))
        self.projection.to(run.device)
        self.encoder, self.key_projection = FrozenCopy(run.model), FrozenCopy(self.projection)
        self._key_features = NetworkFeatures(self.encoder.model, run.criterion, "penultimate")
        self.queue = FeatureQueue(min(self.size, run.examples or self.size), self.dim).to(run.device)
        self.register_buffer("prototypes", torch.zeros(run.classes, self.dim, device=run.device))
        self.labels = ExampleTable(run.examples)
        run.forward = self._evaluate

    def instance_labels(self) -> tuple[Tensor, Tensor]:
        """Return positions in the training set `(n,)` and the labels that instances have by now `(n, classes)`."""
        return self.labels.entries()

    def step(self, state: State, inner: Inner) -> Tensor:
        """Update labels, prototypes, queue and copies once the step is over."""
        loss = inner(state)
        for record in state.memo.pop(self.slug, ()):
            self.labels.write(record["index"], record["labels"])
            self._move(record)
            if self.weight > 0:
                self.queue.push(record["keys"], record["predicted"], record["index"])
        if self.weight > 0:
            self.encoder.follow(state.run.model, 1 - self.momentum)
            self.key_projection.follow(self.projection, 1 - self.momentum)
        return loss

    def _evaluate(self, state: State, criterion: Callable[..., Tensor]) -> Tensor:
        run, batch, target = state.run, state.batch, state.batch["target"]
        clearing = run.epoch >= self.warmup
        if not clearing and self.weight == self.bag_weight == 0 and self.init == "bag":
            # Labels stand still, and nothing but the classifier is learnt: this is the baseline.
            state.output = run.model(batch["input"])
            return criterion(state.output, target)
        with self._features.recorded() as seen:
            state.output = run.model(batch["input"])
        with torch.autocast(target.device.type, enabled=False):
            query = functional.normalize(self.projection(seen[-1].to(self.prototypes.dtype)), dim=1)
            logits = wide(state.output)
            allowed = candidates(target, logits.shape[1])
            with torch.no_grad():
                liked = logits.softmax(1) * allowed
            record = {
                "index": batch["index"],
                "query": query.detach(),
                "liked": liked,
                "predicted": liked.argmax(1),
                "labels": self._labels(batch["index"], target, allowed, query.detach(), run.progress, clearing),
            }
            told = target if not clearing and self.init == "bag" else record["labels"].to(logits.dtype)
            values = criterion(state.output, told)
            more = self._contrast(state, query, record, clearing) if self.weight > 0 else None
            if self.bag_weight > 0 and not clearing:
                pulled = self.bag_weight * self._bag_loss(logits, target, batch["group"])
                more = pulled if more is None else more + pulled
        if state.evaluation == 0:
            state.memo.setdefault(self.slug, []).append(record)
        return values if more is None else values + (more if values.ndim else more.mean())

    @torch.no_grad()
    def _labels(
        self, index: Tensor, target: Tensor, allowed: Tensor, query: Tensor, progress: float, clearing: bool
    ) -> Tensor:
        first = allowed / allowed.sum(1, keepdim=True)
        if self.init == "bag":
            first = functional.one_hot(target, allowed.shape[1]).to(allowed)
        if not clearing:
            return first
        known = first
        if self.labels.rows is not None:
            known = torch.where(self.labels.written(index)[:, None], self.labels.read(index), first)
        phi = self.phi + progress * (self.last_phi - self.phi)
        return cleared_labels(known, (query @ self.prototypes.T).softmax(1), allowed, phi)

    def _contrast(self, state: State, query: Tensor, record: dict[str, Tensor], clearing: bool) -> Tensor:
        keys = record["keys"] = self._keys(state)
        predicted = record["predicted"]
        start = own_rows(len(query), query.device).start
        queries, all_keys, labels = gather_with_gradient(query), gather_rows(keys), gather_rows(predicted)
        place = torch.arange(len(query), device=query.device)[:, None] + start
        itself = torch.arange(len(queries), device=query.device) == place
        there = self.queue.there().expand(len(query), -1)
        held = self.queue.features.to(query.dtype)
        if clearing:
            cosines = query @ torch.cat([queries, all_keys, held]).T
            alike = predicted[:, None] == torch.cat([labels, labels, self.queue.labels])
            counted = torch.cat([~itself, torch.ones_like(itself), there], 1)
            values = contrast(cosines, alike & counted, counted, self.temperature)
        else:
            cosines = torch.cat([(query * keys).sum(1, keepdim=True), query @ held.T], 1)
            own = torch.ones_like(there[:, :1])
            positive = torch.cat([own, torch.zeros_like(there)], 1)
            values = contrast(cosines, positive, torch.cat([own, there], 1), self.temperature)
        return self.weight * values

    @torch.no_grad()
    def _keys(self, state: State) -> Tensor:
        strong = state.batch["strong"]
        if strong.shape != state.batch["input"].shape:
            raise DataError(
                f"strong views are {tuple(strong.shape)}, inputs {tuple(state.batch['input'].shape)}; give one of each"
            )
        with self._key_features.recorded() as seen:
            self.encoder(strong)
        state.run.counts.forward += batch_size(state.batch)
        return functional.normalize(self.key_projection(seen[-1].to(self.prototypes.dtype)), dim=1)

    def _bag_loss(self, logits: Tensor, target: Tensor, groups: Tensor) -> Tensor:
        bags = BatchBags.of(groups)
        share = bags.mean(logits.softmax(1)).gather(1, target[:, None]).squeeze(1)
        return -share.clamp_min(torch.finfo(share.dtype).tiny).log() * bags.weights

    @torch.no_grad()
    def _move(self, record: dict[str, Tensor]) -> None:
        query, liked = gather_rows(record["query"]), gather_rows(record["liked"])
        members = functional.one_hot(liked.argmax(1), liked.shape[1]).to(query)
        lonely = ~self.prototypes.any(1) & ~members.any(0) & liked.any(0)
        best = functional.one_hot(liked.argmax(0), len(liked)).to(query)
        members = torch.maximum(members, (best * lonely[:, None]).T)
        self.prototypes.copy_(moved_prototypes(self.prototypes, query, members, self.prototype_momentum))


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Add INS to the recipe's methods; with a bag loss batches hold whole bags."""
    if options.get("bag_weight"):
        recipe = recipe.replace(sampler=Part("repertory.core.sampling:BagBatches", {}, "instance-mil"))
    return recipe.add("methods", Part("repertory.algorithms.instance_mil:INS", options, "instance-mil"))
