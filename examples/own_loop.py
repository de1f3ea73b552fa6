"""Two methods in a loop of your own: stop in the middle, go on later, and end where the undisturbed run ends."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from repertory import Step
from repertory.algorithms import ESAM, SAF
from repertory.training import BatchLoader

EPOCHS = 12

digits = load_digits()
inputs = torch.from_numpy(digits.data).float() / 16
targets = torch.from_numpy(digits.target)
train, test = slice(0, 1200), slice(1200, None)


def begin() -> tuple[Step, BatchLoader]:
    """Make a network, an optimizer and a step around them, and a loader that can say where it is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    step = Step(
        model,
        optimizer,
        nn.CrossEntropyLoss(),
        methods=[ESAM(rho=0.05), SAF(start=3, lag=2)],
        epochs=EPOCHS,
        examples=len(inputs[train]),
        classes=10,
        clip_norm=1.0,
    )
    # Any iterable of (input, target) or (input, target, index) will do; this one also resumes in mid-epoch.
    return step, BatchLoader(inputs[train], targets[train], batch_size=64)


def go_on(step: Step, loader: BatchLoader, stop_after: int | None = None) -> None:
    """Train until the last epoch is over, or until `stop_after` steps were made."""
    while step.run.epoch < EPOCHS:
        for batch in loader:
            step(batch)
            if step.run.counts.steps == stop_after:
                return
        step.end_epoch()


undisturbed, loader = begin()
print(undisturbed.explain())
go_on(undisturbed, loader)

cut_off, loader = begin()
go_on(cut_off, loader, stop_after=100)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "checkpoint.pt"
    torch.save({"step": cut_off.state_dict(), "loader": loader.state_dict()}, path)
    saved = torch.load(path, weights_only=True)

resumed, loader = begin()
resumed.load_state_dict(saved["step"])
loader.load_state_dict(saved["loader"])
go_on(resumed, loader)

with torch.no_grad():
    outputs = [step.run.model(inputs[test]) for step in (undisturbed, resumed)]
assert torch.equal(*outputs)
accuracy = (outputs[0].argmax(1) == targets[test]).float().mean()
counts = undisturbed.run.counts
print(f"test accuracy {accuracy:.3f} after {counts.steps} steps, {counts.passes:,.0f} passes of one example")
print("the resumed run is the same to the last bit")
