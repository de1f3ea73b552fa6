"""`repertory predict`: predictions of a saved model."""

from __future__ import annotations

from typing import Annotated

import typer


def predict(
    model: Annotated[str, typer.Argument(help="Folder that 'repertory fit' wrote.")],
    data: Annotated[str, typer.Argument(metavar="INPUT", help="Image, folder of images, CSV, Parquet or .npz.")],
    out: Annotated[str | None, typer.Option(help="Write a .csv, .parquet or .json file instead of printing.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run code of other packages that the model names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict with a saved model: one row an input."""
    from pathlib import Path

    from repertory.cli.output import print_json, print_table
    from repertory.errors import UserError
    from repertory.training.saved import load

    suffix = None if out is None else Path(out).suffix
    if suffix not in (None, ".csv", ".parquet", ".json"):
        raise UserError(f"--out {out!r} must end in .csv, .parquet or .json")
    rows = load(model, trust=trust).predict(data).rows()
    if out is not None:
        import pandas as pd

        frame = pd.DataFrame(rows)
        if suffix == ".csv":
            frame.to_csv(out, index=False)
        elif suffix == ".parquet":
            frame.to_parquet(out, index=False)
        else:
            frame.to_json(out, orient="records", indent=2)
        print(f"{len(rows)} predictions: {out}")
    elif as_json:
        print_json(rows)
    else:
        columns = [name for name in rows[0] if not name.startswith("p(")]
        print_table(columns, [[str(row[name]) for name in columns] for row in rows])
