r"""Learn features one half of which ignores a known change of the input, and the other half follows it.

## Idea
Self-supervised features are taught to be the same for changed versions of an image. That throws away what the change
was: pose, angle, colour. Here one half of the features is taught so; the other half is to be moved by a predictor that
knows the change. Its weights are made from the change, so it cannot pass the embedding through and ignore what it was
told. Terms of spread and covariance on both halves together keep them from collapsing and from saying the same.

## Use it when
- you need what was changed (pose, orientation, lighting, time) as well as what is seen;
- pairs of views with known parameters of the change are at hand or can be made: rotations, renders, robot motion;
- you want to steer a latent: `A(z)` moves it as the change `z` would move the input.

## Do not use it when
- the features serve classification alone: half of them are spent on the change;
- the parameters of the change are not known;
- batches are small: spread and covariance are estimated from one;
- training is short: after the 160 updates of the claim below the predictor is still further off than no prediction.

## Equations
Features $h = [h_{inv}, h_{eq}]$, projections $b = p_{inv}(h_{inv})$ and $a = p_{eq}(h_{eq})$, joined $u = [b, a]$; the
change $z$ leads from $x$ to $y$:
$$ L = s\,\mathrm{mse}(b_x, b_y) + e s\,\mathrm{mse}(A(z)\, a_x, a_y)
     + v\,[V(u_x) + V(u_y) + V(A(z)\, a_x)] + c\,[C(u_x) + C(u_y)], $$
$V(u) = \frac1{2d}\sum_j \max(0, 1 - \sqrt{\operatorname{Var} u_j + 10^{-4}})$, $C(u) = \frac1d \sum_{i \ne j}
\operatorname{Cov}(u)_{ij}^2$, and $A(z) = \sum_k z_k A_k$.

## Defaults
$s$ = 10, $e$ = 0.45, $v$ = 10, $c$ = 1, half of the features equivariant and a projection four times as wide as the
features (2048 on 512), as published for 3DIEBench with Adam (1e-3), batches of 1024 and 2000 epochs.

## Cost
Both versions pass the network once. The predictor makes `parameters` products of `(batch, e)` and `(e, e)`, with `e`
the equivariant part of the projection; a matrix for each example, 4 GiB at the authors' sizes, is never made.

## Claim
On 3DIEBench nearly the linear classification of invariant methods, and the rotation between two views predicted far
better than from their features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.algorithms.sie.predictor import (
    PREDICTORS,
    HyperPredictor,
    MLPPredictor,
    build_predictor,
    check_change,
)
from repertory.algorithms.sie.terms import covariance_loss, everyone, variance_loss
from repertory.card import Card
from repertory.core.method import Inner
from repertory.core.objective import Objective
from repertory.core.state import Run, State
from repertory.errors import DataError, OptionError, check_choice, check_number
from repertory.layers.shared_norm import SharedBatchNorm
from repertory.recipe import Part, Recipe

__all__ = ["SIE", "HyperPredictor", "MLPPredictor", "covariance_loss", "split_loss", "variance_loss"]

CARD = Card(
    slug="sie",
    name="SIE",
    title="Self-supervised learning of Split Invariant Equivariant representations",
    authors="Quentin Garrido et al.",
    year=2023,
    venue="ICML 2023",
    link="https://arxiv.org/abs/2302.10283",
    kind="algorithm",
    entry="SIE",
    problems=(
        "self-supervised learning",
        "equivariant representation",
        "pose or angle prediction",
        "latent-space transformation",
    ),
    defaults={
        "equivariant": 0.5, "similarity": 10.0, "equivariance": 0.45, "variance": 10.0, "covariance": 1.0,
        "width": None, "parameters": 2, "predictor": "linear",
    },
    scenarios=("self_supervised",),
    needs=("views", "change"),
    search={"equivariance": (0.1, 2.0)},
    tags=("representation learning", "VICReg", "hypernetwork", "rotation"),
    across_batch=True,
)  # fmt: skip


def split_loss(
    invariant: Tensor | None,
    moving: Tensor | None,
    predicted: Tensor | None,
    *,
    similarity: float = 10.0,
    equivariance: float = 0.45,
    variance: float = 10.0,
    covariance: float = 1.0,
) -> Tensor:
    """Return the loss of the embeddings of two versions of a batch, 0-d.

    Spread and covariance are those of all processes' rows together, and of both parts joined.

    Args:
        invariant: embeddings that should agree `(2, batch, dim)`, None for no such part.
        moving: embeddings that follow the change `(2, batch, other dim)`, None for no such part.
        predicted: what the second of `moving` should be, from the first and the change `(batch, other dim)`; with
            `moving`.
        similarity: weight of the agreement.
        equivariance: weight of the prediction, as a factor on `similarity`.
        variance: weight of the spread.
        covariance: weight of the covariances.

    Raises:
        DataError: if there is no part, or the parts are not of two versions of the same batch.

    >>> split_loss(torch.ones(2, 4, 3), None, None)  # collapsed: 10 times 0.495 for either version
    tensor(9.9000)
    """
    parts = [part for part in (invariant, moving) if part is not None]
    if not parts or any(part.ndim != 3 or len(part) != 2 or part.shape[1] != parts[0].shape[1] for part in parts):
        raise DataError(
            f"embeddings of shapes {[tuple(part.shape) for part in parts]} must be (2, batch, dim), of the same batch, "
            "and one part at least"
        )
    if (moving is None) != (predicted is None) or (
        moving is not None and predicted is not None and predicted.shape != moving.shape[1:]
    ):
        raise DataError("predicted must come with moving, of the shape of one of its versions, (batch, dim)")
    total = parts[0].new_zeros(())
    if invariant is not None:
        total = total + similarity * F.mse_loss(invariant[0], invariant[1])
    if moving is not None and predicted is not None:
        total = total + equivariance * similarity * F.mse_loss(predicted, moving[1])
        total = total + variance * variance_loss(everyone(predicted))
    for rows in torch.cat(parts, -1):
        shared = everyone(rows)
        total = total + variance * variance_loss(shared) + covariance * covariance_loss(shared)
    return total


class SIE(Objective):
    """Split invariant and equivariant learning of two versions of each example, without labels.

    The first part of the features is invariant, the last equivariant: `split(features)` gives both.

    Args:
        equivariant: share of the features that follow the change, in [0, 1]; 0 is VICReg, 1 has no invariant part.
        similarity: weight of what the versions' embeddings should agree in.
        equivariance: weight of the prediction, as a factor on `similarity`.
        variance: weight of the spread.
        covariance: weight of the covariances.
        width: size of both projections together; None is four times the features.
        parameters: numbers in `batch["change"]`: 2 for the cosine and sine of an angle, 4 for a quaternion.
        predictor: "linear" or "deep" make its matrix from the change; "mlp" takes change and embedding together.

    Attributes:
        invariant_head: projection of the invariant part, None where there is none.
        equivariant_head: projection of the equivariant part, None where there is none.
        predictor_head: the predictor, None where there is no equivariant part.

    Raises:
        OptionError: if an option is out of range, or leaves a part without a feature.
        DataError: in use, if the change does not have `parameters` numbers an example.

    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> step = Step(model, lambda groups: torch.optim.SGD(groups, lr=0.1), nn.CrossEntropyLoss(), methods=[SIE()])
    >>> inputs, change = torch.randn(6, 4), torch.randn(6, 2)
    >>> loss = step({"input": inputs, "views": [inputs, inputs + change.repeat(1, 2)], "change": change})
    >>> step.methods[0].split(torch.zeros(6, 8))[1].shape
    torch.Size([6, 4])

    Notes:
        Both versions share a batch in layers that normalise by it; in the authors' code each has its own. Covariances
        are divided by the rows that there are, less one. The online classifier on detached features, which the authors
        log, is left to the scenario's probe.

    Reference: Garrido, Najman, LeCun, https://arxiv.org/abs/2302.10283; spread and covariance: Bardes, Ponce, LeCun,
    VICReg, https://arxiv.org/abs/2105.04906.
    """

    slug = "sie"
    needs = frozenset({"views", "change"})

    def __init__(
        self,
        equivariant: float = 0.5,
        similarity: float = 10.0,
        equivariance: float = 0.45,
        variance: float = 10.0,
        covariance: float = 1.0,
        width: int | None = None,
        parameters: int = 2,
        predictor: str = "linear",
    ) -> None:
        super().__init__()
        check_number("equivariant", equivariant, minimum=0, maximum=1)
        for name, value in (
            ("similarity", similarity),
            ("equivariance", equivariance),
            ("variance", variance),
            ("covariance", covariance),
        ):
            check_number(name, value, minimum=0)
        if width is not None:
            check_number("width", width, minimum=2, integer=True)
        check_number("parameters", parameters, minimum=1, integer=True)
        check_choice("predictor", predictor, PREDICTORS)
        self.equivariant = equivariant
        self.similarity = similarity
        self.equivariance = equivariance
        self.variance = variance
        self.covariance = covariance
        self.width = width
        self.parameters_of_change = parameters
        self.predictor = predictor
        self.invariant_head: nn.Module | None = None
        self.equivariant_head: nn.Module | None = None
        self.predictor_head: nn.Module | None = None
        self._kept = 0

    def heads(self, width: int, run: Run) -> None:
        """Make both projections and the predictor, each projection of its part's share of the whole width."""
        moving = round(self.equivariant * width)
        if moving in (0, width) and 0 < self.equivariant < 1:
            raise OptionError(
                f"equivariant={self.equivariant} leaves a part of {width} features empty; take 0, 1, or a share in "
                "between that leaves each part a feature"
            )
        self._kept = width - moving
        joined = 4 * width if self.width is None else self.width
        follows = round(joined * moving / width)
        if self._kept:
            self.invariant_head = _projector(self._kept, max(1, joined - follows))
        if moving:
            self.equivariant_head = _projector(moving, max(1, follows))
            self.predictor_head = build_predictor(self.predictor, max(1, follows), self.parameters_of_change)

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the invariant and the equivariant part of features `(..., width)`."""
        return features[..., : self._kept], features[..., self._kept :]

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Return the loss of the batch, 0-d, in place of the criterion's value."""
        views, change = state.batch["views"], state.batch["change"]
        check_change(views[0], change, self.parameters_of_change)
        invariant, moving = self.split(self.encode(state, views[:2]).flatten(0, 1))
        with torch.autocast(invariant.device.type, enabled=False):
            kept = self._projected(self.invariant_head, invariant)
            moved = self._projected(self.equivariant_head, moving)
            predicted = None if moved is None or self.predictor_head is None else self.predictor_head(moved[0], change)
            return split_loss(
                kept,
                moved,
                predicted,
                similarity=self.similarity,
                equivariance=self.equivariance,
                variance=self.variance,
                covariance=self.covariance,
            )

    def _projected(self, head: nn.Module | None, part: Tensor) -> Tensor | None:
        """The embeddings of both versions `(2, batch, dim)`, in float32 or wider."""
        if head is None:
            return None
        rows: Tensor = head(part.to(torch.promote_types(part.dtype, torch.float32)))
        return rows.unflatten(0, (2, -1))


def _projector(width: int, dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (width, dim):
        layers += [nn.Linear(size, dim), SharedBatchNorm(dim), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(dim, dim, bias=False))


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Make SIE the recipe's objective, on versions that are turned by known angles."""
    return recipe.replace(objective=Part("repertory.algorithms.sie:SIE", options, "sie"))
