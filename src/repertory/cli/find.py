"""`repertory find`: methods by problem."""

from __future__ import annotations

from typing import Annotated

import typer

from repertory.catalogue import entries
from repertory.catalogue.find import closest_problems
from repertory.catalogue.find import find as search


def find(
    query: Annotated[list[str], typer.Argument(help="The problem in your words, such as 'few noisy labels'.")],
    limit: Annotated[int, typer.Option(help="Largest number of methods.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find methods by the problem you have, best first, with the reason for each."""
    from repertory.cli.output import print_json, print_table

    words = " ".join(query)
    hits = search(words, limit)
    if as_json:
        print_json(
            [
                {
                    "slug": hit.entry.card.slug,
                    "kind": hit.entry.card.kind,
                    "name": hit.entry.card.name,
                    "summary": hit.entry.summary,
                    "score": hit.score,
                    "why": hit.why,
                }
                for hit in hits
            ]
        )
    elif hits:
        rows = [(hit.entry.card.slug, hit.entry.card.kind, hit.entry.summary, hit.why) for hit in hits]
        print_table(("method", "kind", "what it is", "why"), rows)
    else:
        closest = "; ".join(closest_problems(entries(), words))
        print(f"No method speaks of {words!r}. Problems that methods solve: {closest}")
