"""What the step costs beside a bare PyTorch loop that does the same work, and beside Lightning's Trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from timing import print_table, ratios
from torch import nn

from repertory import Step
from repertory.models.poolformer import poolformer_tiny
from repertory.models.small import small_cnn


def problem(name: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a network with one batch for it."""
    torch.manual_seed(0)
    if name == "small CNN, digits":
        return small_cnn((1, 8, 8), 10), torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
    return poolformer_tiny(in_shape=(3, 32, 32), outputs=10), torch.randn(64, 3, 32, 32), torch.randint(10, (64,))


def bare(name: str) -> Callable[[], object]:
    """A plain PyTorch step."""
    model, inputs, targets = problem(name)
    optimizer, criterion = torch.optim.AdamW(model.parameters()), nn.CrossEntropyLoss()
    model.train()

    def call() -> object:
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def stepped(name: str) -> Callable[[], object]:
    """The same with `Step`."""
    model, inputs, targets = problem(name)
    step = Step(model, torch.optim.AdamW(model.parameters()), nn.CrossEntropyLoss())
    model.train()
    batch = {"input": inputs, "target": targets}
    return lambda: step(batch)


def trainer(name: str, steps: int) -> Callable[[], object] | None:
    """The same number of steps in one `Trainer.fit`; None where Lightning is not installed."""
    try:
        import lightning as L
    except ImportError:
        return None
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    model, inputs, targets = problem(name)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: object, _: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.model(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    module, data = Module(), [0] * steps

    def call() -> object:
        fit = L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        return fit.fit(module, data)

    return call


def main() -> None:
    """Print the ratios."""
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 31
    for name in ("small CNN, digits", "poolformer_tiny, 32x32"):
        print_table(
            f"Step against a bare loop: {name}",
            ratios({"bare loop": bare(name), "Step": stepped(name)}, "bare loop", rounds=rounds),
        )
        steps = 200
        fit, own = trainer(name, steps), stepped(name)
        if fit is not None:
            whole = {"Trainer.fit": fit, "Step": lambda own=own, steps=steps: [own() for _ in range(steps)]}
            print_table(
                f"Step against Trainer.fit, {steps} steps: {name}", ratios(whole, "Trainer.fit", rounds=5, calls=1)
            )


if __name__ == "__main__":
    main()
