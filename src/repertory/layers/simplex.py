"""A classifier fixed to the vertices of a regular simplex, with room for classes that come later."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.classifier import replace_classifier
from repertory.errors import DataError, OptionError, check_choice, check_number


class DSimplexClassifier(nn.Module):
    r"""Products with the $K$ vertices of a regular simplex around 0: a classifier that never changes.

    Every two vertices have the cosine $-1/(K-1)$, the least that K vectors can have, so no class is nearer to another
    one and directions of classes that are yet to come are kept free. The product takes $O(K)$ an example, not
    $O(K^2)$, and there is nothing to store.

    Args:
        outputs: classes in use; may be set to more of the preallocated ones when they come.
        preallocated: K, vertices in all; features have one number less.
        from_end: class c takes vertex $K - 1 - c$, as in the authors' code, where whoever trains the network that
            replaces this one fills the vertices from the other side.

    Raises:
        OptionError: if an option is outside its range.

    >>> head = DSimplexClassifier(outputs=3, preallocated=4)
    >>> head(head.vertices()[:3]).argmax(1).tolist(), head.eval()(torch.zeros(2, 3)).shape
    ([0, 1, 2], torch.Size([2, 3]))

    Reference: Pernici, Bruni, Baecchi, Del Bimbo, Regular Polytope Networks, https://arxiv.org/abs/2103.15632.
    """

    def __init__(self, outputs: int, preallocated: int = 1024, from_end: bool = True) -> None:
        super().__init__()
        check_number("preallocated", preallocated, minimum=2, integer=True)
        check_number("outputs", outputs, minimum=1, integer=True)
        check_choice("from_end", from_end, (True, False))
        if outputs > preallocated:
            raise OptionError(f"preallocated={preallocated} is fewer than the {outputs} classes in use; raise it")
        self.outputs = outputs
        self.preallocated = preallocated
        self.from_end = from_end

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, in float32 or wider.

        Args:
            features: `(batch, preallocated - 1)`, of any length: the longer, the surer.

        Returns:
            In training `(batch, preallocated)`, so that features also keep off the vertices of classes to come; in
            evaluation `(batch, outputs)`.

        Raises:
            DataError: if the features are of another size.
        """
        dim = self.preallocated - 1
        if features.ndim != 2 or features.shape[1] != dim:
            raise DataError(
                f"features have shape {tuple(features.shape)}, but {self.preallocated} vertices need (batch, {dim})"
            )
        with torch.autocast(features.device.type, enabled=False):
            wide = features.to(torch.promote_types(features.dtype, torch.float32))
            logits = _products(wide)
            if self.from_end:
                logits = logits.flip(1)
        return logits if self.training else logits[:, : self.outputs]

    def vertices(self) -> Tensor:
        """Return the vertex of every class, `(preallocated, preallocated - 1)` unit vectors, float32."""
        found = _products(torch.eye(self.preallocated - 1, dtype=torch.float64)).T.float()
        return found.flip(0) if self.from_end else found

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"outputs={self.outputs}, preallocated={self.preallocated}, from_end={self.from_end}"


def _products(features: Tensor) -> Tensor:
    # The vertices are the unit vectors and one multiple of (1, ..., 1), moved so that their mean is 0, at length 1.
    dim = features.shape[1]
    last = (1 - math.sqrt(dim + 1)) / dim
    mean = (1 + last) / (dim + 1)
    length = math.sqrt((1 - mean) ** 2 + (dim - 1) * mean**2)
    total = features.sum(1, keepdim=True)
    return torch.cat([(features - mean * total) / length, -total / math.sqrt(dim)], 1)


class SimplexNetwork(nn.Module):
    """A network whose features go to a fixed classifier.

    Args:
        body: from inputs to features `(batch, preallocated - 1)`.
        classifier: the fixed classifier.
    """

    def __init__(self, body: nn.Module, classifier: DSimplexClassifier) -> None:
        super().__init__()
        self.body = body
        self.classifier = classifier

    def encode(self, inputs: Any) -> Tensor:
        """Return the features, which are what is searched by; compare them by their cosine."""
        features: Tensor = self.body(inputs)
        return features

    def forward(self, inputs: Any) -> Tensor:
        """Return the logits of `DSimplexClassifier`."""
        logits: Tensor = self.classifier(self.body(inputs))
        return logits


def replace_with_simplex(
    model: nn.Module, outputs: int, preallocated: int = 1024, from_end: bool = True
) -> SimplexNetwork:
    """Replace the network's classifier by a linear map without bias to `preallocated - 1` features, and the simplex.

    Args:
        model: the network, changed in place: its last linear layer is replaced, or left out where what enters it has
            that size already.
        outputs: number of classes.
        preallocated: as in `DSimplexClassifier`, like what follows.
        from_end: class c takes the c-th vertex from the end.

    Raises:
        OptionError: if an option is outside its range.
        UserError: if the network has no linear layer.

    >>> model = replace_with_simplex(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), 3, preallocated=6)
    >>> model.encode(torch.ones(2, 4)).shape, model.eval()(torch.ones(2, 4)).shape
    (torch.Size([2, 5]), torch.Size([2, 3]))
    """
    classifier = DSimplexClassifier(outputs, preallocated, from_end)

    def mapped(width: int) -> nn.Module:
        return nn.Identity() if width == preallocated - 1 else nn.Linear(width, preallocated - 1, bias=False)

    return SimplexNetwork(replace_classifier(model, mapped), classifier)
