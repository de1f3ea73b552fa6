"""`repertory fit`: train one recipe and save the model."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated, Any

import typer


def fit(
    data: Annotated[str, typer.Option(help="A built-in name or a path.")],
    out: Annotated[str, typer.Option(help="Folder of the model.")],
    methods: Annotated[
        str | None, typer.Option("--with", help="Methods, such as saf+lion; none for the baseline.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Column of the target, for tables.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="timm:NAME, torchvision:NAME, hf:NAME, repertory:NAME or package.module:factory; default: small."
        ),
    ] = None,
    scenario: Annotated[str | None, typer.Option(help="Kind of problem; default: found from methods and data.")] = None,
    seed: Annotated[int, typer.Option(help="Decides split, weights and order.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set (30).")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    devices: Annotated[int, typer.Option(help="Devices on each machine.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    strategy: Annotated[str, typer.Option(help="auto, ddp or fsdp.")] = "auto",
    precision: Annotated[str, typer.Option(help="32, bf16 or fp16.")] = "32",
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step, over all devices.")] = None,
    augment: Annotated[str | None, typer.Option(help="none, shift or flip-shift.")] = None,
    views: Annotated[
        str | None, typer.Option(help="plain or photo: changed versions of the inputs, for methods that learn by them.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side to which images are brought.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without unreadable images.")] = False,
    logger: Annotated[str | None, typer.Option(help="csv or tensorboard: write curves to OUT/logs.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a fit that was cut off.")] = False,
) -> None:
    """Train one recipe on your data and save weights, recipe, classes and preprocessing."""
    from rich.console import Console
    from rich.progress import Progress

    from repertory.errors import DivergedError, UserError
    from repertory.scenarios.fit import fit as run

    given: dict[str, Any] = dict(locals())
    for name in ("Console", "Progress", "run", "DivergedError", "UserError"):
        given.pop(name)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=os.environ.get("LOCAL_RANK", "0") != "0") as progress:
        task = progress.add_task("training", total=1.0)
        try:
            saved = run(
                **given,
                command=shlex.join(["repertory", *sys.argv[1:]]),
                watch=lambda share: progress.update(task, completed=share),
            )
        except DivergedError as error:
            raise UserError(f"training diverged: {error}; try --lr {0.3 * (lr or 1e-3):g}") from error
    if os.environ.get("LOCAL_RANK", "0") == "0":
        test = ", ".join(f"{name} {value:.4g}" for name, value in saved.about["metrics"]["test"].items())
        print(f"test: {test}")
        print(f"model: {out}")
