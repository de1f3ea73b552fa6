"""`repertory list`: the methods, all or some."""

from __future__ import annotations

from typing import Annotated

import typer

from repertory.catalogue import select


def list_(
    kind: Annotated[str | None, typer.Option(help="Only methods of this kind, such as 'loss'.")] = None,
    need: Annotated[str | None, typer.Option(help="Only methods that ask for this, such as 'index'.")] = None,
    scenario: Annotated[str | None, typer.Option(help="Only methods that play in this scenario.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the methods: all, or those of a kind, with a need, or for a scenario."""
    from repertory.cli.output import print_json, print_table

    chosen = select(kind, need, scenario)
    if as_json:
        print_json(
            [
                {
                    "slug": entry.card.slug,
                    "kind": entry.card.kind,
                    "name": entry.card.name,
                    "year": entry.card.year,
                    "summary": entry.summary,
                    "problems": entry.card.problems,
                    "scenarios": entry.card.scenarios,
                    "needs": entry.card.needs,
                    "baseline": entry.card.baseline,
                }
                for entry in chosen
            ]
        )
        return
    rows = [(entry.card.slug, entry.card.kind, str(entry.card.year), entry.summary) for entry in chosen]
    print_table(("method", "kind", "year", "what it is"), rows)
