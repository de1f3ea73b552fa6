r"""Keep a metric loss from overfitting the classes it sees, by an opponent that confuses its last layer.

## Idea
A metric loss learns the few attributes that tell the seen classes apart, and the rest is lost for classes to come.
ECAML adds an opponent to any metric loss: a term that draws examples of different classes together. It acts on the last
linear layer alone, the metric; the network below it feels the metric loss only. So the layer cannot rest on a few easy
directions, and more of the network's features get through to the embedding.

## Use it when
- embeddings are to search among classes that are not in training;
- a metric loss has solved the training classes and validation on others has stopped improving.

## Do not use it when
- the classes searched for are those of training: confusion can only cost there;
- batches hold one class, or the network ends in something else than a linear layer.

## Equations
With $h$ what enters the last linear layer, $f = W h + b$, and $N$ the pairs of different classes in the batch,
$$ E = \frac{1}{|N|} \sum_{(i,j) \in N} \tfrac12 \Vert f_i - f_j \Vert^2, \qquad
   L = L_{metric} + \alpha \log E + \frac{c}{D} \sum_{r=1}^{D} \big(\Vert W_r \Vert^2 - 1\big)^2 , $$
where $h$ counts as given in $E$, $f$ is not normalised, and $W_r$ are the $D$ rows of $W$, which E alone would shrink.

## Defaults
`weight=0.13` ($\alpha$) and `guard=0.5` ($c$) are those of the authors' released settings for Cars196 with binomial
deviance (`repertory.losses.BinomialDevianceLoss`), where the layer learns ten times as fast as the network.

## Cost
One product of the features with the last layer more, and `batch^2 * dim` multiplications. No further pass.

## Claim
Added to a metric loss it retrieves better among classes that were not in training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.core.distributed import gather_rows
from repertory.core.features import NetworkFeatures
from repertory.core.method import Inner, Method
from repertory.core.state import Run, State
from repertory.errors import DataError, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="ecaml",
    name="ECAML",
    title="Energy Confused Adversarial Metric Learning for Zero-Shot Image Retrieval and Clustering",
    authors="Binghui Chen et al.",
    year=2019,
    venue="AAAI 2019",
    link="https://arxiv.org/abs/1901.07169",
    kind="algorithm",
    entry="ECAML",
    problems=(
        "unseen classes",
        "zero-shot retrieval",
        "deep metric learning",
        "image retrieval",
        "overfitting seen classes",
        "generalisation",
    ),
    defaults={"weight": 0.13, "guard": 0.5, "log": True},
    scenarios=("retrieval",),
    neutral={"weight": 0.0, "guard": 0.0},
    search={"weight": (0.02, 1.0)},
    across_batch=True,
    tags=("energy confusion", "regularisation", "embedding", "adversarial"),
)

_LEAST = 1e-12
"""Added to the energy, whose logarithm has no gradient at 0."""


def confusion_energy(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Return half the mean squared distance between examples of different classes, 0-d; 0 if there are none.

    Args:
        embeddings: `(batch, dim)`.
        targets: classes `(batch,)`, int64.

    >>> confusion_energy(torch.tensor([[0.0], [0.0], [2.0], [2.0]]), torch.tensor([0, 0, 1, 1]))
    tensor(2.)
    """
    same = (targets[:, None] == targets).to(embeddings.dtype)
    size, counts = len(targets), same.sum(1, keepdim=True)
    # From the spread within and between classes: sums of squares only, so that nothing cancels.
    means = same @ embeddings / counts
    within = ((size - counts) * (embeddings - means).square()).sum()
    between = size * (means - embeddings.mean(0)).square().sum()
    pairs = (size - counts).sum() / 2
    return (within + between) / (2 * pairs.clamp(min=1))


def row_norm_penalty(weight: Tensor) -> Tensor:
    """Return the mean over rows of the squared difference between their squared length and 1, 0-d.

    Args:
        weight: `(rows, columns)`.

    >>> row_norm_penalty(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    tensor(0.5000)
    """
    return (weight.square().sum(1) - 1).square().mean()


