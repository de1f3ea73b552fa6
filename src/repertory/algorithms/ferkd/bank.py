"""The label bank: many crops of every training image, and what the teacher says of each, stored once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repertory.algorithms.ferkd.crops import replay
from repertory.core.crops import draw_boxes
from repertory.core.distributed import gather_rows
from repertory.core.storage import IN_MEMORY, Storage
from repertory.core.top_k import TopKTable
from repertory.errors import ConflictError, OptionError, check_number

_DRAWN = 2**16
"""Boxes that are drawn at a time, so that a large bank needs little room beside itself."""
_AT_ONCE = 2**15
"""Numbers of the crops of an image that the teacher gets at once, at the most, unless one crop is more."""


class LabelBank(nn.Module):
    """Boxes, mirrorings and the teacher's largest probabilities of `crops` crops of every image.

    What is larger than `limit` lies in memory-mapped files. All of it is part of the state dict.

    Args:
        examples: number of images.
        classes: number of classes.
        height: of the images in pixels.
        width: of the images in pixels.
        crops: stored of each image.
        k: probabilities kept of each crop; the rest is spread evenly.
        smallest: least share of the image's area that a crop shows.
        largest: greatest share of it.
        flip: probability that a crop is mirrored.
        confidence: how sure the teacher is: "max", its largest probability, or "true", that of the true class.
        generator: CPU generator of boxes and mirrorings.
        limit: bytes above which a part of the bank lies in a file.
        folder: where such files are made; None for the system's folder of temporary files.

    Raises:
        OptionError: if an option is outside its range.

    >>> bank = LabelBank(2, classes=3, height=4, width=4, crops=5, generator=torch.Generator().manual_seed(0))
    >>> teacher = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    >>> images = torch.randn(2, 1, 4, 4)
    >>> bank.fill(torch.arange(2), images, torch.tensor([0, 2]), teacher)
    >>> chosen = torch.tensor([[0, 4], [1, 2]])
    >>> bank.replayed(torch.arange(2), chosen, images).shape, bank.labels(torch.arange(2), chosen).shape
    (torch.Size([2, 2, 1, 4, 4]), torch.Size([2, 2, 3]))
    """

    def __init__(
        self,
        examples: int,
        classes: int,
        height: int,
        width: int,
        *,
        crops: int,
        generator: torch.Generator,
        k: int = 5,
        smallest: float = 0.08,
        largest: float = 1.0,
        flip: float = 0.5,
        confidence: str = "max",
        limit: int = IN_MEMORY,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__()
        check_number("examples", examples, minimum=1, integer=True)
        check_number("crops", crops, minimum=1, integer=True)
        check_number("flip", flip, minimum=0, maximum=1)
        self.crops = crops
        self.confidence_of = confidence
        self._storage = Storage(limit, folder)
        self.table = TopKTable(examples * crops, classes, k, limit=limit, folder=folder)
        self.boxes = self._storage.zeros((examples, crops, 4), torch.float32)
        self.flips = self._storage.zeros((examples, crops), torch.bool)
        self.confidence = self._storage.zeros((examples, crops), torch.float32)
        boxes, flips = self.boxes.view(-1, 4), self.flips.view(-1)
        for start in range(0, len(boxes), _DRAWN):
            count = len(boxes[start : start + _DRAWN])
            boxes[start : start + count] = draw_boxes(count, height, width, generator, smallest, largest)
            flips[start : start + count] = torch.rand(count, generator=generator) < flip

    @property
    def bytes(self) -> int:
        """Memory taken beside the table of probabilities; what lies in files counts nothing."""
        held = (self.boxes, self.flips, self.confidence)
        return sum(t.numel() * t.element_size() for t in held if not self._storage.on_disk(t))

    @torch.no_grad()
    def fill(self, index: Tensor, images: Tensor, target: Tensor, teacher: Callable[[Tensor], Tensor]) -> None:
        """Let the teacher label all crops of some images.

        Args:
            index: which images `(n,)`, int64.
            images: `(n, channels, height, width)`.
            target: their classes `(n,)`, int64.
            teacher: from images to logits `(batch, classes)`.

        Raises:
            ConflictError: if the teacher's outputs are not logits of the bank's classes.
        """
        at_once = max(1, min(self.crops, _AT_ONCE // images[0].numel()))
        for start in range(0, self.crops, at_once):
            chosen = torch.arange(start, min(self.crops, start + at_once)).expand(len(index), -1)
            logits = teacher(self.replayed(index, chosen, images).flatten(0, 1))
            if logits.shape != (chosen.numel(), self.table.classes):
                raise ConflictError(
                    f"the teacher gives {tuple(logits.shape)} for {chosen.numel()} crops; ferkd needs logits "
                    f"({chosen.numel()}, {self.table.classes}) of the network's classes"
                )
            soft = torch.softmax(logits.float(), 1)
            place = (index.cpu()[:, None] * self.crops + chosen).flatten()
            self.table.write(place.to(soft.device), soft)
            sure = soft.amax(1)
            if self.confidence_of == "true":
                sure = soft.gather(1, target.repeat_interleave(chosen.shape[1])[:, None].to(soft.device))[:, 0]
            # A confidence of 0 means that there is none yet.
            sure = gather_rows(sure.clamp(min=torch.finfo(sure.dtype).tiny))
            self.confidence.view(-1)[gather_rows(place.to(soft.device)).cpu()] = sure.cpu()

    def replayed(self, index: Tensor, chosen: Tensor, images: Tensor) -> Tensor:
        """Cut the chosen crops out of images again.

        Args:
            index: which images `(n,)`.
            chosen: numbers of their crops `(n, each)`.
            images: `(n, channels, height, width)`.

        Returns:
            `(n, each, channels, height, width)`.
        """
        rows, which = index.cpu()[:, None], chosen.cpu()
        return replay(images, self.boxes[rows, which], self.flips[rows, which])

    def labels(self, index: Tensor, chosen: Tensor) -> Tensor:
        """Return the teacher's probabilities for the chosen crops, `(n, each, classes)` on the device of `index`."""
        place = index[:, None] * self.crops + chosen.to(index.device)
        return self.table.read(place.flatten()).unflatten(0, chosen.shape)

    def sure(self, index: Tensor) -> Tensor:
        """Return how sure the teacher is of all crops of some images, `(n, crops)` on the CPU."""
        return self.confidence[index.cpu()]

    def quantiles(self, shares: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return the confidences up to which these shares of all labelled crops lie; 0 gives 0, and 1 gives 1."""
        known = self.confidence.view(-1)
        known = known[known > 0]
        if not len(known):
            raise OptionError("the bank has no labels yet; fill it first")

        def value(share: float) -> float:
            rank = min(len(known), max(1, round(share * len(known))))
            return share if share in (0.0, 1.0) else float(known.kthvalue(rank).values)

        low, middle, top = shares
        return value(low), value(middle), value(top)

    def get_extra_state(self) -> dict[str, Any]:
        """Return boxes, mirrorings and confidences, for the state dict."""
        return {"boxes": self.boxes, "flips": self.flips, "confidence": self.confidence}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over a saved bank.

        Raises:
            OptionError: if it is one of another size.
        """
        if state["boxes"].shape != self.boxes.shape:
            raise OptionError(
                f"the saved bank has {tuple(state['boxes'].shape[:2])} images and crops of each, this one "
                f"{tuple(self.boxes.shape[:2])}; make it with the same examples and crops"
            )
        for name in ("boxes", "flips", "confidence"):
            getattr(self, name).copy_(state[name])
