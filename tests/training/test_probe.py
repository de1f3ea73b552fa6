"""The probe against its own optimality condition and scikit-learn, the votes by hand, and what both refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from repertory.errors import DataError
from repertory.training.probe import linear_probe, nearest_classes


def blobs(classes: int = 3, width: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % classes
    means = torch.randn(classes, width, generator=generator)
    return 3 + 2 * means[targets] + 2 * torch.randn(60, width, generator=generator), targets


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_where_the_penalised_likelihood_is_flat(classes: int) -> None:
    features, targets = blobs(classes)
    weight, bias = linear_probe(features, targets, classes)
    mean, std = features.double().mean(0), features.double().std(0, correction=0)
    rows = (features.double() - mean) / std
    inner = weight.double() * std
    offset = bias.double() + weight.double() @ mean
    if classes == 2:
        # One vector of log-odds, and its penalty: halves of it to both classes are the same classifier.
        inner = inner[1:]
        residual = torch.sigmoid(rows @ inner.T + offset[1]) - targets[:, None].double()
    else:
        residual = (rows @ inner.T + offset).softmax(1) - torch.nn.functional.one_hot(targets, classes).double()
    assert (inner + residual.T @ rows).abs().max() < 1e-2
    assert residual.sum(0).abs().max() < 1e-2


def test_neither_scale_nor_offset_of_a_feature_matters() -> None:
    features, targets = blobs()
    weight, bias = linear_probe(features, targets, 3)
    scale, offset = torch.tensor([0.01, 1.0, 100.0, 1.0]), torch.tensor([5.0, 0.0, -30.0, 2.0])
    moved = features * scale + offset
    other, its = linear_probe(moved, targets, 3)
    torch.testing.assert_close(moved @ other.T + its, features @ weight.T + bias, rtol=1e-2, atol=1e-2)


def test_a_constant_feature_and_a_class_without_an_example_play_no_part() -> None:
    features, targets = blobs()
    plain = linear_probe(features, targets, 3)
    wider = torch.cat([features, torch.full((60, 1), 0.1)], 1)
    weight, bias = linear_probe(wider, targets * 2, 6)
    torch.testing.assert_close(weight[::2, :4], plain[0], rtol=1e-4, atol=1e-5)
    assert not weight[:, 4].any()
    assert set((wider @ weight.T + bias).argmax(1).tolist()) <= {0, 2, 4}


def test_neighbours_vote_as_scikit_learns_do_where_there_is_no_tie() -> None:
    features, targets = blobs(2)
    queries = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)) + 3
    expected = KNeighborsClassifier(5, metric="cosine").fit(features.numpy(), targets.numpy()).predict(queries.numpy())
    found = nearest_classes(queries, features, targets, 2)
    assert np.array_equal(found.numpy(), expected)


def test_of_classes_with_as_many_votes_the_nearer_one_wins() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
    targets = torch.tensor([0, 1, 1, 0])
    assert nearest_classes(torch.tensor([[1.0, 0.1], [0.1, 1.0]]), gallery, targets, 2, k=9).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("features", "targets", "words"),
    [
        (torch.zeros(3, 2), torch.tensor([0, 1]), r"features \(3, 2\) and targets \(2,\)"),
        (torch.tensor([[0.0], [float("nan")]]), torch.tensor([0, 1]), "not finite"),
        (torch.zeros(2, 2), torch.tensor([0, -1]), "from -1 to 0.*leave out examples without a label"),
        (torch.zeros(2, 2), torch.tensor([1, 1]), "all 2 labels are 1"),
    ],
)
def test_what_no_probe_can_be_fitted_on_is_refused(features: Tensor, targets: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        linear_probe(features, targets, 2)
