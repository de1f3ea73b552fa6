"""Per-example values: only where their mean is the criterion's own value."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from repertory.core.criterion import per_example, reduce_to_examples

OUTPUT = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(label_smoothing=0.1), functional.cross_entropy])
def test_the_mean_of_the_values_is_the_criterion(criterion: object) -> None:
    values = per_example(criterion)(OUTPUT, TARGET)  # type: ignore[arg-type]
    assert values.shape == (5,)
    torch.testing.assert_close(values.mean(), criterion(OUTPUT, TARGET))  # type: ignore[operator]


def test_the_original_keeps_its_reduction() -> None:
    criterion = nn.CrossEntropyLoss()
    per_example(criterion)
    assert criterion.reduction == "mean"


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
        nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CosineEmbeddingLoss(reduction="none"),
    ],
)
def test_a_criterion_whose_values_do_not_average_to_it_stays_as_it_is(criterion: nn.Module) -> None:
    assert per_example(criterion) is criterion


def test_a_function_without_a_reduction_stays_as_it_is() -> None:
    def half_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output.square() / 2

    assert per_example(half_square) is half_square


def test_parameters_stay_shared() -> None:
    class Scaled(nn.CrossEntropyLoss):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    criterion = Scaled()
    assert per_example(criterion).scale is criterion.scale


def test_values_of_many_outputs_average_to_one_an_example() -> None:
    output, target = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    values = reduce_to_examples(nn.MSELoss(reduction="none")(output, target), 4)
    assert values.shape == (4,)
    torch.testing.assert_close(values.mean(), nn.MSELoss()(output, target))


def test_one_number_stays_one_number() -> None:
    assert reduce_to_examples(torch.tensor(2.0), 4).ndim == 0
