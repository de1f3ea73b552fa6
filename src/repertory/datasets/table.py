"""Read a CSV, TSV or Parquet table with one target column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from repertory.datasets.columns import Column, encode_frame, flaws, read_frame, refuse_flaws
from repertory.datasets.dataset import Dataset
from repertory.datasets.encoder import Encoder
from repertory.datasets.targets import read_targets
from repertory.errors import DataError, OptionError, nearest

if TYPE_CHECKING:
    import pandas as pd

_MOST_CATEGORIES = 50


def load_table(
    path: Path,
    spec: str,
    target: str | None,
    drop: Sequence[str] = (),
    task: str | None = None,
    skip_bad: bool = False,
) -> Dataset:
    """Read a table: every column but the target is an input.

    Numbers and booleans are taken as they are, and text with at most 50 distinct values is one-hot encoded.

    Args:
        path: the file.
        spec: what the user typed.
        target: name of the column to predict.
        drop: columns to leave out.
        task: "classification", "regression", or None for the rule of `read_targets`.
        skip_bad: go on without the rows that have missing or infinite cells.

    Raises:
        DataError: if the table cannot be learnt from; the message names columns and rows (counted from 1).
        OptionError: if `target` or `drop` name no column.
    """
    return load_table_with_columns(path, spec, target, drop, task, skip_bad)[0]


def load_table_with_columns(
    path: Path,
    spec: str,
    target: str | None,
    drop: Sequence[str] = (),
    task: str | None = None,
    skip_bad: bool = False,
    aside: Mapping[str, str] | None = None,
) -> tuple[Dataset, pd.DataFrame]:
    """Read a table as `load_table` does, and return the columns beside it that say something of the rows.

    Args:
        path: the file.
        spec: what the user typed.
        target: name of the column to predict.
        drop: columns to leave out.
        task: "classification", "regression", or None for the rule of `read_targets`.
        skip_bad: go on without the rows that have missing or infinite cells.
        aside: columns that are no inputs, by the option that names each; their cells may be missing.

    Returns:
        The data, and those columns, a row an example.
    """
    frame = read_frame(path)
    notes: list[str] = []
    target = known_column(path, frame, "target", target)
    for name in drop:
        if known_column(path, frame, "drop", name) == target:
            raise OptionError(f"drop={name} is the target column; drop others or choose another target")
    taken = [known_column(path, frame, option, name) for option, name in (aside or {}).items()]
    beside = frame[taken]
    frame = frame.drop(columns=[*drop, *taken])
    # A table saved with its row numbers has them in a column without a name.
    unnamed = [name for name in frame.columns if name.startswith("Unnamed: ")]
    if unnamed:
        frame = frame.drop(columns=unnamed)
        notes.append(f"{len(unnamed)} column{'s' if len(unnamed) > 1 else ''} without a name left out")
    if frame.shape[1] < 2:
        raise DataError(f"{path} has no column besides the target {target!r}; there is nothing to predict it from")
    if skip_bad:
        whole = ~flaws(frame).any(axis=1)
        if not whole.all():
            notes.append(f"{int((~whole).sum())} of {len(frame)} rows with missing or infinite cells were left out")
            frame, beside = (rows[whole].reset_index(drop=True) for rows in (frame, beside))
        if not len(frame):
            raise DataError(
                f"every row of {path} has missing or infinite cells; fill them in or drop columns with ?drop="
            )
    refuse_flaws(
        frame,
        str(path),
        "fill them in, drop columns with ?drop=name, or go on without the rows with --skip-bad (skip_bad=True)",
    )
    columns = tuple(_column(path, frame[name]) for name in frame.columns if name != target)
    encoded = [f"{c.name!r} ({len(c.categories)} values)" for c in columns if c.categories is not None]
    if encoded:
        notes.append(f"text columns were one-hot encoded: {', '.join(encoded)}")
    kind, targets, classes, more = read_targets(_plain_values(frame[target]), f"target {target!r}", task)
    inputs = encode_frame(columns, frame, str(path))
    dataset = Dataset(
        name=path.stem,
        spec=spec,
        task="classification" if kind == "classification" else "regression",
        modality="table",
        inputs=inputs,
        targets=targets,
        classes=classes,
        encoder=Encoder("table", (inputs.shape[1],), columns),
        notes=(*notes, *more),
    )
    return dataset, beside


def known_column(path: Path, frame: pd.DataFrame, option: str, name: str | None) -> str:
    """Return the name of a column that an option gives.

    Raises:
        OptionError: if there is no such column, with those that there are.
    """
    if name in frame.columns:
        return str(name)
    listed = ", ".join(map(str, frame.columns))
    if name is None:
        raise OptionError(f"{path} is a table, so {option} must name the column to predict; its columns are {listed}")
    hint = nearest(name, frame.columns)
    raise OptionError(
        f"{option}={name} is not a column of {path}{'; ' + hint if hint else ''}; its columns are {listed}"
    )


def _column(path: Path, cells: pd.Series) -> Column:
    import pandas as pd

    name = str(cells.name)
    fix = f"convert it, or leave it out with ?drop={name}"
    # Decimal, dates, lists and the like have no one obvious meaning as a number.
    kind = pd.api.types.infer_dtype(cells, skipna=False)
    if kind in {"boolean", "integer", "floating", "mixed-integer-float"}:
        return Column(name)
    if kind not in {"string", "categorical"}:
        raise DataError(f"{path}: column {name!r} holds {kind} values, which are not read; {fix}")
    text = cells.astype(str)
    numeric = pd.to_numeric(text, errors="coerce").notna().to_numpy()
    if 0.5 < numeric.mean() < 1:
        odd = (~numeric).nonzero()[0]
        shown = ", ".join(f"{text.iloc[row]!r} in row {row + 1}" for row in odd[:5])
        raise DataError(
            f"{path}: column {name!r} holds numbers, but {len(odd)} cells are text: {shown}; correct them, or {fix}"
        )
    values = sorted(text.unique())
    if len(values) > _MOST_CATEGORIES:
        raise DataError(
            f"{path}: text column {name!r} has {len(values)} distinct values, more than the "
            f"{_MOST_CATEGORIES} that are one-hot encoded; {fix}"
        )
    return Column(name, tuple(values))


def _plain_values(cells: pd.Series) -> np.ndarray[Any, Any]:
    import pandas as pd

    if pd.api.types.is_bool_dtype(cells):
        return cells.to_numpy(dtype=bool)
    if pd.api.types.is_integer_dtype(cells):
        return cells.to_numpy(dtype=np.int64)
    if pd.api.types.is_float_dtype(cells):
        return cells.to_numpy(dtype=np.float64)
    return cells.astype(str).to_numpy(dtype=object)
