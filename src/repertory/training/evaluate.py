"""Predictions and the metrics that a comparison reports."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.core.classifier import features_and_output
from repertory.core.modes import evaluating

_CHUNK = 1024
_BINS = 15
"""Bins of the expected calibration error, as in most of the literature since Guo et al. (2017)."""

higher_is_better = {"accuracy": True, "nll": False, "ece": False, "rmse": False, "mae": False, "r2": True}
higher_is_better |= {"online_loss": False, "online_accuracy": True, "average_regret": False}
higher_is_better |= dict.fromkeys(("recall_at_1", "recall_at_5", "recall_at_10", "r_precision", "mrr", "nmi"), True)
higher_is_better |= {"map_at_r": True, "map_at_r_eighth": True}
higher_is_better |= dict.fromkeys(("mean_iou", "mean_dice", "pixel_accuracy"), True)
higher_is_better |= dict.fromkeys(("object_dice", "object_precision", "object_recall"), True)
higher_is_better |= {"average_accuracy": True, "forgetting": False}
higher_is_better |= {"balanced_accuracy": True, "many_shot": True, "medium_shot": True, "few_shot": True}
higher_is_better |= {"wrong_labels_fitted": False, "wrong_labels_corrected": True}
higher_is_better |= dict.fromkeys(("bag_auc", "bag_accuracy", "instance_auc", "instance_f1"), True)
higher_is_better |= dict.fromkeys(("compatibility", "cross_version", "new_on_old"), True)
higher_is_better |= dict.fromkeys(("probe_accuracy", "knn_accuracy"), True)
higher_is_better |= {"agreement": True, "teacher_accuracy": True}
higher_is_better |= {"in_distribution_accuracy": True, "worst_environment_accuracy": True}
higher_is_better |= {"known_accuracy": True, "discovery": True, "known_forgetting": False}
"""Direction of each metric."""


def main_metric(task: str) -> str:
    """Return the metric a comparison is judged by: accuracy, or root mean squared error."""
    return "accuracy" if task == "classification" else "rmse"


@torch.no_grad()
def predict(
    model: nn.Module, inputs: Tensor, normaliser: Callable[[Tensor], Tensor] | None = None, chunk: int = _CHUNK
) -> Tensor:
    """Return the outputs of the model in evaluation mode; the mode is put back afterwards.

    Args:
        model: the network.
        inputs: `(examples, ...)`.
        normaliser: applied to each chunk first.
        chunk: examples at a time.

    Returns:
        `(examples, outputs)` on the CPU, float32.
    """
    return _in_chunks(model, model, inputs, normaliser, chunk)


@torch.no_grad()
def embed(
    model: nn.Module, inputs: Tensor, normaliser: Callable[[Tensor], Tensor] | None = None, chunk: int = _CHUNK
) -> Tensor:
    """Return what the model's `embed` gives in evaluation mode; the mode is put back afterwards.

    Args:
        model: a network with `embed(inputs)`, such as a `Learner`.
        inputs: `(examples, ...)`.
        normaliser: applied to each chunk first.
        chunk: examples at a time.

    Returns:
        `(examples, dim)` on the CPU, float32.
    """
    call: Callable[[Tensor], Tensor] = model.embed  # type: ignore[assignment]
    return _in_chunks(model, call, inputs, normaliser, chunk)


@torch.no_grad()
def penultimate(
    model: nn.Module, inputs: Tensor, normaliser: Callable[[Tensor], Tensor] | None = None, chunk: int = _CHUNK
) -> Tensor:
    """Return what enters the model's last linear layer in evaluation mode `(examples, width)`, as `embed` does."""
    return _in_chunks(model, lambda part: features_and_output(model, part)[0], inputs, normaliser, chunk)


def _in_chunks(
    model: nn.Module,
    call: Callable[[Tensor], Tensor],
    inputs: Tensor,
    normaliser: Callable[[Tensor], Tensor] | None,
    chunk: int,
) -> Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    outputs = []
    with evaluating(model):
        for part in inputs.split(chunk):
            part = part if normaliser is None else normaliser(part)
            outputs.append(call(part.to(device)).float().cpu())
    return torch.cat(outputs)


def calibration_error(probabilities: Tensor, targets: Tensor, bins: int = _BINS) -> float:
    """Return the expected calibration error: mean gap between confidence and accuracy over equal-width bins.

    Args:
        probabilities: `(examples, classes)`.
        targets: `(examples,)`, int64.
        bins: number of bins of the confidence, right-closed.

    >>> calibration_error(torch.tensor([[0.8, 0.2], [0.2, 0.8]]), torch.tensor([0, 0])) # doctest: +ELLIPSIS
    0.3...
    """
    confidence, predicted = probabilities.max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = (predicted == targets).double() - confidence.double()
    return float(torch.zeros(bins, dtype=torch.float64).index_add_(0, place, gap).abs().sum() / len(targets))


def metrics(outputs: Tensor, targets: Tensor, task: str) -> dict[str, float]:
    """Return every metric of the task.

    Args:
        outputs: logits `(examples, classes)`, or values `(examples, 1)`.
        targets: classes `(examples,)` int64, or values `(examples,)`.
        task: "classification" or "regression".

    Returns:
        accuracy, nll (nats) and ece; or rmse, mae (in the target's unit) and r2.
    """
    if task == "classification":
        return {
            "accuracy": float((outputs.argmax(1) == targets).double().mean()),
            "nll": float(F.cross_entropy(outputs.double(), targets)),
            "ece": calibration_error(outputs.softmax(1), targets),
        }
    error = outputs.flatten().double() - targets.flatten().double()
    spread = (targets.double() - targets.double().mean()).square().sum()
    return {
        "rmse": float(error.square().mean().sqrt()),
        "mae": float(error.abs().mean()),
        "r2": float(1 - error.square().sum() / spread) if spread > 0 else 0.0,
    }
