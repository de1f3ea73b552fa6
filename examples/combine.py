"""What may be combined, in which order, and what the library says where it may not."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from repertory import Method, Step
from repertory.algorithms import ESAM, PSKD, SAF, SAM
from repertory.errors import ConflictError
from repertory.optim import Lion

EPOCHS = 10

digits = load_digits()
inputs = torch.from_numpy(digits.data).float() / 16
targets = torch.from_numpy(digits.target)


def step_with(*methods: Method) -> Step:
    """Make a step of a fresh network with the methods, outermost first, on top of Lion."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = Lion(model.parameters(), lr=1e-3)
    return Step(model, optimizer, nn.CrossEntropyLoss(), methods, epochs=EPOCHS, examples=len(inputs), classes=10)


step = step_with(PSKD(), ESAM(), SAF(start=3, lag=2))
print("together:", step.explain())
order = torch.Generator().manual_seed(0)
for _ in range(EPOCHS):
    for index in torch.randperm(len(inputs), generator=order).split(128):
        step({"input": inputs[index], "target": targets[index], "index": index})
    step.end_epoch()
right = (step.run.model(inputs).argmax(1) == targets).float().mean()
print(f"training accuracy {right:.3f}")

# Both move the weights uphill before the gradient is taken, and a step has one such move.
try:
    step_with(SAM(), ESAM())
except ConflictError as error:
    print("refused:", error)
