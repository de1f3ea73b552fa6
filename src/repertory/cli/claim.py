"""`repertory claim`: re-run the experiment behind a method's headline claim."""

from __future__ import annotations

from typing import Annotated

import typer


def claim(
    slug: Annotated[str, typer.Argument(help="The method, such as esam.")],
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; default: the claim's own.")] = None,
    jobs: Annotated[int, typer.Option(help="Seeds at a time.")] = 2,
    record: Annotated[bool, typer.Option("--record", help="Write the result beside the claim.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the experiment behind a method's headline claim, and print its verdict beside the paper's figures."""
    from rich.console import Console
    from rich.progress import Progress

    from repertory import catalogue
    from repertory.cli.output import print_json, print_table
    from repertory.compare.claim import run_claim
    from repertory.compare.files import write_json

    path = catalogue.get(slug).claim_path()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("seeds", total=None)
        found = run_claim(
            path, seeds=seeds, processes=jobs, on_seed=lambda done, of: progress.update(task, completed=done, total=of)
        )
    if record:
        write_json(path.with_suffix(".json"), found)
    if as_json:
        print_json(found)
        return
    print(f"{found['claim']}\npaper: {found['paper']}\nhere:  {found['experiment']} ({found['seeds']} seeds)\n")
    print_table(
        ("statement", "left", "right", "difference [95 %]", "verdict"),
        [
            (
                s["text"],
                f"{s['left_mean']:.4g}",
                f"{s['right_mean']:.4g}",
                f"{s['difference']:+.4g} [{s['low']:+.4g}, {s['high']:+.4g}]",
                s["verdict"],
            )
            for s in found["statements"]
        ],
    )
    print(f"\nverdict: {found['verdict']} ({found['minutes']} minutes, {found['processor_minutes']} of one core)")
