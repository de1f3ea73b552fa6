"""What makes new examples of a class: a Gaussian, lines between neighbours, or a diffusion model."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from repertory.core.neighbours import nearest_neighbours
from repertory.errors import DataError, UserError, check_choice, check_number

GENERATORS = ("gaussian", "smote", "diffusion")
"""Names of what can make examples."""

INSTALL = 'install it with: pip install "repertory[synthesis]"'


class Generator(Protocol):
    """What makes examples of a class; anything of your own with these two methods will do."""

    def fit(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Any:
        """Learn from examples `(n, ...)` of classes `(n,)`; draw from `generator` alone."""
        ...

    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Return `count` new examples of a class `(count, ...)` in the units of those that it learnt from."""
        ...


class ClassGaussian:
    """A normal distribution a class: its mean, and a shrunk covariance in the directions in which examples vary most.

    The directions are the principal components of what is left of all examples when the mean of their class is taken
    off. A class of few examples shares them, and has its own covariance along them, shrunk by Ledoit's and Wolf's rule.

    Args:
        components: number of directions, fewer where there are not as many.
        spread: factor on the deviations from the mean; 0 gives the mean itself.

    Raises:
        OptionError: if an option is out of range.

    >>> images = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 5.0], [7.0, 5.0]])
    >>> draws = torch.Generator().manual_seed(0)
    >>> made = ClassGaussian(spread=0.0).fit(images, torch.tensor([0, 0, 1, 1]), draws)
    >>> made.sample(1, 2, draws)
    tensor([[6., 5.],
            [6., 5.]])

    Reference: Ledoit, Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004.
    """

    def __init__(self, components: int = 20, spread: float = 1.0) -> None:
        check_number("components", components, minimum=1, integer=True)
        check_number("spread", spread, minimum=0)
        self.components = components
        self.spread = spread

    def fit(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> ClassGaussian:
        """Learn from examples `(n, ...)` of classes `(n,)`; nothing is drawn.

        Raises:
            DataError: if they do not go together, or a number is not finite.
        """
        from sklearn.covariance import LedoitWolf
        from sklearn.decomposition import PCA

        rows = check_images(images, labels)
        self._shape = images.shape[1:]
        names, places, counts = labels.cpu().unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(names), rows.shape[1], dtype=rows.dtype).index_add_(0, places, rows) / counts[:, None]
        rest = (rows - means[places]).numpy()
        kept = min(self.components, len(rows) - len(names), rows.shape[1])
        self._means = dict(zip(names.tolist(), means))
        self._roots: dict[int, Tensor] = {}
        if kept < 1:
            return self
        # The full decomposition draws nothing.
        self._directions = torch.from_numpy(PCA(kept, svd_solver="full").fit(rest).components_)
        along = torch.from_numpy(rest) @ self._directions.T
        for place, name in enumerate(names.tolist()):
            if counts[place] > 1:
                own = along[places == place].numpy()
                values, vectors = torch.linalg.eigh(
                    torch.from_numpy(LedoitWolf(assume_centered=True).fit(own).covariance_)
                )
                self._roots[name] = values.clamp(min=0).sqrt()[:, None] * vectors.T
        return self

    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Return new examples of a class `(count, ...)`, float32.

        Raises:
            DataError: if it learnt of no such class, or of one example of it alone, which has no spread.
        """
        _check_label(label, self._means)
        found = self._means[label].expand(count, -1)
        if self.spread:
            if label not in self._roots:
                raise DataError(_one_alone(label, "a Gaussian"))
            root = self._roots[label]
            draws = torch.randn(count, len(root), generator=generator, dtype=root.dtype)
            found = found + self.spread * draws @ root @ self._directions
        return found.float().view(count, *self._shape)


class Smote:
    """Examples on the line between one of the class and one of its nearest neighbours there, by imbalanced-learn.

    Args:
        neighbours: number of nearest neighbours to choose from, fewer in a smaller class.

    Raises:
        OptionError: if `neighbours` is not a whole number from 1 on.
        UserError: if imbalanced-learn is not installed.

    >>> draws = torch.Generator().manual_seed(0)
    >>> made = Smote().fit(torch.tensor([[0.0, 1.0], [4.0, 1.0], [9.0, 9.0]]), torch.tensor([0, 0, 1]), draws)
    >>> made.sample(0, 3, draws)[:, 1]
    tensor([1., 1., 1.])

    Reference: Chawla, Bowyer, Hall, Kegelmeyer, "SMOTE: Synthetic Minority Over-sampling Technique", 2002.
    """

    def __init__(self, neighbours: int = 5) -> None:
        check_number("neighbours", neighbours, minimum=1, integer=True)
        try:
            from imblearn.over_sampling import SMOTE
        except ModuleNotFoundError:
            raise UserError(f"generator 'smote' needs imbalanced-learn; {INSTALL}") from None
        self.neighbours = neighbours
        self._smote = SMOTE

    def fit(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Smote:
        """Keep the examples `(n, ...)` of classes `(n,)`; nothing is drawn.

        Raises:
            DataError: if they do not go together, or a number is not finite.
        """
        rows = check_images(images, labels)
        self._shape = images.shape[1:]
        self._rows = {label: rows[labels.cpu() == label].numpy() for label in labels.unique().tolist()}
        return self

    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        """Return new examples of a class `(count, ...)`, float32.

        Raises:
            DataError: if it learnt of no such class, or of one example of it alone, which has no neighbour.
        """
        _check_label(label, self._rows)
        own = self._rows[label]
        if len(own) < 2:
            raise DataError(_one_alone(label, "SMOTE"))
        # It makes examples of the smaller classes of several, so one row stands for another class.
        rows = np.concatenate([own, np.zeros_like(own[:1])])
        given = np.array([1] * len(own) + [0])
        smote = self._smote(
            sampling_strategy={1: len(own) + count},
            k_neighbors=min(self.neighbours, len(own) - 1),
            random_state=int(torch.randint(2**31 - 1, (1,), generator=generator)),
        )
        found = torch.from_numpy(smote.fit_resample(rows, given)[0][len(rows) :])
        return found.float().view(count, *self._shape)


def make_generator(name: str, **options: Any) -> Generator:
    """Return the generator of that name.

    Args:
        name: one of `GENERATORS`.
        **options: for it.

    Raises:
        OptionError: if there is none, or an option is out of range.
        UserError: if a package that it needs is not installed.

    >>> make_generator("gaussian", components=5).components
    5
    """
    check_choice("generator", name, GENERATORS)
    if name == "diffusion":
        from repertory.transforms.dfu_ensemble.diffusion import Diffusion

        return Diffusion(**options)
    return ClassGaussian(**options) if name == "gaussian" else Smote(**options)


def nearest_distances(made: Tensor, images: Tensor) -> Tensor:
    """Return how far each made example is from the nearest real one: near 0 where a generator only remembers.

    Args:
        made: `(made, ...)`.
        images: the real ones `(n, ...)`.

    Returns:
        Euclidean distances `(made,)`.

    >>> nearest_distances(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0], [9.0, 0.0]]))
    tensor([2.])
    """
    near, _ = nearest_neighbours(made.float().flatten(1), images.float().flatten(1), 1, metric="euclidean")
    return -near.flatten()


def check_images(images: Tensor, labels: Tensor) -> Tensor:
    """Return the examples as rows `(n, width)` of float64 on the CPU.

    Raises:
        DataError: if examples and labels do not go together, or a number is not finite.
    """
    if images.ndim < 2 or not len(images) or labels.shape != images.shape[:1]:
        raise DataError(
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)} must be (n, ...) and (n,), n from 1 on"
        )
    if labels.is_floating_point():
        raise DataError(f"labels are {labels.dtype}; examples are made class by class, so give classes as int64")
    rows = images.detach().cpu().double().flatten(1)
    bad = ~rows.isfinite().all(1)
    if bool(bad.any()):
        raise DataError(f"images: example {int(bad.nonzero()[0])} is not finite; leave it out, or look at what made it")
    return rows


def _check_label(label: int, known: Any) -> None:
    if label not in known:
        raise DataError(f"label={label} is no class that was learnt from ({', '.join(map(str, known))}); fit it first")


def _one_alone(label: int, what: str) -> str:
    return (
        f"class {label} has one example alone, of which {what} makes nothing new; label another, lower the threshold, "
        "or set ratio=0"
    )
