"""Distributions of which the largest entries are kept: what comes back, where it lies, and that it can be saved."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from repertory.core import TopKTable
from repertory.core.top_k import from_top_k
from repertory.errors import OptionError

RELEASED = json.loads((Path(__file__).parent / "top_k_released.json").read_text())


def distributions(count: int, classes: int, seed: int = 0) -> torch.Tensor:
    return (3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))).softmax(1)


def through_a_file(module: torch.nn.Module) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_kept_entries_are_exact_and_the_rest_is_shared_evenly() -> None:
    whole, index = distributions(6, 12), torch.tensor([3, 0, 5, 1, 4, 2])
    table = TopKTable(6, 12, k=5)
    table.write(index, whole)
    read = table.read(index)
    for row, stored in zip(whole.tolist(), read.tolist()):
        largest = sorted(range(12), key=lambda c: -row[c])[:5]
        rest = (1 - sum(row[c] for c in largest)) / 7
        for label in range(12):
            assert stored[label] == (row[label] if label in largest else pytest.approx(rest, abs=1e-7))
    torch.testing.assert_close(read.sum(1), torch.ones(6))


def test_renormalised_entries_keep_their_ratios_and_the_others_are_zero() -> None:
    whole = distributions(4, 9)
    table = TopKTable(4, 9, k=3, tail="renormalise")
    table.write(torch.arange(4), whole)
    values, places = whole.topk(3)
    expected = torch.zeros(4, 9).scatter(1, places, values / values.sum(1, keepdim=True))
    torch.testing.assert_close(table.read(torch.arange(4)), expected)


@pytest.mark.parametrize("tail", ["smooth", "renormalise"])
@pytest.mark.parametrize("k", [4, 7])
def test_nothing_is_lost_where_all_classes_are_kept(k: int, tail: str) -> None:
    whole = distributions(5, 4)
    table = TopKTable(5, 4, k=k, tail=tail)
    table.write(torch.arange(5), whole)
    torch.testing.assert_close(table.read(torch.arange(5)), whole)


@pytest.mark.parametrize("format", sorted(RELEASED["recovered"]))
def test_agrees_with_the_authors_recovery_of_soft_labels(format: str) -> None:
    case = RELEASED["recovered"][format]
    places, values = torch.tensor(case["places"]), torch.tensor(case["values"])
    tail = "renormalise" if "renorm" in format else "smooth"
    torch.testing.assert_close(from_top_k(places, values, RELEASED["classes"], tail), torch.tensor(case["soft"]))


def test_an_entry_of_one_leaves_nothing_for_the_rest() -> None:
    soft = from_top_k(torch.tensor([[1, 0]]), torch.tensor([[1.0 + 1e-7, 0.0]]), 4)
    assert float(soft.min()) == 0.0


def test_cross_entropy_against_the_table_is_that_against_the_whole_where_the_tail_was_even() -> None:
    whole = from_top_k(torch.tensor([[1, 4]]), torch.tensor([[0.6, 0.2]]), 7)
    table = TopKTable(1, 7, k=2)
    table.write(torch.tensor([0]), whole)
    logits = torch.randn(1, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(F.cross_entropy(logits, table.read(torch.tensor([0]))), F.cross_entropy(logits, whole))


def test_rows_that_were_not_written_are_uniform_and_known_to_be() -> None:
    table = TopKTable(3, 4, k=2)
    table.write(torch.tensor([1]), distributions(1, 4))
    assert table.written(torch.arange(3)).tolist() == [False, True, False]
    assert table.read(torch.tensor([0])).tolist() == [[0.25] * 4]
    assert TopKTable(3, 4).written(torch.arange(3)).tolist() == [False] * 3


@pytest.mark.parametrize("limit", [10, 2**32])
def test_where_the_entries_lie_changes_nothing_and_all_of_it_is_saved(tmp_path: Path, limit: int) -> None:
    whole = distributions(30, 8)
    table, fresh = (TopKTable(30, 8, k=3, limit=limit, folder=tmp_path) for _ in range(2))
    for rows in torch.arange(30).split(7):
        table.write(rows, whole[rows])
    fresh.load_state_dict(through_a_file(table))
    values, places = whole.topk(3)
    for each in (table, fresh):
        assert each.on_disk == (limit == 10)
        assert each.bytes == (0 if limit == 10 else 30 * 3 * (2 + 4))
        assert torch.equal(each.top(torch.arange(30))[0], places)
        assert torch.equal(each.top(torch.arange(30))[1], values)
    assert list(tmp_path.iterdir()) == []


def test_classes_beyond_sixteen_bits_keep_their_number() -> None:
    table = TopKTable(1, 40_000, k=1)
    table.write(torch.tensor([0]), F.one_hot(torch.tensor([39_999]), 40_000).float())
    assert table.top(torch.tensor([0]))[0].item() == 39_999


def test_half_precision_is_stored_as_it_came() -> None:
    whole = distributions(4, 6).bfloat16()
    table = TopKTable(4, 6, k=6)
    table.write(torch.arange(4), whole)
    torch.testing.assert_close(table.top(torch.arange(4))[1], whole.float().sort(descending=True).values)


def test_bad_input_is_refused() -> None:
    table = TopKTable(3, 4)
    with pytest.raises(OptionError, match=r"shape \(1, 5\) do not fit a table of 4 classes"):
        table.write(torch.tensor([0]), torch.ones(1, 5))
    with pytest.raises(IndexError, match="nothing was written"):
        table.read(torch.tensor([0]))
    with pytest.raises(OptionError, match="tail"):
        TopKTable(3, 4, tail="drop")
    with pytest.raises(OptionError, match="classes"):
        from_top_k(torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 5), 4)
    table.write(torch.tensor([0]), distributions(1, 4))
    with pytest.raises(OptionError, match="the saved table has 3 examples with 4 entries each, this one 2 with 4"):
        TopKTable(2, 4).load_state_dict(table.state_dict())
