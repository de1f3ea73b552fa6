"""A data set in memory, and how it is cut into training, validation and test parts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from repertory.datasets import asked as scenario_options
from repertory.datasets import corruptions as corrupt
from repertory.datasets import held_out
from repertory.datasets import points as clicks
from repertory.datasets.bags import check as check_groups
from repertory.datasets.bags import cut_bags
from repertory.datasets.encoder import Encoder
from repertory.datasets.masks import check_corruptions, check_masks, no_masks
from repertory.datasets.noise import flip_labels, parse_noise
from repertory.datasets.splits import Examples, Normaliser, Splits
from repertory.datasets.stratify import cut, cut_groups, generator_for
from repertory.errors import DataError, OptionError

Task = Literal["classification", "regression", "pairs", "bags", "segmentation"]
Modality = Literal["image", "table", "sequence", "text", "graph"]

CLASSIFIED = ("classification", "bags")
"""Tasks in which each example has a class."""
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples in memory with all that is known of them; `load` makes one from a name or a path.

    Args:
        name: short name: of the built-in set, the folder, or the file without its ending.
        spec: what the user typed, options included.
        task: "classification", "regression", "pairs" of texts that belong together, "bags" or "segmentation".
        modality: "image", "table", "sequence", "text" or "graph".
        inputs: images uint8 `(examples, channels, height, width)`, tables float32 `(examples, columns)`,
            sequences float32 `(examples, channels, length)`, texts uint8 `(examples, 2 + negatives, length)`: the UTF-8
            bytes of a query, its passage and hard negatives, 0 after the end, a negative of zeros where there is none;
            graphs float32 `(examples, lines, width)` as `repertory.core.graphs.pack` makes them.
        targets: int64 `(examples,)` from 0 to classes-1, or float32 `(examples,)`; for pairs the number of the passage,
            int64: equal passages share one, and all their pairs go to the same part. For segmentation the class of each
            pixel, int64 `(examples, height, width)`, `repertory.core.dense.IGNORED` where it has none.
        classes: names of the classes; else empty.
        encoder: turns new raw input into a batch of `inputs`.
        fixed: rows of "train", "validation" and "test" where the data came already split; "train" at least.
        corruptions: what `prepare` does to the data, as in `{"noise": "0.4"}`; see
            `repertory.datasets.corruptions`.
        asked: options that one scenario reads, as in `{"tasks": "5"}`; see `repertory.datasets.asked`.
        searched: whether it is prepared for a search, as the scenario retrieval asks.
        unlabelled: inputs that came without a target, beside `inputs`; None where there are none.
        groups: which rows belong together: the number of the group of each, int64 `(examples,)`; of task "bags" the
            bag, of which all rows carry the label and go to the same part; of graphs the environment.
        group_names: name of each group; empty where they have none.
        truth: of instances of bags what each is by itself, 0, 1 or -1 where unknown; for evaluation only.
        points: extreme points of the objects in images of the training part that came with these in place of masks,
            int64 `(points, 4)`: row, number of the object in the image, y and x. Their masks are `IGNORED` throughout.
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
    asked: Mapping[str, str] = field(default_factory=dict)
    searched: bool = False
    notes: tuple[str, ...] = ()
    unlabelled: Tensor | None = None
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    truth: Tensor | None = None
    points: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise DataError(f"{self.name}: {len(self.inputs)} inputs do not match {len(self.targets)} targets")
        if (bare := self.unlabelled) is not None and (not len(bare) or bare.shape[1:] != self.inputs.shape[1:]):
            raise DataError(
                f"{self.name}: unlabelled inputs have the shape {tuple(bare.shape)}, but there must be at least one, "
                f"each of {tuple(self.inputs.shape[1:])}, as the labelled ones are; leave them out otherwise"
            )
        self._check_fixed()
        check_groups(self, self._missing())
        if self.task == "classification":
            self._check_classes()
        elif self.task == "pairs":
            self._check_passages()
        elif self.task == "segmentation":
            pool = self._pool() if self.points is None else self.fixed["test"]
            check_masks(self.name, self.inputs, self.targets, self.classes, pool, 1 + len(self._missing()))
            check_corruptions(self.corruptions)
            clicks.check_points(self.name, self.points, self.inputs)
        elif len(self._pool()) < (least := 1 + len(self._missing())):
            raise DataError(
                f"{self.name} has {len(self._pool())} examples to split; the minimum is {least}, "
                f"one for each of {', '.join(['train', *self._missing()])}; add examples"
            )
        elif bool((self.targets == self.targets[0]).all()):
            raise DataError(f"{self.name}: all targets are {float(self.targets[0]):g}; there is nothing to learn")
        corrupt.check(self.corruptions, self.task, self.modality, len(self.classes))
        scenario_options.check(self.asked, self.task, self.classes)

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
        if small and not self.apart:
            listed = ", ".join(f"{self.classes[k]!r} has {counts[k]}" for k in small[:8])
            more = f" and {len(small) - 8} more classes" if len(small) > 8 else ""
            numbers = self.modality == "table" and all(name.lstrip("-").isdecimal() for name in self.classes)
            raise DataError(
                f"{self.name}: too few {'training ' if self.fixed else ''}examples of a class to split: "
                f"{listed}{more}; the minimum is {1 + len(made)}, one for each of "
                f"{', '.join(['train', *made])}; add examples or leave the class out"
                + (", or read the target as numbers with ?task=regression" if numbers else "")
            )

    def _check_passages(self) -> None:
        least = 2 * (1 + len(self._missing()))
        if (there := len(self.targets[self._pool()].unique())) < least:
            raise DataError(
                f"{self.name} has {there} different passages to split; the minimum is {least}, 2 for each of "
                f"{', '.join(['train', *self._missing()])}; add pairs"
            )
        numbers = torch.cat([self.targets[rows].unique() for rows in self.fixed.values()] or [self.targets[:0]])
        if len(numbers.unique()) < len(numbers):
            raise DataError(f"{self.name}: fixed parts share passages; put all pairs of a passage into the same part")

    def _pool(self) -> Tensor:
        return self.fixed["train"] if self.fixed else torch.arange(len(self.targets))

    def _missing(self) -> list[str]:
        return [part for part in _PARTS[1:] if part not in self.fixed]

    def asked_by(self, scenario: str) -> dict[str, str]:
        """Return the options that a scenario reads."""
        return scenario_options.read_by(self.asked, scenario)

    @property
    def apart(self) -> bool:
        """Whether the test part that came with the data has classes of its own, which only a search has use for."""
        if self.task != "classification" or "test" not in self.fixed:
            return False
        trained, tested = self.targets[self.fixed["train"]], self.targets[self.fixed["test"]]
        return len(trained.unique()) > 1 and not bool(torch.isin(tested, trained).any())

    @property
    def some_unlabelled(self) -> bool:
        """Whether `prepare` is to leave training examples without a label."""
        return self.unlabelled is not None or "labels" in self.corruptions

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    @property
    def outputs(self) -> int:
        """Outputs that a model needs: the classes it trains on, 1 for regression, 0 for pairs (its own choice)."""
        if self.task != "classification":
            return {"regression": 1, "pairs": 0}.get(self.task, len(self.classes))
        if self.searched and "coarse" in self.asked:
            return int(self.asked["coarse"])
        if self.searched and held_out.by_classes(self.asked_by("retrieval")):
            dealt = self.targets[self._pool()] if self.apart else self.targets
            return held_out.train_classes(len(dealt.unique()), self._missing() if self.apart else held_out.PARTS)
        return len(self.classes)

    def prepare(self, seed: int, validation: float = 0.15, test: float = 0.15) -> Splits:
        """Cut the data for one seed and apply the corruptions.

        Parts that came with the data are kept; the others are cut from the training part, for classification
        with the proportions of the classes. Corruptions touch the training part (labels, then imbalance, then
        noise), the test inputs (shift), and the validation part only where that is asked for (validation_noise).
        Each choice has its own generator, so asking for noise leaves the split as it was, and the global generators
        are not touched.

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
        rows = self._rows(seed, {"validation": validation, "test": test})
        train, unlabelled, known = rows["train"], None, self._known(rows["train"])
        if "labels" in self.corruptions:
            count = corrupt.label_count(self.corruptions)
            kept = corrupt.labelled(known[train], count, classified, generator_for(seed, "labels"))
            train, unlabelled = train[kept], train[~kept]
        if "imbalance" in self.corruptions:
            ratio = corrupt.imbalance_ratio(self.corruptions)
            train = train[corrupt.long_tail(known[train], ratio, generator_for(seed, "imbalance"))]
        clean = known[train]
        targets = self._noisy("noise", clean, train, self.outputs, seed)
        judged = self._noisy("validation_noise", self.targets[rows["validation"]], rows["validation"], None, seed)
        normaliser = Normaliser.none() if self.modality in ("text", "graph") else Normaliser.fit(self.inputs[train])
        tested = self.inputs[rows["test"]]
        if "shift" in self.corruptions:
            kind, strength = corrupt.shift_of(self.corruptions, self.modality)
            tested = corrupt.shift_inputs(tested, kind, strength, normaliser.std, generator_for(seed, "shift"))
        rows["train"] = train
        hidden = self._hidden(unlabelled)
        if unlabelled is not None and len(unlabelled):
            rows["unlabelled"] = unlabelled
        numbers = self.task == "regression"
        scale = float(clean.double().std(correction=0)) if numbers else 1.0
        return Splits(
            train=self._part(train, self.inputs[train], targets),
            validation=self._part(rows["validation"], self.inputs[rows["validation"]], judged),
            test=self._part(rows["test"], tested),
            unlabelled=hidden,
            normaliser=normaliser,
            indices={part: where.tolist() for part, where in rows.items()},
            clean_targets=clean,
            classes=self._names(rows["train"]),
            target_mean=float(clean.double().mean()) if numbers else 0.0,
            target_std=scale or 1.0,
        )

    def _noisy(self, key: str, targets: Tensor, rows: Tensor, classes: int | None, seed: int) -> Tensor:
        """The targets of some rows with the noise that was asked for; one seed has one source of it for all parts."""
        if key not in self.corruptions:
            return targets
        kind, rate = parse_noise(self.corruptions[key], key)
        generator = generator_for(seed, "noise")
        return flip_labels(targets, rate, classes or len(self.classes), generator, kind=kind, inputs=self.inputs[rows])

    def _part(self, rows: Tensor, inputs: Tensor, targets: Tensor | None = None) -> Examples:
        groups, truth = (None if each is None else each[rows] for each in (self.groups, self.truth))
        return Examples(inputs, self.targets[rows] if targets is None else targets, groups, truth)

    def _rows(self, seed: int, shares: Mapping[str, float]) -> dict[str, Tensor]:
        """The rows of each part: examples of all classes, or where classes are held out, of other classes each."""
        if self.task != "pairs" and self.searched and held_out.by_classes(self.asked_by("retrieval")):
            generator = generator_for(seed, "classes")
            if not self.apart:
                return held_out.cut_classes(self.targets, generator)
            pool = self._pool()
            dealt = held_out.cut_classes(self.targets[pool], generator, self._missing())
            return {**self.fixed, **{part: pool[where] for part, where in dealt.items()}}
        pool = self._pool()
        made, generator = {part: shares[part] for part in self._missing()}, generator_for(seed, "split")
        if self.task == "pairs":
            parts = cut_groups(self.targets[pool], made, generator)
        elif self.task == "bags" and self.groups is not None:
            parts = cut_bags(self.targets[pool], self.groups[pool], made, generator)
        else:
            alike = torch.zeros(len(pool), dtype=torch.long)
            parts = cut(self.targets[pool] if self.task == "classification" else alike, made, generator)
        rows = {part: pool[where] for part, where in parts.items()}
        return {**self.fixed, **rows}

    def _hidden(self, rows: Tensor | None) -> Examples | None:
        """The examples without a label: those whose label was taken away, and those that came without."""
        inputs = [] if rows is None or not len(rows) else [self.inputs[rows]]
        inputs += [] if self.unlabelled is None else [self.unlabelled]
        if not inputs:
            return None
        whole = torch.cat(inputs) if len(inputs) > 1 else inputs[0]
        if self.task == "segmentation":
            return Examples(whole, no_masks(whole))
        return Examples(whole, torch.full((len(whole),), -1, dtype=self.targets.dtype))

    def _known(self, train: Tensor) -> Tensor:
        """What training calls the class of every example: classes that are not trained on count as 0."""
        if not self.searched or self.task == "pairs":
            return self.targets
        if "coarse" in self.asked:
            return held_out.coarse_labels(self.targets, len(self.classes), self.outputs)
        seen = self.targets[train].unique()
        names = torch.zeros(len(self.classes), dtype=torch.int64)
        names[seen] = torch.arange(len(seen))
        return names[self.targets]

    def _names(self, train: Tensor) -> tuple[str, ...]:
        """The names of what training tells apart."""
        if self.task != "classification" or not self.searched:
            return self.classes
        known = self._known(train)
        groups: list[list[str]] = [[] for _ in range(self.outputs)]
        for label in self.targets[train].unique().tolist():
            groups[int(known[self.targets == label][0])].append(self.classes[label])
        return tuple(" or ".join(names) for names in groups)

    def describe(self) -> dict[str, Any]:
        """Return plain values that say which data this is, with a fingerprint of its inputs and targets."""
        digest = hashlib.sha256()
        more = [tensor for tensor in (self.unlabelled, self.groups, self.points) if tensor is not None]
        for tensor in (self.inputs, self.targets, *more):
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
