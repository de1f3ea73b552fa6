"""Graphs from folders and tables: agreement with torch-geometric's reader, parts by environment and size, bad input."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import repertory
from repertory.core.graphs import sizes, unpack
from repertory.datasets import Dataset, load
from repertory.datasets.graphs import shifted
from repertory.datasets.motif_graphs import HOUSE, STAR, WHEEL, motif_graphs
from repertory.datasets.raw_graphs import columns_of, packed
from repertory.datasets.tu_folder import read_tu_folder
from repertory.errors import DataError, OptionError, UserError
from repertory.scenarios.fit import fit


def write_tu(folder: Path, count: int = 24, **more: list[str]) -> Path:
    """Rings of 3 to 8 nodes, each edge in both directions, with a chord in every other one."""
    folder.mkdir(parents=True, exist_ok=True)
    edges, owner, labels = [], [], []
    for number in range(count):
        nodes, start = 3 + number % 6, len(owner) + 1
        pairs = [(n, (n + 1) % nodes) for n in range(nodes)] + [(0, nodes // 2)] * (number % 2)
        edges += [f"{start + a}, {start + b}" for pair in pairs for a, b in (pair, pair[::-1]) if a != b]
        owner += [str(number + 1)] * nodes
        labels.append("ring" if number % 2 == 0 else "-1")
    files = {"A": edges, "graph_indicator": owner, "graph_labels": labels, **more}
    for name, lines in files.items():
        (folder / f"RINGS_{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def nodes_of(count: int = 24) -> int:
    return sum(3 + number % 6 for number in range(count))


def table(count: int = 24) -> list[dict[str, Any]]:
    """The same rings as rows of a table, each edge once."""
    rows = []
    for number in range(count):
        nodes = 3 + number % 6
        edges = [[n, (n + 1) % nodes] for n in range(nodes)] + [[0, nodes // 2]] * (number % 2)
        rows.append({"edges": edges, "label": "chord" if number % 2 else "ring", "year": 2018 + number % 3})
    return rows


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def graph(data: Dataset, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    features, edges, _ = unpack(data.inputs[row : row + 1])
    return features, edges


@pytest.mark.parametrize("parts", [("node_labels",), ("node_attributes",), ("node_labels", "node_attributes")])
def test_a_tu_folder_is_read_as_torch_geometric_reads_it(tmp_path: Path, parts: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.io import read_tu_data
    nodes = range(nodes_of())
    written = {
        "node_labels": [str(n * 7 % 4) for n in nodes],
        "node_attributes": [f"{n / 8}, {-n / 4}" for n in nodes],
        "graph_labels": [str(n % 2 + 1) for n in range(24)],
    }
    folder = write_tu(tmp_path / "rings", **{part: written[part] for part in (*parts, "graph_labels")})
    data, slices, _ = read_tu_data(str(folder), "RINGS")
    raw = read_tu_folder(folder)
    rows = packed(raw, columns_of(raw))
    for number in range(24):
        features, edges, _ = unpack(rows[number : number + 1])
        where = slice(*slices["x"][number : number + 2].tolist())
        among = slice(*slices["edge_index"][number : number + 2].tolist())
        torch.testing.assert_close(features, data.x[where])
        assert torch.equal(edges, data.edge_index[:, among] - (data.edge_index[:, among].min() if number else 0))
    assert [int(label) - 1 for label in raw.labels] == data.y.tolist()


def test_nodes_without_features_get_their_degree_and_a_folder_raw_is_found(tmp_path: Path) -> None:
    write_tu(tmp_path / "rings" / "raw")
    data = load(str(tmp_path / "rings"))
    assert (data.name, data.modality, data.task, data.classes) == ("rings", "graph", "classification", ("-1", "ring"))
    features, edges = graph(data, 3)
    assert features.argmax(1).tolist() == edges[1].bincount().tolist() == [3, 2, 2, 3, 2, 2]
    assert data.encoder.columns[0].categories == ("0", "1", "2", "3")


def test_nodes_in_any_order_are_the_same_graphs(tmp_path: Path) -> None:
    straight = load(str(write_tu(tmp_path / "a")))
    folder = write_tu(tmp_path / "b")
    owner = (folder / "RINGS_graph_indicator.txt").read_text().split()
    edges = [[int(end) for end in line.split(",")] for line in (folder / "RINGS_A.txt").read_text().splitlines()]
    last = len(owner)
    (folder / "RINGS_graph_indicator.txt").write_text("\n".join(reversed(owner)))
    (folder / "RINGS_A.txt").write_text("\n".join(f"{last + 1 - a},{last + 1 - b}" for a, b in edges))
    turned = load(str(folder))
    assert torch.equal(sizes(turned.inputs), sizes(straight.inputs))
    for row in range(24):
        assert graph(turned, row)[1].shape == graph(straight, row)[1].shape


def test_tables_of_both_kinds_give_the_graphs_of_the_folder(tmp_path: Path) -> None:
    expected = load(str(write_tu(tmp_path / "rings")))
    lines = load(str(write_lines(tmp_path / "rings.jsonl", table())))
    pd.DataFrame(table()).to_parquet(tmp_path / "rings.parquet")
    parquet = load(str(tmp_path / "rings.parquet"))
    for found in (lines, parquet):
        assert torch.equal(found.inputs, expected.inputs)
        assert found.classes == ("chord", "ring")
        assert torch.equal(found.targets, expected.targets)


def test_features_target_and_edges_written_twice(tmp_path: Path) -> None:
    rows = [{**row, "kind": row["label"], "features": [[n / 2, 1.0] for n in range(8)]} for row in table()]
    rows[5]["features"] = [[1.0, 0.0]] * 12
    rows[11]["features"] = [[0.0, 0.0]] * 12
    rows[0]["edges"] = rows[0]["edges"] + [pair[::-1] for pair in rows[0]["edges"]] + [[7, 7]]
    data = load(str(write_lines(tmp_path / "a.jsonl", rows)), target="kind")
    features, edges = graph(data, 0)
    assert features.tolist() == rows[0]["features"]
    assert edges.shape == (2, 6)


def test_a_named_environment_is_held_out_whole(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rings.jsonl", table())
    data = load(f"{path}?environment=year")
    year = torch.tensor([2018 + n % 3 for n in range(24)])
    assert data.group_names == ("2018", "2019", "2020")
    assert torch.equal(data.groups + 2018, year)
    outside = shifted(data.groups[data.fixed["test"]], data.groups[data.fixed["train"]])
    assert data.fixed["test"][outside].tolist() == (year == 2020).nonzero().flatten().tolist()
    assert 0 < int((~outside).sum()) < 4
    assert "held out whole for the test: 2020 (?held=NAME changes it)" in data.notes
    other = load(f"{path}?environment=year&held=2018,2019")
    assert set(year[other.fixed["train"]].tolist()) == {2020}
    chosen = load(f"{path}?environment=year&held=2018&validation=2019")
    assert set(year[chosen.fixed["validation"]].tolist()) == {2019}
    splits = data.prepare(0)
    assert set(splits.validation.groups.tolist()) <= {0, 1}
    assert splits.normaliser.kept


def test_a_file_beside_a_tu_folder_names_environments(tmp_path: Path) -> None:
    where = ["test" if n % 4 > 1 else "zoo" for n in range(24)]
    data = load(f"{write_tu(tmp_path / 'rings', place=where)}?environment=place")
    assert data.group_names == ("test", "zoo")
    assert set(data.groups[data.fixed["train"]].tolist()) == {1}


def test_without_environments_the_largest_graphs_are_the_test(tmp_path: Path) -> None:
    folder = write_tu(tmp_path / "rings")
    for spec, most in ((str(folder), 7), (f"{folder}?shift=size", 7), (f"{folder}?shift=size4", 4)):
        data = load(spec)
        nodes = sizes(data.inputs)
        assert int(nodes[data.fixed["train"]].max()) <= most
        assert set((nodes > most).nonzero().flatten().tolist()) <= set(data.fixed["test"].tolist())
        assert data.group_names == (f"more than {most} nodes", f"up to {most} nodes")


def test_motif_graphs_have_the_motif_of_their_class_and_the_star_as_often_as_asked() -> None:
    raw = motif_graphs(torch.full((400,), 0.9))
    nodes, labels = raw.graph.bincount(), torch.tensor([int(label) for label in raw.labels])
    degrees = raw.edges[1].bincount(minlength=len(raw.graph))
    # Trees have one edge less than nodes, and a bridge ties each motif: what is left over is the motif's own.
    links = raw.graph[raw.edges[0]].bincount() // 2
    surplus = links - nodes + 1
    assert set(surplus[labels == 1].tolist()) == {len(WHEEL[1]) - WHEEL[0] + 1}
    assert set(surplus[labels == 0].tolist()) == {1, len(HOUSE[1]) - HOUSE[0] + 1}
    least = torch.where(labels == 1, 15 + WHEEL[0], 15 + HOUSE[0])
    assert bool((nodes >= least).all())
    assert int(nodes.max()) <= 25 + WHEEL[0] + STAR[0]
    largest = torch.zeros(400, dtype=torch.int64).scatter_reduce(0, raw.graph, degrees, "amax")
    # A star's centre has six neighbours; in small trees few nodes have.
    assert (largest[labels == 1] >= 6).float().mean() > 0.85
    assert (largest[labels == 0] >= 6).float().mean() < 0.4
    assert raw.edges.shape[1] < motif_graphs(torch.full((400,), 0.9), extra=0.6).edges.shape[1]


def test_the_generated_data_set_reverses_or_evens_out_the_star() -> None:
    for spec in ("motif-graphs?examples=200", "motif-graphs?examples=200&test=reversed&bias=0.8&extra=0"):
        data = load(spec)
        assert data.outputs == 2
        assert len(data.group_names) == 2
        held = data.groups[data.fixed["test"]]
        assert int(shifted(held, data.groups[data.fixed["train"]]).sum()) == 80
    assert torch.equal(load("motif-graphs?examples=200").inputs, load("motif-graphs?examples=200").inputs)


@pytest.mark.parametrize(
    ("spec", "words"),
    [("bias=2", "bias=2 must be a share"), ("examples=ten", "examples=ten"), ("test=none", "test='none'"),
     ("extra=-1", "extra=-1"), ("shift=size", "shift=size cannot be applied to graph inputs; leave it out"),
     ("environment=a", "environment=a does not apply to the built-in motif-graphs")],
)  # fmt: skip
def test_bad_options_of_the_generated_data_are_named(spec: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        load(f"motif-graphs?{spec}")


@pytest.mark.parametrize(
    ("row", "change", "words"),
    [
        (
            2,
            {"edges": [[0, 9]], "features": [[1.0]] * 5},
            r"row 3: edge \[0, 9\] points to none of the graph's 5 nodes",
        ),
        (2, {"edges": [], "features": []}, "row 3: the graph has no nodes; give it features, or remove it"),
        (2, {"features": [[1.0, 2.0]] * 8}, "row 3: nodes have 2 features, those of row 1 have 1"),
        (2, {"features": [[1.0], [1.0, 2.0]]}, "row 3: features must be as many numbers for each node"),
        (2, {"features": [[float("nan")]] * 8}, "row 3: features must be finite numbers"),
        (2, {"edges": [[0, 1, 2]]}, r"row 3: edges must be pairs of nodes.*not \[\[0, 1, 2\]\]"),
        (2, {"edges": [[0, 0.5]]}, "row 3: edges must be pairs of nodes"),
        (4, {"label": None}, "1 cells of the column 'label' are empty, first in row 5"),
    ],
)
def test_bad_rows_of_a_table_are_named(tmp_path: Path, row: int, change: dict[str, Any], words: str) -> None:
    rows = [{**each, "features": [[1.0]] * 8} for each in table()]
    rows[row] |= change
    with pytest.raises(DataError, match=rf"a\.jsonl: .*{words}"):
        load(str(write_lines(tmp_path / "a.jsonl", rows)))


def test_bad_tables_are_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", table())
    with pytest.raises(OptionError, match=r"no column 'yaer' with where each.*did you mean year"):
        load(f"{path}?environment=yaer")
    with pytest.raises(OptionError, match=r"no column 'klass'.*target=NAME"):
        load(str(path), target="klass")
    with pytest.raises(OptionError, match=r"held=2030 is no environment of a; they are 2018, 2019, 2020"):
        load(f"{path}?environment=year&held=2030")
    with pytest.raises(OptionError, match="holds all environments"):
        load(f"{path}?environment=year&held=2018,2019,2020")
    with pytest.raises(OptionError, match="validation=2020 is held out for the test"):
        load(f"{path}?environment=year&validation=2020")
    with pytest.raises(OptionError, match="leaves no environment"):
        load(f"{path}?environment=year&validation=2018,2019")
    with pytest.raises(OptionError, match=r"held=2018 needs environments.*\?environment=COLUMN"):
        load(f"{path}?held=2018")
    with pytest.raises(OptionError, match="shift=size does not go with environments"):
        load(f"{path}?environment=year&shift=size")
    with pytest.raises(OptionError, match=r"shift=rotate30 cannot be applied to graphs; use shift=size"):
        load(f"{path}?shift=rotate30")
    with pytest.raises(DataError, match="none of the graphs have more than 50 nodes"):
        load(f"{path}?shift=size50")
    with pytest.raises(OptionError, match="bag=year does not apply to the graphs in"):
        load(f"{path}?bag=year")
    one = write_lines(tmp_path / "one.jsonl", [{**row, "year": 2018} for row in table()])
    with pytest.raises(DataError, match=r"one: all graphs are in one environment \(2018\)"):
        load(f"{one}?environment=year")
    alike = write_lines(tmp_path / "alike.jsonl", [{**row, "edges": [[0, 1], [1, 2]]} for row in table()])
    with pytest.raises(DataError, match=r"all of the graphs have more than 2 nodes \(they have 3 to 3\)"):
        load(str(alike))
    for text, words in (("[1]\n", "line 1 is no JSON object"), ("{", "line 1 is no JSON"), ("\n", "has no rows")):
        (tmp_path / "b.jsonl").write_text(text)
        with pytest.raises(DataError, match=words):
            load(str(tmp_path / "b.jsonl"))
    with pytest.raises(DataError, match="lacks the column 'edges'"):
        load(str(write_lines(tmp_path / "b.jsonl", [{"label": 1}])))


@pytest.mark.parametrize(
    ("name", "line", "text", "words"),
    [
        ("A", 0, "1, 999", r"line 1 has the edge \[1, 999\], but there are nodes 1 to"),
        ("A", 0, "1, 9", "line 1 has an edge between two graphs"),
        ("A", 2, "1; 2", r"line 3 \('1; 2'\) is not 2 whole numbers with a comma"),
        ("graph_indicator", 1, "77", "line 2 names graph 77, but there are labels of graphs 1 to 24"),
        ("graph_indicator", 1, "one", r"line 2 \('one'\) is not a whole number"),
        ("graph_labels", 3, "", "line 4 is empty"),
        ("node_attributes", 1, "0.5", r"line 2 \('0.5'\) is not 2 finite numbers"),
        ("node_attributes", 1, "0.5, inf", "line 2"),
    ],
)
def test_bad_lines_of_a_tu_folder_are_named(tmp_path: Path, name: str, line: int, text: str, words: str) -> None:
    folder = write_tu(tmp_path / "rings", node_attributes=["1.0, 2.0"] * nodes_of())
    file = folder / f"RINGS_{name}.txt"
    lines = file.read_text().splitlines()
    lines[line] = text
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"RINGS_{name}\.txt: {words}"):
        load(str(folder))


def test_graphs_without_nodes_or_labels_and_missing_files_are_named(tmp_path: Path) -> None:
    folder = write_tu(tmp_path / "rings", graph_labels=["1", "2"] * 13)
    with pytest.raises(DataError, match="graph 25 has no nodes, nor have 1 more; give it some, or leave it out"):
        load(str(folder))
    (folder / "RINGS_graph_labels.txt").unlink()
    with pytest.raises(DataError, match=r"lacks RINGS_graph_labels\.txt"):
        load(str(folder))
    folder = write_tu(tmp_path / "other", node_labels=["1"] * 5)
    with pytest.raises(DataError, match=r"RINGS_node_labels\.txt has 5 lines, but 132 are needed"):
        load(str(folder))
    with pytest.raises(OptionError, match=r"there is no file RINGS_place\.txt"):
        load(f"{write_tu(tmp_path / 'third')}?environment=place")
    with pytest.raises(OptionError, match="target=label does not apply"):
        load(str(tmp_path / "third"), target="label")


def test_a_fitted_model_predicts_for_new_graphs_of_any_size_and_without_labels(tmp_path: Path) -> None:
    rows = table()
    saved = fit(data=str(write_lines(tmp_path / "rings.jsonl", rows)), out=tmp_path / "model", epochs=1)
    assert saved.classes == ("chord", "ring")
    big = {"edges": [[n, n + 1] for n in range(30)]}
    new = write_lines(tmp_path / "new.jsonl", [{"edges": rows[0]["edges"]}, big])
    found = repertory.load(tmp_path / "model").predict(new)
    assert found.ids == ["1", "2"]
    alone = repertory.load(tmp_path / "model").predict(
        write_lines(tmp_path / "alone.jsonl", [{"edges": rows[0]["edges"]}])
    )
    torch.testing.assert_close(found.outputs[:1], alone.outputs)
    with pytest.raises(DataError, match="nodes have 1 numbers, but the model was trained on 0"):
        saved.predict(write_lines(tmp_path / "more.jsonl", [{"edges": [[0, 1]], "features": [[1.0], [2.0]]}]))
    with pytest.raises(UserError, match="holds no graphs"):
        saved.predict(tmp_path)


def test_new_kinds_of_nodes_are_refused(tmp_path: Path) -> None:
    raw = read_tu_folder(write_tu(tmp_path / "a", node_labels=["1"] * 3 + ["2"] * (nodes_of() - 3)))
    other = read_tu_folder(write_tu(tmp_path / "b", node_labels=["1"] * 4 + ["7"] * (nodes_of() - 4)), labelled=False)
    with pytest.raises(DataError, match=r"node 5 has the node label 1 '7', which the training graphs do not have"):
        packed(other, columns_of(raw))
    with pytest.raises(DataError, match="nodes have no node label 1, which the model was trained on"):
        packed(read_tu_folder(write_tu(tmp_path / "c")), columns_of(raw))
