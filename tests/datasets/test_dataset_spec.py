from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repertory.datasets import Dataset, load
from repertory.datasets.spec import parse
from repertory.errors import DataError, OptionError, UserError

MODULE = """
import torch
import repertory.datasets as datasets

def pair():
    return torch.rand(30, 4), torch.arange(30) % 3

def mapping():
    x, y = pair()
    return {"x_train": x[:20], "y_train": y[:20], "x_test": x[20:], "y_test": y[20:]}

def whole():
    return datasets.load("iris")

def wrong():
    return [1, 2]

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_data_for_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_data_for_tests", raising=False)
    return "own_data_for_tests"


def test_options_follow_the_last_question_mark() -> None:
    assert parse("a?b?noise=0.1&drop=x,y") == ("a?b", {"noise": "0.1", "drop": "x,y"})
    assert parse("plain") == ("plain", {})


def test_spec_and_corruptions_are_kept_as_typed() -> None:
    data = load("iris?noise=0.25&labels=30")
    assert (data.name, data.spec) == ("iris", "iris?noise=0.25&labels=30")
    assert data.corruptions == {"noise": "0.25", "labels": "30"}


def test_unknown_option_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match=r"'noize'.* is not one of noise.*did you mean noise\?"):
        load("iris?noize=0.1")


@pytest.mark.parametrize("spec", ["iris?noise", "iris?noise=", "iris?noise=0.1&noise=0.2"])
def test_option_without_one_value_is_an_error(spec: str) -> None:
    with pytest.raises(OptionError, match=r"'noise' .*needs one value"):
        load(spec)


def test_unknown_name_is_an_error_with_the_nearest_built_in() -> None:
    with pytest.raises(DataError, match=r"'digitz' is not a built-in .*did you mean digits\?"):
        load("digitz")


def test_missing_path_is_an_error_with_the_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"phtos' is not .*did you mean photos\?"):
        load(str(tmp_path / "phtos"))


@pytest.mark.parametrize("spec", ["", "?noise=0.1", "no/such/folder/here.csv"])
def test_path_that_leads_nowhere_is_an_error(spec: str) -> None:
    with pytest.raises(DataError, match="nor an existing file or folder; check the path"):
        load(spec)


def test_unread_ending_is_an_error_that_lists_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "book.ods").write_text("x")
    with pytest.raises(DataError, match=r"\.ods are not read .*\.csv, \.tsv, \.parquet, \.xlsx, \.npz"):
        load(str(tmp_path / "book.ods"))


@pytest.mark.parametrize(
    ("spec", "given", "said"),
    [
        ("iris", {"target": "petal"}, "target=petal does not apply to the built-in iris"),
        ("iris", {"image_size": 32}, "image_size=32 does not apply"),
        ("iris?drop=a", {}, "drop=a does not apply"),
        ("iris?task=regression", {}, "task=regression does not apply"),
        ("iris?task=regresion", {}, r"task=regresion is not .*did you mean regression\?"),
    ],
)
def test_option_that_does_not_apply_is_an_error(spec: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        load(spec, **given)


def test_function_may_return_a_pair(module: str) -> None:
    data = load(f"{module}:pair?noise=0.1")
    assert (data.name, data.in_shape, data.outputs, data.corruptions) == ("pair", (4,), 3, {"noise": "0.1"})


def test_function_may_return_named_arrays(module: str) -> None:
    data = load(f"{module}:mapping")
    assert {part: len(rows) for part, rows in data.fixed.items()} == {"train": 20, "test": 10}


def test_function_may_return_a_data_set(module: str) -> None:
    data = load(f"{module}:whole?labels=9")
    assert isinstance(data, Dataset)
    assert (data.name, data.spec, len(data.prepare(0).train)) == ("iris", f"{module}:whole?labels=9", 9)


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("wrong", "wrong returned list; return a Dataset"),
        ("number", "is int, not a function"),
        ("piar", r"did you mean pair\?"),
        ("whole?task=regression", "task=regression does not apply"),
    ],
)
def test_function_that_gives_no_data_is_an_error(module: str, attribute: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(f"{module}:{attribute}")


def test_built_in_name_wins_over_a_file_unless_written_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("iris").mkdir()
    assert load("iris").name == "iris"
    with pytest.raises(DataError, match="nothing in it"):
        load("./iris")


def test_arrays_and_tensors_give_the_same_data(module: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(30) % 3)
    assert torch.equal(load(str(tmp_path / "a.npz")).inputs, torch.from_numpy(x))


def test_heavy_packages_wait_until_they_are_needed() -> None:
    code = "import sys, repertory.datasets; print([m for m in ('pandas', 'sklearn', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
