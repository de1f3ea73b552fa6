"""Batches from tensors in memory, in an order that depends on a seed and an epoch only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from repertory.core.distributed import rank, world_size
from repertory.core.randomness import generator_for
from repertory.errors import DataError, OptionError, check_choice, check_number
from repertory.training.augment import AUGMENTATIONS, VIEWS, drawn_moves, moved, random_view, strong_view, turned_view

Sampler = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Decides the order of an epoch: takes the rows that may be used `(n,)`, their targets `(n, ...)` and a generator, and
returns rows in the order in which batches are cut from them; a row may come several times or not at all. One with an
attribute `group` returns groups of so many rows, which stay in one batch and in one process."""

_Change = Callable[[Tensor, torch.Generator], tuple[Tensor, dict[str, Tensor]]]

_KEPT = 2**28
"""Inputs whose normalised float form takes up to this many bytes are normalised once, larger ones batch by batch."""


class BatchLoader:
    """Batches of `input`, `target` and `index`, resumable in mid-epoch, of a size that may change in mid-epoch.

    All batches of an epoch have nearly the same size (never a last one of a single example), and the order depends on
    `seed`, `name` and the epoch's number only, so every method sees the same batches. With several processes each takes
    its share of every batch. `resize` cuts what is left of the epoch's order anew; the order stays.

    Args:
        inputs: all inputs `(examples, ...)`.
        targets: all targets `(examples, ...)`.
        batch_size: examples a step, over all processes.
        seed: where the order starts.
        name: further name of the order, for loaders that must differ at one seed.
        shuffle: False gives the order of the data.
        normaliser: applied to inputs; None leaves them as they are.
        augment: "none", "shift" or "flip-shift" (images).
        rows: use only these examples `(n,)`; `index` still counts positions in the whole of `inputs`.
        sampler: decides the order of each epoch in place of a random one; may be set anew at any time, for the epochs
            that begin after it.
        views: further versions of each input, under `views`: a number of randomly changed ones, each by a draw of its
            own; or "weak-strong": the input as it is augmented, and a `strong_view` of it augmented by another draw;
            or "turned": two versions of images turned by any angle, with `angle`, that of each in radians `(batch, 2)`,
            and `change`, cosine and sine of the angle from the first to the second `(batch, 2)`.
        strong: whether batches have, under `strong`, a `strong_view` of each input, augmented by a draw of its own.
        kind_of_views: "plain" for those above, made of the normalised inputs; "photo" for a `photo_view` of the inputs
            as they are given (uint8, or from 0 to 1) in place of a randomly changed one, not augmented besides, and a
            `strong_photo_view` in place of a strong one, normalised after. Batches then have `view_parameters`, one
            mapping a view, and `strong_parameters`: what was drawn for each image; of an augmented one also how it was
            augmented, `repertory.training.augment.drawn_moves`; plain views of images have them too. Turned versions
            are the same for both.
        groups: which examples belong together `(examples,)`, int64, under `group` of the batches; None leaves it out.

    >>> loader = BatchLoader(torch.arange(5.0), torch.zeros(5), batch_size=2, shuffle=False)
    >>> [batch["index"].tolist() for batch in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        seed: int = 0,
        name: str = "batches",
        shuffle: bool = True,
        normaliser: Callable[[Tensor], Tensor] | None = None,
        augment: str = "none",
        rows: Tensor | None = None,
        sampler: Sampler | None = None,
        views: int | Literal["weak-strong", "turned"] = 0,
        strong: bool = False,
        kind_of_views: str = "plain",
        groups: Tensor | None = None,
    ) -> None:
        check_number("batch_size", batch_size, minimum=1, integer=True)
        check_choice("augment", augment, AUGMENTATIONS)
        check_choice("kind_of_views", kind_of_views, VIEWS)
        if not isinstance(views, int):
            check_choice("views", views, ("weak-strong", "turned"))
        photos = kind_of_views == "photo" and (strong or views not in (0, "turned"))
        if photos:
            # Here, since torchvision takes longer to import than all else.
            from repertory.training.photo_views import check_photos

            check_photos(inputs)
        self._small = inputs.numel() * 4 <= _KEPT
        self._normaliser = normaliser
        self._inputs = normaliser(inputs) if normaliser is not None and self._small else inputs
        self._targets = targets
        self._groups = groups
        self._rows = torch.arange(len(inputs)) if rows is None else rows
        if not len(self._rows):
            raise DataError("there are no examples to make batches of; leave some in")
        self._seed = seed
        self._name = name
        self._shuffle = shuffle
        self._augment, self._augmentation = AUGMENTATIONS[augment], augment
        # Views of photos are made before normalisation; this is no copy.
        self._raw = inputs if photos else None
        self._views = views
        self._strong = strong
        self.sampler = sampler
        self._order, self._group = self._rows, 1
        self.batch_size = batch_size
        if len(self._rows) // math.ceil(len(self._rows) / batch_size) < world_size():
            raise _too_small(batch_size)
        self.epoch = 0
        self.position = 0
        self._resized = False
        self._cut_at, self._cut_from = 0, 0

    def __len__(self) -> int:
        """Number of batches in the current epoch."""
        return self._cut_at + self._left()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rest of the current epoch; the next call goes on with the next one."""
        if self.sampler is None or not self.position:
            self._order = self._ordered()
        size, own = world_size(), rank()
        while self.position < len(self):
            index = self._order[self._bounds(self.position)]
            if size > 1:
                index = index.view(-1, self._group)[own::size].flatten()
            self.position += 1
            batch: dict[str, Any] = {"input": self._take(index), "target": self._target(index), "index": index}
            if self._groups is not None:
                batch["group"] = self._groups[index]
            if self._views == "turned":
                batch |= self._turned(index)
            if self._raw is not None:
                batch |= self._photos(_rows(self._raw, index), batch["input"])
            else:
                batch |= self._plain(index, batch["input"])
            yield batch
        self.epoch += 1
        self.position = self._cut_at = self._cut_from = 0
        self._order, self._group = self._rows, 1

    def resize(self, batch_size: int) -> None:
        """Change the batch size from the next batch on; what is left of the epoch is cut anew in nearly equal batches.

        Args:
            batch_size: examples a step, over all processes. A batch that would hold a single example is joined to
                another one, and so is one with fewer examples than processes, unless nothing else is left.

        Raises:
            OptionError: if it is not a whole number from the number of processes on.

        >>> loader = BatchLoader(torch.arange(7.0), torch.zeros(7), batch_size=2, shuffle=False)
        >>> for batch in loader:
        ...     print(batch["index"].tolist())
        ...     loader.resize(3)
        [0, 1]
        [2, 3, 4]
        [5, 6]
        """
        check_number("batch_size", batch_size, minimum=1, integer=True)
        if batch_size < world_size():
            raise _too_small(batch_size)
        if self.position > self._cut_at:
            self._cut_from = self._bounds(self.position - 1).stop
        self._cut_at, self.batch_size, self._resized = self.position, batch_size, True

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the batch size, and where it was last changed in this epoch: plain values."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "batch_size": self.batch_size,
            "resized": self._resized,
            "cut": [self._cut_at, self._cut_from],
            # A random order is drawn again; what a sampler decided may depend on what it has seen since.
            "order": self._order if self.sampler is not None and self.position else None,
            "group": self._group,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; the next iteration yields what came after it."""
        self.epoch, self.position = state["epoch"], state["position"]
        # Positions saved before batch sizes could change lack the rest.
        self.batch_size = state.get("batch_size", self.batch_size)
        self._resized = state.get("resized", False)
        self._cut_at, self._cut_from = state.get("cut", (0, 0))
        order = state.get("order")
        self._order = self._rows if order is None else order
        self._group = state.get("group", 1)
        if order is None and self.position:
            self._order = self._ordered()

    def _ordered(self) -> Tensor:
        if not self._shuffle:
            return self._rows
        generator = generator_for(self._seed, f"{self._name}/{self.epoch}")
        if self.sampler is None:
            return self._rows[torch.randperm(len(self._rows), generator=generator)]
        # Kept with the order: the sampler may be another one before the epoch is over.
        self._group = getattr(self.sampler, "group", 1)
        order = self.sampler(self._rows, self._targets[self._rows], generator)
        if not len(order):
            raise DataError(f"{type(self.sampler).__name__} left no example for an epoch; choose another sampler")
        return order

    def _left(self) -> int:
        """Number of batches from the last cut to the end of the epoch."""
        examples = (len(self._order) - self._cut_from) // self._group
        count = math.ceil(examples / max(1, self.batch_size // self._group))
        if not self._resized or not examples:
            return count
        return min(count, max(1, examples // max(world_size(), min(2, self.batch_size))))

    def _bounds(self, position: int) -> slice:
        """Where in the epoch's order a batch from the last cut on is; the larger batches come first."""
        group, count, number = self._group, self._left(), position - self._cut_at
        size, larger = divmod((len(self._order) - self._cut_from) // group, count)
        start = self._cut_from + group * (number * size + min(number, larger))
        return slice(start, start + group * (size + (number < larger)))

    def _take(self, index: Tensor) -> Tensor:
        inputs = self._read(index)
        return inputs if self._augment is None else self._augment(inputs, self._generator("augment"))

    def _target(self, index: Tensor) -> Tensor:
        targets = self._targets[index]
        if self._augment is None or targets.ndim != 3 or targets.shape[1:] != self._inputs.shape[2:]:
            return targets
        # Masks move as their images do: the same draws, by another generator in the same state.
        return self._augment(targets[:, None], self._generator("augment"))[:, 0]

    def _plain(self, index: Tensor, weak: Tensor) -> dict[str, Any]:
        """What batches have of plain views, and what was drawn for them where that is said."""
        batch: dict[str, Any] = {}
        parameters: list[dict[str, Tensor]] = []
        if isinstance(self._views, int) and self._views:
            made = [self._view(index, f"view {n}", random_view) for n in range(self._views)]
            batch["views"], parameters = [view for view, _ in made], [drawn for _, drawn in made]
        if self._strong or self._views == "weak-strong":
            strong, drawn = self._view(index, "strong view", strong_view)
            if self._views == "weak-strong":
                batch["views"] = [weak, strong]
                parameters = [self._moves(weak, self._generator("augment")), drawn]
            if self._strong:
                batch |= {"strong": strong, **({"strong_parameters": drawn} if drawn else {})}
        # Of numbers and sequences there is nothing to say.
        return {**batch, "view_parameters": parameters} if any(parameters) else batch

    def _view(self, index: Tensor, name: str, change: _Change) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, generator = self._read(index), self._generator(name)
        moves = self._moves(inputs, generator)
        view, drawn = change(moved(inputs, moves) if moves else inputs, generator)
        return view, {**moves, **drawn}

    def _photos(self, raw: Tensor, weak: Tensor) -> dict[str, Any]:
        """What batches have of views of photos, and what was drawn for them."""
        from repertory.training.photo_views import photo_view, strong_photo_view

        batch: dict[str, Any] = {}
        normalise = self._normaliser or (lambda images: images)
        if isinstance(self._views, int) and self._views:
            made = [photo_view(raw, self._generator(f"view {n}")) for n in range(self._views)]
            batch["views"] = [normalise(images) for images, _ in made]
            batch["view_parameters"] = [drawn for _, drawn in made]
        if self._strong or self._views == "weak-strong":
            generator = self._generator("strong view")
            moves = self._moves(raw, generator)
            images, drawn = strong_photo_view(moved(raw, moves) if moves else raw, generator)
            strong, drawn = normalise(images), {**moves, **drawn}
            if self._views == "weak-strong":
                batch["views"] = [weak, strong]
                batch["view_parameters"] = [self._moves(raw, self._generator("augment")), drawn]
            if self._strong:
                batch |= {"strong": strong, "strong_parameters": drawn}
        return batch

    def _moves(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw what the augmentation does to each image, nothing where there is none."""
        return {} if self._augment is None else drawn_moves(images, generator, self._augmentation == "flip-shift")

    def _turned(self, index: Tensor) -> dict[str, Any]:
        made = [turned_view(self._read(index), self._generator(f"turned view {n}")) for n in range(2)]
        angles = torch.stack([angle for _, angle in made], 1)
        between = angles[:, 1] - angles[:, 0]
        change = torch.stack([between.cos(), between.sin()], 1)
        return {"views": [images for images, _ in made], "angle": angles, "change": change}

    def _read(self, index: Tensor) -> Tensor:
        inputs = _rows(self._inputs, index)
        return self._normaliser(inputs) if self._normaliser is not None and not self._small else inputs

    def _generator(self, name: str) -> torch.Generator:
        # The draw depends on the place in the run only, so that a resumed run draws the same.
        return generator_for(self._seed, f"{self._name}/{name}/{self.epoch}/{self.position}/{rank()}")


def _rows(values: Tensor, index: Tensor) -> Tensor:
    # Several times as fast as `values[index]`.
    return values.index_select(0, index.to(values.device))


def _too_small(batch_size: int) -> OptionError:
    return OptionError(
        f"batch_size={batch_size} leaves some of {world_size()} processes without an example; "
        "raise batch_size, or use fewer devices"
    )
