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


RESUMED = """
import functools, sys
import torch
from torch import nn
from repertory import Step
from repertory.algorithms import SAM
from repertory.scenarios.fit import _fabric
from repertory.training import BatchLoader
from repertory.training.checkpoint import load_checkpoint, save_checkpoint
from pathlib import Path

fabric = _fabric("cpu", 2, 1, "fsdp")
inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))

def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = functools.partial(torch.optim.AdamW, lr=0.01)
    step = Step(model, optimizer, nn.CrossEntropyLoss(), [SAM(0.05)], clip_norm=1.0, accumulate=2, fabric=fabric)
    return step, BatchLoader(inputs, (inputs[:, 0] > 0).long(), batch_size=7)

def advance(step, loader, steps):
    for _, batch in zip(range(steps), loader):
        step(batch)

straight, loader = task()
advance(straight, loader, 2)
save_checkpoint(Path(sys.argv[1]), straight, loader, 1.5)
fabric.barrier()
advance(straight, loader, 2)
resumed, loader = task()
assert load_checkpoint(Path(sys.argv[1]), resumed, loader) == 1.5
assert straight.run.sharded and resumed.run.sharded
advance(resumed, loader, 2)
expected, found = straight.state_dict(), resumed.state_dict()
assert all(torch.equal(expected["model"][name], value) for name, value in found["model"].items())
sys.stdout.write(f"equal {tuple(found['model']['0.weight'].shape)}\\n")
"""


def test_a_sharded_training_goes_on_from_its_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "resumed.py").write_text(RESUMED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "resumed.py"), str(tmp_path / "train.pt")],
        capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal (5, 4)") == 2
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".pt"] == ["train.pt"]
