"""Metrics of a search against brute force, scikit-learn, pytorch-metric-learning, and hand calculation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from repertory.errors import DataError
from repertory.retrieval import clustering_agreement, retrieval_metrics


def world(count: int = 60, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    means = torch.randn(classes, 4, generator=generator)
    return means[labels] + torch.randn(count, 4, generator=generator), labels


def brute_force(
    queries: Tensor, labels: Tensor, gallery: Tensor, gallery_labels: Tensor, same: bool
) -> dict[str, float]:
    totals: dict[str, list[float]] = {}
    for i, (query, label) in enumerate(zip(queries, labels)):
        near = [float(torch.cosine_similarity(query, row, dim=0)) for row in gallery]
        order = sorted((j for j in range(len(gallery)) if not (same and i == j)), key=lambda j: -near[j])
        right = [int(gallery_labels[j] == label) for j in order]
        relevant = sum(right)
        if not relevant:
            continue
        precision = [sum(right[: k + 1]) / (k + 1) * right[k] for k in range(relevant)]
        for name, value in {
            "recall_at_1": float(any(right[:1])),
            "recall_at_5": float(any(right[:5])),
            "r_precision": sum(right[:relevant]) / relevant,
            "map_at_r": sum(precision) / relevant,
            "mrr": 1 / (right.index(1) + 1),
        }.items():
            totals.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in totals.items()}


def test_equals_a_search_of_each_query_by_hand_among_the_others() -> None:
    rows, labels = world()
    assert retrieval_metrics(rows, labels, recalls=(1, 5)) == pytest.approx(
        brute_force(rows, labels, rows, labels, same=True), abs=1e-6
    )


def test_equals_a_search_by_hand_in_a_gallery_with_classes_that_are_missing() -> None:
    (rows, labels), (gallery, gallery_labels) = world(30), world(40, classes=4, seed=1)
    found = retrieval_metrics(rows, labels, gallery, gallery_labels, recalls=(1, 5))
    assert found == pytest.approx(brute_force(rows, labels, gallery, gallery_labels, same=False), abs=1e-6)


def test_agrees_with_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    rows, labels = world(80)
    names = {"mean_average_precision_at_r": "map_at_r", "r_precision": "r_precision", "precision_at_1": "recall_at_1"}
    calculator = AccuracyCalculator(include=(*names, "mean_reciprocal_rank"), knn_func=CustomKNN(CosineSimilarity()))
    theirs = calculator.get_accuracy(rows, labels)
    ours = retrieval_metrics(rows, labels)
    for name, own in names.items():
        assert ours[own] == pytest.approx(theirs[name], abs=1e-6)


def test_a_hand_example() -> None:
    angles = torch.tensor([0.0, 10.0, 25.0, 45.0]).deg2rad()
    gallery = torch.stack([angles.cos(), angles.sin()], 1)
    # Found in the order wrong, right, wrong, right: R = 2.
    found = retrieval_metrics(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), gallery, torch.tensor([0, 1, 0, 1]))
    assert found == pytest.approx({"recall_at_1": 0.0, "r_precision": 0.5, "map_at_r": 0.25, "mrr": 0.5})


def test_the_first_right_one_counts_however_deep_it_lies() -> None:
    rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(50, dtype=torch.int64)
    farthest = int(torch.cosine_similarity(rows, rows[:1]).argmin())
    labels[[0, farthest]] = 1
    found = retrieval_metrics(rows[:1], labels[:1], rows[1:], labels[1:], recalls=(1,))
    assert found == pytest.approx({"recall_at_1": 0.0, "r_precision": 0.0, "map_at_r": 0.0, "mrr": 1 / 49})


def test_recalls_beyond_the_gallery_are_left_out() -> None:
    assert list(retrieval_metrics(*world(9, classes=2))) == [
        "recall_at_1",
        "recall_at_5",
        "r_precision",
        "map_at_r",
        "mrr",
    ]


def test_clusters_of_separate_classes_agree_with_them() -> None:
    labels = torch.arange(30) % 3
    rows = torch.eye(3)[labels] + 0.01 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    assert clustering_agreement(rows, labels) == pytest.approx(1.0)
    assert (
        clustering_agreement(torch.randn(300, 3, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 3)
        < 0.1
    )


def test_what_cannot_be_searched_is_refused() -> None:
    rows, labels = world(6)
    with pytest.raises(DataError, match=r"queries have shape \(6, 4\) and labels \(5,\)"):
        retrieval_metrics(rows, labels[:5])
    rows[3] = math.nan
    with pytest.raises(DataError, match="queries: row 3 is not finite"):
        retrieval_metrics(rows, labels)
    with pytest.raises(DataError, match="no query has another item of its class"):
        retrieval_metrics(torch.eye(3), torch.arange(3))
    with pytest.raises(DataError, match="queries have no rows"):
        retrieval_metrics(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
