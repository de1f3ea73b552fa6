"""The loop that both methods of trajectory matching share: make examples from which students follow the experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from repertory.core.randomness import seeded
from repertory.curation.condensing import STRATEGY, Condensed, RealExamples, draw_augmentation, synthetic_start, to_raw
from repertory.curation.trajectories.experts import ExpertTraining, ExpertTrajectories
from repertory.curation.trajectories.matching import INTERMEDIATE, balance, matching_loss, unrolled
from repertory.curation.trajectories.network import FlatNetwork
from repertory.errors import ConflictError, DataError, DivergedError, OptionError, check_choice, check_number
from repertory.estimators.relative_representations.anchors import nearest_to_means

INITIALISATIONS = ("random", "representative")
"""Real examples to begin with: drawn at random, or nearest to the centres of clusters of an expert's outputs."""

_DRAWS = "trajectories"
"""Names the random draws, of both methods alike, so that with the same options they train the same experts."""
_MOMENTUM = 0.5
"""Of the updates of examples and step size, as in the authors' code."""
_SMALLEST_RATE = 1e-6
"""The learned step size stays above this, so that students always move downhill."""
_EXPERTS = 0.5
"""Share of the progress that is the training of experts."""
_THROUGH_TRAINING = 4
"""Backward passes that a gradient step counts as if it is differentiated: its own, and twice its forward and backward
pass."""


