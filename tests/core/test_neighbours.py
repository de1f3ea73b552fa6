"""Nearest neighbours in chunks are those of a dense sort and of scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from repertory.core import neighbours
from repertory.core.neighbours import nearest_neighbours, neighbour_graph, similarities
from repertory.errors import DataError, OptionError


def rows(count: int, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_agrees_with_scikit_learn(metric: str) -> None:
    queries, gallery = rows(20, seed=1), rows(50)
    distances, places = NearestNeighbors(n_neighbors=7, metric=metric).fit(gallery.numpy()).kneighbors(queries.numpy())
    values, found = nearest_neighbours(queries, gallery, 7, metric=metric)
    assert found.tolist() == places.tolist()
    expected = torch.from_numpy(distances)
    torch.testing.assert_close(values, 1 - expected if metric == "cosine" else -expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", neighbours.METRICS)
def test_chunks_change_nothing(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = rows(23, seed=1), rows(300)
    whole = nearest_neighbours(queries, gallery, 4, metric=metric, own=torch.arange(23))
    monkeypatch.setattr(neighbours, "_HELD", 256 * 11)
    parts = nearest_neighbours(queries, gallery, 4, metric=metric, own=torch.arange(23))
    assert torch.equal(parts[1], whole[1])
    torch.testing.assert_close(parts[0], whole[0])


def test_a_row_does_not_find_itself_where_its_own_place_is_left_out() -> None:
    gallery = rows(10).repeat(2, 1)
    found = nearest_neighbours(gallery, gallery, 1, own=torch.arange(20))[1].flatten()
    assert found.tolist() == [*range(10, 20), *range(10)]


def test_a_zero_vector_has_cosine_zero() -> None:
    assert similarities(torch.zeros(1, 3), torch.ones(2, 3)).tolist() == [[0.0, 0.0]]


def test_half_precision_is_compared_in_single() -> None:
    near = similarities(rows(3).half(), rows(3).half())
    assert near.dtype == torch.float32
    torch.testing.assert_close(near.diagonal(), torch.ones(3))


def test_no_queries_find_nothing() -> None:
    values, places = nearest_neighbours(rows(0), rows(4), 2)
    assert values.shape == places.shape == (0, 2)


def test_more_neighbours_than_rows_are_refused() -> None:
    with pytest.raises(OptionError, match=r"k=4 is more than the 3 rows that there are to find; lower k"):
        nearest_neighbours(rows(4), rows(4), 4, own=torch.arange(4))
    with pytest.raises(OptionError, match="k=0"):
        nearest_neighbours(rows(4), rows(4), 0)


def test_rows_of_different_width_are_refused() -> None:
    with pytest.raises(DataError, match=r"queries \(2, 5\) and gallery \(2, 4\)"):
        similarities(rows(2), rows(2, dim=4))


def test_a_graph_times_features_sums_over_neighbours() -> None:
    features = rows(12)
    weights, places = nearest_neighbours(features, features, 3)
    dense = torch.zeros(12, 12, dtype=torch.float64).scatter_(1, places, weights)
    graph = neighbour_graph(weights, places)
    torch.testing.assert_close(graph @ features, dense @ features)
    assert graph.to_dense().equal(dense)


@pytest.mark.parametrize("held", [256 * 11, 2**24])
def test_rows_of_a_querys_own_group_are_not_found(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_HELD", held)
    queries, gallery = rows(23, seed=1), rows(300)
    groups = torch.arange(23) % 3, torch.arange(300) % 3
    near = similarities(queries, gallery).masked_fill(groups[0][:, None] == groups[1], -torch.inf)
    values, places = nearest_neighbours(queries, gallery, 4, groups=groups)
    assert places.tolist() == near.topk(4).indices.tolist()
    torch.testing.assert_close(values, near.topk(4).values)


def test_where_no_other_group_is_there_nothing_is_near() -> None:
    groups = torch.zeros(2, dtype=torch.int64), torch.tensor([0, 0, 1])
    assert nearest_neighbours(rows(2), rows(3), 2, groups=groups)[0].isinf().tolist() == [[False, True]] * 2
