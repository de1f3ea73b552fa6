"""Read graphs from a folder in the format of the TU collection: one text file an aspect, one line an edge or node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repertory.datasets.raw_graphs import RawGraphs
from repertory.errors import DataError, OptionError

_INDICATOR = "_graph_indicator.txt"
_FOLDER = "NAME_A.txt, NAME_graph_indicator.txt and NAME_graph_labels.txt"


def is_tu_folder(path: Path) -> bool:
    """Whether a folder, or the folder `raw` in it, holds graphs in this format.

    Args:
        path: the folder.
    """
    return _place(path) is not None


def read_tu_folder(path: Path, environment: str | None = None, labelled: bool = True) -> RawGraphs:
    """Read a folder with NAME_A.txt, NAME_graph_indicator.txt, NAME_graph_labels.txt, and perhaps more.

    NAME_node_attributes.txt and NAME_node_labels.txt become features of nodes. Lines are numbered from 1, as nodes and
    graphs are.

    Args:
        path: the folder.
        environment: what the file NAME_<environment>.txt is called that has the environment of each graph, a line each.
        labelled: whether graphs must have a class.

    Raises:
        DataError: naming the file and the line that is wrong.
        OptionError: if there is no such file of environments.
    """
    folder = _place(path)
    if folder is None:
        raise DataError(f"{path} holds no graphs; expected {_FOLDER}")
    name = next(folder.glob(f"*{_INDICATOR}")).name.removesuffix(_INDICATOR)
    files = {file.name.removeprefix(f"{name}_").removesuffix(".txt"): file for file in folder.glob(f"{name}_*.txt")}
    lacking = [part for part in ("A", *(["graph_labels"] if labelled else [])) if part not in files]
    if lacking:
        raise DataError(f"{folder} lacks {' and '.join(f'{name}_{part}.txt' for part in lacking)}; expected {_FOLDER}")
    owner = _whole(files["graph_indicator"], 1)[:, 0] - 1
    labels = _lines(files["graph_labels"]) if "graph_labels" in files else None
    count = int(owner.max()) + 1 if labels is None else len(labels)
    wrong = (owner < 0) | (owner >= count)
    if bool(wrong.any()):
        line = int(wrong.nonzero()[0])
        raise DataError(
            f"{files['graph_indicator']}: line {line + 1} names graph {int(owner[line]) + 1}, but there are labels of "
            f"graphs 1 to {count}; correct it, or add labels"
        )
    edges = _whole(files["A"], 2).T - 1
    outside = ((edges < 0) | (edges >= len(owner))).any(0)
    if bool(outside.any()):
        line = int(outside.nonzero()[0])
        raise DataError(
            f"{files['A']}: line {line + 1} has the edge {(edges[:, line] + 1).tolist()}, but there are nodes 1 to "
            f"{len(owner)}; correct it"
        )
    between = owner[edges[0]] != owner[edges[1]]
    if bool(between.any()):
        line = int(between.nonzero()[0])
        raise DataError(f"{files['A']}: line {line + 1} has an edge between two graphs; correct it, or leave it out")
    order = owner.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    kinds, attributes = {}, None
    if "node_attributes" in files:
        attributes = _numbers(files["node_attributes"], len(owner))[order]
    if "node_labels" in files:
        table = np.array([line.replace(" ", "").split(",") for line in _lines(files["node_labels"], len(owner))])
        kinds = {f"node label {n + 1}": column[order.numpy()] for n, column in enumerate(table.T)}
    ignored = sorted(part for part in files if part.startswith("edge_") or part == "graph_attributes")
    return RawGraphs(
        source=str(path),
        edges=rank[edges],
        graph=owner[order],
        count=count,
        labels=None if labels is None else np.array(labels),
        attributes=attributes,
        kinds=kinds,
        environments=None if environment is None else _environments(files, name, environment, count),
        notes=tuple(f"{name}_{part}.txt is not used" for part in ignored),
    )


def _place(path: Path) -> Path | None:
    for folder in (path, path / "raw"):
        if folder.is_dir() and len(list(folder.glob(f"*{_INDICATOR}"))) == 1:
            return folder
    return None


def _environments(files: dict[str, Path], name: str, environment: str, count: int) -> list[str]:
    if environment not in files:
        raise OptionError(
            f"environment={environment}: there is no file {name}_{environment}.txt; write one with the environment of "
            f"each graph, a line each; there are {', '.join(sorted(files))}"
        )
    return _lines(files[environment], count)


def _lines(file: Path, count: int | None = None) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text; save it as UTF-8") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines or "" in lines:
        at = f"line {lines.index('') + 1} is empty" if lines else "it is empty"
        raise DataError(f"{file}: {at}; give a line for each, in order")
    if count is not None and len(lines) != count:
        raise DataError(f"{file} has {len(lines)} lines, but {count} are needed, one for each; add or remove some")
    return lines


def _numbers(file: Path, count: int | None = None) -> Tensor:
    lines = _lines(file, count)
    cells = [line.split(",") for line in lines]
    width = len(cells[0])
    try:
        if all(len(row) == width for row in cells):
            values = torch.from_numpy(np.array(cells, dtype=np.float64).astype(np.float32))
            if bool(values.isfinite().all()):
                return values
    except ValueError:
        pass
    line = next(number for number, row in enumerate(cells) if len(row) != width or not _finite(row))
    raise DataError(f"{file}: line {line + 1} ({lines[line][:40]!r}) is not {width} finite numbers; correct it")


def _whole(file: Path, width: int) -> Tensor:
    lines = _lines(file)
    try:
        values = np.array([line.split(",") for line in lines], dtype=np.int64)
    except ValueError:
        values = np.zeros((0, 0), dtype=np.int64)
    if values.shape == (len(lines), width):
        return torch.from_numpy(values)
    wanted = "a whole number" if width == 1 else f"{width} whole numbers with a comma between them"
    line = next(number for number, text in enumerate(lines) if not _are_whole(text.split(","), width))
    raise DataError(f"{file}: line {line + 1} ({lines[line][:40]!r}) is not {wanted}; correct it")


def _are_whole(cells: list[str], width: int) -> bool:
    return len(cells) == width and all(cell.strip().lstrip("+-").isdecimal() for cell in cells)


def _finite(cells: list[str]) -> bool:
    try:
        return bool(np.isfinite(np.array(cells, dtype=np.float64).astype(np.float32)).all())
    except ValueError:
        return False
