"""How verbs print: tables for people, one line a row in a pipe, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

_GAP = "  "


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table that fits the terminal; in a pipe, one line a row and nothing cut.

    Args:
        header: the columns' titles.
        rows: one string a column; text, not markup.
    """
    lines = [tuple(header), *(tuple(" ".join(cell.split()) for cell in row) for row in rows)]
    if sys.stdout.isatty():
        _print_fitted(lines)
        return
    # Without rich here, a command in a pipe answers a fifth sooner.
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print(_GAP.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def print_json(value: Any) -> None:
    """Print plain values as JSON."""
    print(json.dumps(value, indent=2))


def _print_fitted(lines: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, len(_GAP), 0, 0), header_style="bold")
    for place, title in enumerate(lines[0]):
        table.add_column(title, no_wrap=place == 0, style="cyan" if place == 0 else "")
    for line in lines[1:]:
        table.add_row(*(Text(cell) for cell in line))
    Console(highlight=False).print(table)
