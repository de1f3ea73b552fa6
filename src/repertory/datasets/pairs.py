"""Read a table of pairs of texts: a column of queries, one of passages, and perhaps hard negatives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repertory.datasets.columns import read_frame, refuse_flaws
from repertory.datasets.dataset import Dataset
from repertory.datasets.table import known_column
from repertory.datasets.texts import from_pairs
from repertory.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd

_NEGATIVE = re.compile(r"negative\d+")


def load_pairs(path: Path, spec: str, target: str | None, drop: Sequence[str] = (), skip_bad: bool = False) -> Dataset:
    """Read a table of pairs of texts.

    Args:
        path: the file.
        spec: what the user typed.
        target: name of the column of passages. Columns named negative1, negative2, ... are hard negatives, whose cells
            may be empty; the one text column that is left is that of the queries. Columns of numbers do not count.
        drop: columns to leave out.
        skip_bad: go on without the rows that lack a query or a passage.

    Raises:
        DataError: if the table cannot be learnt from; the message names columns and rows (counted from 1).
        OptionError: if `target` or `drop` name no column, or there is not exactly one column of queries.
    """
    frame = read_frame(path)
    passage = known_column(path, frame, "target", target)
    for name in drop:
        if known_column(path, frame, "drop", name) == passage:
            raise OptionError(f"drop={name} is the column of passages; drop others or choose another target")
    names = [name for name in frame.columns if name not in drop]
    negatives = sorted(
        (n for n in names if _NEGATIVE.fullmatch(n)), key=lambda name: int(name.removeprefix("negative"))
    )
    others = [name for name in names if name != passage and name not in negatives]
    queries = [name for name in others if _is_text(frame[name])]
    if len(queries) != 1 or not _is_text(frame[passage]):
        found = f"{len(queries)} further text columns ({', '.join(queries)})" if queries else "no further text column"
        found = found if _is_text(frame[passage]) else f"no text in {passage!r}"
        raise OptionError(
            f"{path}: task=pairs takes texts in the column of passages {passage!r} and in one other, that of the "
            f"queries, but there is {found}; leave columns out with ?drop=name, or choose another target; the columns "
            f"are {', '.join(frame.columns)}"
        )
    notes = [f"columns of numbers left out: {', '.join(others)}"] if (others := _without(others, queries)) else []
    columns = [*queries, passage, *negatives]
    frame = frame[columns].where(frame[columns].astype(str).apply(lambda cells: cells.str.strip() != ""))
    if skip_bad:
        whole = frame[columns[:2]].notna().all(axis=1)
        if not whole.all():
            notes.append(f"{int((~whole).sum())} of {len(frame)} rows without a query or a passage were left out")
            frame = frame[whole]
    refuse_flaws(
        frame[columns[:2]],
        str(path),
        "fill them in, or go on without the rows with --skip-bad (skip_bad=True)",
    )
    texts = [(name, frame[name].astype(object).where(frame[name].notna(), "").astype(str).tolist()) for name in columns]
    return from_pairs(texts, path.stem, spec, notes=notes)


def _is_text(cells: pd.Series) -> bool:
    import pandas as pd

    return pd.api.types.infer_dtype(cells, skipna=True) in {"string", "categorical", "mixed"}


def _without(names: Sequence[str], left_out: Sequence[str]) -> list[str]:
    return [name for name in names if name not in left_out]
