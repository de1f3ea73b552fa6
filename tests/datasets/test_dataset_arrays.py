from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repertory.datasets import Dataset, load
from repertory.datasets.targets import read_targets
from repertory.errors import DataError, OptionError

RANDOM = np.random.default_rng(0)
LABELS = np.arange(12) % 2
COLOUR = RANDOM.integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)


def save(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "own.npz", **arrays)
    return str(folder / "own.npz")


def read(folder: Path, **arrays: Any) -> Dataset:
    return load(save(folder, **arrays))


def test_two_dimensions_are_a_table(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(12, 3))
    data = read(tmp_path, x=x, y=LABELS)
    assert (data.name, data.modality, data.task, data.classes) == (
        "own",
        "table",
        "classification",
        ("0", "1"),
    )
    assert torch.equal(data.inputs, torch.from_numpy(x.astype(np.float32)))
    assert torch.equal(data.targets, torch.from_numpy(LABELS))


def test_three_dimensions_are_sequences(tmp_path: Path) -> None:
    data = read(tmp_path, x=RANDOM.normal(size=(12, 2, 9)), y=RANDOM.normal(size=12))
    assert (data.modality, data.task, data.in_shape, data.outputs) == ("sequence", "regression", (2, 9), 1)


def test_images_are_read_with_channels_second_or_last(tmp_path: Path) -> None:
    last = read(tmp_path, x=COLOUR, y=LABELS)
    second = read(tmp_path, x=COLOUR.transpose(0, 3, 1, 2), y=LABELS)
    assert (last.modality, last.in_shape) == ("image", (3, 5, 6))
    assert torch.equal(last.inputs, second.inputs)
    assert last.inputs[0, 2, 1, 4].item() == COLOUR[0, 1, 4, 2]


def test_three_dimensions_of_bytes_are_greyscale_images(tmp_path: Path) -> None:
    data = read(tmp_path, x=COLOUR[..., 0], y=LABELS)
    assert (data.modality, data.in_shape) == ("image", (1, 5, 6))


def test_parts_that_came_split_stay_split(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(12, 3)).astype(np.float32)
    parts = {"x_train": x[:6], "y_train": LABELS[:6], "x_val": x[6:8], "y_val": LABELS[6:8]}
    data = read(tmp_path, **parts, x_test=x[8:], y_test=LABELS[8:])
    splits = data.prepare(0)
    assert torch.equal(splits.train.inputs, torch.from_numpy(x[:6]))
    assert torch.equal(splits.validation.inputs, torch.from_numpy(x[6:8]))
    assert torch.equal(splits.test.inputs, torch.from_numpy(x[8:]))
    assert not any("made from train" in note for note in data.notes)
    assert "test made from train" in read(tmp_path, **parts).notes


def test_class_that_is_only_in_the_test_part_is_an_error(tmp_path: Path) -> None:
    x = np.ones((9, 2))
    y = np.array([0, 1, 0, 1, 0, 1])
    with pytest.raises(DataError, match="'7' has 0"):
        read(tmp_path, x_train=x[:6], y_train=y, x_test=x[6:], y_test=np.array([0, 1, 7]))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"inputs": COLOUR, "y": LABELS}, "lacks x_train: it has the arrays inputs, y"),
        ({"x": COLOUR}, "lacks y: it has the arrays x,"),
        ({"x_train": COLOUR, "y_train": LABELS, "x_test": COLOUR}, "lacks y_test"),
        ({"x": COLOUR, "y": LABELS[:5]}, "x has 12 rows, but y has 5"),
        ({"x": np.ones(12), "y": LABELS}, r"x has shape \(12,\)"),
        ({"x": np.array([["a"]] * 12), "y": LABELS}, "x has shape .*<U1"),
        ({"x": np.ones((12, 2, 5, 6)), "y": LABELS}, r"\(12, 2, 5, 6\); images need 1 or 3 channels"),
        ({"x": COLOUR / 255, "y": LABELS}, "type float64 with values from .*convert them to uint8"),
        ({"x": COLOUR.astype(int) - 300, "y": LABELS}, "type int64 with values from -300"),
        ({"x": np.array([[1.0], [np.nan], [np.inf]] * 4), "y": LABELS}, "8 of 12 rows, first in row 2"),
        ({"x": np.ones((12, 2)), "y": np.array([0.5, np.nan] * 6)}, "target y has 6 values .*row 2"),
        ({"x": np.ones((12, 2)), "y": np.ones(12)}, r"target y has one value only \(1\.0\)"),
        ({"x": np.ones((12, 2)), "y": np.ones((12, 2))}, r"target y has shape \(12, 2\)"),
        (
            {"x_train": np.ones((12, 2)), "y_train": LABELS, "x_test": np.ones((12, 3)), "y_test": LABELS},
            r"x_test have shape \(3,\), others \(2,\)",
        ),
    ],
)
def test_arrays_that_cannot_be_learnt_from_are_an_error(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, **arrays)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.array([{"a": 1}] * 12, dtype=object), y=LABELS)
    with pytest.raises(DataError, match="it holds pickled objects"):
        load(path)


def test_broken_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"own\.npz cannot be read"):
        load(str(tmp_path / "own.npz"))


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (np.array(["b", "a", "b"]), "classification", ("a", "b")),
        (np.array([True, False]), "classification", ("False", "True")),
        (np.array([10, 2, 2]), "classification", ("2", "10")),
        (np.array([0.0, 1.0, 1.0]), "classification", ("0", "1")),
        (np.array([0.5, 1.0]), "regression", ()),
        (np.arange(21), "regression", ()),
        (np.arange(20), "classification", tuple(map(str, range(20)))),
        (np.arange(30).repeat(50), "classification", tuple(map(str, range(30)))),
        (np.arange(30).repeat(49), "regression", ()),
    ],
)
def test_kind_of_target_follows_the_rule(values: np.ndarray, task: str, classes: tuple[str, ...]) -> None:
    found, targets, names, _ = read_targets(values, "target 'y'")
    assert (found, names) == (task, classes)
    if classes:
        assert [names[k] for k in targets] == [str(v) if v.dtype.kind in "Ub" else str(int(v)) for v in values]
    else:
        assert torch.equal(targets, torch.from_numpy(values.astype(np.float32)))


def test_task_option_overrides_the_rule_and_a_guess_is_said(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.ones((12, 2)), y=LABELS)
    assert any("?task=regression changes it" in note for note in load(path).notes)
    asked = load(path + "?task=regression")
    assert (asked.task, asked.targets.dtype, asked.notes) == ("regression", torch.float32, ())


def test_text_cannot_be_read_as_numbers(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.ones((12, 2)), y=np.array(["cat", "dog"] * 6))
    with pytest.raises(OptionError, match="task=regression needs numbers, but own: target y holds text"):
        load(path + "?task=regression")
