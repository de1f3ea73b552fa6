"""What helps when labels are few, wrong or uneven: methods on several conditions, same budget, same splits.

Prints one Markdown table a kind of trouble: for each condition the paired difference to the baseline with its 95 %
interval, and what a run costs in the baseline's time. `--plot FILE.svg` draws all of them. It takes about a quarter of
an hour on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from comparisons import cell, compared


@dataclass(frozen=True)
class Trouble:
    """Conditions of one scenario, and the methods that take part.

    Args:
        title: of the table.
        scenario: its name.
        tasks: the data of each condition.
        methods: what `compare` is given.
        epochs: passes of the baseline; None takes the scenario's.
    """

    title: str
    scenario: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    epochs: int | None = None


TROUBLES = (
    Trouble(
        "few labels", "semi_supervised", ("digits?labels=40", "mnist1d?labels=100"), ("fixmatch", "dash:warmup=0.2"), 30
    ),
    Trouble(
        "wrong labels", "noisy_labels", ("digits?noise=0.4", "digits?noise=pair0.3", "mnist1d?noise=0.4"),
        ("rcal", "ps-kd", "saf", "sam"), 20,
    ),
    Trouble(
        "uneven classes", "long_tail", ("digits?imbalance=50", "mnist1d?imbalance=20"),
        ("balanced-softmax", "mdcs:lambdas=[0,1,1.5],warmup=2", "rcal", "sam"), 20,
    ),
    Trouble(
        "uneven and wrong", "noisy_long_tail", ("digits?imbalance=10&noise=frequent0.2",),
        ("balanced-softmax", "mdcs:lambdas=[0,1,1.5],warmup=2", "rcal", "balanced-softmax+sam"), 20,
    ),
)  # fmt: skip


def table(trouble: Trouble, found: Mapping[str, dict[str, Any]]) -> str:
    """Return the Markdown table of one kind of trouble.

    Args:
        trouble: its methods.
        found: by condition, what `repertory.compare` returned.
    """
    rows = {task: {row["label"]: row for row in each["rows"]} for task, each in found.items()}
    metric = next(iter(found.values()))["metric"].replace("_", " ")
    lines = [f"| {trouble.title}: {metric} | {' | '.join(f'`{task}`' for task in found)} | time |"]
    lines += [f"|---|{'---|' * (len(found) + 1)}"]
    for label in ("baseline", *trouble.methods):
        times = [rows[task][label]["cost"]["seconds"] or float("nan") for task in found]
        cells = [cell(rows[task][label]) for task in found]
        name = label if label == "baseline" else f"`{label}`"
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(times):.1f} |")
    return "\n".join(lines)


def draw(found: Mapping[Trouble, Mapping[str, dict[str, Any]]], file: Path) -> None:
    """Draw every difference with its interval, a panel a condition."""
    from matplotlib.figure import Figure

    columns = max(len(conditions) for conditions in found.values())
    heights = [len(trouble.methods) + 1.6 for trouble in found]
    figure = Figure(figsize=(3.1 * columns, 0.34 * sum(heights)), layout="constrained")
    for part, (trouble, conditions) in zip(
        figure.subfigures(len(found), 1, height_ratios=heights, squeeze=False)[:, 0], found.items()
    ):
        grid = part.subplots(1, columns, squeeze=False, sharey=True)[0]
        for axes, (task, each) in zip(grid, conditions.items()):
            rows = {row["label"]: row for row in each["rows"]}
            axes.set_title(task, fontsize=8, loc="left")
            axes.axvline(0, color="#1b1f24", lw=1)
            for place, label in enumerate(reversed(trouble.methods)):
                difference = rows[label]["difference"]
                if difference is None:
                    continue
                low, middle, high = (100 * difference[name] for name in ("low", "mean", "high"))
                colour = {"helps": "#00704f", "hurts": "#b03a00"}.get(rows[label]["verdict"], "#5b6269")
                axes.plot([low, high], [place, place], color=colour, lw=2.5, solid_capstyle="butt")
                axes.plot(middle, place, "o", color=colour, ms=5)
            axes.set_yticks(range(len(trouble.methods)), [*reversed(trouble.methods)], fontsize=8)
            axes.set_ylim(-0.6, len(trouble.methods) - 0.4)
            axes.tick_params(axis="x", labelsize=8)
            axes.tick_params(axis="y", length=0)
            axes.spines[["top", "right", "left"]].set_visible(False)
        for axes in grid[len(conditions) :]:
            axes.set_axis_off()
        part.suptitle(f"{trouble.title}: points over the baseline", fontsize=9, x=0.01, ha="left", weight="bold")
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="passes of every baseline; each its own by default")
    parser.add_argument("--troubles", nargs="*", default=[trouble.title for trouble in TROUBLES])
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    found: dict[Trouble, dict[str, dict[str, Any]]] = {}
    for trouble in TROUBLES:
        if trouble.title in given.troubles:
            epochs = given.epochs or trouble.epochs
            found[trouble] = {
                task: compared(trouble.methods, task, trouble.scenario, seeds=given.seeds, epochs=epochs)
                for task in trouble.tasks
            }
            print(f"\n{table(trouble, found[trouble])}", flush=True)
    if given.plot is not None:
        draw(found, given.plot)


if __name__ == "__main__":
    main()
