"""Tables of one row an example of the training set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.distributed import gather_rows, world_size
from repertory.core.storage import IN_MEMORY, Storage


class ExampleTable(nn.Module):
    """One row of numbers for each example, found by its position in the training set.

    The table takes its width from the first rows written, grows to the largest index, remembers which rows were
    written, and is saved with the method that owns it. With several processes every process writes all rows. Small
    tables lie beside the network's outputs, larger ones in main memory, and beyond `limit` in a memory-mapped file.

    Args:
        examples: number of rows to allocate at once, or None to grow as needed.
        dtype: how rows are stored; they are read back as float32.
        limit: bytes beyond which the rows lie in a file.
        folder: where that file is made; None for the system's folder of temporary files.

    Raises:
        OptionError: if the limit is no whole number from 0 on, or the folder is not there.

    >>> table = ExampleTable()
    >>> table.write(torch.tensor([2, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> table.read(torch.tensor([0, 2]))
    tensor([[3., 4.],
            [1., 2.]])
    >>> table.written(torch.tensor([0, 1])).tolist()
    [True, False]
    """

    def __init__(
        self,
        examples: int | None = None,
        dtype: torch.dtype = torch.float32,
        limit: int = IN_MEMORY,
        folder: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.examples = examples
        self.dtype = dtype
        self._storage = Storage(limit, folder)
        self.rows: Tensor | None = None
        self._known: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory taken by the rows; none where they lie in a file."""
        return 0 if self.rows is None or self.on_disk else self.rows.numel() * self.rows.element_size()

    @property
    def on_disk(self) -> bool:
        """Whether the rows lie in a memory-mapped file."""
        return self.rows is not None and self._storage.on_disk(self.rows)

    @torch.no_grad()
    def write(self, index: Tensor, values: Tensor) -> None:
        """Store one row an example; where an index comes twice, the later row wins.

        Args:
            index: positions `(n,)`, int64.
            values: rows `(n, ...)`.
        """
        values = values.detach()
        if world_size() > 1:
            index, values = gather_rows(index), gather_rows(values)
        rows, known = self._room(index, values)
        index = index.to(rows.device)
        rows[index] = values.to(rows.device, self.dtype)
        known[index] = True

    def read(self, index: Tensor) -> Tensor:
        """Return the rows at `index`, `(n, ...)` float32, on the device of `index`; unwritten rows are zero.

        Raises:
            IndexError: if nothing was ever written, or an index lies beyond the `examples` that were named.
        """
        if self.rows is None:
            raise IndexError("the table is empty: nothing was written yet")
        rows, _ = self._room(index, self.rows)
        return rows[index.to(rows.device)].to(index.device, torch.float32)

    def written(self, index: Tensor) -> Tensor:
        """Return whether each row was written, `(n,)` bool on the device of `index`."""
        if self._known is None:
            return torch.zeros_like(index, dtype=torch.bool)
        inside = index.to(self._known.device).clamp(max=len(self._known) - 1)
        return self._known[inside].to(index.device) & (index < len(self._known))

    def entries(self) -> tuple[Tensor, Tensor]:
        """Return the positions that were written `(n,)`, ascending, and their rows `(n, ...)` as they are stored."""
        if self.rows is None or self._known is None:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0)
        places = self._known.nonzero().flatten()
        return places, self.rows[places]

    def get_extra_state(self) -> dict[str, Any]:
        """Return the table's content, for the state dict."""
        return {"rows": self.rows, "known": self._known}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over a saved content."""
        rows, known = state["rows"], state["known"]
        if rows is None:
            self.rows = self._known = None
            return
        self.rows = self._storage.copy(rows, rows.device if self.rows is None else self.rows.device)
        self._known = known.clone().to(self.rows.device)

    def _room(self, index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if (
            self.rows is not None
            and self._known is not None
            and (self.examples is not None or int(index.max()) < len(self.rows))
        ):
            return self.rows, self._known
        needed = max(self.examples or 0, int(index.max()) + 1)
        held = 0 if self.rows is None else len(self.rows)
        capacity = needed if self.examples else max(needed, 2 * held)
        width = values.shape[1:]
        rows = self._storage.zeros((capacity, *width), self.dtype, values.device)
        known = torch.zeros(capacity, dtype=torch.bool, device=rows.device)
        if self.rows is not None and self._known is not None:
            rows[:held] = self.rows
            known[:held] = self._known
        self.rows, self._known = rows, known
        return rows, known
