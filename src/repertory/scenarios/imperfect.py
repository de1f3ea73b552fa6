"""How models that were trained on wrong labels, or on classes of very uneven size, are judged."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.scenarios.bench import Bench
from repertory.training.evaluate import predict

SHOTS = ("many_shot", "medium_shot", "few_shot")
"""Names of the thirds of the classes, by training examples, the largest first."""


def shot_accuracies(predicted: Tensor, targets: Tensor, counts: Tensor) -> dict[str, float]:
    """Return the mean accuracy of the classes, and that of each third of them by their number of training examples.

    Classes without an example here are left out. Two classes are many and few; of equally large ones the first in order
    counts as the larger.

    Args:
        predicted: classes `(examples,)`.
        targets: true classes `(examples,)`.
        counts: training examples of each class `(classes,)`.

    Returns:
        `balanced_accuracy`, and where there are such classes `many_shot`, `medium_shot` and `few_shot`.

    >>> shot_accuracies(torch.tensor([0, 1, 0, 2]), torch.tensor([0, 0, 1, 2]), torch.tensor([9, 5, 1]))
    {'balanced_accuracy': 0.5, 'many_shot': 0.5, 'medium_shot': 0.0, 'few_shot': 1.0}
    """
    classes = len(counts)
    there = targets.bincount(minlength=classes)
    right = targets[predicted == targets].bincount(minlength=classes).double() / there
    seen = there > 0
    found = {"balanced_accuracy": float(right[seen].mean())}
    place = torch.empty(classes, dtype=torch.int64)
    place[counts.argsort(descending=True, stable=True)] = torch.arange(classes)
    thirds = place * 3 // classes if classes > 2 else place * 2
    for third, name in enumerate(SHOTS):
        chosen = seen & (thirds == third)
        if bool(chosen.any()):
            found[name] = float(right[chosen].mean())
    return found


class NoisyBench(Bench):
    """A bench that also asks what became of the training labels that are known to be wrong."""

    def evaluate(self, model: nn.Module, part: str) -> dict[str, float]:
        """Return the metrics on a part of the data, for the record only: nothing is counted.

        With those of "test" come the shares of the wrong training labels that the model repeats, and of those whose
        true class it gives instead, where any are known to be wrong.
        """
        found = super().evaluate(model, part)
        given, true = self.splits.train.targets, self.splits.clean_targets
        wrong = given != true
        if part == "test" and bool(wrong.any()):
            predicted = predict(model, self.splits.train.inputs[wrong], self.splits.normaliser).argmax(1)
            found["wrong_labels_fitted"] = float((predicted == given[wrong]).double().mean())
            found["wrong_labels_corrected"] = float((predicted == true[wrong]).double().mean())
        return found


class UnevenBench(NoisyBench):
    """A bench that judges by the mean accuracy of the classes, and of large, middling and small ones apart."""

    def __init__(self, *given: object, **more: object) -> None:
        super().__init__(*given, **more)  # type: ignore[arg-type]
        self.metric = "balanced_accuracy"
        # Those of the data as they came: a method may add examples for a while.
        self._sizes = self.splits.train.targets.bincount(minlength=self.outputs)

    def metrics_of(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the metrics of outputs `(examples, classes)`, with those of the classes."""
        return {**super().metrics_of(outputs, targets), **shot_accuracies(outputs.argmax(1), targets, self._sizes)}
