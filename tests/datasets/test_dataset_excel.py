"""Tables in Excel files are read like the same table in a CSV file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from repertory import datasets
from repertory.errors import DataError


def frame() -> pd.DataFrame:
    rows = range(24)
    return pd.DataFrame(
        {
            "age": [20 + i for i in rows],
            "income": [1.5 * i for i in rows],
            "city": ["north" if i % 3 else "south" for i in rows],
            "bought": ["yes" if i % 2 else "no" for i in rows],
        }
    )


def test_gives_the_same_data_as_the_csv_file(tmp_path: Path) -> None:
    frame().to_excel(tmp_path / "people.xlsx", index=False)
    frame().to_csv(tmp_path / "people.csv", index=False)
    sheet = datasets.load(str(tmp_path / "people.xlsx"), target="bought")
    table = datasets.load(str(tmp_path / "people.csv"), target="bought")
    assert torch.equal(sheet.inputs, table.inputs)
    assert torch.equal(sheet.targets, table.targets)
    assert sheet.classes == table.classes == ("no", "yes")


def test_empty_cells_are_named(tmp_path: Path) -> None:
    frame().astype({"age": "Int64"}).assign(age=lambda f: f["age"].mask(f.index == 5)).to_excel(
        tmp_path / "people.xlsx", index=False
    )
    with pytest.raises(DataError, match="age"):
        datasets.load(str(tmp_path / "people.xlsx"), target="bought")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "people.xlsx").write_text("age,bought")
    with pytest.raises(DataError, match="not an Excel file"):
        datasets.load(str(tmp_path / "people.xlsx"), target="bought")
