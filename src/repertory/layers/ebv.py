r"""Replace the trainable classifier by fixed unit vectors, as nearly orthogonal as their number allows.

## Idea
A linear classifier for very many classes is a large matrix that has to be trained, stored and synchronised. Here
every class gets a fixed unit vector instead, and the vectors are spread so that no two are closer than a small
cosine: no class is privileged. The network's last layer gives `dim` numbers, and is trained to point at the vector
of its class. There may be more vectors than dimensions, and unused ones wait for classes that come later.

## Use it when
- there are so many classes that the classifier is a large share of the parameters;
- classes are added later, and the head must not change for the old ones;
- you want embeddings in which all classes are equally far apart.

## Do not use it when
- classes are few: the head it replaces costs next to nothing;
- similar classes should share structure in the output, as a trained classifier lets them;
- `dim` would be much smaller than the number of classes and accuracy comes first: 100 dimensions for the 1000 classes
  of ImageNet cost the authors about two points.

## Equations
Vectors $w_1, \dots, w_N$ on the sphere in $\mathbb{R}^d$ by gradient descent, with unit length restored each step, on
$$ \sum_{i \neq j} \max\big( 0,\; |w_i^\top w_j| - \omega \big) \quad \text{until} \quad
   \max_{i \neq j} |w_i^\top w_j| \le \omega + 10^{-4}, $$
then cross-entropy on the logits
$$ \frac{1}{\tau} \, \frac{z^\top w_k}{\lVert z \rVert} . $$
For $N > d$ no threshold $\omega$ lies below the Welch bound $\sqrt{(N - d) / (d (N - 1))}$.

## Defaults
`temperature=0.07` and, where the vectors fit in orthogonally, `threshold=0.002` are the authors'; for more vectors than
dimensions the default is one and a half times the lower bound (theirs are 1.1 to 1.4 times it, after many more steps).
`dim` is the number of vectors, the authors' choice for ImageNet, but at least 16: with two or three classes so small
an embedding would hold nothing but the class.

## Cost
The head's forward pass is that of any classifier; it has no gradient and no optimizer state. The vectors are made once
in a process for each size: below a second for 300, about a minute on one CPU core for 1000 vectors in 1000 dimensions
(`orthogonal=True` takes no time, but needs at least as many dimensions as vectors).

## Claim
Fixed vectors in half as many dimensions as classes match a trained classifier, and spread vectors beat random ones.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.core.classifier import replace_classifier
from repertory.errors import OptionError, check_choice, check_number
from repertory.layers.embedding import unit_rows
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="ebv",
    name="EBV",
    title="Equiangular Basis Vectors",
    authors="Yang Shen et al.",
    year=2023,
    venue="CVPR 2023",
    link="https://arxiv.org/abs/2303.11637",
    kind="layer",
    entry="EBVHead",
    problems=("very many classes", "large classifier", "fixed classifier", "metric learning", "incremental classes"),
    defaults={
        "dim": None,
        "temperature": 0.07,
        "threshold": None,
        "extra": 0,
        "orthogonal": False,
        "seed": 0,
    },
    needs=("classes",),
    owns=("head",),
    search={"temperature": (0.03, 0.3)},
    tags=("classifier head", "prototypes", "orthogonal", "extreme classification"),
)

_SLACK = 1e-4
"""How far above the threshold the generator may stop, as in the authors' code."""
_SMALLEST_DIM = 16


def coherence_bound(num_vectors: int, dim: int) -> float:
    r"""Return what the largest $|\cos|$ between two of `num_vectors` vectors in `dim` dimensions is at least.

    Welch's bound, and beyond $d (d + 1) / 2$ vectors Levenshtein's, which is then the larger one.

    >>> round(coherence_bound(6, 3), 4), coherence_bound(3, 3)
    (0.4472, 0.0)
    """
    n, d = num_vectors, dim
    if n <= d:
        return 0.0
    if n <= d * (d + 1) / 2:
        return math.sqrt((n - d) / (d * (n - 1)))
    return math.sqrt((3 * n - d * d - 2 * d) / ((d + 2) * (n - d)))


