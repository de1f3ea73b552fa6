"""`repertory check`: the contract checks."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer


def check(
    method: Annotated[
        str, typer.Argument(help="A method's name, such as 'esam', or 'package.module:Class' of your own.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the contract checks on a method, the catalogue's or your own; the status is 1 if any failed."""
    from repertory.cli.output import print_json, print_table
    from repertory.testing import check_method

    results = check_method(method, raise_on_failure=False)
    if as_json:
        print_json([dataclasses.asdict(result) for result in results])
    else:
        print_table(
            ("check", "result", "reason"),
            [(result.name.replace("_", " "), result.status, result.reason) for result in results],
        )
    if any(result.status == "failed" for result in results):
        raise typer.Exit(1)
