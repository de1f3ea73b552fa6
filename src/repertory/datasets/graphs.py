"""Data sets of graphs with a part that is unlike the rest, on which models are judged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from repertory.core.graphs import sizes
from repertory.datasets.graph_table import is_graph_table, read_graph_table
from repertory.datasets.raw_graphs import RawGraphs, columns_of, in_order, packed
from repertory.datasets.stratify import cut, generator_for
from repertory.datasets.targets import read_targets
from repertory.datasets.tu_folder import is_tu_folder, read_tu_folder
from repertory.errors import DataError, OptionError

if TYPE_CHECKING:
    from repertory.datasets.columns import Column
    from repertory.datasets.dataset import Dataset

KEYS = ("environment", "held", "validation")
"""Options after the `?` of a data spec that only graphs have; `shift=size` or `shift=size25` is another."""

_INSIDE = 0.15
"""Share of the graphs like the training graphs that is held out, to judge beside the shifted ones."""
_LARGE = 0.75
"""Share of the graphs that count as small, where no number of nodes is given."""


def are_graphs(path: Path) -> bool:
    """Whether a path holds graphs: a folder in TU format, or a table with a column of edges."""
    return is_tu_folder(path) if path.is_dir() else path.is_file() and is_graph_table(path)


def load_graphs(path: Path, spec: str, target: str | None, options: Mapping[str, str]) -> Dataset:
    """Read graphs and hold a shifted part of them out.

    Args:
        path: a folder in TU format, or a table, see `repertory.datasets.tu_folder` and `graph_table`.
        spec: what the user typed.
        target: column of the class, for tables.
        options: `environment` names the column (or file) that says where each graph comes from, `held` those
            environments that only the test has, `validation` those that one chooses with; `shift=size25` takes graphs
            with more than 25 nodes for the test, `shift=size`, which is the default, the largest quarter.

    Raises:
        DataError: if the graphs cannot be read or learnt from.
        OptionError: if an option is malformed, or does not fit the data.
    """
    named = options.get("environment")
    if path.is_dir():
        if target is not None:
            raise OptionError(f"target={target} does not apply to the folder of graphs {path}; leave it out")
        raw = read_tu_folder(path, named)
    else:
        raw = read_graph_table(path, target, named)
    return from_raw(raw, path.stem, spec, options)


def read_new(path: Path, columns: Sequence[Column], lines: int) -> Tensor:
    """Read graphs for a trained model, with or without labels, as packed rows.

    Args:
        path: a folder or a table, as for training.
        columns: the features of the training graphs.
        lines: of their rows.

    Raises:
        DataError: if they cannot be read, or their nodes have other features.
    """
    if not are_graphs(path):
        raise DataError(f"{str(path)!r} holds no graphs; give a folder in TU format, .jsonl, or .parquet with edges")
    raw = read_tu_folder(path, labelled=False) if path.is_dir() else read_graph_table(path, labelled=False)
    return packed(raw, columns, lines)


def from_raw(
    raw: RawGraphs, name: str, spec: str, options: Mapping[str, str], columns: Sequence[Column] | None = None
) -> Dataset:
    """Make a data set of graphs, with parts by environment or by size.

    Args:
        raw: the graphs, with labels.
        name: of the data.
        spec: what the user typed.
        options: as for `load_graphs`.
        columns: the features of nodes; None takes what there is, or else their degrees.

    Raises:
        DataError: if the graphs cannot be learnt from.
        OptionError: if an option is malformed, or does not fit the data.
    """
    from repertory.datasets.dataset import Dataset
    from repertory.datasets.encoder import Encoder

    assert raw.labels is not None
    _, targets, classes, _ = read_targets(raw.labels, f"{raw.source}: the label", "classification")
    columns = tuple(columns_of(raw) if columns is None else columns)
    rows = packed(raw, columns)
    if raw.environments is None:
        if wrong := [key for key in KEYS if key in options]:
            raise OptionError(
                f"{wrong[0]}={options[wrong[0]]} needs environments, which {name} has not; name where they stand with "
                "?environment=COLUMN"
            )
        environments, held, note = _by_size(sizes(rows), options.get("shift", "size"), name)
    else:
        if "shift" in options:
            raise OptionError(f"shift={options['shift']} does not go with environments; leave one of them out")
        environments = raw.environments
        held, note = _held(environments, options.get("held"), name)
    names = in_order(environments)
    chosen = _known("validation", options.get("validation"), names, name) if "validation" in options else []
    fixed = _parts(targets, environments, held, chosen, name)
    shape = tuple(rows.shape[1:])
    return Dataset(
        name=name,
        spec=spec,
        task="classification",
        modality="graph",
        inputs=rows,
        targets=targets,
        classes=classes,
        encoder=Encoder("graph", shape, columns),
        fixed=fixed,
        groups=torch.tensor([names.index(each) for each in environments]),
        group_names=tuple(names),
        notes=(*raw.notes, note),
    )


def shifted(groups: Tensor, trained: Tensor) -> Tensor:
    """Return which examples are of an environment that no training example is of, bool `(examples,)`.

    Args:
        groups: environment of each example.
        trained: those of the training examples.

    >>> shifted(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])).tolist()
    [False, False, True]
    """
    return ~torch.isin(groups, trained.unique())


def _by_size(nodes: Tensor, asked: str, name: str) -> tuple[list[str], list[str], str]:
    match = re.fullmatch(r"size(\d*)", asked)
    if match is None:
        raise OptionError(
            f"shift={asked} cannot be applied to graphs; use shift=size (the largest quarter is the test) or "
            "shift=size25 (graphs with more than 25 nodes are)"
        )
    smallest, largest = int(nodes.min()), int(nodes.max())
    # Where more than a quarter are of the largest size, all of these are the test.
    typical = min(math.floor(float(nodes.double().quantile(_LARGE))), largest - 1)
    most = int(match[1]) if match[1] else max(typical, 1)
    large = nodes > most
    if bool(large.all()) or not bool(large.any()):
        raise DataError(
            f"{name}: {'all' if bool(large.all()) else 'none'} of the graphs have more than {most} nodes (they have "
            f"{smallest} to {largest}), so size tells no part from the rest; choose another number (?shift=size25), or "
            "name a column of environments (?environment=COLUMN)"
        )
    labels = ("up to", "more than")
    environments = [f"{labels[large_]} {most} nodes" for large_ in large.long().tolist()]
    return environments, [f"more than {most} nodes"], f"graphs with more than {most} nodes are the shifted test part"


def _held(environments: Sequence[str], asked: str | None, name: str) -> tuple[list[str], str]:
    names = in_order(environments)
    if len(names) < 2:
        raise DataError(
            f"{name}: all graphs are in one environment ({names[0]}), so none can be held out; name another column, or "
            "leave environment out to hold the largest graphs out"
        )
    held = ["test"] if "test" in names else names[-1:]
    if asked is not None:
        held = _known("held", asked, names, name)
    kept = [each for each in names if each not in held]
    if not kept:
        raise OptionError(f"held={asked} holds all environments of {name} out; leave some to train on")
    note = f"held out whole for the test: {', '.join(held)}"
    return held, note if asked is not None else f"{note} (?held=NAME changes it)"


def _known(option: str, asked: str | None, names: Sequence[str], name: str) -> list[str]:
    given = [each.strip() for each in (asked or "").split(",")]
    for each in given:
        if each not in names:
            raise OptionError(f"{option}={each} is no environment of {name}; they are {', '.join(names[:20])}")
    return given


def _parts(
    targets: Tensor, environments: Sequence[str], held: Sequence[str], chosen: Sequence[str], name: str
) -> dict[str, Tensor]:
    """The shifted graphs and some like the training graphs are the test part; validation where it is named."""
    if both := [each for each in chosen if each in held]:
        raise OptionError(f"validation={both[0]} is held out for the test; choose another environment of {name}")
    outside = torch.tensor([each in held for each in environments])
    choosing = torch.tensor([each in chosen for each in environments])
    like = (~outside & ~choosing).nonzero().flatten()
    if not len(like):
        raise OptionError(f"validation={','.join(chosen)} leaves no environment of {name} to train on; name fewer")
    # One draw for all seeds, as for any test part that comes with the data.
    dealt = cut(targets[like], {"inside": _INSIDE}, generator_for(0, "graphs like the training graphs"))
    test = torch.cat([outside.nonzero().flatten(), like[dealt["inside"]]]).sort().values
    parts = {"train": like[dealt["train"]], "test": test}
    if chosen:
        parts["validation"] = choosing.nonzero().flatten()
    return parts
