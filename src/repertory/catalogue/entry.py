"""One method as the catalogue knows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repertory.card import Card


@dataclass(frozen=True)
class Entry:
    """A method's card with the prose of its module.

    Args:
        card: the literal `CARD` of the module.
        module: where it is imported from, such as "repertory.algorithms.esam".
        path: the module's file.
        summary: first line of the module's docstring.
        sections: the docstring's `## ` sections in their order, title to Markdown text.
        root: the package folder; claims and capabilities are looked up from it.
    """

    card: Card
    module: str
    path: Path
    summary: str
    sections: Mapping[str, str]
    root: Path = field(repr=False)

    @property
    def import_line(self) -> str:
        """The Python statement that imports the method: `from repertory.algorithms import ESAM`."""
        return f"from {self.module.rpartition('.')[0]} import {self.card.entry}"

    def claim_path(self) -> Path:
        """Return where the claim's experiment is (`<slug>.py`), whether or not it exists.

        A wheel carries the `claims` folder inside the package; a checkout has it at the repository's root.
        """
        packaged = self.root / "claims"
        folder = packaged if packaged.is_dir() else self.root.parents[1] / "claims"
        return folder / f"{self.card.slug}.py"

    def claim_record(self) -> dict[str, Any] | None:
        """Return the recorded result of the claim (`<slug>.json`), None when it was never recorded."""
        return _load(self.claim_path().with_suffix(".json"))

    def capabilities(self) -> dict[str, str]:
        """Return what the contract checks found: result by check, such as "passed" or "not applicable"."""
        measured = _load(self.root / "catalogue" / "capabilities.json") or {}
        return dict(measured.get(self.card.slug, {}))


def _load(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
