"""Experts: networks that are trained on the real examples, and where their parameters were after each epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory.core.storage import Storage
from repertory.curation.trajectories.network import FlatNetwork
from repertory.errors import DataError, DivergedError, check_choice, check_number

NORMS = ("channels", "example")
"""What a slope's length is taken over: the channels of each place, or all numbers of an example."""

_GENTLE, _STEP = 0.5, 0.05
"""The loss of the first epoch is scaled by a half, that of each further one by 0.05 more, until 1."""


class ExpertTrajectories:
    """Parameters of several networks before training and after each epoch, on the CPU or in a file that is mapped.

    Args:
        experts: number of networks.
        epochs: epochs of training; each network has one snapshot more.
        parameters: length of a snapshot.
        storage: decides from which size on they lie in a file, and in which folder.

    Raises:
        OptionError: if a number is below 1.

    >>> made = ExpertTrajectories(experts=1, epochs=2, parameters=3)
    >>> made.write(0, 1, torch.tensor([3.0, 0.0, 4.0]))
    >>> made.read(0, 1, 2).tolist()
    [[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]]
    >>> made.speeds().tolist()
    [[5.0, 5.0]]
    """

    def __init__(self, experts: int, epochs: int, parameters: int, storage: Storage | None = None) -> None:
        for name, value in (("experts", experts), ("epochs", epochs), ("parameters", parameters)):
            check_number(name, value, minimum=1, integer=True)
        self.snapshots = (storage or Storage()).zeros((experts, epochs + 1, parameters), torch.float32)

    def __len__(self) -> int:
        """Number of experts."""
        return len(self.snapshots)

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return self.snapshots.shape[1] - 1

    @property
    def bytes(self) -> int:
        """Size of all snapshots."""
        return self.snapshots.numel() * self.snapshots.element_size()

    def write(self, expert: int, epoch: int, vector: Tensor) -> None:
        """Keep the parameters `(parameters,)` of an expert after `epoch` epochs.

        Raises:
            DataError: if the vector has another length.
        """
        if vector.shape != self.snapshots.shape[2:]:
            raise DataError(
                f"a snapshot of shape {tuple(vector.shape)} does not fit trajectories of {self.snapshots.shape[2]} "
                "parameters; all experts must be one network"
            )
        self.snapshots[expert, epoch] = vector.detach().to("cpu", torch.float32)

    def read(self, expert: int, first: int, last: int) -> Tensor:
        """Return an expert's snapshots after `first` to `last` epochs, `(last - first + 1, parameters)`.

        Raises:
            DataError: if there are none of these.
        """
        if not (0 <= expert < len(self) and 0 <= first <= last <= self.epochs):
            raise DataError(
                f"expert {expert} after {first} to {last} epochs is not there: {len(self)} experts, {self.epochs} "
                "epochs"
            )
        return self.snapshots[expert, first : last + 1]

    def speeds(self) -> Tensor:
        """Return how far each expert moved in each epoch, the length of the difference, `(experts, epochs)`."""
        return torch.stack([torch.linalg.vector_norm(each.diff(dim=0), dim=1) for each in self.snapshots])

    def save(self, path: str | Path) -> None:
        """Write all snapshots to a file."""
        torch.save({"snapshots": self.snapshots}, path)

    @classmethod
    def load(cls, path: str | Path) -> ExpertTrajectories:
        """Return what `save` wrote, mapped from the file: it is read when it is used, and writing leaves it alone.

        Raises:
            DataError: if the file does not hold trajectories.
        """
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        found = saved.get("snapshots") if isinstance(saved, dict) else None
        if not isinstance(found, Tensor) or found.ndim != 3 or found.dtype != torch.float32 or found.shape[1] < 2:
            raise DataError(
                f"{path} holds no float32 snapshots (experts, epochs + 1, parameters); give a file of `save`"
            )
        made = cls.__new__(cls)
        made.snapshots = found
        return made


