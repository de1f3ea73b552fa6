"""A data set in memory, and how it is cut into training, validation and test parts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from repertory.datasets import corruptions as corrupt
from repertory.datasets.encoder import Encoder
from repertory.datasets.splits import Examples, Normaliser, Splits
from repertory.datasets.stratify import cut, generator_for
from repertory.errors import DataError, OptionError

Task = Literal["classification", "regression"]
Modality = Literal["image", "table", "sequence"]

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples in memory with all that is known of them; `load` makes one from a name or a path.

    Args:
        name: short name: of the built-in set, the folder, or the file without its ending.
        spec: what the user typed, options included.
        task: "classification" or "regression".
        modality: "image", "table" or "sequence".
        inputs: images uint8 `(examples, channels, height, width)`, tables float32 `(examples, columns)`,
            sequences float32 `(examples, channels, length)`.
        targets: int64 `(examples,)` from 0 to classes-1, or float32 `(examples,)`.
        classes: names of the classes, empty for regression.
        encoder: turns new raw input into a batch of `inputs`.
        fixed: rows of "train", "validation" and "test" where the data came already split; "train" at least.
        corruptions: what `prepare` does to the data, as in `{"noise": "0.4"}`; see
            `repertory.datasets.corruptions`.
        notes: what was handled on reading and should be said.

    Raises:
        DataError: if the examples cannot be split or learnt from (one class only, a class with too few
            examples, a constant target).
        OptionError: if a corruption does not fit the data.
    """

    name: str
    spec: str
    task: Task
    modality: Modality
    inputs: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    encoder: Encoder
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    corruptions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise DataError(f"{self.name}: {len(self.inputs)} inputs do not match {len(self.targets)} targets")
        self._check_fixed()
        if self.task == "classification":
            self._check_classes()
        elif len(self._pool()) < (least := 1 + len(self._missing())):
            raise DataError(
                f"{self.name} has {len(self._pool())} examples to split; the minimum is {least}, "
                f"one for each of {', '.join(['train', *self._missing()])}; add examples"
            )
        elif bool((self.targets == self.targets[0]).all()):
            raise DataError(f"{self.name}: all targets are {float(self.targets[0]):g}; there is nothing to learn")
        corrupt.check(self.corruptions, self.task, self.modality, len(self.classes))

    def _check_fixed(self) -> None:
        if not self.fixed:
            return
        if "train" not in self.fixed or not set(self.fixed) <= set(_PARTS):
            raise DataError(
                f"{self.name}: fixed parts {', '.join(self.fixed)} are not train, with or without validation and test"
            )
        if empty := [part for part, rows in self.fixed.items() if not len(rows)]:
            raise DataError(f"{self.name}: the {' and '.join(empty)} part has no examples; add some or leave it out")
        rows = torch.cat(list(self.fixed.values()))
        if int(rows.min()) < 0 or int(rows.max()) >= len(self.targets) or len(rows.unique()) < len(rows):
            raise DataError(f"{self.name}: fixed parts share examples or name rows beyond 0..{len(self.targets) - 1}")

    def _check_classes(self) -> None:
        if len(self.classes) < 2:
            raise DataError(
                f"{self.name} has one class only ({', '.join(self.classes)}); classification needs at least 2"
            )
        if int(self.targets.min()) < 0 or int(self.targets.max()) >= len(self.classes):
            raise DataError(f"{self.name}: targets must lie from 0 to {len(self.classes) - 1}, one number a class")
        made = self._missing()
        counts = self.targets[self._pool()].bincount(minlength=len(self.classes))
        small = (counts < 1 + len(made)).nonzero().flatten().tolist()
        if small:
            listed = ", ".join(f"{self.classes[k]!r} has {counts[k]}" for k in small[:8])
            more = f" and {len(small) - 8} more classes" if len(small) > 8 else ""
            numbers = self.modality == "table" and all(name.lstrip("-").isdecimal() for name in self.classes)
            raise DataError(
                f"{self.name}: too few {'training ' if self.fixed else ''}examples of a class to split: "
                f"{listed}{more}; the minimum is {1 + len(made)}, one for each of "
                f"{', '.join(['train', *made])}; add examples or leave the class out"
                + (", or read the target as numbers with ?task=regression" if numbers else "")
            )

    def _pool(self) -> Tensor:
        return self.fixed["train"] if self.fixed else torch.arange(len(self.targets))

    def _missing(self) -> list[str]:
        return [part for part in _PARTS[1:] if part not in self.fixed]

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    @property
    def outputs(self) -> int:
        """Outputs that a model needs: the number of classes, or 1 for regression."""
        return len(self.classes) if self.task == "classification" else 1

    def prepare(self, seed: int, validation: float = 0.15, test: float = 0.15) -> Splits:
        """Cut the data for one seed and apply the corruptions.

        Parts that came with the data are kept; the others are cut from the training part, for classification
        with the proportions of the classes. Corruptions touch the training part (labels, then imbalance, then
        noise) and the test inputs (shift), never the validation part. Each choice has its own generator, so
        asking for noise leaves the split as it was, and the global generators are not touched.

        Args:
            seed: decides the split and the corruptions.
            validation: share of the examples for validation, unless it came with the data.
            test: share of the examples for testing, unless it came with the data.

        Returns:
            The parts, with a normaliser fitted on the training inputs.

        Raises:
            OptionError: if the shares leave nothing to train on, or a corruption asks for more than there is.
        """
        for option, share in (("validation", validation), ("test", test)):
            if not 0 < share < 1 or validation + test >= 1:
                raise OptionError(
                    f"{option}={share} must be above 0, and validation + test below 1 (0.15 each is usual)"
                )
        classified = self.task == "classification"
        pool = self._pool()
        made = {part: {"validation": validation, "test": test}[part] for part in self._missing()}
        labels = self.targets[pool] if classified else torch.zeros(len(pool), dtype=torch.long)
        rows = {part: pool[where] for part, where in cut(labels, made, generator_for(seed, "split")).items()}
        rows = {**self.fixed, **rows}
        train, unlabelled = rows["train"], None
        if "labels" in self.corruptions:
            count = corrupt.label_count(self.corruptions)
            kept = corrupt.labelled(self.targets[train], count, classified, generator_for(seed, "labels"))
            train, unlabelled = train[kept], train[~kept]
        if "imbalance" in self.corruptions:
            ratio = corrupt.imbalance_ratio(self.corruptions)
            train = train[corrupt.long_tail(self.targets[train], ratio, generator_for(seed, "imbalance"))]
        clean = targets = self.targets[train]
        if "noise" in self.corruptions:
            rate = corrupt.noise_rate(self.corruptions)
            targets = corrupt.flip_labels(clean, rate, len(self.classes), generator_for(seed, "noise"))
        normaliser = Normaliser.fit(self.inputs[train])
        tested = self.inputs[rows["test"]]
        if "shift" in self.corruptions:
            kind, strength = corrupt.shift_of(self.corruptions, self.modality)
            tested = corrupt.shift_inputs(tested, kind, strength, normaliser.std, generator_for(seed, "shift"))
        rows["train"] = train
        hidden = None
        if unlabelled is not None and len(unlabelled):
            rows["unlabelled"] = unlabelled
            hidden = Examples(self.inputs[unlabelled], torch.full_like(self.targets[unlabelled], -1))
        scale = float(clean.double().std(correction=0)) if not classified else 1.0
        return Splits(
            train=Examples(self.inputs[train], targets),
            validation=Examples(self.inputs[rows["validation"]], self.targets[rows["validation"]]),
            test=Examples(tested, self.targets[rows["test"]]),
            unlabelled=hidden,
            normaliser=normaliser,
            indices={part: where.tolist() for part, where in rows.items()},
            clean_targets=clean,
            target_mean=0.0 if classified else float(clean.double().mean()),
            target_std=scale or 1.0,
        )

    def describe(self) -> dict[str, Any]:
        """Return plain values that say which data this is, with a fingerprint of its inputs and targets."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.targets):
            digest.update(tensor.contiguous().numpy().data)
        return {
            "name": self.name,
            "spec": self.spec,
            "task": self.task,
            "modality": self.modality,
            "examples": len(self.targets),
            "input_shape": list(self.in_shape),
            "classes": list(self.classes),
            "notes": list(self.notes),
            "fingerprint": digest.hexdigest(),
        }
