"""Grow and Merge over time: one set without labels after the other, in anyone's code."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from repertory.algorithms.grow_and_merge.merging import grow_classifier
from repertory.algorithms.grow_and_merge.method import GM
from repertory.algorithms.grow_and_merge.novelty import novelty_scores
from repertory.core.classifier import classifier_of
from repertory.core.modes import evaluating
from repertory.core.randomness import generator_for
from repertory.core.step import Step
from repertory.errors import DataError, OptionError, check_number

Training = Callable[[nn.Module, GM, Tensor, Tensor], nn.Module]
"""Trains a network with a method on inputs and targets, -1 where there is no label, and returns it."""
Outputs = Callable[[nn.Module, Tensor], Tensor]
"""Returns a network's outputs for inputs, in evaluation mode and without gradient."""
_CHUNK = 1024


class GrowMerge:
    """A classifier that finds new classes in one set without labels after the other, and keeps the ones it knows.

    Args:
        model: a network that is trained on the known classes, and ends in a plain `nn.Linear` with an output for each.
        method: with the options of every time step; None takes `GM()`.
        train: how a time step is trained; None takes `PlainTraining()`.
        outputs: how outputs are had of inputs; None runs the network on them as they are, in chunks.
        seed: decides what is kept, and the first weights of new outputs.

    Attributes:
        model: the network as it is now.
        rejected: which examples of the last set without labels were taken for new ones `(n,)`, bool.

    >>> from repertory.algorithms.grow_and_merge import GM, GrowMerge, PlainTraining
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> learner = GrowMerge(model, GM(k=2), train=PlainTraining(epochs=2))
    >>> learner.remember(torch.randn(20, 4), torch.arange(20) % 2)
    >>> learner.step(torch.randn(30, 4), new_classes=2)
    >>> learner.predict(torch.randn(5, 4)).shape, learner.classes
    (torch.Size([5]), 4)
    """

    def __init__(
        self,
        model: nn.Module,
        method: GM | None = None,
        *,
        train: Training | None = None,
        outputs: Outputs | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.method = GM() if method is None else method
        self.rejected = torch.zeros(0, dtype=torch.bool)
        self._train = PlainTraining(seed=seed) if train is None else train
        self._outputs = _outputs if outputs is None else outputs
        self._seed = seed
        self._steps = 0
        self._held: Tensor | None = None
        self._inputs: list[Tensor] = []
        self._labels: list[Tensor] = []

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        return classifier_of(self.model)[1].out_features

    def remember(self, inputs: Tensor, labels: Tensor) -> None:
        """Keep some labelled examples of each class, `method.exemplars` of them, drawn at random.

        Args:
            inputs: `(n, ...)`.
            labels: classes `(n,)`, int64, from 0 to below the number of outputs.

        Raises:
            DataError: if inputs and labels do not match, or a label has no output.
        """
        if len(inputs) != len(labels) or labels.ndim != 1 or not len(labels):
            raise DataError(f"{len(inputs)} inputs and labels of shape {tuple(labels.shape)}; give one label an input")
        if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            raise DataError(
                f"labels from {int(labels.min())} to {int(labels.max())} do not fit {self.classes} outputs; "
                "number the known classes from 0 on"
            )
        drawn = torch.rand(len(labels), generator=generator_for(self._seed, f"remember/{len(self._labels)}"))
        self._keep(inputs, labels, drawn)

    def calibrate(self, inputs: Tensor) -> None:
        """Draw the line between known and new by examples of the first known classes that were not trained on.

        Without it labelled examples that are kept stand in, to which a network gives scores that are too sure.

        Args:
            inputs: `(n, ...)`.

        Raises:
            DataError: if there is none.
        """
        if not len(inputs):
            raise DataError("inputs has no example to calibrate by; leave the call out, or give some")
        self._held = inputs

    def step(self, unlabelled: Tensor, new_classes: int) -> None:
        """Learn from a set without labels that holds so many new classes, and maybe known ones.

        New classes get the outputs that follow those there are, in no order that could be known.

        Args:
            unlabelled: inputs `(n, ...)`.
            new_classes: how many new classes are among them; 0 only goes on with the known ones.

        Raises:
            DataError: if nothing was remembered, or there are fewer examples than new classes.
            OptionError: if `new_classes` is no whole number from 0 on, or the method was given a number of its own.
        """
        check_number("new_classes", new_classes, minimum=0, integer=True)
        if self._steps == 0 and self.method.new is not None:
            raise OptionError(
                f"new={self.method.new} is for a Step of your own; here each set says how many classes are new, so "
                "leave it out"
            )
        if not self._labels:
            raise DataError("there is no labelled example to hold on to; call remember(inputs, labels) first")
        if len(unlabelled) < max(1, new_classes):
            raise DataError(
                f"unlabelled has {len(unlabelled)} examples, fewer than the {new_classes} new classes among them; give "
                "more, or a smaller new_classes"
            )
        known = self.classes
        if self._held is not None:
            self.method.reference = novelty_scores(self._outputs(self.model, self._held), self.method.novelty)
        generator = generator_for(self._seed, f"new outputs/{self._steps}")
        self._steps += 1
        self.model = grow_classifier(self.model, new_classes, generator)
        self.method.new = new_classes
        inputs = torch.cat([unlabelled, *self._inputs])
        hidden = torch.full((len(unlabelled),), -1, dtype=torch.int64, device=unlabelled.device)
        self.model = self._train(self.model, self.method, inputs, torch.cat([hidden, *self._labels]))
        index, novel = self.method.novel
        self.rejected = torch.zeros(len(inputs), dtype=torch.bool)
        self.rejected[index.cpu()] = novel.cpu()
        self.rejected = self.rejected[: len(unlabelled)]
        if new_classes:
            sure, label = self._outputs(self.model, unlabelled).softmax(1).max(1)
            found = label >= known
            self._keep(unlabelled[found.to(unlabelled.device)], label[found], sure[found])

    def predict(self, inputs: Tensor) -> Tensor:
        """Return the class of each input `(n,)`, int64: known ones as they were, new ones as they came."""
        return self._outputs(self.model, inputs).argmax(1)

    def _keep(self, inputs: Tensor, labels: Tensor, values: Tensor) -> None:
        """Keep the examples of each class whose values are the largest."""
        order = values.argsort(descending=True, stable=True)
        order = order[labels[order].argsort(stable=True)]
        sizes = labels.bincount()
        place = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        kept = order[place < self.method.exemplars].to(inputs.device)
        self._inputs.append(inputs[kept])
        self._labels.append(labels.to(inputs.device)[kept])


class PlainTraining:
    """Trains one time step with SGD, or another optimizer, and a rate that falls to 0 along a cosine.

    Args:
        epochs: passes over the set and the kept examples.
        batch_size: examples an update.
        optimizer: makes one from parameters; None takes SGD (rate 0.1, momentum 0.9, weight decay 1e-4).
        change: makes a randomly changed version of inputs with a generator; None adds noise of a deviation of 0.1.
        seed: of order and changes.

    Raises:
        OptionError: if an option is out of range.
    """

    def __init__(
        self,
        epochs: int = 30,
        batch_size: int = 128,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        change: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        check_number("epochs", epochs, minimum=1, integer=True)
        check_number("batch_size", batch_size, minimum=2, integer=True)
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed
        self.optimizer = _sgd if optimizer is None else optimizer
        self.change = _noise if change is None else change
        self._calls = 0

    def __call__(self, model: nn.Module, method: GM, inputs: Tensor, targets: Tensor) -> nn.Module:
        """Train the network in place, and return it."""
        generator = generator_for(self.seed, f"plain training/{self._calls}")
        self._calls += 1
        places = torch.arange(len(inputs), device=inputs.device)
        whole = [{"input": inputs[rows], "target": targets[rows], "index": rows} for rows in places.split(_CHUNK)]
        step = Step(
            model, self.optimizer, nn.CrossEntropyLoss(), [method], epochs=self.epochs, examples=len(inputs),
            training=whole, seed=self.seed,
        )  # fmt: skip
        batches = math.ceil(len(inputs) / self.batch_size)
        rates = [group["lr"] for group in step.optimizer.param_groups]
        model.train()
        for epoch in range(self.epochs):
            # Parts of nearly equal size: batch norm cannot take a single example.
            for number, rows in enumerate(torch.randperm(len(inputs), generator=generator).tensor_split(batches)):
                factor = (1 + math.cos(math.pi * (epoch + number / batches) / self.epochs)) / 2
                for group, rate in zip(step.optimizer.param_groups, rates):
                    group["lr"] = rate * factor
                index = rows.to(inputs.device)
                chosen = inputs[index]
                views = [self.change(chosen, generator) for _ in range(2)]
                step({"input": chosen, "target": targets[index], "index": index, "views": views})
            step.end_epoch()
        return model


def _sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)


def _noise(inputs: Tensor, generator: torch.Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator).to(inputs)


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    device = classifier_of(model)[1].weight.device
    with evaluating(model):
        return torch.cat([model(part.to(device)) for part in inputs.split(_CHUNK)]).cpu()
