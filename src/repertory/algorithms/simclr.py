r"""Learn without labels: two changed versions of an example must find each other among all others of the batch.

## Idea
An example is shown twice, each time randomly changed in ways that do not change what it is: moved, noisy. What enters
the network's last layer goes through a small projection, and there the two versions are pulled together and pushed
away from everything else in the batch. The projection is thrown away; the features below it have learnt to ignore the
changes and to tell examples apart. A linear classifier on a few labels is then often enough.

## Use it when
- there are many inputs and few labels, or none yet;
- you know changes that keep the meaning: shifts, noise, crops, colours;
- you want a baseline for any other self-supervised method.

## Do not use it when
- batches must be small: every other example of the batch is a negative, and with few of them the task is too easy;
- the changes destroy what you want to know (colour, orientation): the features learn to ignore it;
- many examples are near-duplicates, which it pushes apart all the same.

## Equations
With features $h$ of the $2B$ versions, $z = g(h) / \lVert g(h) \rVert$, and $i'$ the other version of $i$'s example,
$$ \ell_i = -\log \frac{\exp(z_i^\top z_{i'} / \tau)}{\sum_{k \ne i} \exp(z_i^\top z_k / \tau)} . $$

## Defaults
`temperature=0.5` is the authors' for CIFAR-10 (0.1 for ImageNet, with batches of 4096); `dim=128`, and a hidden layer
as wide as the features, are theirs everywhere.

## Cost
Both versions go through the network: two forward and two backward passes an example. The projection and the
$2B \times 2B$ cosines cost next to nothing.

## Claim
A linear classifier on its features matches a supervised ResNet-50 when the network is four times as wide: ImageNet
76.5 %; 69.3 % with the plain ResNet-50. The features below the projection are over 10 points better than those above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.core.distributed import own_rows
from repertory.core.method import Inner
from repertory.core.objective import Objective, projection
from repertory.core.state import Run, State
from repertory.errors import DataError, check_number
from repertory.losses.info_nce import InfoNCELoss
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="simclr",
    name="SimCLR",
    title="A Simple Framework for Contrastive Learning of Visual Representations",
    authors="Ting Chen et al.",
    year=2020,
    venue="ICML 2020",
    link="https://arxiv.org/abs/2002.05709",
    kind="algorithm",
    entry="SimCLR",
    problems=(
        "self-supervised learning",
        "few labels",
        "unlabelled images",
        "unlabelled data",
        "pretraining",
        "contrastive learning",
    ),
    defaults={"temperature": 0.5, "dim": 128},
    scenarios=("self_supervised",),
    needs=("views",),
    search={"temperature": (0.05, 1.0)},
    tags=("representation learning", "NT-Xent", "projection head"),
    baseline=True,
    across_batch=True,
)


def nt_xent(embeddings: Tensor, temperature: float = 0.5) -> Tensor:
    r"""Return the normalised temperature-scaled cross-entropy of each example, averaged over its versions.

    Every other version in the batch, over all processes, is a negative, but for further versions of the same example.

    Args:
        embeddings: `(versions, batch, dim)` of any length, two versions or more; each is compared with the next.
        temperature: divides the cosines.

    Returns:
        `(batch,)`, in float32 or wider.

    Raises:
        DataError: if there are no two versions.
        OptionError: if the temperature is not above 0.

    >>> nt_xent(torch.eye(2).expand(2, 2, 2), temperature=1.0)  # log(1 + 2/e)
    tensor([0.5514, 0.5514])
    """
    if embeddings.ndim != 3 or len(embeddings) < 2:
        raise DataError(
            f"embeddings {tuple(embeddings.shape)} must be (versions, batch, dim), with two or more versions of each "
            "example"
        )
    versions, size = embeddings.shape[:2]
    # Numbered over all processes, so that no two examples count as one.
    index = torch.arange(size, device=embeddings.device) + own_rows(size, embeddings.device).start
    loss = InfoNCELoss(temperature, reduction="none")
    values: Tensor = loss(embeddings.flatten(0, 1), index.repeat(versions))
    return values.unflatten(0, (versions, size)).mean(0)


class SimCLR(Objective):
    """Contrastive learning of two versions of each example, without labels.

    Args:
        temperature: divides the cosines.
        dim: size of the projection.

    Raises:
        OptionError: if an option is out of range.

    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), methods=[SimCLR()])
    >>> inputs = torch.randn(6, 4)
    >>> loss = step({"input": inputs, "views": [inputs + 0.1, inputs - 0.1]})
    >>> step.run.counts.passes
    36.0

    Notes:
        The authors' code normalises the projection's hidden layer by the batch; the paper's $g$ does not, and neither
        does this one. Which changes the versions have is decided by whoever makes `batch["views"]`.

    Reference: Chen, Kornblith, Norouzi, Hinton, https://arxiv.org/abs/2002.05709.
    """

    slug = "simclr"

    def __init__(self, temperature: float = 0.5, dim: int = 128) -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        check_number("dim", dim, minimum=1, integer=True)
        self.temperature = temperature
        self.dim = dim
        self.projection: nn.Module | None = None

    def heads(self, width: int, run: Run) -> None:
        """Make the projection."""
        self.projection = projection(width, width, self.dim)

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Return how well each example's versions are told from all others', in place of the criterion's value."""
        assert self.projection is not None
        return nt_xent(self.projection(self.encode(state, state.batch["views"])), self.temperature)


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Make SimCLR the recipe's objective."""
    return recipe.replace(objective=Part("repertory.algorithms.simclr:SimCLR", options, "simclr"))