class EnergyConfusion(nn.Module):
    """The term that ECAML adds to a metric loss, with a gradient for the metric layer only.

    Computed in float32 or wider, also under autocast. Over several processes the batch is that of all of them together.

    Args:
        weight: of the energy (the paper's alpha).
        guard: weight of the penalty that keeps the layer's rows at length 1.
        log: take the logarithm of the energy, so that `weight` does not depend on the scale of the embeddings.

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if features, layer and targets do not match.

    >>> layer = nn.Linear(1, 1)
    >>> _ = nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    >>> features, targets = torch.tensor([[0.0], [0.0], [2.0], [2.0]]), torch.tensor([0, 0, 1, 1])
    >>> EnergyConfusion(weight=1.0)(features, layer, targets).detach()  # log 2
    tensor(0.6931)

    Reference: Chen, Deng, https://arxiv.org/abs/1901.07169.
    """

    def __init__(self, weight: float = 0.13, guard: float = 0.5, log: bool = True) -> None:
        super().__init__()
        check_number("weight", weight, minimum=0)
        check_number("guard", guard, minimum=0)
        self.weight = weight
        self.guard = guard
        self.log = log

    def forward(self, features: Tensor, layer: nn.Linear, targets: Tensor) -> Tensor:
        """Return the term, 0-d. A batch of one class has no energy, but the guard.

        Args:
            features: what enters the layer `(batch, in_features)`.
            layer: the metric layer.
            targets: classes `(batch,)`, int64.
        """
        wanted = (len(targets), layer.in_features)
        if features.shape != wanted or targets.ndim != 1:
            raise DataError(
                f"features {tuple(features.shape)} and targets {tuple(targets.shape)} must be (batch, in_features) and "
                f"(batch,); the layer has in_features={layer.in_features}"
            )
        given, targets = gather_rows(features.detach()), gather_rows(targets)
        with torch.autocast(features.device.type, enabled=False):
            wide = torch.promote_types(layer.weight.dtype, torch.float32)
            weight = layer.weight.to(wide)
            # Not through the layer itself, whose hooks belong to the network's own pass; distances need no bias.
            energy = confusion_energy(given.to(wide) @ weight.T, targets)
            if self.log:
                energy = (energy + _LEAST).log().where((targets != targets[0]).any(), 0.0)
            return self.weight * energy + self.guard * row_norm_penalty(weight)

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"weight={self.weight}, guard={self.guard}, log={self.log}"


class ECAML(Method):
    """Energy confusion beside the metric loss of a step.

    The metric layer is the network's last linear layer, and its input is taken from the network's ordinary pass. What
    comes below the layer has the gradient of the metric loss alone, bit for bit.

    Args:
        weight: of the energy (alpha).
        guard: weight of the penalty that keeps the layer's rows at length 1 (c).
        log: take the logarithm of the energy.

    Raises:
        OptionError: if an option is outside its range.

    >>> from repertory import Step
    >>> from repertory.losses import BinomialDevianceLoss
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> step = Step(model, optimizer, BinomialDevianceLoss(), methods=[ECAML()])
    >>> _ = step((torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])))
    >>> step.explain()
    'step > gradient > loss[ecaml]'

    Notes:
        The authors' code draws ten partners for each example, in batches of classes in pairs, so that they are of
        other classes, and divides by the number of all pairs of different classes. Here all of these pairs count. Their
        energy is in the mean a constant times this one, which the logarithm turns into an added constant.

    Reference: Chen, Deng, https://arxiv.org/abs/1901.07169.
    """

    slug = "ecaml"
    takes = {"target": "hard"}

    def __init__(self, weight: float = 0.13, guard: float = 0.5, log: bool = True) -> None:
        super().__init__()
        self.confusion = EnergyConfusion(weight, guard, log)
        self._features: NetworkFeatures | None = None

    def setup(self, run: Run) -> None:
        """Listen to what enters the last linear layer."""
        if self.confusion.weight > 0 or self.confusion.guard > 0:
            self._features = NetworkFeatures(run.model, run.criterion, "penultimate")

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Add the energy's term to the inner loss."""
        if self._features is None:
            return inner(state)
        with self._features.recorded() as seen:
            loss = inner(state)
        return loss + self.confusion(seen[-1], self._features.layer, state.batch["target"])


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Add ECAML to the recipe's methods."""
    return recipe.add("methods", Part("repertory.algorithms.ecaml:ECAML", options, "ecaml"))
