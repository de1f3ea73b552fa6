"""`repertory predict`: predictions of a saved model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer


def predict(
    model: Annotated[str, typer.Argument(help="Folder that 'repertory fit' wrote.")],
    data: Annotated[str, typer.Argument(metavar="INPUT", help="Image, folder of images, CSV, Parquet or .npz.")],
    out: Annotated[str | None, typer.Option(help="Write a .csv, .parquet or .json file, or a folder of masks.")] = None,
    instances: Annotated[bool, typer.Option("--instances", help="Of a model of bags: one row an instance.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Run code of other packages that the model names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict with a saved model: one row an input, or one row a bag of inputs where the model was trained on bags."""
    from repertory.cli.output import print_json, print_table
    from repertory.errors import UserError
    from repertory.training.mask_files import MaskPredictions
    from repertory.training.saved import load

    suffix = None if out is None else Path(out).suffix
    if suffix not in (None, ".csv", ".parquet", ".json", ""):
        raise UserError(f"--out {out!r} must end in .csv, .parquet or .json, or be a folder for masks")
    if out is not None and not Path(out).parent.is_dir():
        raise UserError(f"--out {out!r} lies in a folder that does not exist; make it, or name another")
    saved = load(model, trust=trust)
    if suffix == "" and saved.about["task"] != "segmentation":
        raise UserError(f"--out {out!r} must end in .csv, .parquet or .json; only a model of masks writes a folder")
    predictions = saved.predict(data, instances=instances)
    if out is not None and isinstance(predictions, MaskPredictions) and suffix == "":
        print(f"{len(predictions.write(out))} masks: {out}")
        return
    rows = predictions.rows()
    if out is not None:
        _write(rows, Path(out))
        print(f"{len(rows)} predictions: {out}")
    elif as_json:
        print_json(rows)
    else:
        columns = [name for name in rows[0] if not name.startswith("p(")]
        print_table(columns, [[str(row[name]) for name in columns] for row in rows])


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    import pandas as pd

    from repertory.errors import UserError

    frame = pd.DataFrame(rows)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".csv":
            frame.to_csv(partial, index=False)
        elif path.suffix == ".parquet":
            frame.to_parquet(partial, index=False)
        else:
            frame.to_json(partial, orient="records", indent=2)
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"--out {str(path)!r} cannot be written: {error.strerror or error}; name another file"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
