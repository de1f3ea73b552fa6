"""Paired timing: candidates take turns, so that a machine whose speed drifts slows them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def ratios(
    candidates: Mapping[str, Callable[[], object]], baseline: str, *, rounds: int = 15, calls: int = 20
) -> dict[str, tuple[float, float]]:
    """Time the candidates in turns.

    Args:
        candidates: what to call, by name; each is called `calls` times a round.
        baseline: the name that the others are divided by, round by round.
        rounds: number of rounds, after one that is not counted.
        calls: calls of each candidate in a round.

    Returns:
        By name: the median over rounds of the ratio to the baseline, and the median milliseconds a call.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, call in candidates.items():
            start = time.perf_counter()
            for _ in range(calls):
                call()
            if number:
                times[name].append((time.perf_counter() - start) / calls)
    base = times[baseline]
    return {
        name: (statistics.median(t / b for t, b in zip(own, base)), 1000 * statistics.median(own))
        for name, own in times.items()
    }


def print_table(title: str, found: Mapping[str, tuple[float, float]]) -> None:
    """Print one Markdown row a candidate: ratio and milliseconds."""
    print(f"\n### {title}\n\n| | ratio | ms |\n|---|---|---|")
    for name, (ratio, milliseconds) in found.items():
        print(f"| {name} | {ratio:.3f} | {milliseconds:.3f} |")
