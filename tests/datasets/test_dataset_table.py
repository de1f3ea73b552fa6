from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from repertory.datasets import Dataset, load
from repertory.errors import DataError, OptionError

BASE = {"age": [1, 2, 3, 4, 5, 6], "kind": ["x", "y", "x", "y", "x", "y"]}


def write(folder: Path, columns: dict[str, Any], name: str = "t.csv") -> str:
    path = folder / name
    if path.suffix == ".parquet":
        pd.DataFrame(columns).to_parquet(path)
    else:
        pd.DataFrame(columns).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def read(folder: Path, columns: dict[str, Any], options: str = "", **given: Any) -> Dataset:
    return load(write(folder, columns) + options, **{"target": "kind", **given})


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
def test_columns_become_inputs_in_order(tmp_path: Path, name: str) -> None:
    columns = {
        "age": [1, 2, 3, 4, 5, 6],
        "kind": ["dog", "cat"] * 3,
        "size": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5],
        "wild": [True, False, True, False, True, False],
        "town": ["York", "Bath", "Bath", "Ely", "York", "Ely"],
    }
    data = load(write(tmp_path, columns, name), target="kind")
    assert (data.name, data.task, data.modality, data.classes) == (
        "t",
        "classification",
        "table",
        ("cat", "dog"),
    )
    assert data.inputs.tolist()[0] == [1.0, 0.5, 1.0, 0.0, 0.0, 1.0]
    assert data.inputs[:, 3:].argmax(1).tolist() == [2, 0, 0, 1, 2, 1]
    assert data.targets.tolist() == [1, 0] * 3
    assert "text columns were one-hot encoded: 'town' (3 values)" in data.notes


def test_fractions_to_predict_are_regression(tmp_path: Path) -> None:
    data = read(tmp_path, {**BASE, "price": np.linspace(0.5, 3, 6)}, target="price")
    assert (data.task, data.outputs, data.in_shape) == ("regression", 1, (3,))
    torch.testing.assert_close(data.targets, torch.linspace(0.5, 3, 6))


def test_task_option_overrides_the_rule(tmp_path: Path) -> None:
    columns = {**BASE, "rings": [7, 8, 7, 8, 7, 8]}
    assert read(tmp_path, columns, target="rings").classes == ("7", "8")
    assert read(tmp_path, columns, "?task=regression", target="rings").task == "regression"


