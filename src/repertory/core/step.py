"""The training step that methods wrap."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.conflicts import check_batch, check_methods
from repertory.core.distributed import sum_over_processes
from repertory.core.evaluation import Evaluation, needs_closure
from repertory.core.frozen import frozen_teacher
from repertory.core.gradients import example_gradients, noted
from repertory.core.groups import build_optimizer, parameter_groups
from repertory.core.method import Inner, Method
from repertory.core.precision import Precision
from repertory.core.sharded import is_sharded, spread_like, spread_optimizer_state, whole
from repertory.core.state import Run, State, as_entries, batch_size, split
from repertory.core.streams import Stream
from repertory.errors import ConflictError, UserError, check_number

_FORMAT = 1


class Step:
    """One training step: forward, backward, clipping and update, with methods wrapped around its three calls.

    `step > gradient > loss`: each is a call that a method may wrap; the first in the list is outermost. The step owns
    what no method should: zeroing gradients, micro-batches, autocast and loss scaling, synchronisation between
    devices, clipping, counting and random streams.

    Args:
        model: the network.
        optimizer: an optimizer on the network's parameters, or a callable that makes one from parameter groups
            (needed where a method changes the network before training).
        criterion: the loss `(output, target) -> value`: a module or function; with `reduction="mean"` it is evaluated
            an example at a time, as methods need it.
        methods: what to wrap around the step, outermost first.
        streams: further loaders by name, such as `{"unlabelled": loader}`; each step takes one batch of each.
        epochs: how many passes over the data are planned; methods with a schedule need it.
        examples: size of the training set; lets tables be allocated at once.
        classes: number of classes.
        class_counts: training examples of each class `(classes,)`, for methods that ask for them.
        teacher: a trained network for methods that learn from one; it is frozen, and neither optimised nor saved.
        training: a loader of the whole training set, `(input, target, index)` without augmentation, which a method may
            go over by itself.
        seed: where the methods' random streams start.
        accumulate: number of micro-batches that each batch is split into.
        precision: "32", "bf16" or "fp16".
        clip_norm: largest norm of the gradient that reaches the optimizer.
        fabric: a launched `lightning.fabric.Fabric`, for several devices.

    Attributes:
        ends_epochs: whether the loop is known to call `end_epoch`, so that an epoch may repeat examples without end.

    Raises:
        ConflictError: if the methods cannot work together, or need what is not there.

    >>> model = nn.Linear(2, 3)
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    >>> loss = step((torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])))
    >>> loss.shape, step.run.counts.steps
    (torch.Size([]), 1)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer],
        criterion: Callable[..., Tensor],
        methods: Sequence[Method] = (),
        *,
        streams: Mapping[str, Iterable[Any]] | None = None,
        epochs: float | None = None,
        examples: int | None = None,
        classes: int | None = None,
        class_counts: Tensor | None = None,
        teacher: nn.Module | None = None,
        training: Iterable[Any] | None = None,
        seed: int = 0,
        accumulate: int = 1,
        precision: str = "32",
        clip_norm: float | None = None,
        fabric: Any = None,
    ) -> None:
        check_number("accumulate", accumulate, minimum=1, integer=True)
        if clip_norm is not None:
            check_number("clip_norm", clip_norm, above=0)
        self.methods = list(methods)
        self.streams = {name: Stream(name, loader) for name, loader in (streams or {}).items()}
        self.accumulate = accumulate
        self.precision = Precision(precision)
        self.clip_norm = clip_norm
        self.fabric = fabric
        offers = {f"stream:{name}" for name in self.streams}
        offers |= {"epochs"} if epochs is not None else set()
        offers |= {"classes"} if classes is not None else set()
        offers |= {"class_counts"} if class_counts is not None else set()
        offers |= {"teacher"} if teacher is not None else set()
        offers |= {"training"} if training is not None else set()
        check_methods(self.methods, criterion, offers, {"target": "hard"})
        self.run = Run(
            model,
            criterion,
            seed=seed,
            epochs=epochs,
            examples=examples,
            classes=classes,
            class_counts=class_counts,
            teacher=None if teacher is None else frozen_teacher(teacher, model),
            training=training,
        )
        self.run._losses = self._losses
        for method in self.methods:
            method.to(self.run.device)
            method.setup(self.run)
        self._evaluation = Evaluation(self.run, self.methods, self.precision)
        self.run._example_gradients = functools.partial(example_gradients, self._evaluation)
        # Sharding puts other parameters in place of the network's, so the optimizer comes after it.
        self._wrapped: Any = self._evaluation if fabric is None else fabric.setup_module(self._evaluation)
        if self.run.teacher is not None:
            self.run.teacher.to(self.run.device)
        self.optimizer = build_optimizer(
            optimizer, parameter_groups(self.run, self.methods), self._evaluation, self.methods
        )
        self._searches = needs_closure(self.optimizer)
        if self._searches and self.precision.dtype is torch.float16:
            raise ConflictError(
                f"{type(self.optimizer).__name__} evaluates the loss several times a step, which fp16's loss scaling "
                "does not allow; use precision='bf16' or '32'"
            )
        if fabric is not None:
            self.optimizer = fabric.setup_optimizers(self.optimizer)
        self.run.optimizer = self.optimizer
        self.run.parameters = [p for p in self._evaluation.parameters() if p.requires_grad]
        self.run.sharded = any(map(is_sharded, self.run.parameters))
        self._gradient_call = self._chain("gradient", self._gradient)
        self._step_call = self._chain("step", self._update)
        self.ends_epochs = False
        self._checked = False
        self._seen = 0

    def __call__(self, batch: Mapping[str, Any] | Sequence[Any]) -> Tensor:
        """Make one step.

        Args:
            batch: a mapping with `input`, `target` and what the methods need (`index`, ...), or `(input, target)`, or
                `(input, target, index)`.

        Returns:
            The batch's mean loss before the update, 0-d, detached.
        """
        entries = as_entries(batch, self.run.device)
        for name, stream in self.streams.items():
            entries[name] = as_entries(next(stream), self.run.device)
        if not self._checked:
            check_batch(self.methods, entries)
            self._checked = True
        self._count_epoch(entries)
        loss = self._step_call(State(self.run, entries))
        self.run.counts.steps += 1
        return loss

    def end_epoch(self) -> None:
        """Say that a pass over the training set is complete. Call it after each pass in a loop of your own."""
        for method in self.methods:
            method.epoch_end(self.run)
        self.run.epoch += 1
        self._seen = 0
        if self.run.epochs:
            self.run.progress = min(1.0, self.run.epoch / self.run.epochs)

    def end_task(self) -> None:
        """Say that a task is complete, where several come one after the other. Call it before the next one begins."""
        for method in self.methods:
            method.task_end(self.run)

    def explain(self) -> str:
        """Return who wraps what, outermost first.

        >>> model = nn.Linear(2, 2)
        >>> Step(model, torch.optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss()).explain()
        'step > gradient > loss'
        """
        words = []
        for call in ("step", "gradient", "loss"):
            names = [method.slug for method in self.methods if method.wraps(call)]
            words.append(f"{call}[{', '.join(names)}]" if names else call)
        return " > ".join(words)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on: tensors and plain values, loadable weights-only.

        With sharded parameters all processes must call it together.
        """
        criterion = self.run.criterion
        counts = self.run.counts
        state = {
            "format": _FORMAT,
            "model": self.run.model.state_dict(),
            "criterion": criterion.state_dict() if isinstance(criterion, nn.Module) else {},
            "methods": {method.slug: method.state_dict() for method in self.methods},
            "optimizer": self.optimizer.state_dict(),
            "generators": {name: g.get_state() for name, g in self.run._generators.items()},
            "streams": {name: stream.state_dict() for name, stream in self.streams.items()},
            "precision": self.precision.state_dict(),
            "run": {
                "epoch": self.run.epoch,
                "epochs": self.run.epochs,
                "progress": self.run.progress,
                "forward": counts.forward,
                "backward": counts.backward,
                "steps": counts.steps,
                "seen": self._seen,
                "batch_size": self.run.batch_size,
            },
        }
        return whole(state) if self.run.sharded else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            UserError: if it was not made by a step with these methods.
        """
        if not isinstance(state, Mapping) or state.get("format") != _FORMAT or "methods" not in state:
            raise UserError("this is not the state of a repertory Step; give what Step.state_dict() returned")
        slugs = {method.slug for method in self.methods}
        if set(state["methods"]) != slugs:
            raise UserError(
                f"the state was saved with methods {sorted(state['methods'])}, this step has {sorted(slugs)}; "
                f"build the step with the saved ones"
            )
        self._load_module(self.run.model, state["model"])
        if isinstance(self.run.criterion, nn.Module):
            self._load_module(self.run.criterion, state["criterion"])
        for method in self.methods:
            self._load_module(method, state["methods"][method.slug])
        optimizer = state["optimizer"]
        if self.run.sharded:
            held = [p for group in self.optimizer.param_groups for p in group["params"]]
            optimizer = spread_optimizer_state(optimizer, held)
        self.optimizer.load_state_dict(optimizer)
        for name, generator_state in state["generators"].items():
            self.run.generator(name).set_state(generator_state)
        for name, stream in self.streams.items():
            stream.load_state_dict(state["streams"].get(name, {}))
        self.precision.load_state_dict(state["precision"])
        saved = state["run"]
        self.run.epoch, self.run.epochs, self.run.progress = saved["epoch"], saved["epochs"], saved["progress"]
        counts = self.run.counts
        counts.forward, counts.backward, counts.steps = saved["forward"], saved["backward"], saved["steps"]
        self._seen = saved["seen"]
        self.run.batch_size = saved.get("batch_size", self.run.batch_size)

    def _load_module(self, module: nn.Module, saved: Mapping[str, Any]) -> None:
        module.load_state_dict(spread_like(saved, module.state_dict()) if self.run.sharded else saved)

    def _chain(self, call: str, inner: Inner) -> Inner:
        for method in reversed(self.methods):
            if method.wraps(call):
                inner = functools.partial(getattr(method, call), inner=inner)
        return inner

    def _count_epoch(self, entries: Mapping[str, Any]) -> None:
        self._seen += batch_size(entries)
        examples = self.run.examples
        if examples and not self.ends_epochs and self._seen * self.run.world_size > 2 * examples + batch_size(entries):
            timed = [m.slug for m in self.methods if "epochs" in m.needs or m.wraps("epoch_end")]
            if timed:
                raise UserError(
                    f"{self._seen} of {examples} examples were seen since the last end of an epoch, and "
                    f"{timed[0]} goes by "
                    f"epochs; call step.end_epoch() after each pass over the data"
                )

    def _losses(self, state: State) -> Tensor:
        values = []
        with torch.no_grad():
            for part in self._micro(state):
                values.append(self._wrapped(part))
                self.run.counts.forward += batch_size(part.batch)
        if values[0].ndim == 0:
            raise ConflictError(
                f"a method needs the loss of each example, but {type(self.run.criterion).__name__} gives "
                "one number for the "
                f"batch; use a criterion with reduction='mean' or 'none' and without class weights"
            )
        return torch.cat(values)

    def _micro(self, state: State) -> list[State]:
        parts = self.accumulate
        if self.run.micro_batch is not None:
            # From the mean over processes, so that all of them make as many.
            parts = max(parts, math.ceil(self._mean_size(state) / self.run.micro_batch))
        return [state] if parts == 1 else [state.replace(batch=batch) for batch in split(state.batch, parts)]

    def _gradient(self, state: State) -> Tensor:
        run, fabric = self.run, self.fabric
        for parameter in run.parameters:
            parameter.grad = None
        parts = self._micro(state)
        size = self._mean_size(state)
        total: Tensor | None = None
        with noted(run.parameters if state.microgradients is not None else []) as seen:
            for number, part in enumerate(parts, start=1):
                count = batch_size(part.batch)
                hold = fabric is not None and number < len(parts)
                with fabric.no_backward_sync(self._wrapped) if hold else contextlib.nullcontext():
                    loss = self._wrapped(part)
                    loss = loss.mean() if loss.ndim else loss
                    if count != size:
                        loss = loss * (count / size)
                    scaled = loss * self.precision.scale if self.precision.scale != 1.0 else loss
                    if fabric is None:
                        scaled.backward()
                    else:
                        fabric.backward(scaled)
                total = loss.detach() if total is None else total + loss.detach()
                run.counts.forward += count
                run.counts.backward += count
                if state.microgradients is not None:
                    factor = size / (count * self.precision.scale)
                    state.microgradients(part, [None if g is None else g.detach() * factor for g in seen])
                    seen[:] = [None] * len(seen)
        if self.precision.dtype is torch.float16:
            self.precision.unscale([p.grad for p in run.parameters if p.grad is not None])
        assert total is not None
        return total

    def _mean_size(self, state: State) -> float:
        # Processes with shares of different size must not weigh the same in the mean of their gradients.
        size = batch_size(state.batch)
        if self.fabric is None or self.run.world_size == 1:
            return size
        total = sum_over_processes(torch.tensor(float(size), device=self.run.device))
        return float(total) / self.run.world_size

    def _update(self, state: State) -> Tensor:
        if self._searches:
            return self._search(state)
        loss = self._gradient_call(state)
        if self.precision.take_step():
            self._clip()
            self.optimizer.step()
        return loss

    def _search(self, state: State) -> Tensor:
        """Update with an optimizer that evaluates the loss as often as it likes, at weights of its choice."""
        losses: list[Tensor] = []

        def closure() -> Tensor:
            losses.append(self._gradient_call(state.replace(evaluation=state.evaluation + len(losses))))
            self._clip()
            return losses[-1]

        self.optimizer.step(closure)  # type: ignore[arg-type]
        return losses[0]

    def _clip(self) -> None:
        if self.clip_norm is None:
            return
        if self.fabric is None:
            nn.utils.clip_grad_norm_(self.run.parameters, self.clip_norm)
        else:
            self.fabric.clip_gradients(self._wrapped, self.optimizer, max_norm=self.clip_norm, error_if_nonfinite=False)
