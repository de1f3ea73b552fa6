"""The index finds what a search by brute force finds, says what it cannot do, and survives saving."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from repertory.core.neighbours import METRICS, nearest_neighbours
from repertory.errors import DataError, OptionError, UserError
from repertory.retrieval import Index


def rows(count: int, seed: int = 0, dim: int = 6) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("options", [{}, {"kind": "ivf", "cells": 5, "probes": 5}])
def test_finds_what_brute_force_finds(metric: str, options: dict[str, object]) -> None:
    index = Index(6, metric=metric, **options)
    index.add(rows(120))
    scores, numbers = index.search(rows(9, seed=1), k=4)
    expected, places = nearest_neighbours(rows(9, seed=1), rows(120), 4, metric=metric)
    assert torch.equal(numbers, places)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_vectors_are_found_under_their_numbers_in_parts_and_after_saving(tmp_path: Path) -> None:
    index = Index(6)
    index.add(rows(20), torch.arange(100, 120))
    index.add(rows(20, seed=1), torch.arange(500, 520))
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index", dim=6)
    assert len(again) == len(index) == 40
    for each in (index, again):
        assert each.search(rows(20, seed=1), 1)[1].flatten().tolist() == list(range(500, 520))


def test_numbers_count_on() -> None:
    index = Index(6)
    index.add(rows(3))
    index.add(rows(2, seed=1))
    assert index.search(rows(2, seed=1), 1)[1].flatten().tolist() == [3, 4]


def test_few_probes_find_most_of_the_neighbours_of_clustered_vectors() -> None:
    centres = 5 * rows(10, seed=2)
    vectors = centres.repeat_interleave(50, 0) + 0.1 * rows(500)
    index = Index(6, kind="ivf", cells=10, probes=3)
    index.add(vectors)
    found = index.search(vectors[::7], 5)[1]
    exact = nearest_neighbours(vectors[::7], vectors, 5)[1]
    shared = sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), exact.tolist()))
    assert shared / exact.numel() > 0.95


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    index = Index(6)
    with pytest.raises(OptionError, match=r"k=1 is more than the 0 vectors"):
        index.search(rows(1), 1)
    with pytest.raises(DataError, match=r"vectors have shape \(2, 5\); the index takes \(n, 6\)"):
        index.add(rows(2, dim=5))
    with pytest.raises(DataError, match="vectors: row 1 is not finite"):
        index.add(torch.tensor([[0.0] * 6, [float("inf")] * 6]))
    with pytest.raises(DataError, match="2 vectors do not match numbers"):
        index.add(rows(2), torch.arange(3))
    with pytest.raises(DataError, match="the index is empty"):
        Index(6, kind="ivf").save(tmp_path)
    with pytest.raises(OptionError, match="cells=9 is more than the 4 vectors"):
        Index(6, kind="ivf", cells=9).add(rows(4))
    index.add(rows(4))
    index.save(tmp_path / "index")
    with pytest.raises(UserError, match="has vectors of 6 numbers, not 7"):
        Index.load(tmp_path / "index", dim=7)
    (tmp_path / "index" / "vectors.faiss").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="holds no index that can be read"):
        Index.load(tmp_path / "index")


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r'pip install "repertory\[retrieval\]"'):
        Index(3)
