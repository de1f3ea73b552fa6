"""The queries of a sheet are spread over the classes, the same for all embeddings."""

from __future__ import annotations

import torch

from repertory.retrieval.sheet import neighbour_rows

LABELS = torch.arange(30) % 3
CLASSES = ("a", "b", "c")


def test_neighbours_come_nearest_first_and_say_whether_they_are_right() -> None:
    angles = torch.tensor([0.0, 5.0, 12.0, 40.0]).deg2rad()
    rows = neighbour_rows(
        torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 1, 0, 0]), [7, 5, 9, 4], CLASSES
    )
    first = next(row for row in rows if row["row"] == 7)
    assert [found["row"] for found in first["found"]] == [5, 9, 4]
    assert [found["right"] for found in first["found"]] == [False, True, True]
    assert [found["class"] for found in first["found"]] == ["b", "a", "a"]


def test_queries_are_of_all_classes_whatever_the_embeddings() -> None:
    made = [
        neighbour_rows(torch.randn(30, 4, generator=torch.Generator().manual_seed(seed)), LABELS, range(30), CLASSES)
        for seed in (0, 1)
    ]
    first, second = ([query["row"] for query in rows] for rows in made)
    assert first == second
    assert {query["class"] for query in made[0]} == set(CLASSES)


def test_a_single_example_has_no_neighbours() -> None:
    assert neighbour_rows(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), [0], CLASSES) == []