def generate_ebv(
    num_vectors: int,
    dim: int,
    threshold: float | None = None,
    *,
    lr: float = 1e-3,
    max_steps: int = 100_000,
    slice_size: int = 130,
    orthogonal: bool = False,
    seed: int = 0,
) -> Tensor:
    """Return unit vectors of which no two have an absolute cosine above `threshold` (by more than 1e-4).

    The result depends on the arguments alone and is kept in memory, so that asking again costs a copy.

    Args:
        num_vectors: how many.
        dim: their size; may be smaller than their number.
        threshold: largest absolute cosine; None is 0.002 for at most `dim` vectors, else 1.5 times the lower bound.
        lr: step of the descent.
        max_steps: give up after so many steps.
        slice_size: rows of the cosine matrix that are in memory at a time.
        orthogonal: take rows of a random orthogonal matrix instead; for at most `dim` vectors.
        seed: of the start.

    Returns:
        `(num_vectors, dim)`, float32.

    Raises:
        OptionError: if an option is outside its range, or the threshold cannot be reached.

    >>> vectors = generate_ebv(12, 8)
    >>> bool((vectors @ vectors.T - torch.eye(12)).abs().max() < 1.5 * coherence_bound(12, 8) + 1e-3)
    True
    """
    check_number("num_vectors", num_vectors, minimum=1, integer=True)
    check_number("dim", dim, minimum=2, integer=True)
    check_number("max_steps", max_steps, minimum=1, integer=True)
    check_number("slice_size", slice_size, minimum=1, integer=True)
    check_number("lr", lr, above=0)
    check_number("seed", seed, minimum=0, integer=True)
    check_choice("orthogonal", orthogonal, (True, False))
    bound = coherence_bound(num_vectors, dim)
    if orthogonal and num_vectors > dim:
        raise OptionError(
            f"orthogonal=True is not allowed for {num_vectors} vectors in {dim} dimensions; "
            f"take dim={num_vectors} or more"
        )
    if threshold is None:
        threshold = max(0.002, min(1.5 * bound, (1 + bound) / 2))
    check_number("threshold", threshold, above=0, below=1)
    if threshold < bound:
        raise OptionError(
            f"threshold={threshold:g} is not allowed: of {num_vectors} vectors in {dim} dimensions two have an "
            f"absolute cosine of at least {bound:.4g}; raise threshold or dim"
        )
    return _generate(num_vectors, dim, threshold, lr, max_steps, slice_size, orthogonal, seed).clone()


