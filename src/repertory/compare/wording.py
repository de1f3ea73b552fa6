"""How a comparison's names and numbers are written: the same in the report, its plots and the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from repertory.compare.statistics import BASELINE

SYMBOLS = {"helps": "▲", "hurts": "▼", "cannot tell": "–"}
"""A sign for each verdict, so that colour never carries it alone."""

_DIGITS = 6
_WRITTEN = {
    "map_at_r": "MAP@R",
    "map_at_r_eighth": "MAP@R, first eighth",
    "r_precision": "R-precision",
    "mrr": "MRR",
    "nmi": "NMI",
}
"""Metrics whose usual spelling is not that of their identifier."""


@dataclass(frozen=True)
class Scale:
    """How values of one metric are written: accuracies in percent, everything else as it is.

    Args:
        metric: name of the metric.
        percent: values are shares, written in percent, and their differences in percentage points.
        decimals: digits after the point; None for three significant digits.

    >>> scale = Scale("accuracy", percent=True, decimals=1)
    >>> scale.value(0.9712), scale.signed(-0.0123), scale.interval(-0.0123, 0.02)
    ('97.1', '−1.2', '−1.2 to 2.0')
    """

    metric: str
    percent: bool
    decimals: int | None

    @classmethod
    def of(cls, metric: str, rows: Sequence[Mapping[str, Any]]) -> Scale:
        """Choose as many decimals as the spread over seeds gives meaning to."""
        shares = {"recall", "precision", "f1", "ece", "auc", "r_precision", "map_at_r", "map_at_r_eighth"}
        shares |= {"forgetting", "compatibility", "cross_version", "new_on_old", "agreement"}
        percent = "accuracy" in metric or metric in shares or metric.startswith("recall_at_")
        factor = 100.0 if percent else 1.0
        spreads = [row["sd"] * factor for row in rows if row["sd"]]
        if not spreads:
            spreads = [abs(row["mean"]) * factor / 100 for row in rows if row["mean"]]
        size = math.floor(math.log10(median(spreads))) if spreads else -1
        decimals = max(1, -size) if percent else max(0, 1 - size)
        return cls(metric, percent, decimals if decimals <= _DIGITS else None)

    @property
    def factor(self) -> float:
        """What a value is multiplied by before it is written."""
        return 100.0 if self.percent else 1.0

    @property
    def axis(self) -> str:
        """The metric with the unit of its values: "accuracy (%)"."""
        return f"{words(self.metric)} (%)" if self.percent else words(self.metric)

    @property
    def unit(self) -> str:
        """The unit of a difference: "points", or the metric itself."""
        return "points" if self.percent else words(self.metric)

    def value(self, value: float | None) -> str:
        """Write a value, or a dash for None."""
        if value is None:
            return "–"
        written = value * self.factor
        text = f"{written:.3g}" if self.decimals is None else f"{written:.{self.decimals}f}"
        if not any(digit in text for digit in "123456789"):
            text = text.lstrip("-")
        return text.replace("-", "−")

    def signed(self, value: float | None) -> str:
        """Write a difference with its sign."""
        text = self.value(value)
        return f"+{text}" if value is not None and value > 0 and any(d in text for d in "123456789") else text

    def spread(self, mean: float | None, sd: float | None) -> str:
        """Write a mean with its standard deviation."""
        return self.value(mean) if mean is None or sd is None else f"{self.value(mean)} ± {self.value(sd)}"

    def interval(self, low: float, high: float) -> str:
        """Write an interval in a sentence."""
        return f"{self.value(low)} to {self.value(high)}"

    def bracket(self, low: float | None, high: float | None) -> str:
        """Write an interval in a table, or nothing where there is none."""
        return "" if low is None or high is None else f"[{self.signed(low)}, {self.signed(high)}]"


@dataclass(frozen=True)
class Name:
    """What a method is called: its name in the papers, and the options given on the command line."""

    title: str
    options: str

    def __str__(self) -> str:
        return f"{self.title} ({self.options})" if self.options else self.title

    @classmethod
    def of(cls, label: str, cards: Sequence[Mapping[str, Any]]) -> Name:
        """Read a label such as `esam:rho=0.1+lion`.

        >>> str(Name.of("esam:rho=0.1,beta=0.5+lion", [{"slug": "esam", "name": "ESAM"}]))
        'ESAM + lion (rho=0.1, beta=0.5)'
        """
        known = {str(card["slug"]): str(card["name"]) for card in cards}
        titles, options = [], []
        # A + inside a number (1e+3) joins no methods.
        for part in re.split(r"\+(?![\d.])", label):
            slug, _, given = part.partition(":")
            titles.append(known.get(slug, slug))
            options += [option.strip() for option in given.split(",") if option.strip()]
        return cls(" + ".join(titles), ", ".join(options))


def words(name: str) -> str:
    """Write an identifier as words: `balanced_accuracy` is "balanced accuracy", `map_at_r` is "MAP@R"."""
    recall = re.fullmatch(r"recall_at_(\d+)", name)
    if recall:
        return f"recall@{recall[1]}"
    return _WRITTEN.get(name) or name.replace("_", " ")


def names(comparison: Mapping[str, Any]) -> dict[str, Name]:
    """Return what every label of the comparison is called."""
    return {row["label"]: Name.of(row["label"], comparison.get("cards") or ()) for row in comparison["rows"]}


def ratio(value: float | None) -> str:
    """Write a cost relative to the baseline's: "1.02×"."""
    return "–" if value is None else f"{value:.2f}×" if value < 9.995 else f"{value:.0f}×"


