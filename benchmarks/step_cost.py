"""What a step costs with each method, against the same step without it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch
from engine_overhead import problem
from timing import print_table, ratios
from torch import nn

from repertory import Step
from repertory.algorithms import (
    ECAML,
    ESAM,
    LOOK,
    PSKD,
    SAF,
    SAM,
    AdAdaGrad,
    BOREPCleaning,
    CoIns,
    Guidance,
    LVHBACleaning,
    OrthoGrad,
)
from repertory.core import Method
from repertory.layers.batchformer import BatchFormerTraining
from repertory.layers.relationship_batch import RBITraining
from repertory.losses import StableMaxCrossEntropy
from repertory.optim import Lion


def step_call(name: str, *methods: Method, criterion: nn.Module | None = None, clean: int = 0) -> Callable[[], object]:
    """Return a call that makes one step of SGD.

    Args:
        name: of the problem.
        methods: in the step.
        criterion: cross-entropy when not given.
        clean: size of the training set, where a stream of clean examples (the batch itself) is offered; 0 for none.
    """
    model, inputs, targets = problem(name)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    batch = {"input": inputs, "target": targets, "index": torch.arange(len(inputs)), "views": [inputs, inputs]}
    step = Step(
        model, optimizer, criterion or nn.CrossEntropyLoss(), list(methods), epochs=100, examples=clean or 10**6,
        classes=10, streams={"validation": itertools.repeat(batch)} if clean else {},
    )  # fmt: skip
    step.run.epoch = 10
    return lambda: step(batch)


def optimizer_call(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[], object]:
    """Return a call that makes one optimizer step on a network of 5 million parameters."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(512, 512), nn.LayerNorm(512)) for _ in range(19)]
    model = nn.Sequential(*layers)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = make(model.parameters(), **options)
    return optimizer.step


def main() -> None:
    """Print the ratios."""
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 31
    for name in ("small CNN, digits", "poolformer_tiny, 32x32"):
        table: dict[str, Callable[[], object]] = {
            "SGD": step_call(name),
            "SAM": step_call(name, SAM()),
            "ESAM": step_call(name, ESAM()),
            "SAF": step_call(name, SAF(start=0)),
            "PS-KD": step_call(name, PSKD()),
            "OrthoGrad": step_call(name, OrthoGrad()),
            "StableMax": step_call(name, criterion=StableMaxCrossEntropy()),
            "Guidance by a perceptron": step_call(name, Guidance("repertory:mlp")),
            "AdAdaGrad, a test in every step": step_call(name, AdAdaGrad(eta=1e6)),
            "LOOK, bank of 4096": step_call(name, LOOK(), clean=4096),
            "LOOK, queue of 4096": step_call(name, LOOK(memory="queue", size=4096)),
            "CoIns, queue of 4096": step_call(name, CoIns(size=4096)),
            "ECAML": step_call(name, ECAML()),
            "BatchFormer": step_call(name, BatchFormerTraining()),
            "RBI": step_call(name, RBITraining()),
            "BO-REP": step_call(name, BOREPCleaning(), clean=2000),
            "LV-HBA": step_call(name, LVHBACleaning(), clean=2000),
        }
        print_table(f"Step with a method against without: {name}", ratios(table, "SGD", rounds=rounds))
    optimizers: dict[str, Callable[[], object]] = {
        "torch AdamW(foreach=True)": optimizer_call(torch.optim.AdamW, lr=1e-4, foreach=True),
        "Lion": optimizer_call(Lion, lr=1e-4, weight_decay=0.1),
    }
    try:
        from pytorch_optimizer import Lion as OtherLion

        optimizers["pytorch_optimizer Lion(foreach=True)"] = optimizer_call(
            OtherLion, lr=1e-4, weight_decay=0.1, foreach=True
        )
    except ImportError:
        pass
    print_table(
        "Optimizer step, 5M parameters", ratios(optimizers, "torch AdamW(foreach=True)", rounds=rounds, calls=5)
    )


if __name__ == "__main__":
    main()
