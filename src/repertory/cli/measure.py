"""`repertory measure`: run an instrument on your model and data."""

from __future__ import annotations

from typing import Annotated

import typer


def measure(
    instrument: Annotated[str, typer.Argument(help="An instrument, such as criticality or batch-size-lr:steps=40.")],
    data: Annotated[str | None, typer.Option(help="A built-in name or a path.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A folder that fit wrote, timm:NAME, hf:NAME, repertory:NAME or package.module:factory."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Column of the target, for tables.")] = None,
    epochs: Annotated[int, typer.Option(help="Train this many epochs first; 0 measures fresh weights.")] = 0,
    seed: Annotated[int, typer.Option(help="Decides split, weights and draws.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    lr: Annotated[float | None, typer.Option(help="Learning rate of that training.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step of that training.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side to which images are brought.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without unreadable images.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Load a model that names code of others.")] = False,
    out: Annotated[str | None, typer.Option(help="Folder for record.json and plot.png; default: runs/NAME.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Run an instrument on your model and data: numbers, what they mean, and a plot."""
    import re

    from rich.console import Console
    from rich.progress import Progress

    from repertory.cli.output import print_json, print_table
    from repertory.scenarios.measure import measure as run

    place = out or f"runs/measure-{re.sub('[^a-z0-9-]+', '-', instrument.partition(':')[0].lower())}"
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=1.0)
        measured = run(
            instrument,
            data=data,
            model=model,
            target=target,
            epochs=epochs,
            seed=seed,
            device=device,
            lr=lr,
            batch_size=batch_size,
            image_size=image_size,
            skip_bad=skip_bad,
            trust=trust,
            out=place,
            watch=lambda share: progress.update(task, completed=share),
        )
    record = measured.record
    if as_json:
        print_json(record.to_dict())
        return
    print(f"{record.slug}: {measured.subject}\n")
    print_table(("quantity", "value"), [(name, _shown(value)) for name, value in record.values.items()])
    for name, columns in record.tables.items():
        print(f"\n{name}")
        print_table(tuple(columns), [tuple(map(_shown, row)) for row in zip(*columns.values(), strict=True)])
    if record.findings:
        print()
    for finding in record.findings:
        print(f"- {finding}")
    print(f"\nkept in {place}")


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
