r"""Keep the embeddings of each new version of a network comparable with those of the versions before it.

## Idea
If the classifier is fixed to the vertices of a regular simplex, with room for classes to come, the directions of the
classes never move, so features of a new version stay where those of the old one were. Cross-entropy aligns only what
classes have in common; a contrastive term (HOC, higher-order compatibility) also ties the new feature of each example
to its own old one. A gallery that was embedded by an old version can then be searched with queries of the new one.

## Use it when
- a search runs on a gallery that is too large, or no longer there, to be embedded anew with each new version;
- classes come over time and the network is trained on;
- versions come from several places which can agree on a simplex and on the vertex of each class.

## Do not use it when
- the gallery is small: embed it anew;
- accuracy of the newest version is all that counts, or training is short: at the defaults nine tenths of the loss hold
  the new version to the old one;
- another method decides the targets (distillation, mixup), since they are vertices here.

## Equations
With features $h$ and vertices $p_c$ of a simplex of $K$ classes, logits are $p_c^\top h$. From the second version on,
$$ L = \lambda\, \mathrm{CE}(P h, y) + (1 - \lambda)\, L_\mathrm{HOC}, \qquad
   L_\mathrm{HOC} = \frac1B \sum_i \Big( -S_{ii} + \log \sum_j e^{A_{ij}} \Big), \qquad
   S_{ij} = \mu \, \frac{h^\mathrm{old}_i \cdot h_j}{\lVert h^\mathrm{old}_i \rVert \lVert h_j \rVert}, $$
where $A_{ij}$ is $S_{ij}$ for examples j of other classes than i. For those of its class, i among them, it is 0 with
`denominator="official"` (the released code); "negatives" leaves them out; "infonce" keeps $S_{ii}$ and leaves out the
others. The old features are those of a frozen copy of the version before, in evaluation mode.

## Defaults
`preallocated=1024` vertices, `weight` ($\lambda$) `=0.1` and `mu=10` are the authors'. They keep 20 examples a class of
old tasks and fill half of each batch with them, as the scenario continual does.

## Cost
From the second version on one forward pass of the old one a step, and `batch^2 * preallocated` multiplications. The
classifier has neither parameters nor gradient; its product takes `batch * preallocated`.

## Claim
Queries of the newest version find more in galleries of older ones than after fine-tuning a network with a free
classifier, and only with HOC do they find more than the older versions did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.core.activations import LayerOutputs
from repertory.core.distributed import gather_rows, gather_with_gradient, own_rows
from repertory.core.frozen import FrozenCopy
from repertory.core.method import Inner, Method
from repertory.core.state import Run, State, batch_size
from repertory.errors import ConflictError, DataError, check_choice, check_number
from repertory.layers.embedding import unit_rows
from repertory.layers.simplex import SimplexNetwork
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="stationary-representations",
    name="d-Simplex-HOC",
    title="Stationary Representations: Optimally Approximating Compatibility and Implications for Improved Model "
    "Replacements",
    authors="Niccolò Biondi et al.",
    year=2024,
    venue="CVPR 2024",
    link="https://arxiv.org/abs/2405.02581",
    kind="algorithm",
    entry="HOC",
    problems=(
        "backward-compatible embeddings",
        "search without re-indexing",
        "model replacement",
        "continual fine-tuning",
        "class-incremental learning",
        "retrieval",
    ),
    defaults={"weight": 0.1, "mu": 10.0, "denominator": "official", "from_start": False, "previous": None},
    scenarios=("continual", "supervised"),
    needs=("classes",),
    owns=("head",),
    search={"weight": (0.03, 0.9), "mu": (1.0, 30.0)},
    across_batch=True,
    tags=("fixed classifier", "simplex", "contrastive", "lifelong learning", "incremental classes"),
)

DENOMINATORS = ("official", "negatives", "infonce")


def hoc_loss(new: Tensor, old: Tensor, targets: Tensor, mu: float = 10.0, denominator: str = "official") -> Tensor:
    """Return for each example how far its new feature is from its old one, against the new ones of other classes.

    Computed in float32 or wider. Where the batch has no example of another class, "negatives" leaves the second term
    out and "infonce" is 0. Over several processes each example is compared with those of all of them.

    Args:
        new: features of the version that is trained `(batch, dim)`, of any length.
        old: features of the version before, of the same examples `(batch, dim)`; without gradient.
        targets: classes `(batch,)`, int64.
        mu: multiplies the cosines.
        denominator: what examples of the same class add to the sum: "official", "negatives" or "infonce".

    Returns:
        `(batch,)`.

    Raises:
        DataError: if the shapes do not fit.

    >>> eye = torch.eye(2)
    >>> hoc_loss(eye, eye, torch.tensor([0, 1]))
    tensor([-9.3069, -9.3069])
    """
    check_choice("denominator", denominator, DENOMINATORS)
    if new.ndim != 2 or new.shape != old.shape or targets.shape != new.shape[:1]:
        raise DataError(
            f"new features {tuple(new.shape)}, old ones {tuple(old.shape)} and targets {tuple(targets.shape)} must be "
            "(batch, dim), (batch, dim) and (batch,)"
        )
    with torch.autocast(new.device.type, enabled=False):
        fresh = unit_rows(new)
        everyone, labels = gather_with_gradient(fresh), gather_rows(targets)
        similarities = mu * unit_rows(old.detach()).to(fresh.dtype) @ everyone.T
        own = own_rows(len(targets), targets.device)
        pull = similarities[:, own].diagonal()
        same = targets[:, None] == labels
        if denominator == "official":
            return torch.logsumexp(similarities.masked_fill(same, 0.0), 1) - pull
        left_out = similarities.masked_fill(same, -torch.inf)
        if denominator == "infonce":
            return torch.logsumexp(torch.cat([left_out, pull[:, None]], 1), 1) - pull
        # A row without any other class would have the gradient of log 0.
        alone = same.all(1)
        push = torch.logsumexp(left_out.masked_fill(alone[:, None], 0.0), 1)
        return torch.where(alone, 0.0, push) - pull


class HOC(Method):
    r"""Train a new version of a network on the simplex so that its features stay comparable with the version before.

    At each `task_end` the network becomes the version before. Until there is one, the loss is the inner one.

    Args:
        weight: share $\lambda$ of the inner loss once there is a version before, in [0, 1]; 1 leaves HOC out.
        mu: multiplies the cosines of new and old features.
        denominator: "official", "negatives" or "infonce"; see `hoc_loss`.
        from_start: the weights that training starts from are a version to stay compatible with, as in the authors'
            code, which starts every training from a trained network.
        previous: the version before, if it is another network than the one to train (a replacement); its `encode`
            gives features of the same simplex. It is copied.

    Raises:
        OptionError: if an option is outside its range.
        ConflictError: in a step, if the network has no fixed classifier.

    >>> from repertory import Step
    >>> from repertory.layers.simplex import replace_with_simplex
    >>> model = replace_with_simplex(nn.Linear(2, 3), outputs=3, preallocated=8)
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), methods=[HOC()])
    >>> loss = step((torch.randn(4, 2), torch.tensor([0, 1, 0, 1])))
    >>> step.end_task()  # from here on, stay compatible with the network as it is now
    >>> loss = step((torch.randn(4, 2), torch.tensor([2, 1, 2, 0])))
    >>> step.explain()
    'step > gradient > loss[stationary-representations]'

    Notes:
        Whether the paper's own equation has the zeros of the released code was not verified; its results came from that
        code, so "official" is the default.

    Reference: Biondi, Pernici, Ricci, Del Bimbo, https://arxiv.org/abs/2405.02581.
    """

    slug = "stationary-representations"
    owns = frozenset({"target"})
    takes = {"target": "hard"}

    def __init__(
        self,
        weight: float = 0.1,
        mu: float = 10.0,
        denominator: str = "official",
        from_start: bool = False,
        previous: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_number("weight", weight, minimum=0, maximum=1)
        check_number("mu", mu, above=0)
        check_choice("denominator", denominator, DENOMINATORS)
        check_choice("from_start", from_start, (True, False))
        self.weight = weight
        self.mu = mu
        self.denominator = denominator
        self.previous = None if previous is None else FrozenCopy(previous)
        self._there = from_start or previous is not None
        self._features: LayerOutputs | None = None

    def setup(self, run: Run) -> None:
        """Copy the network, and listen to its features."""
        if not isinstance(run.model, SimplexNetwork):
            raise ConflictError(
                f"{self.slug} needs a network with a fixed classifier, but this is a {type(run.model).__name__}; call "
                "repertory.layers.simplex.replace_with_simplex(model, outputs) first"
            )
        if self.previous is None:
            self.previous = FrozenCopy(run.model)
        self._features = LayerOutputs(run.model, ["body"])

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Mix the inner loss with HOC, once there is a version before."""
        if self.weight == 1 or not self._there:
            return inner(state)
        assert self.previous is not None
        assert self._features is not None
        size = batch_size(state.batch)
        with self._features.recorded(size) as seen:
            loss = inner(state)
        with torch.no_grad():
            old = self.previous.model.encode(state.batch["input"])  # type: ignore[operator]
        state.run.counts.forward += size
        values = hoc_loss(seen["body"], old, state.batch["target"], self.mu, self.denominator)
        return self.weight * loss + (1 - self.weight) * (values if loss.ndim else values.mean())

    def task_end(self, run: Run) -> None:
        """Make the network as it is now the version before."""
        self.previous = FrozenCopy(run.model)
        self._there = True

    def get_extra_state(self) -> dict[str, Any]:
        """Return whether there is a version before."""
        return {"there": self._there}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over whether there is a version before."""
        self._there = state["there"]


def edit(recipe: Recipe, preallocated: int = 1024, from_end: bool = True, **options: Any) -> Recipe:
    """Replace the classifier by the fixed one, and add HOC to the methods."""
    head = {"preallocated": preallocated, "from_end": from_end}
    surgery = Part("repertory.layers.simplex:replace_with_simplex", head, "stationary-representations")
    method = Part("repertory.algorithms.stationary_representations:HOC", options, "stationary-representations")
    return recipe.add("surgery", surgery).add("methods", method)
