from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from repertory.datasets import Dataset, Encoder, load
from repertory.errors import DataError

TABLE = {
    "age": [1, 2, 3, 4, 5, 6],
    "code": ["1", "a", "b", "1", "a", "b"],
    "wild": [True, False] * 3,
    "kind": ["x", "y"] * 3,
}


def restored(data: Dataset) -> Encoder:
    return Encoder.from_dict(json.loads(json.dumps(data.encoder.to_dict())))


def photos(folder: Path, mode: str = "RGB") -> Path:
    random = np.random.default_rng(0)
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for number in range(4):
            size = (12 + number, 20, 3) if mode == "RGB" else (12 + number, 20)
            Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(folder / name / f"{number}.png")
    return folder


def table(folder: Path, name: str = "t.csv", **changes: Any) -> str:
    frame = pd.DataFrame({key: value for key, value in {**TABLE, **changes}.items() if value is not None})
    frame.to_csv(folder / name, index=False)
    return str(folder / name)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_folder_of_images_is_encoded_as_it_was_loaded(tmp_path: Path, mode: str) -> None:
    data = load(str(photos(tmp_path, mode)))
    inputs, names = restored(data).encode(str(tmp_path))
    assert torch.equal(inputs, data.inputs)
    assert names == [f"{name}/{number}.png" for name in "ab" for number in range(4)]


def test_one_image_is_a_batch_of_one(tmp_path: Path) -> None:
    data = load(str(photos(tmp_path)))
    inputs, names = restored(data).encode(str(tmp_path / "b" / "1.png"))
    assert torch.equal(inputs, data.inputs[5:6])
    assert names == ["1.png"]


def test_table_is_encoded_as_it_was_loaded(tmp_path: Path) -> None:
    data = load(table(tmp_path), target="kind")
    inputs, names = restored(data).encode(str(tmp_path / "t.csv"))
    assert torch.equal(inputs, data.inputs)
    assert names == ["1", "2", "3", "4", "5", "6"]


def test_new_table_may_lack_the_target_and_order_its_columns_otherwise(tmp_path: Path) -> None:
    data = load(table(tmp_path), target="kind")
    # All codes look like numbers here, and are still the text of the training table.
    pd.DataFrame({"more": [1, 2], "wild": [False, True], "code": ["1", "1"], "age": [7, 8]}).to_csv(
        tmp_path / "new.csv", index=False
    )
    inputs, _ = restored(data).encode(str(tmp_path / "new.csv"))
    assert inputs.tolist() == [[7, 1, 0, 0, 0], [8, 1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"code": ["1", "a", "zz", "1", "a", "b"]},
            r"column 'code' has the unknown value 'zz' in row 3; known are 1, a, b",
        ),
        ({"age": None, "wild": None}, r"lacks 2 of the 3 columns of the training data: age, wild"),
        ({"age": [1, "old", 3, 4, 5, 6]}, "'age' holds numbers, but 1 cells are text: 'old' in row 2"),
        ({"age": [1, None, 3, 4, 5, 6]}, r"'age' has 1 \(row 2\)"),
        ({"age": [], "code": [], "wild": [], "kind": []}, "has no rows"),
    ],
)
def test_new_table_that_does_not_fit_is_an_error(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    data = load(table(tmp_path), target="kind")
    with pytest.raises(DataError, match=said):
        data.encoder.encode(table(tmp_path, "new.csv", **changes))


@pytest.mark.parametrize("shape", [(12, 4), (12, 2, 7)])
def test_arrays_are_encoded_as_they_were_loaded(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(12) % 2)
    np.save(tmp_path / "new.npy", x)
    data = load(str(tmp_path / "a.npz"))
    for name in ("a.npz", "new.npy"):
        inputs, names = restored(data).encode(str(tmp_path / name))
        assert torch.equal(inputs, data.inputs)
        assert names[-1] == "12"


def test_images_may_come_as_an_array(tmp_path: Path) -> None:
    data = load("digits")
    np.save(tmp_path / "new.npy", data.inputs[:3, 0].numpy())
    assert torch.equal(data.encoder.encode(str(tmp_path / "new.npy"))[0], data.inputs[:3])


def test_sequences_of_one_channel_may_leave_it_out(tmp_path: Path) -> None:
    np.save(tmp_path / "new.npy", np.ones((3, 40)))
    inputs, _ = Encoder("sequence", (1, 40)).encode(str(tmp_path / "new.npy"))
    assert inputs.shape == (3, 1, 40)


def test_built_in_table_takes_a_file_with_its_columns(tmp_path: Path) -> None:
    data = load("iris")
    pd.DataFrame(data.inputs.numpy(), columns=[c.name for c in data.encoder.columns]).to_parquet(tmp_path / "i.parquet")
    assert torch.equal(data.encoder.encode(str(tmp_path / "i.parquet"))[0], data.inputs)


def test_input_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "y.npz", y=np.ones(3))
    np.save(tmp_path / "wide.npy", np.ones((3, 5)))
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    mixed = load(table(tmp_path), target="kind").encoder
    cases = [
        (Encoder("table", (4,)), "none.csv", "does not exist"),
        (Encoder("table", (4,)), "x.txt", r"not read as table input; allowed are \.csv"),
        (Encoder("sequence", (1, 4)), "x.txt", r"not read as sequence input; allowed are \.npy"),
        (Encoder("table", (4,)), "y.npz", "lacks the array x; it has y"),
        (Encoder("table", (4,)), "wide.npy", r"has table inputs of shape \(5,\), but .* shape \(4,\)"),
        (mixed, "wide.npy", "cannot hold the text columns code"),
        (Encoder("image", (3, 8, 8)), "empty", "holds no images"),
        (Encoder("image", (3, 8, 8)), "x.txt", r"1 of 1 images cannot be read: .*x\.txt"),
    ]
    for encoder, name, said in cases:
        with pytest.raises(DataError, match=said):
            encoder.encode(str(tmp_path / name))


def test_every_unreadable_new_image_is_listed(tmp_path: Path) -> None:
    encoder = load(str(photos(tmp_path))).encoder
    for name in ("a/0.png", "b/3.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 8 images cannot be read: .*a/0\.png .*b/3\.png"):
        encoder.encode(str(tmp_path))
