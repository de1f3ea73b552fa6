"""What a data set is cut into, and the scaling that is fitted on its training part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Examples:
    """Inputs with their targets.

    Args:
        inputs: `(examples, ...)`.
        targets: `(examples,)`: int64 classes or numbers of passages, float32 values, -1 where unknown; or masks
            int64 `(examples, height, width)`.
        groups: which of them belong together: the number of the group (the bag) of each, int64 `(examples,)`, or None.
        truth: of instances of bags what each is by itself, 0, 1 or -1 where unknown, int64 `(examples,)`, or None; for
            evaluation only.
    """

    inputs: Tensor
    targets: Tensor
    groups: Tensor | None = None
    truth: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def subset(self, indices: Tensor | Sequence[int]) -> Examples:
        """Return the examples at `indices`, in that order."""
        where = torch.as_tensor(indices, dtype=torch.long)
        groups, truth = (None if rows is None else rows[where] for rows in (self.groups, self.truth))
        return Examples(self.inputs[where], self.targets[where], groups, truth)


class Normaliser:
    """Shift and scale inputs by statistics of the training inputs: per channel (images, sequences) or column.

    A channel or column that is constant in training is only shifted.

    Args:
        mean: broadcastable to a batch; images count from 0 to 255.
        std: same shape as `mean`, above zero.
        kept: leave inputs as they are, whatever mean and deviation say: the bytes of texts are no amounts.
    """

    def __init__(self, mean: Tensor, std: Tensor, kept: bool = False) -> None:
        self.mean = mean
        self.std = std
        self.kept = kept

    @classmethod
    def none(cls) -> Normaliser:
        """Return one that leaves inputs as they are."""
        return cls(torch.zeros(1), torch.ones(1), kept=True)

    @classmethod
    def fit(cls, inputs: Tensor) -> Normaliser:
        """Measure mean and standard deviation (over n) of training inputs `(examples, channels, ...)`."""
        shape = (1, -1, *[1] * (inputs.dim() - 2))
        if inputs.dtype == torch.uint8:
            # Counting the 256 values is exact and needs no float copy of the images.
            values = torch.arange(256, dtype=torch.float64)
            shares = torch.stack([inputs[:, c].flatten().bincount(minlength=256) for c in range(inputs.shape[1])])
            shares = shares.double() / shares.sum(1, keepdim=True)
            mean = shares @ values
            std = (shares * (values - mean[:, None]) ** 2).sum(1).sqrt()
            constant = (shares > 0).sum(1) == 1
        else:
            over = [d for d in range(inputs.dim()) if d != 1]
            exact = inputs.double()
            mean, std = exact.mean(over), exact.var(over, correction=0).sqrt()
            # Rounding leaves a tiny deviation in a constant column, so it is found by its range.
            constant = inputs.amax(over) == inputs.amin(over)
        std = torch.where(constant | (std == 0), 1.0, std)
        return cls(mean.float().reshape(shape), std.float().reshape(shape))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return `(inputs - mean) / std` as float32 on the inputs' device; the inputs themselves if they are kept."""
        if self.kept:
            return inputs
        return (inputs.float() - self.mean.to(inputs.device)) / self.std.to(inputs.device)

    def undo(self, inputs: Tensor) -> Tensor:
        """Return normalised inputs in the units that they had before; as they are where inputs are kept."""
        return inputs if self.kept else inputs * self.std.to(inputs.device) + self.mean.to(inputs.device)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` turns back into an equal normaliser."""
        return {
            "dimensions": self.mean.dim(),
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "kept": self.kept,
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Normaliser:
        """Rebuild a normaliser from `to_dict`'s result."""
        shape = (1, -1, *[1] * (plain["dimensions"] - 2))
        if plain.get("kept", False):
            return cls.none()
        return cls(torch.tensor(plain["mean"]).reshape(shape), torch.tensor(plain["std"]).reshape(shape))


@dataclass
class Splits:
    """A data set cut for one seed, with its corruptions applied.

    Args:
        train: labelled training examples; the targets carry the label noise, if any was asked for.
        validation: for choosing.
        test: for reporting; the inputs carry the shift, if any was asked for.
        unlabelled: training examples whose targets are hidden (-1), or None.
        normaliser: fitted on the inputs of `train`.
        indices: rows of the data set in "train", "validation", "test" and, if labels were hidden, "unlabelled".
        clean_targets: targets of `train` before label noise.
        classes: name of each training class, empty where targets are numbers.
        target_mean: mean of the training targets (regression), else 0. The targets themselves are not scaled.
        target_std: standard deviation of the training targets (regression), else 1.
    """

    train: Examples
    validation: Examples
    test: Examples
    unlabelled: Examples | None
    normaliser: Normaliser
    indices: dict[str, list[int]]
    clean_targets: Tensor
    classes: tuple[str, ...] = ()
    target_mean: float = 0.0
    target_std: float = 1.0
