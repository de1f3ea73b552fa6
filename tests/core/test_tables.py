"""Tables of one row an example: what was written is read, also after growing, saving and rounding."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pytest
import torch

from repertory.core import ExampleTable
from repertory.errors import OptionError


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


def through_a_file(module: torch.nn.Module) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("examples", [None, 50])
def test_beyond_the_limit_rows_lie_in_a_file_and_read_the_same(tmp_path: Path, examples: int | None) -> None:
    on_disk, in_memory = ExampleTable(examples, limit=100, folder=tmp_path), ExampleTable(examples)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        index, rows = torch.randint(50, (8,), generator=generator), torch.randn(8, 3, generator=generator)
        on_disk.write(index, rows)
        in_memory.write(index, rows)
    assert (on_disk.on_disk, in_memory.on_disk) == (True, False)
    assert on_disk.bytes == 0
    everything = torch.arange(50)
    known = in_memory.written(everything)
    assert torch.equal(on_disk.written(everything), known)
    places = known.nonzero().flatten()
    assert torch.equal(on_disk.read(places), in_memory.read(places))
    assert torch.equal(on_disk.entries()[1], in_memory.entries()[1])


def test_files_are_made_in_the_folder_that_was_named_and_only_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    make = tempfile.mkstemp
    monkeypatch.setattr(tempfile, "mkstemp", lambda **given: made.append(given["dir"]) or make(**given))
    for limit in (100, 99):
        table = ExampleTable(25, limit=limit, folder=tmp_path)
        table.write(torch.arange(25), torch.arange(25.0)[:, None])
        assert table.on_disk == (limit == 99)
    assert made == [str(tmp_path)]


def test_a_table_that_grows_beyond_the_limit_moves_to_a_file_with_what_it_holds() -> None:
    table = ExampleTable(limit=100)
    table.write(torch.arange(5), torch.arange(5.0)[:, None])
    assert not table.on_disk
    table.write(torch.tensor([60]), torch.tensor([[7.0]]))
    assert table.on_disk
    assert table.read(torch.tensor([0, 4, 60])).flatten().tolist() == [0.0, 4.0, 7.0]


def test_the_file_takes_room_where_it_is_written_and_leaves_nothing_behind(tmp_path: Path) -> None:
    table = ExampleTable(10**7, limit=100, folder=tmp_path)
    table.write(torch.tensor([9_999_999]), torch.tensor([[3.0, 4.0]]))
    assert table.read(torch.tensor([9_999_999])).tolist() == [[3.0, 4.0]]
    assert list(tmp_path.iterdir()) == []


def test_rows_in_a_file_are_saved_weights_only_and_loaded_into_a_file_of_their_own(tmp_path: Path) -> None:
    table, fresh = (ExampleTable(40, limit=100, folder=tmp_path) for _ in range(2))
    table.write(torch.tensor([2]), torch.tensor([[3.0]]))
    fresh.load_state_dict(through_a_file(table))
    table.write(torch.tensor([2]), torch.tensor([[4.0]]))
    assert fresh.on_disk
    assert fresh.read(torch.tensor([2])).item() == 3.0
    assert fresh.written(torch.tensor([1, 2])).tolist() == [False, True]


def test_whole_numbers_may_be_stored() -> None:
    table = ExampleTable(3, dtype=torch.int16)
    table.write(torch.tensor([1]), torch.tensor([[5]]))
    assert (table.read(torch.tensor([1])).item(), table.bytes) == (5.0, 6)


@pytest.mark.parametrize(
    ("options", "words"), [({"limit": -1}, "limit=-1"), ({"folder": "/nowhere/at/all"}, "is not a folder; make it")]
)
def test_storage_that_cannot_be_had_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ExampleTable(**options)
