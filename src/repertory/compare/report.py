"""The report of a comparison: one HTML file that stands alone, and the same rows for the terminal."""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from repertory.compare.wording import (
    SYMBOLS,
    Scale,
    count,
    finding,
    listed,
    names,
    ratio,
    seeds_wanted,
    trouble,
    words,
)

if TYPE_CHECKING:
    from rich.table import Table

_COLOURS = {"helps": "green", "hurts": "red", "cannot tell": "dim"}


def write_report(
    path: str | Path,
    comparison: Mapping[str, Any],
    sheets: Sequence[Mapping[str, Any]] = (),
    made: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the comparison as one HTML file: no network, no script, ready to print or to send.

    The same comparison gives the same bytes.

    Args:
        path: the file to write; its folder must exist.
        comparison: plain values. `title`, `command` (exact shell command), `data`, `settings`, `versions`
            (mappings of name to value), `metric`, `higher_is_better`, `rows` (from `summarise`), `results`
            (the runs), `cards` (one mapping a method: slug, name, title, authors, year, link, one_line),
            `created` (ISO time), `incomplete` (some runs are still to come).
        sheets: queries with what was found, from `repertory.compare.sheet`.
        made: condensed sets as pictures, from there too.
    """
    import jinja2

    from repertory.compare import plots

    rows, results = comparison["rows"], comparison["results"]
    called, scale = names(comparison), Scale.of(comparison["metric"], rows)
    better = bool(comparison["higher_is_better"])
    figures = {
        "forest": plots.forest(rows, called, scale, higher_is_better=better),
        "curves": plots.curves(results, rows, called, scale, higher_is_better=better),
        "regret": plots.regret(results, rows, called),
        "cost": plots.tradeoff(rows, called, scale, higher_is_better=better),
    }
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(ratio=ratio, words=words, web=_web, shown=_shown)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    html = template.render(
        comparison=comparison,
        finding=finding(comparison),
        facts=_facts(comparison),
        rows=rows,
        called=called,
        scale=scale,
        symbols=SYMBOLS,
        styles=plots.styles([row["label"] for row in rows]),
        trouble=trouble,
        seeds_wanted=seeds_wanted,
        figures={name: figure and _inline(figure) for name, figure in figures.items()},
        other=_other_metrics(comparison),
        runs=sorted(results, key=lambda run: ([*called].index(run["label"]), int(run["seed"]))),
        seconds=_seconds,
        memory=_memory,
        number=_number,
        banded=plots.BANDED,
        sheets=sheets,
        made=made,
    )
    Path(path).write_text(html, encoding="utf-8")


def table(comparison: Mapping[str, Any]) -> Table:
    """Return the comparison as a table for the terminal, at most 100 columns wide.

    Args:
        comparison: as for `write_report`.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = comparison["rows"]
    called, scale = names(comparison), Scale.of(comparison["metric"], rows)
    grid = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        title=Text(finding(comparison)),
        title_justify="left",
    )
    grid.add_column("method", max_width=24, overflow="fold")
    grid.add_column(f"test {scale.axis}", max_width=17)
    grid.add_column("difference [95 %]", max_width=25)
    grid.add_column("verdict", max_width=14)
    for name in ("passes", "seconds", "memory"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        difference, outcome = row["difference"], row["verdict"]
        label = Text(called[row["label"]].title, style="bold")
        if called[row["label"]].options:
            label.append(f"\n{called[row['label']].options}", style="dim not bold")
        metric = Text(scale.spread(row["mean"], row["sd"]))
        if trouble(row):
            metric.append(f"\n{trouble(row)}".replace(", ", "\n"), style="yellow")
        effect = "" if not difference else scale.signed(difference["mean"])
        if difference and difference["low"] is not None:
            effect += f" {scale.bracket(difference['low'], difference['high'])}"
        said = Text(f"{SYMBOLS[outcome]} {outcome}" if outcome else "", style=_COLOURS.get(outcome, ""))
        if outcome == "cannot tell" and (wanted := seeds_wanted(row)) != "–":
            said.append(f"\n  ~{wanted} seeds".replace("~over", "over"))
        costs = (ratio(row["cost"][name]) for name in ("passes", "seconds", "peak_bytes"))
        grid.add_row(label, metric, Text(effect), said, *costs)
    return grid


def legend(comparison: Mapping[str, Any]) -> str:
    """Return the line that explains the table of `table`.

    Args:
        comparison: as for `write_report`.
    """
    rows = comparison["rows"]
    scale = Scale.of(comparison["metric"], rows)
    direction = "higher" if comparison["higher_is_better"] else "lower"
    seeds = max((row["n"] for row in rows), default=0)
    return (
        f"{count(seeds, 'seed')}; test {scale.axis}: mean ± sd, {direction} is better; difference from the "
        f"baseline in {scale.unit}, paired by seed, with its 95 % t interval; helps or hurts: p < 0.05 after "
        "Holm's correction; ~n seeds: about as many would tell; passes, seconds and peak memory relative to "
        "the baseline"
    )


def _inline(svg: str) -> dict[str, Any]:
    from markupsafe import Markup

    # matplotlib has escaped every text in it.
    return {"svg": Markup(svg), "data": base64.b64encode(svg.encode()).decode()}


def _facts(comparison: Mapping[str, Any]) -> list[tuple[str, str]]:
    data, settings = comparison["data"], comparison["settings"]
    seeds = max((row["n"] + len(row["diverged"]) + len(row["failed"]) for row in comparison["rows"]), default=0)
    facts = [
        ("data", _named(data)),
        ("task", data.get("task")),
        ("examples", data.get("examples")),
        ("model", settings.get("model")),
        ("budget", settings.get("budget")),
        ("seeds", seeds),
        ("made", _moment(comparison["created"])),
    ]
    return [(name, _shown(value)) for name, value in facts if value not in (None, "")]


def _moment(created: str) -> str:
    moment = datetime.datetime.fromisoformat(created)
    return f"{moment:%Y-%m-%d %H:%M %Z}".rstrip()


def _named(data: Mapping[str, Any]) -> str:
    """The name of the data with the options that they were asked for with."""
    _, mark, options = str(data.get("spec", "")).rpartition("?")
    return f"{data.get('name')}{mark}{options if mark else ''}"


def _other_metrics(comparison: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    runs = [run for run in comparison["results"] if run.get("status") == "finished"]
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for metric, value in ((run.get("metrics") or {}).get("test") or {}).items():
            if metric != comparison["metric"] and value is not None and math.isfinite(value):
                found.setdefault(metric, {}).setdefault(run["label"], []).append(float(value))
    shown = {}
    for metric, values in found.items():
        spreads = {label: (fmean(each), stdev(each) if len(each) > 1 else None) for label, each in values.items()}
        scale = Scale.of(metric, [{"mean": mean, "sd": sd} for mean, sd in spreads.values()])
        shown[scale.axis] = {label: scale.spread(*spread) for label, spread in spreads.items()}
    return shown


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{words(str(name))} {_shown(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return listed([_shown(each) for each in value]) if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else _number(value) if isinstance(value, int | float) else str(value)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    # Years and seeds aside, four digits read well without a separator.
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 10_000 else f"{value:.6g}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g} s" if value < 100 else f"{value / 60:.3g} min" if value < 6000 else f"{value / 3600:.3g} h"


def _memory(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 1e6:.3g} MB" if value < 1e9 else f"{value / 1e9:.3g} GB"


def _web(link: str) -> bool:
    return str(link).startswith(("https://", "http://"))
