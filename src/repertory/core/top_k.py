"""Many probability distributions in little room: the largest few entries of each, and how much is left for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.distributed import gather_rows, world_size
from repertory.core.storage import IN_MEMORY, Storage
from repertory.errors import OptionError, check_choice, check_number

TAILS = ("smooth", "renormalise")


def from_top_k(places: Tensor, values: Tensor, classes: int, tail: str = "smooth") -> Tensor:
    """Return the distributions whose largest entries are given.

    Args:
        places: classes of the kept entries `(..., k)`, whole numbers.
        values: their probabilities `(..., k)`, as they were.
        classes: number of classes.
        tail: what the other classes get: "smooth" spreads what is missing to 1 evenly over them, "renormalise" leaves
            them at 0 and scales the kept entries to a sum of 1.

    Returns:
        `(..., classes)`, of the type of `values`.

    Raises:
        OptionError: if there is no such `tail`, or `classes` is less than `k`.

    >>> from_top_k(torch.tensor([2, 0]), torch.tensor([0.5, 0.25]), classes=4)
    tensor([0.2500, 0.1250, 0.5000, 0.1250])
    """
    check_choice("tail", tail, TAILS)
    kept = places.shape[-1]
    check_number("classes", classes, minimum=kept, integer=True)
    total = values.sum(-1, keepdim=True)
    if tail == "renormalise":
        whole = values.new_zeros((*values.shape[:-1], classes))
        return whole.scatter_(-1, places.long(), values / total.clamp(min=torch.finfo(values.dtype).tiny))
    # Rounding can leave a sum slightly above 1.
    rest = (1 - total).clamp(min=0) / max(1, classes - kept)
    return rest.repeat_interleave(classes, -1).scatter_(-1, places.long(), values)


class TopKTable(nn.Module):
    """One probability distribution for each example, of which the `k` largest entries are stored exactly.

    A million examples of a thousand classes take 31 MiB at `k=5` instead of 3.7 GiB. With `k` at least the number of
    classes nothing is lost. With several processes every process writes all rows. Small tables lie beside what is
    written, larger ones in main memory, and beyond `limit` in memory-mapped files.

    Args:
        examples: number of rows.
        classes: number of classes.
        k: entries kept of each row; all of them where there are fewer classes.
        tail: what the classes that were not kept get when a row is read, as in `from_top_k`.
        limit: bytes beyond which entries lie in a file.
        folder: where that file is made; None for the system's folder of temporary files.

    Raises:
        OptionError: if an option is outside its range.

    >>> table = TopKTable(examples=3, classes=4, k=2)
    >>> table.write(torch.tensor([1]), torch.tensor([[0.125, 0.5, 0.125, 0.25]]))
    >>> table.read(torch.tensor([1]))
    tensor([[0.1250, 0.5000, 0.1250, 0.2500]])
    >>> table.written(torch.arange(3)).tolist()
    [False, True, False]
    """

    def __init__(
        self,
        examples: int,
        classes: int,
        k: int = 5,
        tail: str = "smooth",
        limit: int = IN_MEMORY,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__()
        check_number("examples", examples, minimum=1, integer=True)
        check_number("classes", classes, minimum=2, integer=True)
        check_number("k", k, minimum=1, integer=True)
        check_choice("tail", tail, TAILS)
        self.examples = examples
        self.classes = classes
        self.k = min(k, classes)
        self.tail = tail
        self._storage = Storage(limit, folder)
        self.places: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory taken by the entries; those in a file count nothing."""
        held = [t for t in (self.places, self.values) if t is not None and not self._storage.on_disk(t)]
        return sum(t.numel() * t.element_size() for t in held)

    @property
    def on_disk(self) -> bool:
        """Whether the entries' values lie in a memory-mapped file."""
        return self.values is not None and self._storage.on_disk(self.values)

    @torch.no_grad()
    def write(self, index: Tensor, probabilities: Tensor) -> None:
        """Store one distribution an example; where an index comes twice, the later row wins.

        Args:
            index: rows `(n,)`, int64.
            probabilities: `(n, classes)`, each row with a sum of 1.

        Raises:
            OptionError: if there are not as many classes as the table was made for.
        """
        if probabilities.ndim != 2 or probabilities.shape[1] != self.classes:
            raise OptionError(
                f"probabilities of shape {tuple(probabilities.shape)} do not fit a table of {self.classes} classes; "
                f"give (n, {self.classes})"
            )
        values, places = probabilities.detach().float().topk(self.k, dim=1)
        if world_size() > 1:
            index, values, places = gather_rows(index), gather_rows(values), gather_rows(places)
        kept_places, kept_values = self._room(values.device)
        index = index.to(kept_values.device)
        kept_places[index] = places.to(kept_places)
        kept_values[index] = values.to(kept_values)

    def top(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept entries, largest first: classes `(n, k)` int64 and probabilities `(n, k)` float32.

        Rows that were not written have probabilities of 0.

        Raises:
            IndexError: if nothing was ever written.
        """
        if self.places is None or self.values is None:
            raise IndexError("the table is empty: nothing was written yet")
        rows = index.to(self.values.device)
        return self.places[rows].to(index.device, torch.int64), self.values[rows].to(index.device)

    def read(self, index: Tensor) -> Tensor:
        """Return whole distributions `(n, classes)`, float32, on the device of `index`; unwritten rows are uniform.

        Raises:
            IndexError: if nothing was ever written.
        """
        places, values = self.top(index)
        whole = from_top_k(places, values, self.classes, self.tail)
        return torch.where(values[..., :1] > 0, whole, 1 / self.classes)

    def written(self, index: Tensor) -> Tensor:
        """Return whether each row was written, `(n,)` bool on the device of `index`."""
        if self.values is None:
            return torch.zeros_like(index, dtype=torch.bool)
        return (self.values[index.to(self.values.device), 0] > 0).to(index.device)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the table's content, for the state dict."""
        return {"places": self.places, "values": self.values}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over a saved content.

        Raises:
            OptionError: if it is that of a table of another size.
        """
        places, values = state["places"], state["values"]
        if values is None:
            self.places = self.values = None
            return
        if tuple(values.shape) != (self.examples, self.k):
            raise OptionError(
                f"the saved table has {len(values)} examples with {values.shape[1]} entries each, this one "
                f"{self.examples} with {self.k}; make it with the same examples, classes and k"
            )
        device = values.device if self.values is None else self.values.device
        self.places, self.values = self._storage.copy(places, device), self._storage.copy(values, device)

    def _room(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self.places is None or self.values is None:
            whole = torch.int16 if self.classes <= torch.iinfo(torch.int16).max else torch.int32
            self.places = self._storage.zeros((self.examples, self.k), whole, device)
            self.values = self._storage.zeros((self.examples, self.k), torch.float32, device)
        return self.places, self.values
