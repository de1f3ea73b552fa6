"""Streams: further sources of batches beside the main one, without end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from repertory.errors import DataError


class Stream:
    """An endless run through a loader: when it is exhausted it starts again.

    Args:
        name: the stream's name; its batches stand in the main batch under it.
        loader: any iterable of batches; one with `state_dict` and `load_state_dict` resumes where it was.
    """

    def __init__(self, name: str, loader: Iterable[Any]) -> None:
        self.name = name
        self.loader = loader
        self._iterator: Iterator[Any] | None = None

    def __next__(self) -> Any:
        """Return the next batch.

        Raises:
            DataError: if the loader has no batch at all.
        """
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self.loader)
            try:
                return next(self._iterator)
            except StopIteration:
                self._iterator = None
        raise DataError(f"stream {self.name!r} has no batch; give it a loader with at least one")

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's position, empty where the loader cannot tell."""
        own = getattr(self.loader, "state_dict", None)
        return own() if callable(own) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position."""
        own = getattr(self.loader, "load_state_dict", None)
        if state and callable(own):
            own(state)
            self._iterator = None
