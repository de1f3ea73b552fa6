"""Batch normalisation over processes: two with parts of a batch make what one does with all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from repertory.layers.shared_norm import SharedBatchNorm

PROGRAM = """
import os, sys
import torch
from torch import distributed
from repertory.layers.shared_norm import SharedBatchNorm

folder = sys.argv[1]
rank = 1 if os.fork() == 0 else 0
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
rows = torch.load(f"{folder}/rows.pt", weights_only=True)
own = rows[:2] if rank == 0 else rows[2:]
own = own.clone().requires_grad_()
layer = SharedBatchNorm(3).double()
output = layer(own)
output.pow(3).sum().backward()
torch.save([output.detach(), own.grad, layer.running_var, layer.weight.grad], f"{folder}/{rank}.pt")
distributed.barrier()
if rank == 0:
    os.wait()
"""


def rows() -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_two_processes_see_the_batch_of_both(tmp_path: Path) -> None:
    torch.save(rows(), tmp_path / "rows.pt")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, stderr=subprocess.DEVNULL)
    whole, layer = rows().requires_grad_(), nn.BatchNorm1d(3).double()
    output = layer(whole)
    output.pow(3).sum().backward()
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), output.detach())
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), whole.grad)
    torch.testing.assert_close(parts[0][2], layer.running_var)
    torch.testing.assert_close(parts[0][3] + parts[1][3], layer.weight.grad)


def test_one_process_has_ordinary_batch_norm() -> None:
    shared, plain = SharedBatchNorm(3).double(), nn.BatchNorm1d(3).double()
    assert torch.equal(shared(rows()), plain(rows()))
    assert torch.equal(shared.eval()(rows()), plain.eval()(rows()))
