"""Options of the data that one scenario reads and the others have no use for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from repertory.datasets import bags, condensed, discovery, held_out, points, sequence, teaching

READERS: dict[str, tuple[str, ...]] = {
    "retrieval": held_out.KEYS,
    "continual": sequence.KEYS,
    "condensation": condensed.KEYS,
    "distillation": teaching.KEYS,
    "weak_segmentation": points.KEYS,
    "bags": bags.JUDGED,
    "category_discovery": discovery.KEYS,
}
"""Scenarios, and the options after the `?` of a data spec that each reads."""

KEYS = tuple(key for keys in READERS.values() for key in keys)


def read_by(options: Mapping[str, str], scenario: str) -> dict[str, str]:
    """Return those of the options that a scenario reads.

    >>> read_by({"tasks": "5", "ipc": "1"}, "continual")
    {'tasks': '5'}
    """
    return {key: value for key, value in options.items() if key in READERS.get(scenario, ())}


def check(options: Mapping[str, str], task: str, classes: Sequence[str]) -> None:
    """Refuse options that the data cannot carry.

    Args:
        options: any of `KEYS`.
        task: of the data.
        classes: names of their classes.

    Raises:
        OptionError: if a value is malformed or out of range, or does not fit the data.
    """
    held_out.check(read_by(options, "retrieval"), task, len(classes))
    sequence.check(read_by(options, "continual"), task, len(classes))
    condensed.check(read_by(options, "condensation"), task)
    teaching.check(read_by(options, "distillation"), task)
    points.check(read_by(options, "weak_segmentation"), task, classes)
    bags.check_judged(read_by(options, "bags"), task)
    discovery.check(read_by(options, "category_discovery"), task, len(classes))
