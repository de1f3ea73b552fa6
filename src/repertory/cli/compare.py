"""`repertory compare`: which methods help on your data."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any

import typer


def compare(
    methods: Annotated[list[str], typer.Argument(help="Methods, such as esam, esam+lion or esam:rho=0.1.")],
    data: Annotated[
        str, typer.Option(help="A built-in name (digits, wine, ...) or a path: image folder, CSV, Parquet, .npz.")
    ],
    target: Annotated[str | None, typer.Option(help="Column of the target, for tables.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="timm:NAME, torchvision:NAME, hf:NAME, repertory:NAME or package.module:factory; default: small."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    budget: Annotated[str, typer.Option(help="What all runs get the same of: compute, steps or seconds.")] = "compute",
    epochs: Annotated[int | None, typer.Option(help="Epochs of the baseline, which define the budget (30).")] = None,
    tune: Annotated[int, typer.Option(help="Trials of hyper-parameter search for every arm.")] = 0,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time; default: one a core.")] = None,
    on: Annotated[str, typer.Option(help="Where: local or ray.")] = "local",
    scenario: Annotated[str | None, typer.Option(help="Kind of problem; default: found from methods and data.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="32, bf16 or fp16.")] = "32",
    lr: Annotated[float | None, typer.Option(help="The baseline's learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.")] = None,
    augment: Annotated[str | None, typer.Option(help="none, shift or flip-shift.")] = None,
    views: Annotated[
        str | None, typer.Option(help="plain or photo: changed versions of the inputs, for methods that learn by them.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side to which images are brought.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without unreadable images.")] = False,
    out: Annotated[str | None, typer.Option(help="Folder of the results; default: one under runs/.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a comparison that was cut off.")] = False,
) -> None:
    """Train the baseline and methods on your data at equal budget, and say which ones help."""
    given: dict[str, Any] = dict(locals())
    given.pop("methods")

    from repertory.scenarios.methods import check_names

    # A misspelt name is answered before torch is imported.
    check_names(methods)

    from rich.console import Console

    from repertory.compare import report
    from repertory.compare.api import compare as run

    console = Console(stderr=True)
    with _Progress(console) as progress:
        comparison = run(*methods, **given, command=shlex.join(["repertory", *sys.argv[1:]]), watch=progress)
    for note in comparison["data"]["notes"]:
        console.print(f"note: {note}", style="dim", markup=False, highlight=False)
    settings = comparison["settings"]
    console.print(
        f"model: {settings['model']} ({settings['model_reason']})", style="dim", markup=False, highlight=False
    )
    output = Console(width=None if sys.stdout.isatty() else 120)
    output.print(report.table(comparison))
    output.print(report.legend(comparison), style="dim", markup=False, highlight=False)
    output.print(f"report: {comparison['folder']}/report.html", markup=False, highlight=False, soft_wrap=True)


class _Progress:
    """A bar over all runs, with the time left."""

    def __init__(self, console: Any) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._shares: dict[str, float] = {}
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=not console.is_terminal,
        )
        self._task: Any = None

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, key: str, share: float, runs: int) -> None:
        if self._task is None:
            self._task = self._bar.add_task("runs", total=runs)
        self._shares[key] = max(share, self._shares.get(key, 0.0))
        self._bar.update(self._task, completed=round(sum(self._shares.values()), 2))
