"""The bench: what curation and transforms may ask of a run, within its budget."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from repertory.core.classifier import features_and_output
from repertory.core.method import Method
from repertory.core.randomness import generator_for, seeded
from repertory.core.state import Counts
from repertory.core.step import Step
from repertory.datasets import Dataset, Examples, Splits
from repertory.errors import UserError
from repertory.recipe import Recipe, locate
from repertory.scenarios.accounts import held_bytes
from repertory.training.budget import Budget
from repertory.training.build import build_learner, build_methods
from repertory.training.checkpoint import load_checkpoint, save_checkpoint
from repertory.training.evaluate import embed, higher_is_better, main_metric, metrics, predict
from repertory.training.learner import Learner
from repertory.training.loaders import BatchLoader, Sampler
from repertory.training.loop import train

Progress = Callable[[float], None]


class Bench:
    """One run of a recipe on one split of the data: it builds, trains, predicts, and counts what that costs.

    Args:
        recipe: what to run.
        splits: the data for this seed.
        in_shape: shape of one input.
        outputs: number of classes, or 1.
        task: "classification" or "regression".
        seed: the run's seed.
        budget: what the whole run may spend.
        device: where to train.
        precision: "32", "bf16" or "fp16".
        fabric: a launched Fabric, for several devices.
        checkpoints: folder for checkpoints at the end of each epoch; a training whose checkpoint lies there
            goes on from it.
        on_progress: called with the share of the whole budget that is spent.
        on_record: called with each epoch's record.

    Attributes:
        spent: share of the budget that trainings, and what else set itself a share, have taken.
        rows: of the training part that are trained on `(n,)`; None for all.
    """

    def __init__(
        self,
        recipe: Recipe,
        splits: Splits,
        *,
        in_shape: tuple[int, ...],
        outputs: int,
        task: str,
        seed: int,
        budget: Budget,
        device: str = "cpu",
        precision: str = "32",
        fabric: Any = None,
        checkpoints: Path | None = None,
        on_progress: Progress | None = None,
        on_record: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.recipe = recipe
        self.splits = splits
        self.in_shape = in_shape
        self.outputs = outputs
        self.task = task
        self.metric = main_metric(task)
        self.seed = seed
        self.budget = budget
        self.device = torch.device(device)
        self.counts = Counts()
        self.seconds = 0.0
        self.peak_bytes = 0
        self.curve: list[dict[str, Any]] = []
        self._precision = precision
        self._fabric = fabric
        self._checkpoints = checkpoints
        self._on_progress = on_progress
        self._on_record = on_record
        self.spent = 0.0
        self._aside = 0.0
        self.rows: Tensor | None = None
        self.teacher: nn.Module | None = None

    @classmethod
    def of(cls, recipe: Recipe, dataset: Dataset, splits: Splits, **given: Any) -> Self:
        """Return the bench for a recipe on a data set cut to `splits`; `given` are further arguments of the class.

        The seed of the split is none of them, and is passed over.
        """
        given.pop("split_seed", None)
        return cls(recipe, splits, in_shape=dataset.in_shape, outputs=dataset.outputs, task=dataset.task, **given)

    def generator(self, name: str) -> torch.Generator:
        """Return a CPU generator seeded from the run's seed and `name`."""
        return generator_for(self.seed, name)

    def fresh_model(self, name: str = "model") -> Learner:
        """Return a network with the recipe's surgery and criterion, its weights drawn from (seed, name)."""
        offset, scale = self.splits.target_mean, self.splits.target_std
        learner = build_learner(
            self.recipe, self.in_shape, self.outputs, self.seed, name=name, offset=offset, scale=scale,
            class_counts=self._class_counts(None), dense=self.task == "segmentation",
        )  # fmt: skip
        return learner.to(self.device)

    def train(
        self,
        model: Learner,
        share: float,
        *,
        name: str = "train",
        lr_scale: float = 1.0,
        weight_decay_scale: float = 1.0,
        rows: Tensor | None = None,
        objective: Method | None = None,
        part: str = "train",
    ) -> Learner:
        """Train the model in place as the recipe says, and return it.

        Args:
            model: from `fresh_model`, or a copy of such a model.
            share: share of the whole budget to spend.
            name: names the order of the batches and the draws of dropout.
            lr_scale: factor on the recipe's learning rate.
            weight_decay_scale: factor on its weight decay.
            rows: train on these rows of the training part only `(n,)`; None takes what curation left.
            objective: takes the place of the recipe's methods, and trains without labels on all examples of `part`.
            part: "train", "validation" or "unlabelled"; others than the first with an objective only.

        Raises:
            DivergedError: if the loss stops being finite.
        """
        if share <= 0:
            return model
        recipe, fabric = self.recipe, self._fabric
        methods = build_methods(recipe) if objective is None else [objective]
        tasks = self._tasks(self.rows if rows is None else rows) if objective is None else [(rows, None)]
        step = Step(
            model.network,
            functools.partial(self._optimizer, lr_scale, weight_decay_scale),
            model.criterion,
            methods,
            streams=self._streams(methods, name),
            epochs=recipe.epochs * share * len(tasks),
            examples=len(self._examples(part)),
            classes=self.outputs if self.task in ("classification", "segmentation") else None,
            class_counts=self._class_counts(self.rows if rows is None else rows),
            teacher=self.teacher,
            training=self._plain(methods, part, self.rows if rows is None else rows),
            seed=self.seed,
            accumulate=recipe.accumulate,
            precision=self._precision,
            clip_norm=recipe.clip_norm,
            fabric=fabric,
        )
        model.network = step.run.model
        saved = None if self._checkpoints is None else self._checkpoints / f"{name}.pt"
        budget = self._budget(share)
        cost: dict[str, Any] = {"seconds": 0.0, "peak_bytes": 0}

        def on_epoch(progress: float, record: dict[str, Any]) -> None:
            start = time.perf_counter()
            validation = self.evaluate(model, "validation")
            total = {"passes": self.counts.passes + record["passes"], "seconds": self.seconds + record["seconds"]}
            place = {"stage": stage, "progress": self.spent + share * progress, "steps": step.run.counts.steps}
            self.curve.append({**record, **total, **place, "validation": validation})
            if self._on_record is not None:
                self._on_record(self.curve[-1])
            if saved is not None:
                save_checkpoint(saved, step, loader, record["seconds"])
            if self._on_progress is not None:
                self._on_progress(min(1.0, self.spent + share * progress))
            self._aside += time.perf_counter() - start

        with seeded(self.seed, f"{name}/training"):
            for number, task in enumerate(tasks):
                stage = name if len(tasks) == 1 else f"{name}/{number}"
                loader = self._loader(methods, stage, *task, part=part)
                if saved is not None and saved.exists():
                    cost["seconds"] = load_checkpoint(saved, step, loader)
                cost = train(
                    step,
                    loader,
                    budget,
                    schedule=recipe.schedule,
                    warmup=recipe.warmup,
                    on_epoch=on_epoch,
                    # The watch sees every operation of this process; it is not made for those of several.
                    watch_memory=number == len(tasks) - 1
                    and self.peak_bytes == 0
                    and (fabric is None or self.device.type == "cuda"),
                    seconds=cost["seconds"],
                    span=(number / len(tasks), (number + 1) / len(tasks)),
                )
                self._task_end(step, model)
        self.seconds += cost["seconds"]
        self.spent += share
        counts = step.run.counts
        self.count(forward=counts.forward, backward=counts.backward, steps=counts.steps)
        self.peak_bytes = max(self.peak_bytes, cost["peak_bytes"] + held_bytes(step))
        return model

    def keep(self, rows: Tensor) -> None:
        """Train on these rows of the training part only from now on `(n,)`; a further call keeps what is in both."""
        self.rows = rows if self.rows is None else self.rows[torch.isin(self.rows, rows)]

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time inside the block to the run's, beside that of trainings, which count themselves."""
        start, trained, aside = time.perf_counter(), self.seconds, self._aside
        yield
        self.seconds = trained + time.perf_counter() - start - (self._aside - aside)

    def predict(self, model: nn.Module, part: str) -> Tensor:
        """Return the model's outputs `(examples, outputs)` for "train" or "validation", in evaluation mode; counted."""
        inputs = self._examples(part).inputs
        self.count(forward=len(inputs))
        return predict(model, inputs, self.splits.normaliser)

    def evaluate(self, model: nn.Module, part: str) -> dict[str, float]:
        """Return the metrics on a part of the data, for the record only: nothing is counted."""
        examples = self._examples(part)
        return self.metrics_of(predict(model, examples.inputs, self.splits.normaliser), examples.targets)

    def features(self, model: nn.Module, part: str) -> tuple[Tensor, Tensor]:
        """Return what enters the last linear layer `(examples, width)`, and the outputs `(examples, outputs)`."""
        inputs, found = self._examples(part).inputs, []
        model.eval()
        with torch.no_grad():
            for chunk in inputs.split(1024):
                features, output = features_and_output(model, self.splits.normaliser(chunk).to(self.device))
                found.append((features.float().cpu(), output.float().cpu()))
        self.count(forward=len(inputs))
        return torch.cat([f for f, _ in found]), torch.cat([o for _, o in found])

    def score(self, model: nn.Module) -> float:
        """Return the validation metric, turned so that higher is better; the passes are counted."""
        value = self.evaluate(model, "validation")[self.metric]
        self.count(forward=len(self.splits.validation))
        return value if higher_is_better[self.metric] else -value

    def embed(self, model: Learner, part: str) -> tuple[Tensor, Tensor]:
        """Return what a part of the data is searched by `(examples, dim)`, and its targets; counted."""
        self.count(forward=len(self._examples(part)))
        return self.embeddings(model, part), self._examples(part).targets

    def embeddings(self, model: nn.Module, part: str) -> Tensor:
        """Return what a part of the data is searched by `(examples, dim)`, for the record only: nothing is counted."""
        return embed(model, self._examples(part).inputs, self.splits.normaliser)

    def batches(self, part: str = "train") -> Iterator[dict[str, Any]]:
        """Yield normalised batches of a part in the data's order, without augmentation."""
        examples = self._examples(part)
        return iter(
            BatchLoader(
                examples.inputs.to(self.device),
                self._targets(examples).to(self.device),
                batch_size=self.recipe.batch_size,
                shuffle=False,
                normaliser=self.splits.normaliser,
            )
        )

    def count(self, *, forward: int = 0, backward: int = 0, steps: int = 0) -> None:
        """Add own passes to the run's cost."""
        self.counts.forward += forward
        self.counts.backward += backward
        self.counts.steps += steps

    def _tasks(self, rows: Tensor | None) -> Sequence[tuple[Tensor | None, Sampler | None]]:
        """What one training learns one after the other: rows of the training part, and the order they are taken in."""
        sampler = self.recipe.sampler
        return [(rows, None if sampler is None else sampler.build())]

    def _task_end(self, step: Step, model: Learner) -> None:
        """Called when the training has spent a task's share of the budget."""

    def _loader(
        self, methods: Sequence[Method], name: str, rows: Tensor | None, sampler: Sampler | None, part: str = "train"
    ) -> BatchLoader:
        examples = self._examples(part)
        return BatchLoader(
            examples.inputs,
            self._targets(examples),
            batch_size=self.recipe.batch_size,
            seed=self.seed,
            name=name,
            normaliser=self.splits.normaliser,
            augment=self.recipe.augment,
            rows=rows,
            sampler=sampler,
            views=_views(methods),
            groups=examples.groups,
            strong=any("strong" in method.needs for method in methods),
            kind_of_views=self.recipe.views,
        )

    def _plain(self, methods: Sequence[Method], part: str, rows: Tensor | None) -> BatchLoader | None:
        """Batches of what is trained on without augmentation, where a method asks for them."""
        if not any("training" in method.needs for method in methods):
            return None
        examples = self._examples(part)
        return BatchLoader(
            examples.inputs, self._targets(examples), batch_size=self.recipe.batch_size, shuffle=False,
            normaliser=self.splits.normaliser, rows=rows,
        )  # fmt: skip

    def _streams(self, methods: Sequence[Method], name: str) -> dict[str, BatchLoader]:
        """Loaders of what the methods ask for beside the training examples; never of the test part."""
        streams = {}
        strong = any("views:weak-strong" in method.needs for method in methods)
        for stream in streams_needed(methods):
            examples: Examples | None = getattr(self.splits, stream)
            if examples is not None:
                streams[stream] = BatchLoader(
                    examples.inputs,
                    self._targets(examples),
                    batch_size=self.recipe.batch_size * max(m.stream_sizes.get(stream, 1) for m in methods),
                    seed=self.seed,
                    name=f"{name}/{stream}",
                    normaliser=self.splits.normaliser,
                    augment=self.recipe.augment if stream == "unlabelled" else "none",
                    views="weak-strong" if (stream, strong) == ("unlabelled", True) else 0,
                    kind_of_views=self.recipe.views if stream == "unlabelled" else "plain",
                )
        return streams

    def _budget(self, share: float) -> Budget:
        """What a training may spend: its share, less what passes beside earlier trainings have cost."""
        whole = self.budget.part(share)
        if whole.kind != "compute":
            return whole
        debt = max(0.0, self.counts.passes - self.spent * self.budget.amount)
        return Budget("compute", max(0.0, whole.amount - debt))

    def metrics_of(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the metrics of outputs `(examples, ...)` for these targets."""
        return metrics(outputs, targets, self.task)

    def _class_counts(self, rows: Tensor | None) -> Tensor | None:
        """Training examples of each class among these rows, None where there are no classes."""
        targets = self.splits.train.targets
        if self.task != "classification":
            return None
        # Condensed examples may have probabilities as targets.
        targets = targets.argmax(1) if targets.ndim > 1 else targets
        return (targets if rows is None else targets[rows]).bincount(minlength=self.outputs)

    def _examples(self, part: str) -> Examples:
        examples: Examples = getattr(self.splits, part)
        return examples

    def _targets(self, examples: Examples) -> Tensor:
        if self.task != "regression":
            return examples.targets
        return ((examples.targets - self.splits.target_mean) / self.splits.target_std)[:, None]

    def _optimizer(self, lr_scale: float, weight_decay_scale: float, groups: Any) -> torch.optim.Optimizer:
        part = self.recipe.optimizer
        factory = locate(part.factory)
        optimizer = factory(groups, **part.options)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError(
                f"optimizer {part.factory!r} made a {type(optimizer).__name__}, not a torch.optim.Optimizer"
            )
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * lr_scale
            if "weight_decay" in group:
                group["weight_decay"] = group["weight_decay"] * weight_decay_scale
        return optimizer


def _views(methods: Sequence[Method]) -> int | Literal["turned"]:
    """Which further versions of the training inputs the methods ask for."""
    wanted = {need for method in methods for need in method.needs}
    return "turned" if "change" in wanted else 2 if "views" in wanted else 0


def streams_needed(methods: Sequence[Method]) -> list[str]:
    """Return which of the streams that a bench has, "validation" and "unlabelled", some method asks for."""
    wanted = {need for method in methods for need in method.needs}
    return [name for name in ("validation", "unlabelled") if f"stream:{name}" in wanted]
