"""What a method sees: the run (what lasts) and the state (one evaluation of the loss)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.distributed import rank, world_size
from repertory.core.frozen import Frozen
from repertory.core.randomness import generator_for
from repertory.errors import UserError


@dataclass
class Counts:
    """What a run has done so far, counted in examples that went through the network.

    Args:
        forward: examples evaluated, with or without gradient.
        backward: examples differentiated.
        steps: updates of the weights.
    """

    forward: int = 0
    backward: int = 0
    steps: int = 0

    @property
    def passes(self) -> float:
        """The cost in forward passes of one example; a backward pass costs two (both are matrix products)."""
        return self.forward + 2.0 * self.backward


class Run:
    """What lasts over the steps and is shared by all methods.

    Attributes:
        model: the network as the user gave it, before any wrapping for several devices.
        criterion: the loss on the network's output.
        parameters: every trainable parameter, of the network, the criterion and the methods.
        epoch: number of finished passes over the training set.
        epochs: how many passes the run is planned to make, or None when nobody said.
        progress: share of the budget that is spent, in [0, 1].
        examples: size of the training set, or None when nobody said.
        classes: number of classes, or None.
        class_counts: training examples of each class `(classes,)` int64, or None when nobody said.
        teacher: a trained network, frozen and in evaluation mode, where the network's parameters are; no part of what
            is optimised or saved. Whoever evaluates it adds to `counts`. None when there is none.
        training: batches of the whole training set, to go over it once more without augmentation; None when nobody
            gave them.
        counts: forward and backward passes so far.
        seed: the run's seed.
        sharded: whether each process holds only a part of every parameter.
        batch_size: examples a step, over all processes, that a method asks for from the next step on; None leaves it to
            the loader. `repertory.training.train` follows it, a loop of your own may.
        sampler: decides the order of the examples from the next epoch on, in place of a random one: called with rows,
            their targets and a generator, returns rows; None leaves it to the loader.
        micro_batch: most examples a process may differentiate at once; larger batches are split. None sets no limit.
        forward: called with a state and the criterion in place of the innermost evaluation of the loss: sets the
            state's output and returns the criterion's values. Of the method that owns the slot "forward"; None runs the
            network and its criterion.
        optimizer: what updates the weights, from the first step on; a method that changes a learning rate sets
            `initial_lr` in its groups too where they have one, which schedules start from.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[..., Tensor],
        *,
        seed: int = 0,
        epochs: float | None = None,
        examples: int | None = None,
        classes: int | None = None,
        class_counts: Tensor | None = None,
        teacher: Frozen | None = None,
        training: Iterable[Any] | None = None,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.parameters: list[nn.Parameter] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self.epoch = 0
        self.epochs = epochs
        self.progress = 0.0
        self.examples = examples
        self.classes = classes
        self.class_counts = class_counts
        self.teacher = teacher
        self.training = training
        self.counts = Counts()
        self.seed = seed
        self.sharded = False
        self.batch_size: int | None = None
        self.sampler: Callable[[Tensor, Tensor, torch.Generator], Tensor] | None = None
        self.micro_batch: int | None = None
        self.forward: Callable[[State, Callable[..., Tensor]], Tensor] | None = None
        self._generators: dict[str, torch.Generator] = {}
        self._losses: Callable[[State], Tensor] | None = None
        self._example_gradients: Callable[[State], Iterator[list[Tensor]]] | None = None

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are."""
        parameter = next(self.model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def world_size(self) -> int:
        """Number of processes that train together."""
        return world_size()

    @property
    def rank(self) -> int:
        """This process's place among them."""
        return rank()

    def generator(self, name: str) -> torch.Generator:
        """Return the CPU generator of that name, made from the run's seed on first use and saved with the step."""
        if name not in self._generators:
            self._generators[name] = generator_for(self.seed, name)
        return self._generators[name]

    def training_batches(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of `training` as a step sees its own: mappings, on the network's device.

        Nothing is counted; whoever passes them through a network adds to `counts`.

        Raises:
            UserError: if one is no batch.
        """
        for batch in self.training or ():
            yield as_entries(batch, self.device)

    def losses(self, state: State) -> Tensor:
        """Evaluate the loss of every example, without gradient, through all methods.

        Returns:
            `(batch,)` values, detached. The evaluation is counted.

        Raises:
            ConflictError: if the criterion gives one number for the batch instead.
        """
        if self._losses is None:
            raise RuntimeError("Run.losses is only available during a step")
        return self._losses(state)

    def example_gradients(self, state: State) -> Iterator[list[Tensor]]:
        """Yield the gradients of every example's loss at the present weights, through all methods, a chunk at a time.

        Layers that normalise by the batch use their running statistics. `.grad` is left alone.

        Yields:
            One tensor `(chunk, *shape)` a parameter, detached. The passes are counted.

        Raises:
            ConflictError: if the criterion gives one number for the batch instead of one an example.
        """
        if self._example_gradients is None:
            raise RuntimeError("Run.example_gradients is only available during a step")
        return self._example_gradients(state)


@dataclass
class State:
    """One evaluation of the loss on one batch.

    Args:
        run: what lasts.
        batch: a mapping with `input`, `target`, and where the data has it `index` (position of each example in the
            training set, int64), `group` (number of its bag), `views` (a list of further versions of the inputs),
            `strong` (strongly changed ones), or a mapping a stream under the stream's name.
        evaluation: 0 for the first pass of a step; methods that record, record only there.
        output: the network's output `(batch, ...)`, set by the innermost loss.
        microgradients: called after each micro-batch's backward pass with its state and the gradient of its mean loss,
            one tensor a parameter, None where there is none; not yet averaged over processes.
    """

    run: Run
    batch: dict[str, Any]
    evaluation: int = 0
    output: Any = None
    memo: dict[str, Any] = field(default_factory=dict)
    microgradients: Callable[[State, list[Tensor | None]], None] | None = None

    def replace(self, **changes: Any) -> State:
        """Return a copy with some fields changed and no output yet; `memo` stays shared within the step.

        >>> State(Run(nn.Identity(), nn.MSELoss()), {}).replace(evaluation=1).evaluation
        1
        """
        kept = ("batch", "evaluation", "memo", "microgradients")
        fields: dict[str, Any] = {name: getattr(self, name) for name in kept}
        fields.update(changes)
        return State(self.run, **fields)

    def with_batch(self, **entries: Any) -> State:
        """Return a copy whose batch has the given entries changed."""
        return self.replace(batch={**self.batch, **entries})

    def select(self, rows: Tensor) -> State:
        """Return a copy that holds only the given rows of every per-example entry; streams stay whole.

        Args:
            rows: positions in the batch `(n,)`, int64.
        """
        size = batch_size(self.batch)
        kept = {name: value if _is_stream(value) else _take(value, size, rows) for name, value in self.batch.items()}
        return self.replace(batch=kept)


def batch_size(batch: Mapping[str, Any]) -> int:
    """Return the number of examples in a batch: the length of its `input`.

    >>> batch_size({"input": torch.zeros(3, 2)})
    3
    """
    value = batch["input"]
    while isinstance(value, (tuple, list, Mapping)):
        value = next(iter(value.values())) if isinstance(value, Mapping) else value[0]
    return len(value)


def split(batch: Mapping[str, Any], parts: int) -> Iterator[dict[str, Any]]:
    """Split a batch, and every stream in it, into `parts` micro-batches of nearly equal size.

    There are fewer where the batch, or a stream, has fewer examples.

    >>> [b["input"].tolist() for b in split({"input": torch.arange(3)}, 2)]
    [[0, 1], [2]]
    """
    size = batch_size(batch)
    count = min(parts, size, *(batch_size(value) for value in batch.values() if _is_stream(value)))
    streams = {name: list(split(value, count)) for name, value in batch.items() if _is_stream(value)}
    bounds = [-(-i * size // count) for i in range(count + 1)]
    for i, rows in enumerate(map(slice, bounds, bounds[1:])):
        yield {name: streams[name][i] if name in streams else _take(value, size, rows) for name, value in batch.items()}


def moved(value: Any, device: torch.device) -> Any:
    """Return `value` with its tensors on the device, inside tuples, lists and mappings too."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True) if value.device != device else value
    if isinstance(value, Mapping):
        return {key: moved(entry, device) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([moved(entry, device) for entry in value])
    return value


def as_entries(batch: Any, device: torch.device) -> dict[str, Any]:
    """Return a batch as a mapping, with its tensors on the device.

    Args:
        batch: a mapping with `input` and `target`, or `(input, target[, index])`.
        device: where its tensors are to be.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(batch, Mapping):
        entries = dict(batch)
    elif isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 3:
        entries = dict(zip(("input", "target", "index"), batch))
    else:
        raise UserError(
            f"a batch is a mapping with 'input' and 'target', or (input, target[, index]); got {type(batch).__name__}"
        )
    return {name: moved(value, device) for name, value in entries.items()}


def _is_stream(value: Any) -> bool:
    return isinstance(value, Mapping) and "input" in value


def _take(value: Any, size: int, rows: Tensor | slice) -> Any:
    """Take rows of what has one an example, inside tuples, lists and mappings too; anything else stays whole."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == size else value
    if isinstance(value, Mapping):
        return {key: _take(entry, size, rows) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([_take(entry, size, rows) for entry in value])
    return value
