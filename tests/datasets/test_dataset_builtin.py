from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch

from repertory.datasets import BUILTIN, builtin, load
from repertory.errors import DataError


@pytest.mark.parametrize(
    ("name", "examples", "shape", "outputs"),
    [
        ("digits", 1797, (1, 8, 8), 10),
        ("mnist1d", 5000, (1, 40), 10),
        ("breast-cancer", 569, (30,), 2),
        ("wine", 178, (13,), 3),
        ("iris", 150, (4,), 3),
        ("diabetes", 442, (10,), 1),
    ],
)
def test_built_in_data_has_its_known_size(name: str, examples: int, shape: tuple[int, ...], outputs: int) -> None:
    data = load(name)
    assert (len(data.targets), data.in_shape, data.outputs) == (examples, shape, outputs)
    assert (data.name, data.encoder.shape, data.encoder.kind) == (name, shape, data.modality)
    assert data.inputs.dtype == (torch.uint8 if data.modality == "image" else torch.float32)
    assert data.targets.dtype == (torch.float32 if name == "diabetes" else torch.int64)


def test_every_built_in_name_is_listed() -> None:
    tables = ("breast-cancer", "wine", "iris", "diabetes")
    assert ("digits", "mnist1d", *tables, "pydoc", "shapes", "motif-graphs") == BUILTIN


def test_digits_use_the_range_of_a_byte() -> None:
    values = load("digits").inputs
    assert (int(values.min()), int(values.max())) == (0, 240)
    assert set(values.unique().tolist()) <= set(range(0, 241, 15))


def test_mnist1d_keeps_its_published_split_and_the_global_generators() -> None:
    builtin._mnist1d_tensors.cache_clear()
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    data = load("mnist1d")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]
    splits = data.prepare(0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (3400, 600, 1000)
    assert splits.indices["test"] == list(range(4000, 5000))
    assert "validation made from train" in data.notes


def test_missing_package_is_an_error_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builtin._mnist1d_tensors.cache_clear()
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(DataError, match="pip install mnist1d"):
        load("mnist1d")
