"""Read graphs from a table with one row a graph: Parquet, or JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from repertory.core.graphs import undirected
from repertory.datasets.columns import read_frame
from repertory.datasets.raw_graphs import RawGraphs
from repertory.errors import DataError, OptionError, nearest

if TYPE_CHECKING:
    import pandas as pd

LINES = ".jsonl"
"""Ending of files with a JSON object a line."""
_EDGES, _FEATURES, _LABEL = "edges", "features", "label"


def is_graph_table(path: Path) -> bool:
    """Whether a file holds graphs: JSON lines, or a Parquet file with a column `edges` of lists.

    Args:
        path: the file.
    """
    suffix = path.suffix.lower()
    if suffix == LINES:
        return True
    if suffix != ".parquet":
        return False
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except pyarrow.ArrowException:
        return False
    return _EDGES in schema.names and pyarrow.types.is_nested(schema.field(_EDGES).type)


def read_graph_table(
    path: Path, target: str | None = None, environment: str | None = None, labelled: bool = True
) -> RawGraphs:
    """Read a table with a row a graph.

    Its column `edges` has pairs of nodes, numbered from 0 in each graph; an edge has no direction, and may be written
    once or twice. `features` has a list of numbers a node; without that column nodes are those that edges name.

    Args:
        path: the file.
        target: column of the class; "label" when not given.
        environment: column that says where each graph comes from.
        labelled: whether graphs must have a class.

    Raises:
        DataError: naming the row that is wrong, from 1.
        OptionError: if an option names no column.
    """
    frame = _read_lines(path) if path.suffix.lower() == LINES else read_frame(path)
    if _EDGES not in frame.columns:
        raise DataError(
            f"{path} lacks the column {_EDGES!r} with the pairs of nodes of each graph; it has {_named(frame)}"
        )
    labels = None
    if labelled:
        labels = _cells(path, frame, "target", target or _LABEL, "the class of each graph")
    environments = None
    if environment is not None:
        values = _cells(path, frame, "environment", environment, "where each graph comes from")
        environments = [str(value) for value in values]
    given = frame[_FEATURES].tolist() if _FEATURES in frame.columns else None
    edges: list[Tensor] = []
    features: list[Tensor] = []
    owner: list[Tensor] = []
    start = 0
    for row, cell in enumerate(frame[_EDGES].tolist()):
        ends = _pairs(path, row, cell)
        nodes = int(ends.max()) + 1 if ends.numel() else 0
        if given is not None:
            vectors = _vectors(path, row, given[row], features[0].shape[1] if features else None)
            features.append(vectors)
            if nodes > len(vectors):
                edge = ends[:, (ends >= len(vectors)).any(0)][:, 0].tolist()
                raise DataError(
                    f"{path}: row {row + 1}: edge {edge} points to none of the graph's {len(vectors)} nodes, numbered "
                    "from 0; correct it, or add features of the node"
                )
            nodes = len(vectors)
        if not nodes:
            raise DataError(f"{path}: row {row + 1}: the graph has no nodes; give it features or edges, or remove it")
        edges.append(undirected(ends, nodes) + start)
        owner.append(torch.full((nodes,), row))
        start += nodes
    return RawGraphs(
        source=str(path),
        edges=torch.cat(edges, 1),
        graph=torch.cat(owner),
        count=len(frame),
        labels=labels,
        attributes=torch.cat(features) if features else None,
        environments=environments,
    )


def _read_lines(path: Path) -> pd.DataFrame:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{path}: line {number} is no JSON object; {_ONE_A_LINE}")
                rows.append(row)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {number} is no JSON ({error.msg}); {_ONE_A_LINE}") from None
    if not rows:
        raise DataError(f"{path} has no rows; {_ONE_A_LINE}")
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in _names(rows)})


_ONE_A_LINE = 'write one graph a line, as in {"edges": [[0, 1], [1, 2]], "label": "path"}'


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _named(frame: pd.DataFrame) -> str:
    return ", ".join(map(str, frame.columns)) or "none"


def _cells(path: Path, frame: pd.DataFrame, option: str, name: str, what: str) -> np.ndarray[Any, Any]:
    if name not in frame.columns:
        hint = nearest(name, [str(column) for column in frame.columns])
        raise OptionError(
            f"{path} has no column {name!r} with {what}{'; ' + hint if hint else ''}; it has {_named(frame)}; name one "
            f"with {option}=NAME"
        )
    missing = frame[name].isna().to_numpy().nonzero()[0]
    if len(missing):
        raise DataError(
            f"{path}: {len(missing)} cells of the column {name!r} are empty, first in row {missing[0] + 1}; fill them "
            "in, or remove the rows"
        )
    return np.array(frame[name].tolist())


def _pairs(path: Path, row: int, cell: Any) -> Tensor:
    try:
        values = np.array([list(pair) for pair in cell], dtype=np.float64).reshape(len(cell), 2)
        whole = values.astype(np.int64)
        if (whole == values).all() and not (whole < 0).any():
            return torch.from_numpy(whole.T)
    except (TypeError, ValueError):
        pass
    raise DataError(
        f"{path}: row {row + 1}: edges must be pairs of nodes, whole numbers from 0 on, as in [[0, 1], [1, 2]], not "
        f"{_shown(cell)}"
    )


def _vectors(path: Path, row: int, cell: Any, width: int | None) -> Tensor:
    try:
        values = np.array([list(vector) for vector in cell], dtype=np.float32)
    except (TypeError, ValueError):
        raise DataError(
            f"{path}: row {row + 1}: features must be as many numbers for each node, as in [[1.0, 0.5], [0.0, 2.0]], "
            f"not {_shown(cell)}"
        ) from None
    if not len(values):
        raise DataError(f"{path}: row {row + 1}: the graph has no nodes; give it features, or remove it")
    if values.ndim != 2 or not values.shape[1] or not np.isfinite(values).all():
        raise DataError(f"{path}: row {row + 1}: features must be finite numbers, a list a node, not {_shown(cell)}")
    if width is not None and values.shape[1] != width:
        raise DataError(
            f"{path}: row {row + 1}: nodes have {values.shape[1]} features, those of row 1 have {width}; give all "
            "nodes the same ones"
        )
    return torch.from_numpy(values)


def _shown(cell: Any) -> str:
    text = str(cell)
    return text if len(text) < 60 else f"{text[:57]}..."
