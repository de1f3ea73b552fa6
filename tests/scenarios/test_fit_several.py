"""`fit` over two processes: the model is that of one process, sharded or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import repertory
from repertory import fit

PATIENCE = 300.0
SETTINGS: dict[str, Any] = {"data": "iris", "epochs": 2, "device": "cpu", "batch_size": 9}
"""The table's network has no batch norm, and batches of 9 do not divide evenly by two."""


def in_processes(out: Path, *words: str) -> str:
    given = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    done = subprocess.run(
        [sys.executable, "-m", "repertory", "fit", *given, "--devices", "2", f"--out={out}", *words],
        capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(folder: Path) -> Tensor:
    return torch.cat([value.flatten().double() for value in repertory.load(folder).state_dict().values()])


@pytest.mark.parametrize(("strategy", "methods"), [("ddp", "saf:start=0,lag=1+sam"), ("fsdp", "sam")])
def test_two_processes_train_the_model_of_one(tmp_path: Path, strategy: str, methods: str) -> None:
    printed = in_processes(tmp_path / "two", "--strategy", strategy, "--with", methods, "--logger", "csv")
    fit(methods, out=tmp_path / "one", **SETTINGS)
    torch.testing.assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), rtol=1e-4, atol=1e-5)
    assert [line.partition(":")[0] for line in printed.splitlines()] == ["test", "model"]
    assert len(list((tmp_path / "two" / "logs").rglob("metrics.csv"))) == 1
    assert not (tmp_path / "two" / "checkpoints").exists()
