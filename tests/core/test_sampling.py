"""Batches by class hold every example, and several of every class that they have."""

from __future__ import annotations

import pytest
import torch

from repertory.core.sampling import BagBatches, ClassBatches, RepeatedRows
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


def test_batches_of_bags_hold_every_example_and_whole_bags() -> None:
    groups = torch.tensor([5, 0, 5, 5, 2, 2, 0, 5])
    sampler = BagBatches(groups)
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    order = sampler(rows, torch.zeros(7), torch.Generator().manual_seed(0))
    assert sampler.group == 4
    assert all(len(groups[bag].unique()) == 1 for bag in order.view(-1, 4))
    assert len(order) == 12
    assert order.unique().tolist() == rows.tolist()
    assert (order.bincount(minlength=8)[groups == 2] == 2).all()


def test_large_bags_come_in_several_groups_and_the_order_changes() -> None:
    groups = torch.zeros(10, dtype=torch.int64)
    sampler, generator = BagBatches(groups, per_bag=4), torch.Generator().manual_seed(1)
    orders = [sampler(torch.arange(10), torch.zeros(10), generator) for _ in range(2)]
    assert [len(order) for order in orders] == [12, 12]
    assert orders[0].unique().tolist() == list(range(10))
    assert not torch.equal(*orders)


def test_batches_of_bags_without_bags_are_refused() -> None:
    with pytest.raises(DataError, match="rows belong together"):
        BagBatches(None)
    with pytest.raises(OptionError, match="per_bag"):
        BagBatches(torch.zeros(3, dtype=torch.int64), per_bag=0)
