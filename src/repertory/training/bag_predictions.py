"""What a model of instances says of their bags."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from repertory.core.classifier import classifier_of
from repertory.errors import DataError
from repertory.layers.attention_pooling import attention_weights
from repertory.training.evaluate import penultimate, predict

if TYPE_CHECKING:
    from repertory.training.saved import Predictions

DEFAULTS = {"column": "bag", "pool": "mean", "threshold": 0.5}
"""What a saved model keeps of its bags: the column that names them, how they are scored, and above which score a bag is
positive."""


def mean_by(values: Tensor, groups: Tensor) -> Tensor:
    """Return the mean of each group's rows.

    Args:
        values: `(rows, ...)`.
        groups: number of each row's group `(rows,)`, from 0 on without a gap.

    >>> mean_by(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([2., 5.])
    """
    counts = groups.bincount()
    summed = values.new_zeros((len(counts), *values.shape[1:])).index_add_(0, groups, values)
    return summed / counts.to(values).view(-1, *[1] * (values.ndim - 1))


def pooled(probabilities: Tensor, groups: Tensor, pool: str = "mean") -> Tensor:
    """Return the score of every bag.

    Args:
        probabilities: of each instance to be positive `(rows,)`.
        groups: bag of each `(rows,)`, from 0 on without a gap.
        pool: "mean", "max" or "log-mean-exp", which lies between the two.

    >>> pooled(torch.tensor([0.0, 1.0, 0.5]), torch.tensor([0, 0, 1]), "max")
    tensor([1.0000, 0.5000])
    """
    if pool == "mean":
        return mean_by(probabilities, groups)
    if pool == "max":
        return probabilities.new_zeros(int(groups.max()) + 1).scatter_reduce(0, groups, probabilities, "amax")
    return mean_by(probabilities.exp(), groups).log()


def score_bags(
    model: nn.Module,
    inputs: Tensor,
    groups: Tensor,
    normaliser: Callable[[Tensor], Tensor] | None = None,
    pool: str = "mean",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what a model says of instances and bags.

    A last layer that weighs instances by attention, as `attention-mil` puts it in, scores bags itself; then `pool` does
    not matter.

    Args:
        model: gives two logits an instance.
        inputs: instances `(rows, ...)`.
        groups: bag of each `(rows,)`, from 0 on without a gap.
        normaliser: of the inputs.
        pool: how bags are scored otherwise, one of `repertory.datasets.bags.POOLS`.

    Returns:
        Logits of the instances `(rows, 2)`; score of each bag to be positive `(bags,)`; and the weight of each instance
        in its bag `(rows,)`, None where there is no attention.
    """
    outputs = predict(model, inputs, normaliser)
    layer: Any = classifier_of(model)[1]
    if not callable(getattr(layer, "bag_logits", None)):
        return outputs, pooled(outputs.softmax(1)[:, 1], groups, pool), None
    features = penultimate(model, inputs, normaliser).to(layer.weight.device)
    bags = groups.to(features.device)
    with torch.no_grad():
        scores = layer.bag_logits(features, bags).softmax(1)[:, 1].cpu()
        weights = attention_weights(layer.attention(features), bags).cpu()
    return outputs, scores, weights


@dataclasses.dataclass
class BagPredictions:
    """What a model says of some bags.

    Args:
        ids: name of each bag, in the order in which they come.
        scores: of each bag to be positive `(bags,)`.
        threshold: above it a bag is positive.
        sizes: instances of each bag.
        classes: names of the negative and the positive class.
        instances: what it says of the instances, with the columns `bag` and, where the model weighs them, `weight`.
    """

    ids: list[str]
    scores: Tensor
    threshold: float
    sizes: list[int]
    classes: tuple[str, ...]
    instances: Predictions

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping a bag: `bag`, `prediction`, `score`, and the number of `instances`."""
        return [
            {
                "bag": name,
                "prediction": self.classes[int(score > self.threshold)],
                "score": round(score, 6),
                "instances": size,
            }
            for name, score, size in zip(self.ids, self.scores.tolist(), self.sizes)
        ]


def number_bags(names: Sequence[Any], rows: int) -> tuple[list[str], Tensor]:
    """Return the distinct names of bags in the order in which they come, and the number of each row's bag `(rows,)`.

    Raises:
        DataError: if there is not one name a row.

    >>> number_bags(["b", "a", "b"], 3)
    (['b', 'a'], tensor([0, 1, 0]))
    """
    if len(names) != rows:
        raise DataError(f"bags={len(names)} names do not fit {rows} instances; give the name of its bag for each")
    place = {name: number for number, name in enumerate(dict.fromkeys(map(str, names)))}
    return list(place), torch.tensor([place[str(name)] for name in names])
