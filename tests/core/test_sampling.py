"""Batches by class hold every example, and several of every class that they have."""

from __future__ import annotations

import pytest
import torch

from repertory.core.sampling import ClassBatches, RepeatedRows
from repertory.errors import DataError, OptionError
from repertory.training import BatchLoader

TARGETS = torch.tensor([0] * 7 + [1] * 4 + [2] * 1 + [3] * 9)


def order(seed: int = 0, per_class: int = 4) -> torch.Tensor:
    rows = torch.arange(100, 100 + len(TARGETS))
    return ClassBatches(per_class)(rows, TARGETS, torch.Generator().manual_seed(seed)) - 100


def test_groups_are_of_one_class_each_and_every_example_is_there() -> None:
    groups = TARGETS[order()].view(-1, 4)
    assert bool((groups == groups[:, :1]).all())
    assert sorted(order().unique().tolist()) == list(range(len(TARGETS)))
    assert groups[:, 0].bincount().tolist() == [2, 1, 1, 3]


def test_the_order_depends_on_the_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(order(3), order(3))
    assert not torch.equal(order(3), order(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_never_parts_a_group() -> None:
    loader = BatchLoader(torch.zeros(len(TARGETS), 1), TARGETS, batch_size=10, sampler=ClassBatches(4))
    for batch in loader:
        assert set(batch["target"].bincount().tolist()) <= {0, 4, 8}
        assert len(batch["target"]) in (4, 8)


def test_numbers_and_single_examples_are_refused() -> None:
    with pytest.raises(DataError, match="batches by class need one class an example"):
        ClassBatches()(torch.arange(3), torch.ones(3), torch.Generator())
    with pytest.raises(OptionError, match="per_class=1"):
        ClassBatches(1)


def test_repeated_rows_are_passes_over_all_examples_each_in_an_order_of_its_own() -> None:
    rows = torch.arange(50, 70)
    passes = RepeatedRows(3)(rows, torch.zeros(20), torch.Generator().manual_seed(0)).view(3, 20)
    assert all(torch.equal(one.sort().values, rows) for one in passes)
    assert not torch.equal(passes[0], passes[1])


@pytest.mark.parametrize("times", [0, 1.5])
def test_no_whole_number_of_passes_is_refused(times: float) -> None:
    with pytest.raises(OptionError, match="times"):
        RepeatedRows(times)  # type: ignore[arg-type]
