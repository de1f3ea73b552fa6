"""The Gaussians of RCAL by hand, against NumPy, with planted outliers, and under scikit-learn's own checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from repertory.errors import DataError, OptionError
from repertory.estimators import RobustGaussianCalibrator
from repertory.estimators.robust_gaussians import ClassGaussians, borrow_from_heads, class_moments, draw, inliers


@parametrize_with_checks([RobustGaussianCalibrator()])
def test_scikit_learns_checks_pass(estimator: Any, check: Any) -> None:
    check(estimator)


def rows(sizes: tuple[int, ...] = (60, 30, 5), width: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = 4 * random.normal(size=(len(sizes), width))
    return centres[labels] + random.normal(size=(len(labels), width)) @ random.normal(size=(width, width)), labels


def test_weights_of_lending_classes_are_their_counts() -> None:
    own = ClassGaussians(np.array([[3.0, 0.0], [0.0, 6.0], [1.0, 1.0]]), np.stack([np.eye(2) * n for n in (1, 4, 9)]))
    found = borrow_from_heads(
        own, np.array([100, 50, 3]), np.array([True, True, False]), gamma_mean=0.0, gamma_covariance=0.25, alpha=0.5
    )
    np.testing.assert_allclose(found.means[2], [2.0, 2.0])  # 2/3 and 1/3
    np.testing.assert_allclose(found.covariances[2], np.eye(2) * (0.25 * 9 + 0.75 * (2 / 3 + 4 / 3) + 0.5))
    np.testing.assert_array_equal(found.means[:2], own.means[:2])
    np.testing.assert_array_equal(found.covariances[:2], own.covariances[:2])


def test_a_class_borrows_from_its_nearest_heads_alone() -> None:
    means = np.array([[0.0], [10.0], [11.0], [9.0]])
    own = ClassGaussians(means, np.ones((4, 1, 1)))
    counts, head = np.array([90, 60, 30, 2]), np.array([True, True, True, False])
    near = borrow_from_heads(own, counts, head, nearest=2, gamma_mean=0.5)
    assert near.means[3, 0] == pytest.approx(0.5 * 9 + 0.5 * (60 * 10 + 30 * 11) / 90)
    every = borrow_from_heads(own, counts, head, nearest=9, gamma_mean=0.5)
    assert every.means[3, 0] == pytest.approx(0.5 * 9 + 0.5 * (60 * 10 + 30 * 11) / 180)


def test_without_outliers_and_borrowing_it_is_numpys_mean_and_covariance() -> None:
    features, labels = rows()
    made = RobustGaussianCalibrator(neighbors=0, gamma_mean=1.0, gamma_covariance=1.0, alpha=0.0).fit(features, labels)
    for label in range(3):
        own = features[labels == label]
        np.testing.assert_allclose(made.means_[label], own.mean(0))
        np.testing.assert_allclose(made.covariances_[label], np.cov(own.T))
    assert made.inliers_.all()
    assert made.head_.tolist() == [True, True, False]
    assert made.counts_.tolist() == [60, 30, 5]


@pytest.mark.parametrize(("wrong", "found"), [(16, True), (24, False)])
def test_a_planted_group_moves_the_mean_far_less_unless_it_has_more_members_than_neighbors(
    wrong: int, found: bool
) -> None:
    random = np.random.RandomState(0)
    features = np.concatenate([random.normal(size=(4 * wrong, 5)), random.normal(size=(wrong, 5)) + 6])
    labels = np.zeros(len(features), dtype=int)
    plain = RobustGaussianCalibrator(neighbors=0).fit(features, labels)
    robust = RobustGaussianCalibrator(neighbors=20).fit(features, labels)
    assert (np.linalg.norm(robust.means_) < np.linalg.norm(plain.means_) / 4) == found
    assert robust.inliers_[: 4 * wrong].mean() > 0.95
    assert robust.inliers_[4 * wrong :].mean() == (not found)


def test_outliers_are_looked_for_within_a_class_and_not_among_a_handful() -> None:
    features, labels = rows((40, 40))
    alone = np.concatenate([inliers(features[labels == label]) for label in (0, 1)])
    np.testing.assert_array_equal(RobustGaussianCalibrator().fit(features, labels).inliers_, alone)
    assert inliers(np.array([[0.0], [0.1], [0.2], [0.3], [99.0]])).all()
    assert inliers(np.zeros((30, 2))).all()


def test_drawn_rows_have_the_moments_they_were_drawn_from() -> None:
    covariance = np.array([[4.0, 1.2, 0.0], [1.2, 1.0, 0.3], [0.0, 0.3, 0.5]])
    own = ClassGaussians(np.array([[1.0, -2.0, 3.0], [9.0, 9.0, 9.0]]), np.stack([covariance, np.zeros((3, 3))]))
    drawn, labels = draw(own, np.array([20_000, 2]), np.random.RandomState(0))
    np.testing.assert_allclose(drawn[labels == 0].mean(0), own.means[0], atol=0.05)
    np.testing.assert_allclose(np.cov(drawn[labels == 0].T), covariance, atol=0.1)
    np.testing.assert_array_equal(drawn[labels == 1], np.full((2, 3), 9.0))


def test_classes_are_filled_up_to_equal_size_or_a_multiple() -> None:
    features, labels = rows()
    filled, given = RobustGaussianCalibrator(random_state=0).fit_resample(features, labels)
    assert np.bincount(given).tolist() == [60, 60, 60]
    np.testing.assert_array_equal(filled[:95], features)
    _, drawn = RobustGaussianCalibrator(multiple=1.5, random_state=0).fit(features, labels).sample()
    assert np.bincount(drawn).tolist() == [30, 60, 85]
    assert not len(RobustGaussianCalibrator(multiple=0.0).fit(features, labels).sample()[0])


def test_three_rows_in_twenty_dimensions_get_a_definite_covariance() -> None:
    features, labels = rows((40, 3), width=20)
    with_it, without = (RobustGaussianCalibrator(alpha=alpha).fit(features, labels) for alpha in (0.01, 0.0))
    least = [np.linalg.eigvalsh(made.covariances_[1])[0] for made in (with_it, without)]
    assert least[0] == pytest.approx(least[1] + 0.01, abs=1e-9)
    alone = RobustGaussianCalibrator(gamma_covariance=1.0, alpha=0.01).fit(features, labels)
    np.linalg.cholesky(alone.covariances_[1])
    np.testing.assert_array_equal(alone.covariances_[1], alone.covariances_[1].T)


def test_a_class_of_one_row_has_no_spread_of_its_own() -> None:
    found = class_moments(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 4.0]]), np.array([0, 1, 1]), 2)
    np.testing.assert_array_equal(found.covariances[0], np.zeros((2, 2)))
    np.testing.assert_allclose(found.covariances[1], [[2.0, 0.0], [0.0, 0.0]])


def test_the_same_random_state_draws_the_same_and_names_of_classes_come_back() -> None:
    features, labels = rows()
    names = np.array(["a", "b", "c"])[labels]
    first, second = (RobustGaussianCalibrator(random_state=3).fit(features, names).sample() for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert set(first[1]) == {"b", "c"}
    drawn = RobustGaussianCalibrator(random_state=3).fit(features, names).sample([0, 0, 4])[1]
    assert drawn.tolist() == ["c"] * 4


def test_tensors_come_back_as_tensors() -> None:
    features, labels = rows()
    filled, given = RobustGaussianCalibrator(random_state=0).fit_resample(
        torch.tensor(features, dtype=torch.float32), torch.tensor(labels)
    )
    assert filled.dtype == torch.float32
    assert given.bincount().tolist() == [60, 60, 60]


@pytest.mark.parametrize(
    "options",
    [
        {"neighbors": -1},
        {"nearest": 0},
        {"gamma_mean": 1.1},
        {"gamma_covariance": -0.1},
        {"alpha": -1.0},
        {"multiple": -1.0},
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        RobustGaussianCalibrator(**options).fit(*rows())


@pytest.mark.parametrize("sizes", [[1, 2], [1, 2, -1], [0.5, 1.0, 1.0]])
def test_bad_sizes_are_refused(sizes: list[float]) -> None:
    with pytest.raises(DataError, match="whole number from 0 on for each of the 3"):
        RobustGaussianCalibrator().fit(*rows()).sample(sizes)
