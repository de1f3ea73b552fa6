"""Which optimizer when: every optimizer here and the customary ones of torch, same budget, same tuning, several tasks.

Prints one Markdown table: for each task the paired difference of the test metric to AdamW's, with its 95 % interval.
It takes a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from comparisons import cell, compared
from torch.optim.optimizer import Optimizer, ParamsT

TASKS = ("digits", "digits?noise=0.2", "mnist1d", "diabetes")
OPTIMIZERS = {
    "SGD, momentum 0.9": "torch.optim:SGD:lr=0.1,momentum=0.9,weight_decay=5e-4",
    "Adam": "torch.optim:Adam:weight_decay=0.0",
    "NAdam": "torch.optim:NAdam:weight_decay=0.0",
    "RMSprop": "torch.optim:RMSprop:lr=1e-3,weight_decay=0.0",
    "Adagrad": "torch.optim:Adagrad:lr=0.02,weight_decay=0.0",
    "Adafactor": "torch.optim:Adafactor:lr=1e-2",
    "RAdam": "torch.optim:RAdam:weight_decay=0.0",
    "Adamax": "torch.optim:Adamax:weight_decay=0.0",
    "Adadelta": "torch.optim:Adadelta:lr=1.0,weight_decay=0.0",
    "ASGD": "torch.optim:ASGD:lr=0.1,weight_decay=0.0",
    "Rprop": "torch.optim:Rprop:lr=1e-3",
    "LBFGS": "torch.optim:LBFGS:lr=1.0,max_iter=4,history_size=10,line_search_fn=strong_wolfe",
    "Muon, and AdamW for what is no matrix": "optimizers:MuonAndAdamW",
    "`lion`": "lion",
    "`stable-spam`": "stable-spam",
    "`fira`": "fira",
    "`adadagrad`": "adadagrad",
    "`optimistic-omd`": "optimistic-omd",
    "`grokking-stability`": "grokking-stability",
    "`batch-size-lr`": "batch-size-lr",
}
"""By name in the table, what `compare` is given; the baseline is AdamW.

All of torch's but SparseAdam, which takes sparse gradients only.
"""


class MuonAndAdamW(Optimizer):
    """Muon on matrices, which is all that it takes, and AdamW on every other parameter.

    Args:
        params: parameters or groups of them.
        lr: of both; Muon's update is scaled to the size of AdamW's.
        weight_decay: of both.
    """

    def __init__(self, params: ParamsT, lr: float = 1e-3, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        held = [p for group in self.param_groups for p in group["params"]]
        parts = {True: [p for p in held if p.ndim == 2], False: [p for p in held if p.ndim != 2]}
        self._parts: list[Optimizer] = [torch.optim.AdamW(parts[False], lr)] if parts[False] else []
        if parts[True]:
            self._parts.append(torch.optim.Muon(parts[True], lr, adjust_lr_fn="match_rms_adamw"))

    def step(self, closure: Any = None) -> Any:
        """Make a step of both, with the learning rate and weight decay of the first group."""
        loss = None if closure is None else closure()
        for part in self._parts:
            for group in part.param_groups:
                group.update({name: self.param_groups[0][name] for name in ("lr", "weight_decay")})
            part.step()
        return loss


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=8, help="trials of tuning, for every optimizer")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    given = parser.parse_args()
    columns: dict[str, dict[str, str]] = {}
    for task in given.tasks:
        found = compared(
            OPTIMIZERS.values(), task, "supervised", seeds=given.seeds, tune=given.trials, epochs=given.epochs
        )
        percent = 100.0 if found["metric"] == "accuracy" else 1.0
        title = f"{task}, {found['metric']}" + (" (%)" if percent > 1 else "")
        columns[title] = {row["label"]: cell(row, percent) for row in found["rows"]}
    print(f"\n| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, label in {"AdamW": "baseline", **OPTIMIZERS}.items():
        print(f"| {name} | {' | '.join(column[label] for column in columns.values())} |")


if __name__ == "__main__":
    main()
