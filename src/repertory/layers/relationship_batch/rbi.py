"""The layer: residual attention over the examples of a batch, with a code of how alike their images are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.distributed import gather_rows, gather_with_gradient, own_rows
from repertory.errors import DataError, OptionError, check_choice, check_number
from repertory.layers.doubled import attention, in_heads, repeated
from repertory.layers.relationship_batch.relations import relation_codes

RPE = ("qr", "bias", None)
COMBINE = ("sum", "gate", "concat")
TRAIN = ("dual", "joint")
INFERENCE = ("drop", "batch", "single")


class RBI(nn.Module):
    """Relationship batch integration: residual attention over a batch, told by the images which of them look alike.

    Stands between backbone and classifier. Over several processes the batch is that of all of them together.

    Args:
        dim: size of the features.
        heads: of the attention; divides `dim`.
        rpe: how the code of a pair enters: "qr" as a vector, times the code, that is added to the key; "bias" as a
            learned number a head, times the code, that is added to the score; None leaves it out.
        combine: "sum" adds what attention gives to the feature; "gate" scales it by a learned number first, which
            starts at 0.12; "concat" maps feature and attention linearly to a feature.
        train: in training, "dual" gives the features with the mixed ones behind them, "joint" the mixed ones alone.
        inference: in evaluation, "drop" gives the features, "batch" mixes them as in training, "single" mixes each
            with itself alone.
        image_size: images with a longer side are brought down to it before they are compared.

    Raises:
        OptionError: if an option is outside its range, or in use, if features are not of size `dim`.
        DataError: in use, if images or targets do not have one row an example.

    >>> mix = RBI(dim=8)
    >>> features, target = mix(torch.randn(6, 8), torch.rand(6, 1, 28, 28), torch.arange(6))
    >>> features.shape, target.tolist()
    (torch.Size([12, 8]), [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])
    >>> mix.eval()(features, torch.rand(12, 1, 28, 28)).shape
    torch.Size([12, 8])

    Notes:
        A constant added to the vector of "qr" would be the same for all pairs of an image, and drop out of the softmax.

    Reference: Le, Bui, Tran, Tran, Pham, https://arxiv.org/abs/2412.19606.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        rpe: str | None = "qr",
        combine: str = "sum",
        train: str = "dual",
        inference: str = "drop",
        image_size: int = 32,
    ) -> None:
        super().__init__()
        check_number("dim", dim, minimum=1, integer=True)
        check_options(heads, rpe, combine, train, inference, image_size)
        if dim % heads:
            raise OptionError(f"heads={heads} is not allowed: it must divide dim={dim}")
        self.dim = dim
        self.heads = heads
        self.rpe = rpe
        self.combine = combine
        self.doubles = train == "dual"
        self.inference = inference
        self.image_size = image_size
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        if rpe == "qr":
            self.relation = nn.Parameter(torch.empty(dim // heads).uniform_(-1, 1))
        elif rpe == "bias":
            self.relation = nn.Parameter(torch.empty(heads).uniform_(-1, 1))
        if combine == "gate":
            self.gate = nn.Parameter(torch.tensor(-2.0))
        elif combine == "concat":
            self.join = nn.Linear(2 * dim, dim)

    def forward(self, features: Tensor, images: Tensor, *targets: Any) -> Any:
        """Mix the batch, or not, as the options say.

        Args:
            features: `(batch, dim)`.
            images: what the features are of, as the backbone saw them, `(batch, ...)`.
            targets: tensors with a row an example, or tuples, lists or mappings of them.

        Returns:
            features, `(2 * batch, dim)` with "dual" in training and else `(batch, dim)`, with the targets behind them
            where any were given, doubled like the features.
        """
        if not self.training:
            if self.inference != "drop":
                features = self.mixed(features, images) if self.inference == "batch" else self.alone(features)
        elif not self.doubles:
            features = self.mixed(features, images)
        else:
            size = len(features)
            bad = [tuple(t.shape) for t in targets if isinstance(t, Tensor) and t.shape[:1] != (size,)]
            if bad:
                raise DataError(f"a target of shape {bad[0]} does not have a row for each of {size} features; give one")
            features = torch.cat([features, self.mixed(features, images)])
            targets = repeated(targets, size)
        return (features, *targets) if targets else features

    def mixed(self, features: Tensor, images: Tensor) -> Tensor:
        """Return the features `(batch, dim)`, each with what attention over the batch adds to it."""
        self._fits(features)
        if not isinstance(images, Tensor) or len(images) != len(features):
            given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise DataError(f"images must be a tensor with a row for each of {len(features)} features, not {given}")
        rows = own_rows(len(features), features.device)
        query, key, value = self._projected(gather_with_gradient(features))
        query, bias = query[:, rows], None
        if self.rpe is not None:
            codes = relation_codes(gather_rows(self._reduced(images)))[rows].to(query.dtype)
            if self.rpe == "qr":
                bias = (query @ self.relation[:, None]) * query.shape[-1] ** -0.5 * codes
            else:
                bias = self.relation[:, None, None] * codes
        return self._combined(features, self.out(attention(query, key, value, bias)))

    def alone(self, features: Tensor) -> Tensor:
        """Return the features `(batch, dim)`, each mixed in a batch of its own, where it attends to itself alone."""
        self._fits(features)
        value = self.project(self.norm(features))[:, 2 * self.dim :]
        return self._combined(features, self.out(value))

    def _fits(self, features: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise OptionError(
                f"dim={self.dim} does not fit features of shape {tuple(features.shape)}; they must be "
                f"(batch, {self.dim})"
            )

    def _projected(self, features: Tensor) -> list[Tensor]:
        return [in_heads(part, self.heads) for part in self.project(self.norm(features)).chunk(3, dim=1)]

    def _combined(self, features: Tensor, added: Tensor) -> Tensor:
        if self.combine == "concat":
            joined: Tensor = self.join(torch.cat([features, added], dim=1))
            return joined
        return features + (self.gate.sigmoid() * added if self.combine == "gate" else added)

    def _reduced(self, images: Tensor) -> Tensor:
        images = images.detach()
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        if images.ndim == 4 and max(images.shape[2:]) > self.image_size:
            height, width = (min(side, self.image_size) for side in images.shape[2:])
            images = nn.functional.adaptive_avg_pool2d(images, (height, width))
        return images.flatten(1)

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return f"dim={self.dim}, heads={self.heads}, rpe={self.rpe!r}, inference={self.inference!r}"


def check_options(
    heads: object, rpe: object, combine: object, train: object, inference: object, image_size: object
) -> None:
    """Raise an OptionError that names the first option outside its range."""
    check_number("heads", heads, minimum=1, integer=True)
    check_choice("rpe", rpe, RPE)
    check_choice("combine", combine, COMBINE)
    check_choice("train", train, TRAIN)
    check_choice("inference", inference, INFERENCE)
    check_number("image_size", image_size, minimum=1, integer=True)