class TrajectoryCondenser:
    """Make examples such that a student which learns from them moves as experts that learnt from real ones did.

    Args:
        training: how experts are trained.
        experts: number of experts.
        iterations: updates of the examples.
        steps: steps of a student on the made examples.
        ahead: epochs of an expert that these steps are to catch up with.
        starts: a student starts where an expert was after one of its first `starts` epochs, from 0 on.
        lr_inputs: learning rate of the made examples.
        lr_rate: learning rate of the student's step size.
        rate: the step size at first.
        batch_size: made examples in a step of the student; None takes all.
        strategy: augmentations of which one is drawn for every batch of images, for experts and students alike; empty
            for none. Inputs other than images are left as they are.
        momentum: of the student.
        balanced: scale the student's loss by `balance(start, starts)`.
        intermediate: weights of the snapshots on the way, see `matching_loss`.
        perturbation: noise on the start's convolutions, see `FlatNetwork.perturbed`.
        initialisation: "random" or "representative".

    Raises:
        OptionError: if an option is out of range, or experts end before the last student's target.

    Attributes:
        rate_: the step size that the last set was made for; a float, None before.
    """

    def __init__(
        self,
        training: ExpertTraining,
        *,
        experts: int,
        iterations: int,
        steps: int,
        ahead: int,
        starts: int,
        lr_inputs: float,
        lr_rate: float,
        rate: float,
        batch_size: int | None = None,
        strategy: Sequence[str] = STRATEGY,
        momentum: float = 0.0,
        balanced: bool = False,
        intermediate: str = "none",
        perturbation: float = 0.0,
        initialisation: str = "random",
    ) -> None:
        whole = {"experts": experts, "iterations": iterations, "steps": steps, "ahead": ahead, "starts": starts}
        for name, value in whole.items():
            check_number(name, value, minimum=0 if name == "iterations" else 1, integer=True)
        check_number("lr_inputs", lr_inputs, minimum=0)
        check_number("lr_rate", lr_rate, minimum=0)
        check_number("rate", rate, minimum=_SMALLEST_RATE)
        if batch_size is not None:
            check_number("batch_size", batch_size, minimum=1, integer=True)
        if isinstance(strategy, str):
            raise OptionError(f"strategy={strategy!r} must be a list of operations, as in [{strategy!r}]")
        for name in strategy:
            check_choice("strategy", name, STRATEGY)
        check_number("momentum", momentum, minimum=0, below=1)
        check_choice("balanced", balanced, (True, False))
        check_choice("intermediate", intermediate, INTERMEDIATE)
        check_number("perturbation", perturbation, minimum=0)
        check_choice("initialisation", initialisation, INITIALISATIONS)
        if starts - 1 + ahead > training.epochs:
            raise OptionError(
                f"starts={starts} and ahead={ahead} need experts of {starts - 1 + ahead} epochs, but expert_epochs="
                f"{training.epochs}; train them for longer, or lower starts"
            )
        if intermediate != "none" and steps < ahead:
            raise OptionError(
                f"steps={steps} cannot meet an expert in each of {ahead} epochs; give ahead={ahead} or more"
            )
        self.training = training
        self.number = experts
        self.iterations = iterations
        self.steps = steps
        self.ahead = ahead
        self.starts = starts
        self.lr_inputs = lr_inputs
        self.lr_rate = lr_rate
        self.rate = rate
        self.batch_size = batch_size
        self.strategy = tuple(strategy)
        self.momentum = momentum
        self.balanced = balanced
        self.intermediate = intermediate
        self.perturbation = perturbation
        self.initialisation = initialisation
        self.rate_: float | None = None

    def condense(self, bench: Any) -> Condensed:
        """Train experts on the training part of `bench` and return `bench.per_class` made examples of each class.

        Raises:
            ConflictError: if the targets are not classes.
            DivergedError: if an expert or the made examples stop being finite.
        """
        if bench.splits.train.targets.is_floating_point():
            raise ConflictError(
                "trajectory matching needs classes, but the targets are numbers; give data with classes"
            )
        if not self.iterations and self.initialisation == "random":
            found: Condensed = RealExamples().condense(bench)
            return found
        network, experts = self.experts(bench)
        inputs, targets = synthetic_start(bench)
        if self.initialisation == "representative":
            network.load(experts.read(len(experts) - 1, experts.epochs, experts.epochs)[0].to(bench.device))
            outputs = bench.predict(network.module, "train")
            rows = representatives(
                outputs, bench.splits.train.targets, bench.per_class, bench.generator(f"{_DRAWS}/representatives")
            )
            chosen = bench.splits.train.subset(rows)
            inputs = bench.splits.normaliser(chosen.inputs).to(bench.device)
            targets = chosen.targets.to(bench.device)
        with seeded(bench.seed, f"{_DRAWS}/students"):
            made = self.match(
                network,
                experts,
                inputs,
                targets,
                bench.generator(f"{_DRAWS}/students"),
                on_progress=lambda share: bench.progress(_EXPERTS + (1 - _EXPERTS) * share),
            )
        seen = self.iterations * self.steps * min(self.batch_size or len(targets), len(targets))
        bench.count(forward=seen, backward=_THROUGH_TRAINING * seen)
        return to_raw(bench, made, targets)

    def experts(self, bench: Any) -> tuple[FlatNetwork, ExpertTrajectories]:
        """Train the experts on the training part of `bench`, each from weights of its own.

        Returns:
            The last one's network, and the snapshots of all.
        """
        train = bench.splits.train
        inputs = bench.splits.normaliser(train.inputs).to(bench.device)
        targets = train.targets.to(bench.device)
        found: tuple[FlatNetwork, ExpertTrajectories] | None = None
        for number in range(self.number):
            name = f"{_DRAWS}/expert-{number}"
            network = FlatNetwork(bench.fresh_model(name))
            trajectories = found[1] if found else ExpertTrajectories(self.number, self.training.epochs, network.size)
            found = network, trajectories
            generator = bench.generator(name)
            with seeded(bench.seed, f"{name}/training"):
                self.training.train(
                    network,
                    inputs,
                    targets,
                    trajectories,
                    number,
                    generator=generator,
                    augment=self._augment(inputs, generator),
                )
            seen = len(targets) * self.training.epochs
            smoothed = 1 if self.training.penalty else 0
            bench.count(forward=seen * (1 + smoothed), backward=seen * (1 + smoothed * _THROUGH_TRAINING))
            bench.progress(_EXPERTS * (number + 1) / self.number)
        assert found is not None  # there is one expert at least
        return found

    def match(
        self,
        network: FlatNetwork,
        experts: ExpertTrajectories,
        inputs: Tensor,
        targets: Tensor,
        generator: torch.Generator,
        on_progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Return examples from which students of `network` follow the experts.

        Args:
            network: of the experts; its own weights do not matter, and stay.
            experts: their snapshots.
            inputs: examples to begin with `(examples, ...)`; not changed.
            targets: their classes `(examples,)`, or probabilities `(examples, classes)`.
            generator: CPU generator of all draws.
            on_progress: called with the share of the iterations that are done.

        Returns:
            `(examples, ...)`, without graph. The step size that goes with them is `rate_`.

        Raises:
            DataError: if the experts end too early or are of another network, or a class is none of its outputs.
            DivergedError: if the distance to an expert stops being finite.

        >>> training = ExpertTraining(epochs=2, lr=0.1)
        >>> options = {"experts": 1, "iterations": 5, "steps": 4, "ahead": 1, "starts": 2}
        >>> condenser = TrajectoryCondenser(training, **options, lr_inputs=1.0, lr_rate=0.0, rate=0.1)
        >>> network = FlatNetwork(torch.nn.Linear(2, 2))
        >>> experts = ExpertTrajectories(1, 2, network.size)
        >>> inputs, classes = torch.eye(2), torch.arange(2)
        >>> training.train(network, inputs, classes, experts, 0, generator=torch.Generator())
        >>> condenser.match(network, experts, inputs, classes, torch.Generator()).shape
        torch.Size([2, 2])
        """
        if experts.epochs < self.starts - 1 + self.ahead:
            raise DataError(
                f"experts of {experts.epochs} epochs end before epoch {self.starts - 1 + self.ahead}, which "
                f"starts={self.starts} and ahead={self.ahead} need; train them for longer"
            )
        network.module.train()
        if not targets.is_floating_point():
            with torch.no_grad():
                classes = network(experts.read(0, 0, 0)[0].to(inputs), inputs).shape[1]
            if int(targets.min()) < 0 or int(targets.max()) >= classes:
                raise DataError(
                    f"targets reach from {int(targets.min())} to {int(targets.max())}, but the network has {classes} "
                    f"outputs; number the classes from 0 to {classes - 1}"
                )
        made = inputs.detach().clone().requires_grad_()
        rate = torch.tensor(self.rate, device=inputs.device, dtype=inputs.dtype, requires_grad=True)
        groups = [{"params": [made], "lr": self.lr_inputs}, {"params": [rate], "lr": self.lr_rate}]
        optimizer = torch.optim.SGD(groups, momentum=_MOMENTUM)
        for number in range(self.iterations):
            loss = self.distance(network, experts, made, targets, rate, generator)
            if not bool(loss.isfinite()):
                raise DivergedError(
                    f"the distance to an expert is {loss.item()} in iteration {number}, with a step size of "
                    f"{rate.item():.3g}; lower lr_inputs={self.lr_inputs:g}, lr_rate={self.lr_rate:g} or "
                    f"rate={self.rate:g}"
                )
            made.grad, rate.grad = torch.autograd.grad(loss, [made, rate])
            optimizer.step()
            with torch.no_grad():
                rate.clamp_(min=_SMALLEST_RATE)
            if on_progress is not None:
                on_progress((number + 1) / self.iterations)
        self.rate_ = rate.item()
        return made.detach()

    def distance(
        self,
        network: FlatNetwork,
        experts: ExpertTrajectories,
        inputs: Tensor,
        targets: Tensor,
        rate: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Draw an expert and an epoch, train a student from there on `inputs`, and return how far off it ends; 0-d.

        Args:
            network: of the experts.
            experts: their snapshots.
            inputs: made examples `(examples, ...)`.
            targets: their classes `(examples,)`.
            rate: step size of the student, 0-d.
            generator: CPU generator of the draws.
        """
        expert, start = (int(torch.randint(most, (1,), generator=generator)) for most in (len(experts), self.starts))
        snapshots = experts.read(expert, start, start + self.ahead).to(inputs)
        vectors = unrolled(
            network,
            network.perturbed(snapshots[0], self.perturbation, generator),
            inputs,
            targets,
            rate,
            steps=self.steps,
            momentum=self.momentum,
            factor=balance(start, self.starts) if self.balanced else 1.0,
            batch_size=self.batch_size,
            augment=self._augment(inputs, generator),
            generator=generator,
        )
        return matching_loss(vectors, snapshots[1:], self.intermediate)

    def _augment(self, inputs: Tensor, generator: torch.Generator) -> Callable[[Tensor], Tensor] | None:
        """One operation a batch, with strengths of its own for each image; None for what are no images."""
        if not self.strategy or inputs.ndim != 4:
            return None
        return lambda images: draw_augmentation(generator, self.strategy, batch=len(images))(images)


def representatives(outputs: Tensor, targets: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Return rows that stand for their class: those nearest to the centres of its clusters of outputs.

    Each class is cut into `per_class` clusters by k-means.

    Args:
        outputs: of a trained network `(examples, outputs)`.
        targets: classes `(examples,)`, int64.
        per_class: rows of each class.
        generator: CPU generator, of the clusterings, and of the rows that make up for empty clusters.

    Returns:
        `(classes * per_class,)`, classes in their order, all different.

    Raises:
        DataError: if a class has fewer examples.

    >>> outputs = torch.tensor([[0.0], [0.1], [0.2], [5.0], [9.0]])
    >>> representatives(outputs, torch.tensor([0, 0, 0, 0, 1]), 1, torch.Generator().manual_seed(0)).tolist()
    [2, 4]
    """
    found = []
    for label in range(int(targets.max()) + 1):
        members = (targets == label).nonzero().flatten()
        if len(members) < per_class:
            raise DataError(
                f"class {label} has {len(members)} examples, of which {per_class} cannot stand for it; add some"
            )
        order = torch.randperm(len(members), generator=generator)
        seed = int(torch.randint(2**31, (1,), generator=generator))
        found.append(members[nearest_to_means(outputs[members], per_class, order, seed)])
    return torch.cat(found)