def count(number: int, noun: str) -> str:
    """Write a number with its noun in the right form: "1 seed", "3 seeds"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(items: Sequence[str]) -> str:
    """Write a list in a sentence: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def trouble(row: Mapping[str, Any]) -> str:
    """Say how many runs of a row gave no value: "1 of 3 diverged, 1 of 3 failed", or nothing."""
    total = row["n"] + len(row["diverged"]) + len(row["failed"])
    counts = ((len(row["diverged"]), "diverged"), (len(row["failed"]), "failed"))
    return ", ".join(f"{number} of {total} {what}" for number, what in counts if number)


def seeds_wanted(row: Mapping[str, Any]) -> str:
    """Write how many seeds would tell: "12", "over 1000", or a dash where the data cannot say."""
    if row["seeds_needed"] is not None:
        return str(row["seeds_needed"])
    difference = row["difference"]
    return "over 1000" if difference and difference["mean"] and difference["sd"] else "–"


def finding(comparison: Mapping[str, Any]) -> str:
    """Say in one sentence of plain words what the comparison found.

    Args:
        comparison: what `repertory.compare.report.write_report` takes.

    Returns:
        The sentence, without markup.
    """
    rows = [row for row in comparison["rows"] if row["label"] != BASELINE]
    baseline = next((row for row in comparison["rows"] if row["label"] == BASELINE), None)
    if baseline is None or not baseline["n"]:
        return "Nothing can be said: no run of the baseline finished."
    if not rows:
        return "Only the baseline was run, so there is nothing to compare."
    called, scale = names(comparison), Scale.of(comparison["metric"], comparison["rows"])
    parts = []
    for outcome in ("helps", "hurts"):
        found = [row for row in rows if row["verdict"] == outcome]
        found.sort(key=lambda row: -abs(row["difference"]["mean"]))
        parts += [_effect(row, called, scale) for row in found[:3]]
        if more := [str(called[row["label"]]) for row in found[3:]]:
            parts.append(f"so {'does' if len(more) == 1 else 'do'} {listed(more)}" if len(more) <= 4
                         else f"so do {len(more)} more methods")  # fmt: skip
    return _sentence([*parts, *_open_questions(rows, called)])


def _effect(row: Mapping[str, Any], called: Mapping[str, Name], scale: Scale) -> str:
    difference = row["difference"]
    passes = f" at {ratio(row['cost']['passes'])} the passes" if row["cost"]["passes"] else ""
    return (
        f"{called[row['label']]} {row['verdict']}: {scale.signed(difference['mean'])} {scale.unit} "
        f"(95 % interval {scale.interval(difference['low'], difference['high'])}){passes}"
    )


def _open_questions(rows: Sequence[Mapping[str, Any]], called: Mapping[str, Name]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] != "cannot tell":
            continue
        difference = row["difference"]
        if difference is None:
            why = "no run finished" if not row["n"] else "no seed finished with the baseline too"
            if row["diverged"] and not row["n"] and not row["failed"]:
                why = "every run diverged"
        elif difference["mean"] == 0 and not difference["sd"]:
            why = f"nothing changed on {count(difference['n'], 'seed')}"
        else:
            why = (
                f"{difference['n']} seeds cannot tell"
                if difference["n"] > 1
                else "one seed can tell nothing (--seeds 3 is a start)"
            )
        groups.setdefault(why, []).append(str(called[row["label"]]))
    return [f"for {listed(who) if len(who) <= 4 else f'{len(who)} methods'} {why}" for why, who in groups.items()]


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text.startswith(("for ", "so ")) else f"{text}."
