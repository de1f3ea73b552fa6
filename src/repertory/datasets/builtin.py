"""Small data sets by name, none of which needs a download."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repertory.datasets import motif_graphs, shapes
from repertory.datasets.columns import Column
from repertory.datasets.dataset import Dataset
from repertory.datasets.encoder import Encoder
from repertory.datasets.motif_graphs import load_motif_graphs
from repertory.datasets.pydoc import load_pydoc
from repertory.datasets.shapes import load_shapes
from repertory.errors import DataError


def load_builtin(name: str, spec: str, options: Mapping[str, str] | None = None) -> Dataset:
    """Return one of the `BUILTIN` data sets.

    Raises:
        DataError: if the package that makes it is not installed.
    """
    return _LOADERS[name](name, spec, **(options or {}))


def _digits(name: str, spec: str) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Dataset(
        name=name,
        spec=spec,
        task="classification",
        modality="image",
        # The values run from 0 to 16; times 15 they use the range of a byte.
        inputs=torch.from_numpy((bunch.images * 15).astype(np.uint8)).unsqueeze(1),
        targets=torch.from_numpy(bunch.target.astype(np.int64)),
        classes=tuple(map(str, bunch.target_names)),
        encoder=Encoder("image", (1, 8, 8)),
    )


def _table(function: str, **options: Any) -> Callable[[str, str], Dataset]:
    def load(name: str, spec: str) -> Dataset:
        import sklearn.datasets

        bunch = getattr(sklearn.datasets, function)(**options)
        classes = tuple(map(str, bunch.get("target_names", ())))
        columns = tuple(Column(str(column)) for column in bunch.feature_names)
        return Dataset(
            name=name,
            spec=spec,
            task="classification" if classes else "regression",
            modality="table",
            inputs=torch.from_numpy(bunch.data.astype(np.float32)),
            targets=torch.from_numpy(bunch.target.astype(np.int64 if classes else np.float32)),
            classes=classes,
            encoder=Encoder("table", (len(columns),), columns),
        )

    return load


def _mnist1d(name: str, spec: str) -> Dataset:
    inputs, targets, training = _mnist1d_tensors()
    rows = torch.arange(len(targets))
    return Dataset(
        name=name,
        spec=spec,
        task="classification",
        modality="sequence",
        inputs=inputs,
        targets=targets,
        classes=tuple(map(str, range(10))),
        encoder=Encoder("sequence", (1, 40)),
        fixed={"train": rows[:training], "test": rows[training:]},
    )


@functools.cache
def _mnist1d_tensors() -> tuple[Tensor, Tensor, int]:
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ModuleNotFoundError:
        raise DataError("'mnist1d' is made by a package that is not installed; run: pip install mnist1d") from None
    # The package seeds the global generators, which are the caller's.
    python, numpy = random.getstate(), np.random.get_state()
    try:
        made = make_dataset(get_dataset_args())
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
    inputs = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)
    targets = np.concatenate([made["y"], made["y_test"]]).astype(np.int64)
    return torch.from_numpy(inputs).unsqueeze(1), torch.from_numpy(targets), len(made["x"])


_LOADERS: dict[str, Callable[..., Dataset]] = {
    "digits": _digits,
    "mnist1d": _mnist1d,
    "breast-cancer": _table("load_breast_cancer"),
    "wine": _table("load_wine"),
    "iris": _table("load_iris"),
    # The scaled version was scaled with the test rows in it.
    "diabetes": _table("load_diabetes", scaled=False),
    "pydoc": load_pydoc,
    "shapes": load_shapes,
    "motif-graphs": load_motif_graphs,
}

OPTIONS: dict[str, tuple[str, ...]] = {"shapes": shapes.KEYS, "motif-graphs": motif_graphs.KEYS}
"""Options of the data that a built-in data set reads."""

BUILTIN: tuple[str, ...] = tuple(_LOADERS)
"""Names that `load` knows without a path."""
