r"""Learn from bags of which only the whole has a label: a small network says how much each instance counts.

## Idea
A bag is the mean of its instances' features, weighted by an attention that is learnt with the rest, and the classifier
sees that mean alone. So no instance is told a label that may be wrong for it, and after training the weights show
which instances made the bag positive. The reference that methods for bags are compared with.

## Use it when
- labels belong to groups (slides, patients, videos, documents) and the group is what you want to predict;
- a few instances decide, so that a plain mean drowns them;
- you want to see which ones.

## Do not use it when
- single instances are what you want to classify: attention picks those that suffice, not all (take `instance-mil`);
- bags are few: every bag is one example;
- a bag is too large for a batch: then each batch sees a part of it.

## Equations
With features $h_k$ of the instances of a bag,
$$ a_k = \operatorname{softmax}_k\big( w^\top \tanh(V h_k) \big), \qquad
   z = \sum_k a_k h_k, \qquad \ell = \mathrm{CE}(W z + b,\ y); $$
gated: $w^\top (\tanh(V h_k) \odot \sigma(U h_k))$. The classifier is linear, so the bag's logits are the mean of the
instances' logits under $a$.

## Defaults
`width=128`, no gate: the paper's. Batches hold whole bags; bags of different sizes are filled up with further ones
of their own instances. Optimizer, network and number of classes are those of the recipe.

## Cost
That of the base step, and products of all pairs of a batch's rows.

## Claim
Bags are classified better than by a mean or maximum over instances where few instances are positive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from repertory.card import Card
from repertory.core.bag_pooling import BatchBags
from repertory.core.classifier import classifier_of
from repertory.core.features import NetworkFeatures
from repertory.core.method import Method
from repertory.core.randomness import seeded
from repertory.core.state import Run, State
from repertory.errors import check_choice, check_number
from repertory.layers.attention_pooling import AttentionClassifier, attention_head
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="attention-mil",
    name="ABMIL",
    title="Attention-based Deep Multiple Instance Learning",
    authors="Maximilian Ilse et al.",
    year=2018,
    venue="ICML 2018",
    link="https://arxiv.org/abs/1802.04712",
    kind="algorithm",
    entry="AttentionMIL",
    problems=("multiple instance learning", "weak labels", "bag labels", "histopathology", "attention pooling"),
    defaults={"width": 128, "gated": False},
    scenarios=("bags",),
    needs=("group", "classes"),
    across_batch=True,
    tags=("attention", "whole slide images", "instances", "sets"),
    baseline=True,
)


class AttentionMIL(Method):
    """Attention-based multiple instance learning, around any network that ends in a linear layer.

    The last linear layer becomes an `AttentionClassifier`; its `bag_logits(features, groups)` predicts bags, and the
    network called as before predicts instances. All instances of a bag that are in the batch are pooled, over all
    processes; the loss is the mean over bags, whatever their sizes. Attention is computed in float32 or wider.

    Args:
        width: hidden units of the attention.
        gated: multiply them with a gate.

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if `group` is not one whole number an example.

    >>> from functools import partial
    >>> from repertory import Step
    >>> model, optimizer = torch.nn.Linear(2, 2), partial(torch.optim.SGD, lr=0.1)
    >>> step = Step(model, optimizer, torch.nn.CrossEntropyLoss(), methods=[AttentionMIL()], classes=2)
    >>> labels = bags = torch.tensor([0, 0, 1, 1])
    >>> _ = step({"input": torch.randn(4, 2), "target": labels, "group": bags})

    Notes:
        The paper trains on one bag a step, with a sigmoid output; here batches hold several bags, and two classes have
        two logits. A criterion that gives one number for the batch weighs bags by their sizes.

    Reference: Ilse, Tomczak, Welling, https://arxiv.org/abs/1802.04712.
    """

    slug = "attention-mil"
    needs = frozenset({"group", "classes"})
    owns = frozenset({"forward"})

    def __init__(self, width: int = 128, gated: bool = False) -> None:
        super().__init__()
        check_number("width", width, minimum=1, integer=True)
        check_choice("gated", gated, (True, False))
        self.width = width
        self.gated = gated
        self._features: NetworkFeatures | None = None

    def setup(self, run: Run) -> None:
        """Put attention into the network's last layer, and take over its evaluation."""
        assert run.classes is not None
        if not isinstance(classifier_of(run.model)[1], AttentionClassifier):
            with seeded(run.seed, self.slug):
                run.model = attention_head(run.model, run.classes, self.width, self.gated)
        self._features = NetworkFeatures(run.model, run.criterion, "penultimate")
        run.forward = self._evaluate

    def _evaluate(self, state: State, criterion: Callable[..., Tensor]) -> Tensor:
        batch, features = state.batch, self._features
        assert features is not None
        layer = features.layer
        assert isinstance(layer, AttentionClassifier)
        with features.recorded() as seen:
            logits = state.run.model(batch["input"])
        bags = BatchBags.of(batch["group"])
        with torch.autocast(logits.device.type, enabled=False):
            wide = torch.promote_types(logits.dtype, torch.float32)
            scores = layer.attention(seen[-1].to(layer.weight.dtype)).to(wide)
            state.output = bags.attended(logits.to(wide), scores)
            values = criterion(state.output, batch["target"])
        return values * bags.weights if values.ndim else values


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Put attention into the network, pool bags by it, and make batches of whole bags."""
    surgery = Part("repertory.layers.attention_pooling:attention_head", options, "attention-mil")
    recipe = recipe.add("surgery", surgery)
    recipe = recipe.replace(sampler=Part("repertory.core.sampling:BagBatches", {}, "attention-mil"))
    return recipe.add("methods", Part("repertory.algorithms.attention_mil:AttentionMIL", options, "attention-mil"))
