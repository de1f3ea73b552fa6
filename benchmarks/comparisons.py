"""Comparisons of many methods on several tasks, as cells of a Markdown table."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from typing import Any

import repertory


def compared(methods: Iterable[str], task: str, scenario: str, **settings: Any) -> dict[str, Any]:
    """Compare methods on the CPU in a folder that is thrown away, and return what `repertory.compare` found.

    Args:
        methods: what `compare` is given.
        task: the data.
        scenario: its name.
        **settings: further ones of `compare`.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = repertory.compare(*methods, data=task, scenario=scenario, device="cpu", out=f"{folder}/run", **settings)
    print(f"done: {task}", file=sys.stderr)
    return found


def cell(row: dict[str, Any], factor: float = 100.0) -> str:
    """Return the baseline's mean, or a method's paired difference with its 95 % interval and a sign where it is sure.

    Args:
        row: of a comparison.
        factor: on all numbers; 100 turns shares into percent.
    """
    if row["mean"] is None:
        return "diverged"
    difference = row["difference"]
    if difference is None:
        return f"{factor * row['mean']:.1f}"
    if difference["low"] is None:  # a single seed
        return f"{factor * difference['mean']:+.1f}"
    low, high = factor * difference["low"], factor * difference["high"]
    mark = {"helps": " +", "hurts": " -"}.get(row["verdict"], "")
    return f"{factor * difference['mean']:+.1f} [{low:+.1f}, {high:+.1f}]{mark}"