def test_rare_whole_numbers_hint_at_regression(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'1' has 1.*\?task=regression"):
        read(tmp_path, BASE, target="age")


def test_dropped_columns_are_no_input(tmp_path: Path) -> None:
    data = read(tmp_path, {**BASE, "id": list("abcdef"), "n": range(6)}, "?drop=id,n")
    assert data.in_shape == (1,)


def test_column_without_a_name_is_left_out_and_said(tmp_path: Path) -> None:
    pd.DataFrame(BASE).to_csv(tmp_path / "t.csv")
    data = load(str(tmp_path / "t.csv"), target="kind")
    assert data.in_shape == (1,)
    assert "1 column without a name left out" in data.notes


def test_parquet_types_that_allow_missing_values_are_read(tmp_path: Path) -> None:
    columns = {
        "a": pd.array([1, 2, 3, 4, 5, 6], dtype="Int64"),
        "b": pd.array([0.5] * 6, dtype="Float64"),
        "c": pd.array([True, False] * 3, dtype="boolean"),
        "d": pd.Categorical(["u", "v"] * 3),
        "kind": pd.array(["x", "y"] * 3, dtype="string"),
    }
    data = load(write(tmp_path, columns, "t.parquet"), target="kind")
    assert data.inputs[:2].tolist() == [[1.0, 0.5, 1.0, 1.0, 0.0], [2.0, 0.5, 0.0, 0.0, 1.0]]


def test_target_is_required_and_the_columns_are_listed(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="target must name the column to predict; its columns are age, kind"):
        read(tmp_path, BASE, target=None)


@pytest.mark.parametrize(("options", "target"), [("", "kinds"), ("?drop=kinds", "age")])
def test_unknown_column_is_an_error_with_the_nearest_name(tmp_path: Path, options: str, target: str) -> None:
    with pytest.raises(OptionError, match=r"=kinds is not a column .*did you mean kind\?; its columns are age, kind"):
        read(tmp_path, BASE, options, target=target)


def test_target_cannot_be_dropped(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="drop=kind is the target"):
        read(tmp_path, BASE, "?drop=kind")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({**BASE, "w": [1, None, 3, None, 5, 6]}, r"'w' has 2 \(rows 2, 4\)"),
        ({**BASE, "w": [1, 2, np.inf, 4, 5, 6]}, r"'w' has 1 \(row 3\)"),
        ({**BASE, "w": ["a", None, "a", "b", "a", "b"]}, r"'w' has 1 \(row 2\)"),
        ({**BASE, "w": [None] * 6}, r"'w' has 6 \(rows 1, 2, 3, 4, 5, \.\.\.\)"),
        ({**BASE, "kind": ["x", None, "x", "y", "x", "y"]}, r"'kind' has 1 \(row 2\)"),
        ({**BASE, "w": [1, 2, "?", 4, 5, 6]}, r"'w' holds numbers, but 1 cells are text: '\?' in row 3"),
        ({**BASE, "kind": ["x"] * 6}, r"target 'kind' has one value only \(x\)"),
        ({"kind": BASE["kind"]}, "no column besides the target 'kind'"),
        ({**BASE, "w": [1e300, 2, 3, 4, 5, 6]}, "'w' has numbers beyond the float32 range"),
        ({"age": [], "kind": []}, "has no rows below its header"),
    ],
)
def test_flaw_is_an_error_that_says_where(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path, columns)
    assert "\n" not in str(caught.value)


def test_text_with_too_many_values_is_an_error_with_the_fix(tmp_path: Path) -> None:
    def columns(values: int) -> dict[str, Any]:
        return {
            "name": [f"n{k}" for k in range(values)],
            "kind": ["x", "y"] * (values // 2) + ["x"] * (values % 2),
        }

    assert read(tmp_path, columns(50)).in_shape == (50,)
    with pytest.raises(DataError, match=r"'name' has 51 distinct values.*\?drop=name"):
        read(tmp_path, columns(51))


def test_rows_with_flaws_can_be_left_out(tmp_path: Path) -> None:
    columns = {"w": [1, None, 3, 4, 5, 6, 7, np.inf], "kind": ["x", "y", "x", "y", "x", "y", "y", "x"]}
    data = read(tmp_path, columns, skip_bad=True)
    assert data.inputs.flatten().tolist() == [1, 3, 4, 5, 6, 7]
    assert data.targets.tolist() == [0, 0, 1, 0, 1, 1]
    assert "2 of 8 rows with missing or infinite cells were left out" in data.notes
    with pytest.raises(DataError, match="every row of"):
        read(tmp_path, {**BASE, "w": [None] * 6}, skip_bad=True)


def test_dates_are_an_error_with_the_fix(tmp_path: Path) -> None:
    path = write(tmp_path, {**BASE, "day": [datetime.datetime(2020, 1, 1)] * 6}, "t.parquet")
    with pytest.raises(DataError, match=r"'day' holds datetime64 values.*\?drop=day"):
        load(path, target="kind")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,kind,a\n1,x,2\n", "several columns are named 'a'"),
        (b"a,kind\n1,x\n2,y,z\n", "as many cells as the header"),
        (b"a,kind\n1,x,z\n2,y,z\n", "as many cells as the header"),
        (b"a,kind\n1,\xff\n", "is not UTF-8"),
    ],
)
def test_file_that_is_no_table_is_an_error(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load(str(tmp_path / "t.csv"), target="kind")


def test_broken_parquet_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="is not a Parquet file"):
        load(str(tmp_path / "t.parquet"), target="kind")
