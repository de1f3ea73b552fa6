"""Online learning: examples come once; the model predicts each one, suffers the loss, and only then learns from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.core.randomness import seeded
from repertory.core.state import Counts
from repertory.core.step import Step
from repertory.datasets import Dataset, Splits
from repertory.errors import DivergedError, OptionError
from repertory.recipe import Part, Recipe
from repertory.scenarios.registry import Outcome, Settings, refuse_options, split_seed
from repertory.training.budget import Budget, Stopwatch
from repertory.training.build import build_learner
from repertory.training.loaders import BatchLoader
from repertory.training.loop import learning_rate_factor

__all__ = ["baseline", "best_fixed", "budget_of", "default_model", "main_metric", "run", "view"]

_PAIR = ("inputs", "targets")
_ROUNDS = 2000
"""About as many rounds as a stream is given; one example a round where it is shorter."""
_RECORDS = 100
_LARGEST_SOLVE = 2**31
"""Examples times weights up to which the best fixed model is found: about a minute on one core."""


def main_metric(task: str) -> str:
    """Return the metric a comparison is judged by: the mean loss of the predictions made before each update."""
    return "online_loss"


def view(dataset: Dataset) -> Dataset:
    """Return the data as they are.

    Raises:
        OptionError: if they have options that only another scenario reads.
    """
    refuse_options(dataset, "online")
    return dataset


def default_model(dataset: Dataset) -> tuple[Part, str]:
    """Return the network that suits the data when the user names none, and why."""
    return Part(
        "repertory.models.small:mlp", {"depth": 0}
    ), "a linear model, since regret is measured against the best fixed one"


def baseline(dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
    r"""Return the recipe that every method is compared with: online gradient descent with an adaptive step size.

    The step size is $D / \sqrt{\sum_s \lVert g_s \rVert^2}$ (AdaGrad-Norm), the usual $D / (G \sqrt t)$ for
    gradients of unknown length, with D = 1.

    Args:
        dataset: its size sets the examples a round: 1, or as many as make about 2000 rounds.
        model: the network.
        epochs: 1 or None, since the stream passes once.

    Raises:
        OptionError: if another number of epochs is asked for.
    """
    if epochs not in (None, 1):
        raise OptionError(f"epochs={epochs} is not allowed with scenario online: the examples come once; leave it out")
    return Recipe(
        model=model,
        criterion=Part("torch.nn:CrossEntropyLoss" if dataset.task == "classification" else "torch.nn:MSELoss"),
        optimizer=Part("repertory.optim.adagrad_norm:AdaGradNorm", {"lr": 1.0}),
        schedule="constant",
        warmup=0.0,
        epochs=1,
        batch_size=max(1, round(0.85 * len(dataset.targets) / _ROUNDS)),
    )


def budget_of(kind: str, recipe: Recipe, dataset: Dataset, splits: Splits, seconds_per_epoch: float = 0.0) -> Budget:
    """Return the budget that the baseline spends on the stream; predictions count as one more forward pass.

    Args:
        kind: "compute", "steps" or "seconds".
        recipe: the baseline.
        dataset: the data.
        splits: its parts.
        seconds_per_epoch: measured beforehand, for "seconds".
    """
    examples = len(splits.train) + len(splits.test)
    amount = {
        "compute": Counts(forward=2 * examples, backward=examples).passes,
        "steps": float(math.ceil(examples / recipe.batch_size)),
        "seconds": seconds_per_epoch,
    }[kind]
    return Budget(kind, amount)  # type: ignore[arg-type]


def run(recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
    """Run a recipe over the stream once.

    The stream is the training and the test part together, in an order drawn from the seed; its metrics are reported as
    those of the test part. For tuning, a fresh model is run over the validation part in the same way. A learner whose
    budget is spent goes on predicting, without learning. Losses are in nats, or squared errors in units of the target's
    variance.

    Args:
        recipe: what to run.
        dataset: the data.
        **settings: of the run, see `Settings`. A stream is learnt from by one process, so there is no fabric;
            checkpoints are not used, since streams are short.

    Raises:
        DivergedError: if a loss is not finite.
        OptionError: if several devices are asked for.
        UserError: if recipe and data do not fit.
    """
    if settings.get("fabric") is not None:
        raise OptionError("fabric is not allowed with scenario online: one process learns from a stream; leave it out")
    splits = dataset.prepare(split_seed(settings))
    budget = settings["budget"]
    given: dict[str, Any] = {
        "seed": settings["seed"],
        "device": settings.get("device", "cpu"),
        "precision": settings.get("precision", "32"),
    }
    joined = [torch.cat([getattr(part, what) for part in (splits.train, splits.test)]) for what in _PAIR]
    stream = Stream(recipe, dataset, splits, *joined, name="stream", budget=budget, **given)
    stream.play(settings.get("on_progress"), settings.get("on_record"))
    aside = Budget(budget.kind, budget.amount * len(splits.validation) / len(joined[1]))
    held_out = splits.validation.inputs, splits.validation.targets
    other = Stream(recipe, dataset, splits, *held_out, name="validation", budget=aside, **given)
    other.play()
    counts = stream.step.run.counts
    cost = {
        **dataclasses.asdict(counts), "passes": counts.passes, "seconds": stream.seconds, "peak_bytes": 0,
    }  # fmt: skip
    return Outcome(
        stream.learner, {"validation": other.metrics(), "test": stream.metrics()}, stream.curve, cost, splits
    )


class Stream:
    """A learner before a stream of examples.

    Args:
        recipe: how the learner is built and how it learns.
        dataset: what the examples are of.
        splits: where the normaliser and the target's scale come from.
        inputs: `(examples, ...)`.
        targets: `(examples,)`.
        name: names the order and the draws.
        budget: what may be spent on predictions and updates.
        seed: the run's seed.
        device: where to learn.
        precision: "32", "bf16" or "fp16".
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset, splits: Splits, inputs: Tensor, targets: Tensor, *,
        name: str, budget: Budget, seed: int, device: str, precision: str,
    ) -> None:  # fmt: skip
        self._recipe, self._budget, self._seed, self._name = recipe, budget, seed, name
        self._classes = dataset.outputs if dataset.task == "classification" else None
        offset, scale = splits.target_mean, splits.target_std
        self.learner = build_learner(recipe, dataset.in_shape, dataset.outputs, seed, offset=offset, scale=scale)
        self.learner.to(device)
        self.targets = targets if self._classes else ((targets - offset) / scale)[:, None]
        self.inputs = inputs
        self._normaliser = splits.normaliser
        self.step = Step(
            self.learner.network, recipe.optimizer.build, self.learner.criterion,
            [part.build() for part in recipe.methods], epochs=1, examples=len(inputs), classes=self._classes, seed=seed,
            accumulate=recipe.accumulate, precision=precision, clip_norm=recipe.clip_norm,
        )  # fmt: skip
        self.learner.network = self.step.run.model
        self.seconds = 0.0
        self.curve: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._right: list[Tensor] = []
        self._best = math.nan

    def play(
        self,
        on_progress: Callable[[float], None] | None = None,
        on_record: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Predict, suffer and learn, round by round, and then judge by the best fixed model where it can be found."""
        recipe, run, clock = self._recipe, self.step.run, Stopwatch()
        loader = BatchLoader(
            self.inputs, self.targets, batch_size=recipe.batch_size, seed=self._seed, name=self._name,
            normaliser=self._normaliser,
        )  # fmt: skip
        groups = self.step.optimizer.param_groups
        for group in groups:
            group.setdefault("initial_lr", group["lr"])
        every, rows = max(1, len(loader) // _RECORDS), []
        with seeded(self._seed, f"{self._name}/training"):
            for number, batch in enumerate(loader, start=1):
                clock.start()
                self._predict(batch)
                rows.append(batch["index"])
                run.progress = self._budget.share(run.counts, clock.seconds)
                if run.progress < 1.0:
                    factor = learning_rate_factor(recipe.schedule, run.progress, recipe.warmup)
                    for group in groups:
                        group["lr"] = group["initial_lr"] * factor
                    run.model.train()
                    self.step(batch)
                clock.pause()
                if number % every == 0 or number == len(loader):
                    self._record(number, clock.seconds)
                    if on_progress is not None:
                        on_progress(number / len(loader))
        self.seconds = clock.seconds
        self._judge(torch.cat(rows))
        for record in self.curve if on_record is not None else ():
            on_record(record)  # type: ignore[misc]

    def metrics(self) -> dict[str, float]:
        """Return the predictions' mean loss, for classes their accuracy, and for linear models the average regret."""
        found = {"online_loss": float(torch.cat(self._losses).mean())}
        if self._classes:
            found["online_accuracy"] = float(torch.cat(self._right).double().mean())
        if math.isfinite(self._best):
            found["average_regret"] = found["online_loss"] - self._best
        return found

    @torch.no_grad()
    def _predict(self, batch: dict[str, Tensor]) -> None:
        learner, run = self.learner, self.step.run
        learner.eval()
        output = learner(batch["input"].to(run.device)).float().cpu()
        run.counts.forward += len(output)
        target = batch["target"]
        if self._classes:
            self._losses.append(F.cross_entropy(output, target, reduction="none").double())
            self._right.append(output.argmax(1) == target)
        else:
            standard = (output - learner.offset.cpu()) / learner.scale.cpu()
            self._losses.append((standard - target).square().flatten().double())

    def _record(self, rounds: int, seconds: float) -> None:
        suffered = torch.cat(self._losses)
        if not suffered.isfinite().all():
            raise DivergedError(
                f"a loss is not finite after {rounds} rounds; a smaller learning rate or diameter helps most"
            )
        online = {"online_loss": float(suffered.mean())}
        if self._classes:
            online["online_accuracy"] = float(torch.cat(self._right).double().mean())
        self.curve.append(
            {
                "round": rounds,
                "examples": len(suffered),
                "passes": self.step.run.counts.passes,
                "seconds": seconds,
                "online": online,
            }
        )

    def _judge(self, rows: Tensor) -> None:
        """Add the regret against the best fixed model of the whole stream to the curve."""
        weights = linear_size(self.learner.network)
        if not weights or weights * len(rows) > _LARGEST_SOLVE:
            return
        inputs = self._normaliser(self.inputs[rows]).flatten(1)
        best = best_fixed(inputs, self.targets[rows]).cpu()
        self._best = float(best.mean())
        regret = (torch.cat(self._losses) - best).cumsum(0)
        for record in self.curve:
            record["online"]["regret"] = float(regret[record["examples"] - 1])


def linear_size(network: nn.Module) -> int:
    """Return the number of weights of a network that is linear in its inputs and parameters, 0 for any other.

    >>> linear_size(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    15
    >>> linear_size(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    0
    """
    leaves = [module for module in network.modules() if not next(module.children(), None)]
    linear = [module for module in leaves if type(module) is nn.Linear]
    others = any(type(module) not in (nn.Linear, nn.Flatten, nn.Identity) for module in leaves)
    return 0 if others or len(linear) != 1 else sum(p.numel() for p in linear[0].parameters())


def best_fixed(inputs: Tensor, targets: Tensor) -> Tensor:
    r"""Return the losses of the best linear model in hindsight: the minimum of $\sum_t f_t(w) + \lVert w \rVert^2 / 2$.

    The penalty on the weights (not on the bias) keeps the model finite where classes can be separated, and is not part
    of the losses; it is that of scikit-learn's `LogisticRegression` at `C=1`.

    Args:
        inputs: `(examples, width)`.
        targets: classes `(examples,)`, or values `(examples, 1)`.

    Returns:
        `(examples,)`, float64.
    """
    inputs = inputs.double()
    outputs = 1 if targets.is_floating_point() else int(targets.max()) + 1
    weight = torch.zeros(outputs, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def losses() -> Tensor:
        output = F.linear(inputs, weight, bias)
        if targets.is_floating_point():
            return (output - targets.double()).square().flatten()
        return F.cross_entropy(output, targets, reduction="none")

    def total() -> Tensor:
        optimizer.zero_grad()
        value = losses().sum() + weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(total)
    return losses().detach()
