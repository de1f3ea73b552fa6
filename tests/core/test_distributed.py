"""Two processes gather rows of different number, and send gradients back to where the rows came from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from repertory.core.distributed import gather_with_gradient, own_rows

PROGRAM = """
import json, os, sys
import torch
from torch import distributed
from repertory.core.distributed import gather_rows, gather_with_gradient, own_rows

folder = sys.argv[1]
rank = 1 if os.fork() == 0 else 0
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
own = torch.arange(6.0).view(3, 2)[: 1 + rank] + 10 * rank
own.requires_grad_()
everyone = gather_with_gradient(own)
# Each process weighs the rows by its own numbers, so that what comes back shows who sent it.
(everyone * torch.arange(1.0, 4.0)[:, None] * (rank + 1)).sum().backward()
found = {
    "rows": everyone.tolist(),
    "gradient": own.grad.tolist(),
    "own": [own_rows(len(own)).start, own_rows(len(own)).stop],
}
distributed.barrier()
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(found, file)
if rank == 0:
    os.wait()
"""


def test_rows_are_gathered_and_gradients_summed_over_processes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True, timeout=120, stderr=subprocess.DEVNULL)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["rows"] == second["rows"] == [[0, 1], [10, 11], [12, 13]]
    assert (first["own"], second["own"]) == ([0, 1], [1, 3])
    # Row i counts i + 1 in the first process and twice that in the second.
    assert first["gradient"] == [[3, 3]]
    assert second["gradient"] == [[6, 6], [9, 9]]


def test_one_process_keeps_its_rows() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    assert gather_with_gradient(rows) is rows
    assert own_rows(3) == slice(0, 3)
