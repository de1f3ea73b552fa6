"""Metrics of versions that search in each other's galleries: by hand, and against the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from repertory.errors import DataError
from repertory.retrieval import (
    average_compatibility,
    average_multi_model_accuracy,
    cross_version_matrix,
    identification,
)

RELEASED = json.loads(
    (Path(__file__).parents[1] / "algorithms" / "stationary_representations_released.json").read_text(encoding="utf-8")
)


def test_metrics_are_the_authors() -> None:
    matrix = torch.tensor(RELEASED["matrix"], dtype=torch.float64)
    assert average_compatibility(matrix) == pytest.approx(RELEASED["ac"], abs=1e-6)
    assert average_multi_model_accuracy(matrix) == pytest.approx(RELEASED["aa"], abs=1e-6)
    gallery, queries = torch.tensor(RELEASED["gallery"]), torch.tensor(RELEASED["queries"])
    found = identification(queries, torch.arange(10) % 3, gallery, torch.arange(12) % 3)
    assert found == pytest.approx(RELEASED["identification"], abs=1e-6)


def test_what_is_above_the_diagonal_does_not_count() -> None:
    matrix = torch.tensor([[0.6, 9.0, 9.0], [0.7, 0.8, 9.0], [0.5, 0.8, 0.9]])
    # (2, 1) is as good as (1, 1), which is not better; (1, 0) alone is.
    assert average_compatibility(matrix) == pytest.approx(1 / 3)
    assert average_multi_model_accuracy(matrix) == pytest.approx(sum([0.6, 0.7, 0.8, 0.5, 0.8, 0.9]) / 6)


def test_a_class_stands_at_the_mean_direction_of_its_gallery() -> None:
    # The long vector counts as one direction among three, so the class of label 7 lies at 45 degrees.
    gallery = torch.tensor([[100.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    labels = torch.tensor([7, 7, 3])
    queries = torch.tensor([[1.0, 1.0], [1.0, -0.9], [1.0, -0.1]])
    assert identification(queries, torch.tensor([7, 3, 7]), gallery, labels) == 1.0
    assert identification(queries, torch.tensor([7, 3, 3]), gallery, labels) == pytest.approx(2 / 3)


def test_queries_without_their_class_in_the_gallery_are_left_out() -> None:
    gallery, labels = torch.eye(2), torch.tensor([0, 1])
    assert identification(torch.eye(2), torch.tensor([0, 5]), gallery, labels) == 1.0
    with pytest.raises(DataError, match="no query's class"):
        identification(torch.eye(2), torch.tensor([4, 5]), gallery, labels)


def test_matrix_has_the_version_of_the_query_in_rows() -> None:
    labels = torch.tensor([0, 1])
    first, swapped = torch.eye(2), torch.eye(2).flip(0)
    matrix = cross_version_matrix([first, swapped], labels, [first, first], labels)
    assert matrix[0, 0] == 1.0
    assert matrix[0, 1].isnan()
    assert matrix[1].tolist() == [0.0, 0.0]


def test_what_does_not_fit_is_refused() -> None:
    labels = torch.tensor([0, 1])
    with pytest.raises(DataError, match="2 dimensions and the gallery 3"):
        identification(torch.eye(2), labels, torch.zeros(2, 3), labels)
    with pytest.raises(DataError, match="1 versions of the queries and 2"):
        cross_version_matrix([torch.eye(2)], labels, [torch.eye(2), torch.eye(2)], labels)
    for matrix in (torch.zeros(1, 1), torch.zeros(2, 3)):
        with pytest.raises(DataError, match="must be square"):
            average_compatibility(matrix)
        with pytest.raises(DataError, match="must be square"):
            average_multi_model_accuracy(matrix)
