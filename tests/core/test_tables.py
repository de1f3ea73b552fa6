"""Tables of one row an example: what was written is read, also after growing, saving and rounding."""

from __future__ import annotations

import pytest
import torch

from repertory.core import ExampleTable


def test_rows_are_read_in_the_order_of_the_index_after_any_order_of_writing() -> None:
    table, order = ExampleTable(), torch.randperm(20, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(20.0)[:, None] * torch.ones(3)
    for part in order.split(6):
        table.write(part, rows[part])
    assert torch.equal(table.read(torch.arange(20)), rows)


def test_the_later_write_wins() -> None:
    table = ExampleTable(4)
    for value in (1.0, 2.0):
        table.write(torch.tensor([1]), torch.tensor([value]))
    assert table.read(torch.tensor([1])).item() == 2.0


def test_unwritten_rows_are_zero_and_known_to_be() -> None:
    table = ExampleTable(4)
    table.write(torch.tensor([1]), torch.ones(1, 2))
    index = torch.tensor([0, 1, 3, 9])
    assert table.written(index).tolist() == [False, True, False, False]
    assert table.read(torch.tensor([0])).tolist() == [[0.0, 0.0]]


def test_growing_keeps_what_was_written() -> None:
    table = ExampleTable()
    table.write(torch.tensor([0]), torch.tensor([5.0]))
    table.write(torch.tensor([100]), torch.tensor([7.0]))
    assert table.read(torch.tensor([0, 100])).tolist() == [5.0, 7.0]
    assert table.written(torch.tensor([0, 50, 100])).tolist() == [True, False, True]


def test_a_table_of_known_size_is_allocated_once() -> None:
    table = ExampleTable(1000)
    table.write(torch.tensor([3]), torch.ones(1, 4))
    assert table.bytes == 1000 * 4 * 4


def test_half_precision_rows_are_read_as_float32() -> None:
    table = ExampleTable(2, dtype=torch.float16)
    table.write(torch.tensor([0]), torch.tensor([[0.5]]))
    read = table.read(torch.tensor([0]))
    assert (read.dtype, read.item(), table.bytes) == (torch.float32, 0.5, 4)


def test_what_is_stored_carries_no_gradient_and_is_a_copy() -> None:
    table, values = ExampleTable(2), torch.ones(2, requires_grad=True)
    table.write(torch.arange(2), values)
    with torch.no_grad():
        values.zero_()
    assert table.read(torch.arange(2)).tolist() == [1.0, 1.0]
    assert not table.read(torch.arange(2)).requires_grad


def test_the_state_dict_carries_the_rows_into_a_fresh_table() -> None:
    table, fresh = ExampleTable(), ExampleTable()
    table.write(torch.tensor([2]), torch.tensor([[3.0]]))
    saved = table.state_dict()
    fresh.load_state_dict(saved)
    table.write(torch.tensor([2]), torch.tensor([[4.0]]))
    assert fresh.read(torch.tensor([2])).item() == 3.0
    assert fresh.written(torch.tensor([0, 2])).tolist() == [False, True]


def test_the_state_of_an_empty_table_loads() -> None:
    fresh = ExampleTable()
    fresh.load_state_dict(ExampleTable().state_dict())
    assert fresh.rows is None


def test_reading_before_writing_is_an_error() -> None:
    with pytest.raises(IndexError, match="nothing was written"):
        ExampleTable().read(torch.tensor([0]))
