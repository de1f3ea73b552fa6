"""Read table files, and turn their columns into numbers in the same way for training and for new rows."""

from __future__ import annotations

import csv
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from repertory.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".tsv", ".parquet", ".xlsx")
"""Endings of the files that are read as tables."""


@dataclass(frozen=True)
class Column:
    """A column that a model was trained on.

    Args:
        name: its name in the file.
        categories: its values, each of which is one input, or None for a column of numbers.
    """

    name: str
    categories: tuple[str, ...] | None = None

    @property
    def width(self) -> int:
        """Inputs that it takes up."""
        return 1 if self.categories is None else len(self.categories)


def read_frame(path: Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV, TSV, Parquet or Excel file (its first sheet).

    Args:
        path: the file.
        text: columns whose cells are text even where they look like numbers.

    Raises:
        DataError: if it cannot be read, has no rows, or has two columns of one name.
    """
    import pandas as pd

    suffix = path.suffix.lower()
    if suffix == ".xlsx":
        return _sheet(path, text)
    names = _parquet_names(path) if suffix == ".parquet" else _header(path)
    repeated = sorted({name for name in names if name and names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: several columns are named {', '.join(map(repr, repeated))}; rename them")
    if suffix == ".parquet":
        frame = pd.read_parquet(path).reset_index(drop=True)
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)
                # Read in one go, each column has one type; without an index, long rows cannot shift columns.
                frame = pd.read_csv(
                    path,
                    sep=_separator(path),
                    dtype=dict.fromkeys(text, str),
                    low_memory=False,
                    index_col=False,
                )
        except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
            said = " ".join(str(error).split())
            raise DataError(
                f"{path} cannot be read as a table ({said}); give each row as many cells as the header"
            ) from None
    if not len(frame):
        raise DataError(f"{path} has no rows below its header; add some")
    frame.columns = frame.columns.astype(str)
    return frame


def _sheet(path: Path, text: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    try:
        cells = pd.read_excel(path, header=None, dtype=object)
    except ImportError:
        raise DataError(
            f'{path}: Excel files need openpyxl; install it with: pip install "repertory[tabular]"'
        ) from None
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is not an Excel file ({' '.join(str(error).split())}); save it as .xlsx again"
        ) from None
    if len(cells) < 2:
        raise DataError(f"{path} has no rows below its header; add some")
    names = ["" if pd.isna(name) else str(name) for name in cells.iloc[0]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: several columns are named {', '.join(map(repr, repeated))}; rename them")
    frame = cells.iloc[1:].reset_index(drop=True).set_axis(names, axis=1).infer_objects()
    return frame.astype({name: str for name in text if name in names})


def _separator(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _header(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names = next((row for row in csv.reader(file, delimiter=_separator(path)) if row), None)
            for _ in file:
                pass
    except (UnicodeDecodeError, csv.Error):
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    if names is None:
        raise DataError(f"{path} is empty; expected a header and rows")
    return names


def _parquet_names(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file ({' '.join(str(error).split())}); write it again") from None


def flaws(frame: pd.DataFrame) -> pd.DataFrame:
    """Mark the cells that are missing or infinite."""
    import pandas as pd

    marked = frame.isna()
    for name in frame.columns:
        if pd.api.types.is_float_dtype(frame[name]):
            marked[name] |= np.isinf(frame[name].to_numpy(dtype=np.float64, na_value=np.nan))
    return marked


def refuse_flaws(frame: pd.DataFrame, what: str, fix: str) -> None:
    """Raise an error that names the columns with missing or infinite cells, how many, and the first rows."""
    marked = flaws(frame)
    found = []
    for name in frame.columns[marked.any()]:
        rows = marked[name].to_numpy().nonzero()[0]
        found.append(f"{name!r} has {len(rows)} ({_rows(rows)})")
    if found:
        raise DataError(f"{what} has missing or infinite cells: {', '.join(found)}; {fix}")


def encode_frame(columns: Sequence[Column], frame: pd.DataFrame, what: str) -> Tensor:
    """Turn the rows of a frame into inputs: numbers as they are, categories one-hot.

    Args:
        columns: the columns of the training table, in order.
        frame: has those columns, and perhaps others.
        what: how messages name the frame.

    Returns:
        float32 `(rows, inputs)`.

    Raises:
        DataError: if a column is missing, a cell is missing, infinite or no number, or a category is unknown.
    """
    missing = [column.name for column in columns if column.name not in frame.columns]
    if missing:
        raise DataError(
            f"{what} lacks {len(missing)} of the {len(columns)} columns of the training data: {', '.join(missing)}"
        )
    refuse_flaws(frame[[column.name for column in columns]], what, "fill them in or remove the rows")
    encoded = np.zeros((len(frame), sum(column.width for column in columns)), dtype=np.float32)
    start = 0
    for column in columns:
        cells = frame[column.name]
        if column.categories is None:
            with np.errstate(over="ignore"):
                encoded[:, start] = _numbers(cells, what)
            if not np.isfinite(encoded[:, start]).all():
                raise DataError(f"{what}: column {column.name!r} has numbers beyond the float32 range; rescale it")
        else:
            encoded[np.arange(len(frame)), start + _codes(cells, column.categories, what)] = 1.0
        start += column.width
    return torch.from_numpy(encoded)


def _numbers(cells: pd.Series, what: str) -> np.ndarray:
    import pandas as pd

    numbers = pd.to_numeric(cells, errors="coerce")
    wrong = numbers.isna().to_numpy().nonzero()[0]
    if len(wrong):
        shown = ", ".join(f"{cells.iloc[row]!r} in row {row + 1}" for row in wrong[:5])
        raise DataError(
            f"{what}: column {cells.name!r} holds numbers, but {len(wrong)} cells are text: {shown}; correct them"
        )
    return numbers.to_numpy(dtype=np.float64)


def _codes(cells: pd.Series, categories: tuple[str, ...], what: str) -> np.ndarray:
    import pandas as pd

    codes = pd.Index(categories).get_indexer(pd.Index(cells.astype(str)))
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        known = ", ".join(categories[:10]) + (", ..." if len(categories) > 10 else "")
        raise DataError(
            f"{what}: column {cells.name!r} has the unknown value {str(cells.iloc[row])!r} in row "
            f"{row + 1}; known are {known}"
        )
    return codes


def _rows(rows: np.ndarray) -> str:
    listed = ", ".join(str(row + 1) for row in rows[:5])
    return f"row{'s' if len(rows) > 1 else ''} {listed}{', ...' if len(rows) > 5 else ''}"
