"""Which loss for embeddings when: the methods of the scenario retrieval on several tasks, same budget, same splits.

Prints one Markdown table: for each task the paired difference of the test part's MAP@R to the baseline's, a softmax on
cosines, with its 95 % interval. It takes a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse

from comparisons import cell, compared

TASKS = ("digits", "mnist1d", "digits?coarse=5")
METHODS = (
    "softtriple",
    "repertory.losses.contrastive:ContrastiveLoss",
    "dexml",
    "cfcd",
    "look",
    "ecaml",
    "coins:momentum=0.99",
    "matryoshka",
    "projection-head",
    "batchformer",
    "relationship-batch",
    "ngame:grow_at=[3,6]",
    "graph-reranking",
    "b-attention",
    "relative-representations",
)
"""What `compare` is given. Momentum and growth are brought to a run of ten epochs; all else is as published."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    given = parser.parse_args()
    columns: dict[str, dict[str, str]] = {}
    times: dict[str, list[float]] = {}
    for task in given.tasks:
        found = compared(given.methods, task, "retrieval", seeds=given.seeds, epochs=given.epochs)
        columns[task] = {row["label"]: cell(row) for row in found["rows"]}
        for row in found["rows"]:
            times.setdefault(row["label"], []).append(row["cost"]["seconds"] or float("nan"))
    print(f"\n| | {' | '.join(columns)} | time |\n|---|{'---|' * (len(columns) + 1)}")
    for label in ("baseline", *given.methods):
        cells = [column[label] for column in columns.values()]
        print(f"| {label} | {' | '.join(cells)} | {sum(times[label]) / len(times[label]):.1f} |")


if __name__ == "__main__":
    main()