@functools.lru_cache(maxsize=8)
@torch.no_grad()
def _generate(
    count: int, dim: int, threshold: float, lr: float, max_steps: int, slice_size: int, orthogonal: bool, seed: int
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if orthogonal:
        return torch.linalg.qr(torch.randn(dim, count, generator=generator)).Q.T.contiguous()
    vectors = torch.randn(count, dim, generator=generator)
    gradient = torch.empty_like(vectors)
    largest = 0.0
    for _ in range(max_steps):
        vectors = unit_rows(vectors)
        largest = penalty_gradient(vectors, threshold, slice_size, gradient)
        if largest <= threshold + _SLACK:
            return vectors
        vectors.sub_(gradient, alpha=lr)
    raise OptionError(
        f"threshold={threshold:g} was not reached for {count} vectors in {dim} dimensions in max_steps={max_steps}: "
        f"the largest absolute cosine is {largest:.4g}; raise threshold, dim or max_steps"
    )


def penalty_gradient(vectors: Tensor, threshold: float, slice_size: int, out: Tensor) -> float:
    r"""Write the gradient of $\sum_{i \ne j} \max(0, |w_i^\top w_j| - \omega)$ to `out`.

    Args:
        vectors: unit vectors `(n, dim)`.
        threshold: cosines up to this one are free.
        slice_size: rows of the cosine matrix that are in memory at a time.
        out: `(n, dim)`.

    Returns:
        The largest absolute cosine.
    """
    largest = 0.0
    for start in range(0, len(vectors), slice_size):
        rows = slice(start, start + slice_size)
        cosines = vectors[rows] @ vectors.T
        cosines.diagonal(start).zero_()
        low, high = cosines.aminmax()
        largest = max(largest, -low.item(), high.item())
        # Both ends of a pair move: each row meets the pair twice in the sum over ordered pairs.
        torch.matmul(nn.functional.hardshrink(cosines, threshold).sign_(), vectors, out=out[rows])
    out.mul_(2)
    return largest


class EBVHead(nn.Module):
    """Cosines to fixed vectors, divided by a temperature: a classifier without parameters.

    The product is computed in float32, also under autocast: the vectors' cosines are as small as the rounding of half
    precision. The vectors are a buffer, saved with the network; unused ones wait in the buffer `spare`.

    Args:
        classes: number of classes.
        dim: size of the input; None is the number of vectors, at least 16.
        temperature: divides the cosines.
        threshold: largest absolute cosine between two vectors; None as in `generate_ebv`.
        extra: vectors to make beyond `classes`, for `extend`.
        orthogonal: take exactly orthogonal vectors; needs `dim` of at least their number.
        seed: of the vectors.

    Raises:
        OptionError: if an option is outside its range, or so many vectors do not fit.

    >>> head = EBVHead(classes=10, dim=16, orthogonal=True)
    >>> head(head.vectors).argmax(1).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

    Reference: Shen, Sun, Wei, https://arxiv.org/abs/2303.11637.
    """

    vectors: Tensor
    spare: Tensor

    def __init__(
        self,
        classes: int,
        dim: int | None = None,
        temperature: float = 0.07,
        threshold: float | None = None,
        extra: int = 0,
        orthogonal: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_number("classes", classes, minimum=2, integer=True)
        check_number("extra", extra, minimum=0, integer=True)
        check_number("temperature", temperature, above=0)
        dim = max(classes + extra, _SMALLEST_DIM) if dim is None else dim
        made = generate_ebv(classes + extra, dim, threshold, orthogonal=orthogonal, seed=seed)
        self.dim = dim
        self.temperature = temperature
        self.register_buffer("vectors", made[:classes].clone())
        self.register_buffer("spare", made[classes:].clone())

    def forward(self, embedding: Tensor) -> Tensor:
        """Return logits.

        Args:
            embedding: `(batch, dim)`, of any length.

        Returns:
            `(batch, classes)`, float32 or wider.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            unit = unit_rows(embedding)
            return unit @ self.vectors.to(unit.dtype).T / self.temperature

    def extend(self, count: int) -> None:
        """Take `count` unused vectors into use, for new classes behind the old ones, whose logits stay as they are.

        Raises:
            OptionError: if fewer are left.
        """
        check_number("count", count, minimum=1, integer=True)
        if count > len(self.spare):
            raise OptionError(
                f"count={count} is not allowed: {len(self.spare)} unused vectors are left; "
                f"make the head with a larger extra"
            )
        self.vectors = torch.cat([self.vectors, self.spare[:count]])
        self.spare = self.spare[count:].clone()

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"classes={len(self.vectors)}, dim={self.dim}, temperature={self.temperature}"


def replace_with_ebv(
    model: nn.Module,
    outputs: int,
    dim: int | None = None,
    temperature: float = 0.07,
    threshold: float | None = None,
    extra: int = 0,
    orthogonal: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Replace the network's classifier in place by a linear map to `dim` numbers and an `EBVHead`.

    Args:
        model: the network; its last linear layer is replaced.
        outputs: number of classes.
        dim: as in `EBVHead`, like all that follow.
        temperature: divides the cosines.
        threshold: largest absolute cosine between two vectors.
        extra: vectors to make beyond `outputs`.
        orthogonal: take exactly orthogonal vectors.
        seed: of the vectors.

    Returns:
        The network.

    Raises:
        OptionError: if an option is outside its range.
        UserError: if the network has no linear layer.
    """
    head = EBVHead(outputs, dim, temperature, threshold, extra, orthogonal, seed)
    return replace_classifier(model, lambda features: nn.Sequential(nn.Linear(features, head.dim), head))


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Replace the classifier by fixed vectors; the criterion stays."""
    return recipe.add("surgery", Part("repertory.layers.ebv:replace_with_ebv", options, "ebv"))