@dataclass(frozen=True)
class ExpertTraining:
    r"""How an expert is trained: gradient descent, with what smooths its way.

    Args:
        epochs: passes over the real examples.
        lr: learning rate.
        momentum: of the expert's own training.
        weight_decay: as in torch's SGD.
        batch: examples a step.
        decay: factor on the learning rate from epoch `epochs // 2 + 2` on, counted from 0, with a fresh momentum.
        clipped: scale the loss by 0.5, 0.55, ..., 0.95 in the first ten epochs ("clipping loss").
        penalty: weight of `gradient_penalty`.
        penalty_norm: see there.
        prefix: of the first six names in errors.

    Raises:
        OptionError: if an option is out of range.
    """

    epochs: int = 50
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch: int = 256
    decay: float = 1.0
    clipped: bool = False
    penalty: float = 0.0
    penalty_norm: str = "channels"
    prefix: InitVar[str] = ""

    def __post_init__(self, prefix: str) -> None:
        check_number(f"{prefix}epochs", self.epochs, minimum=1, integer=True)
        check_number(f"{prefix}lr", self.lr, above=0)
        check_number(f"{prefix}momentum", self.momentum, minimum=0, below=1)
        check_number(f"{prefix}weight_decay", self.weight_decay, minimum=0)
        check_number(f"{prefix}batch", self.batch, minimum=1, integer=True)
        check_number(f"{prefix}decay", self.decay, above=0, maximum=1)
        check_choice("clipped", self.clipped, (True, False))
        check_number("penalty", self.penalty, minimum=0)
        check_choice("penalty_norm", self.penalty_norm, NORMS)

    def share(self, epoch: int) -> float:
        """Return the factor on the cross-entropy in an epoch, counted from 0.

        >>> [round(ExpertTraining(clipped=True).share(epoch), 2) for epoch in (0, 1, 9, 10)]
        [0.5, 0.55, 0.95, 1.0]
        """
        return min(1.0, _GENTLE + _STEP * epoch) if self.clipped else 1.0

    def train(
        self,
        network: FlatNetwork,
        inputs: Tensor,
        targets: Tensor,
        trajectories: ExpertTrajectories,
        expert: int,
        *,
        generator: torch.Generator,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Train the network's module in place and write its parameters after each epoch as those of `expert`.

        Args:
            network: with the initial weights.
            inputs: real examples `(examples, ...)`.
            targets: their classes `(examples,)`.
            trajectories: where the snapshots go.
            expert: under which number.
            generator: CPU generator of the order of the examples.
            augment: applied to every batch, but not where the slope is penalised.

        Raises:
            DataError: if inputs and targets do not have the same length.
            DivergedError: if the parameters stop being finite.
        """
        if len(inputs) != len(targets):
            raise DataError(f"{len(inputs)} inputs and {len(targets)} targets must be equally many")
        module = network.module.train()
        weights = [value for value in module.parameters() if value.requires_grad]
        trajectories.write(expert, 0, network.vector())
        optimizer = self._optimizer(weights, self.lr)
        for epoch in range(self.epochs):
            if self.decay < 1 and epoch == self.epochs // 2 + 2:
                optimizer = self._optimizer(weights, self.lr * self.decay)
            for rows in torch.randperm(len(inputs), generator=generator).split(self.batch):
                real = inputs[rows]
                output = module(real if augment is None else augment(real))
                loss = self.share(epoch) * functional.cross_entropy(output, targets[rows])
                if self.penalty:
                    loss = loss + self.penalty * gradient_penalty(module, real, self.penalty_norm)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            vector = network.vector()
            if not bool(vector.isfinite().all()):
                raise DivergedError(
                    f"expert {expert} stopped being finite in epoch {epoch}; lower the experts' lr={self.lr}"
                )
            trajectories.write(expert, epoch + 1, vector)
        optimizer.zero_grad()

    def _optimizer(self, weights: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=lr, momentum=self.momentum, weight_decay=self.weight_decay)


def gradient_penalty(model: Callable[[Tensor], Tensor], inputs: Tensor, norm: str = "channels") -> Tensor:
    r"""Return how far the slopes of the summed outputs are from length 1, a mean over examples (and places).

    $$ \operatorname{mean}\Big( \big( \big\lVert \textstyle\frac{\partial}{\partial x} \sum_k z_k(x) \big\rVert_2 - 1
       \big)^2 \Big) $$

    Args:
        model: from `(batch, ...)` to outputs `(batch, outputs)`.
        inputs: `(batch, ...)`, floats.
        norm: "channels" takes the length over the second axis, of each place of an image (the authors' code; of rows
            of a table it is that of the example); "example" over all numbers of an example.

    Returns:
        0-d, differentiable in the model's parameters.

    Raises:
        OptionError: if there is no such norm.

    >>> gradient_penalty(lambda x: 3 * x, torch.ones(2, 1)).item()
    4.0
    """
    check_choice("norm", norm, NORMS)
    inputs = inputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
    if norm == "example":
        slope = slope.flatten(1)
    return (torch.linalg.vector_norm(slope, dim=1) - 1).square().mean()
