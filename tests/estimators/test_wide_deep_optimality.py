"""Infinitely wide and deep classifiers against quadrature, limits, random networks, scikit-learn and invariances."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import integrate
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn

from repertory.core.classifier import features_and_output
from repertory.errors import ConflictError, OptionError
from repertory.estimators import WideDeepClassifier
from repertory.estimators.wide_deep_optimality import (
    HermiteActivation,
    InfiniteNetwork,
    WideDeepHead,
    classify_activation,
    dual_of,
    edit,
    hermite_coefficients,
    intrinsic_dimension,
    log_kernel,
    log_limit,
    optimal_coefficients,
    tangent_kernel,
)
from repertory.recipe import Part, Recipe

Array = np.ndarray
F64 = torch.float64
INNER = torch.tensor([0.0, 0.05, 0.3, 0.7, 0.95, 0.999], dtype=F64)


def orthant(examples: int, dimension: int, seed: int = 0, classes: int = 2) -> tuple[Array, Array]:
    """Points on the non-negative part of the sphere of this dimension, with labels of which a fifth is noise."""
    draw = np.random.default_rng(seed)
    points = np.abs(draw.normal(size=(examples, dimension + 1)))
    labels = points[:, :classes].argmax(1)
    noisy = draw.random(examples) < 0.2
    labels[noisy] = draw.integers(classes, size=noisy.sum())
    return points / np.linalg.norm(points, axis=1, keepdims=True), labels


@pytest.mark.parametrize("dimension", [1, 1.5, *range(2, 21), 7.3])
def test_optimal_activation_has_the_dimension_as_exponent(dimension: float) -> None:
    coefficients = optimal_coefficients(dimension)
    assert sum(a * a for a in coefficients) == pytest.approx(1)
    regime = classify_activation("optimal", dimension)
    assert regime.name == "singular"
    assert regime.alpha == pytest.approx(dimension)
    assert regime.energy == pytest.approx(2 if dimension >= 2 else 4 ** (1 / dimension))


def test_optimal_activation_is_the_published_polynomial() -> None:
    u = torch.linspace(-3, 3, 7, dtype=F64)
    cubic = 2**-1.25 * ((u**3 - 3 * u) / math.sqrt(6) + u) + math.sqrt(1 - 2**-1.5) * (u**2 - 1) / math.sqrt(2)
    torch.testing.assert_close(HermiteActivation(optimal_coefficients(5))(u), cubic)
    seventh = (u**7 - 21 * u**5 + 105 * u**3 - 105 * u) / math.sqrt(5040)
    torch.testing.assert_close(HermiteActivation(optimal_coefficients(1))(u), (u + seventh) / math.sqrt(2))


@pytest.mark.parametrize(
    ("activation", "name", "alpha"),
    [
        ("relu", "majority", None),
        (torch.relu, "majority", None),
        (torch.sigmoid, "majority", None),
        (torch.nn.functional.softplus, "majority", None),
        (torch.cos, "majority", None),
        (lambda u: u**2 - 1, "nearest", None),
        ((0, 0, 1, 1), "nearest", None),
        # E[cos u]^2 = 1/e, and of squares E[sin^2 u] = (1 - e^-2)/2, E[cos^2 u] = (1 + e^-2)/2.
        (torch.sin, "singular", 2 * (math.log(math.sinh(1))) / math.log(1 / math.tanh(1))),
        ((0.0, 3.0, 4.0), "singular", -4 * math.log(0.6) / math.log(0.36 + 2 * 0.64)),
    ],
)
def test_moments_tell_the_regime(activation: object, name: str, alpha: float | None) -> None:
    found = classify_activation(activation)  # type: ignore[arg-type]
    assert found.name == name
    assert found.alpha == (None if alpha is None else pytest.approx(alpha))


@pytest.mark.parametrize("function", [torch.sin, torch.tanh, torch.nn.functional.gelu, lambda u: u**3 + u**2])
def test_moments_are_those_of_numerical_integration(function: object) -> None:
    def expected(of: object) -> float:
        density = lambda u: math.exp(-u * u / 2) / math.sqrt(2 * math.pi)  # noqa: E731
        return float(integrate.quad(lambda u: of(u) * density(u), -10, 10, epsabs=1e-10, limit=200)[0])  # type: ignore[operator]

    def slope(u: float) -> float:
        at = torch.tensor(u, dtype=F64, requires_grad=True)
        (found,) = torch.autograd.grad(function(at), at)  # type: ignore[operator]
        return float(found)

    scale = expected(lambda u: float(function(torch.tensor(u, dtype=F64))) ** 2)  # type: ignore[operator]
    found = classify_activation(function)  # type: ignore[arg-type]
    mean = expected(lambda u: float(function(torch.tensor(u, dtype=F64))))  # type: ignore[operator]
    assert found.mean == pytest.approx(mean / math.sqrt(scale), abs=1e-6)
    assert found.slope == pytest.approx(expected(slope) / math.sqrt(scale), abs=1e-6)
    assert found.energy == pytest.approx(expected(lambda u: slope(u) ** 2) / scale, abs=1e-4)


@pytest.mark.parametrize("xi", [0.2, 0.9])
@pytest.mark.parametrize("dimension", [1, 3])
def test_dual_is_the_expectation_over_correlated_normals(xi: float, dimension: int) -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    u = torch.from_numpy(nodes)[:, None].expand(24, 24)
    v = xi * u + math.sqrt(1 - xi**2) * u.T
    phi = HermiteActivation(optimal_coefficients(dimension))
    weight = torch.from_numpy(np.outer(weights, weights)) / (2 * math.pi)
    expected = (phi(u) * phi(v) * weight).sum()
    torch.testing.assert_close(dual_of("optimal", dimension).value(torch.tensor(xi, dtype=F64)), expected)


def test_dual_of_relu_is_that_of_its_series() -> None:
    exact, series = dual_of("relu"), dual_of(torch.relu)
    torch.testing.assert_close(exact.value(INNER), series.value(INNER), rtol=0, atol=5e-3)
    torch.testing.assert_close(exact.slope(INNER[:4]), series.slope(INNER[:4]), rtol=0, atol=2e-2)


@pytest.mark.parametrize("activation", ["relu", (0.0, 0.6, 0.8), (0.5, 0.0, 0.5), (0.0, 0.0, 0.1, 0.3)])
def test_slope_of_the_dual_is_its_derivative(activation: object) -> None:
    inner = INNER[1:5].clone().requires_grad_()
    dual = dual_of(activation)  # type: ignore[arg-type]
    (expected,) = torch.autograd.grad(dual.value(inner).sum(), inner)
    torch.testing.assert_close(dual.slope(inner.detach()), expected)
    assert dual.energy == pytest.approx(float(dual.slope(torch.ones((), dtype=F64))))


def test_wide_random_layer_has_the_kernel_of_the_recursion() -> None:
    weights = torch.randn(300_000, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    hidden = HermiteActivation(optimal_coefficients(3))(torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=F64) @ weights.T)
    inner = torch.tensor([0.6, 1.0], dtype=F64)
    expected = log_kernel(inner, dual_of("optimal", 3), 1).exp()
    found = hidden @ hidden[0] / weights.shape[0]
    torch.testing.assert_close(found.flip(0), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("activation", ["optimal", "relu", (0.0, 0.0, 1.0, 1.0), (0.3, 0.2, 0.9)])
def test_kernel_in_logarithms_is_the_recursion(activation: object) -> None:
    dual = dual_of(activation, 3)  # type: ignore[arg-type]
    expected = INNER
    for _ in range(4):
        expected = dual.value(expected)
    torch.testing.assert_close(log_kernel(INNER, dual, 4).exp(), expected)


@pytest.mark.parametrize("dimension", [2, 4])
def test_kernel_falls_with_the_power_that_is_the_dimension(dimension: int) -> None:
    distance = torch.tensor([0.045, 0.014], dtype=F64)
    inner = 1 - distance**2 / 2
    for log_values in (
        log_kernel(inner, dual_of("optimal", dimension), 20),
        log_limit(inner, dual_of("optimal", dimension)),
    ):
        slope = (log_values[0] - log_values[1]) / (distance[0] / distance[1]).log()
        assert float(slope) == pytest.approx(-dimension, abs=2e-3)


def test_limit_is_the_deep_kernel_over_the_power_of_the_slope() -> None:
    dual = dual_of((0.0, 0.6, 0.0, 0.8))
    expected = log_kernel(INNER, dual, 200) - 200 * math.log(0.36)
    torch.testing.assert_close(log_limit(INNER, dual), expected)
    assert log_limit(torch.ones(1, dtype=F64), dual) == math.inf


def test_deep_and_steep_kernels_do_not_underflow() -> None:
    dual = dual_of("optimal", 300)
    found, twice = (log_kernel(INNER[1:], dual, depth) for depth in (100, 101))
    assert float(found[0]) < -9000
    # Near zero the recursion is a straight line: each further layer multiplies by its slope there.
    slope = float(dual.slope(torch.zeros((), dtype=F64)))
    assert float(twice[0] - found[0]) == pytest.approx(math.log(slope), rel=1e-9)
    assert (found[1:] > found[:-1]).all()


def test_tangent_kernel_is_the_recursion_over_its_value_at_one() -> None:
    dual = dual_of("optimal", 3)
    inner = torch.cat([INNER, torch.ones(1, dtype=F64)])
    kernel, tangent = inner, inner
    for _ in range(6):
        tangent = tangent * dual.slope(kernel) + dual.value(kernel)
        kernel = dual.value(kernel)
    torch.testing.assert_close(tangent_kernel(inner, dual, 6), tangent / tangent[-1])


def test_tangent_kernel_of_deep_relu_is_a_quarter_off_the_diagonal() -> None:
    found = tangent_kernel(INNER[:4], dual_of("relu"), 3000)
    torch.testing.assert_close(found, torch.full((4,), 0.25, dtype=F64), rtol=0, atol=2e-3)


def test_deep_relu_regression_is_the_majority_vote() -> None:
    points, labels = orthant(40, 3)
    labels[:25] = 1
    others = orthant(30, 3, seed=1)[0]
    found = WideDeepClassifier("ridgeless", activation="relu", depth=3000, embed="unit").fit(points, labels)
    assert (labels == 1).mean() > 0.6
    assert (found.predict(others) == 1).all()
    limit = WideDeepClassifier("limit", activation="relu", embed="unit").fit(points, labels)
    np.testing.assert_allclose(limit.predict_proba(others)[:, 1], labels.mean())


def test_without_mean_and_slope_it_is_the_nearest_neighbour() -> None:
    points, labels = orthant(60, 3, classes=3)
    others = orthant(50, 3, seed=1)[0]
    expected = KNeighborsClassifier(1).fit(points, labels).predict(others)
    for options in ({"mode": "limit"}, {"mode": "vote", "depth": 12}):
        found = WideDeepClassifier(activation=(0, 0, 1), embed="unit", **options).fit(points, labels)
        np.testing.assert_array_equal(found.predict(others), expected)


def test_hilbert_vote_is_scikit_learns_with_weights_of_the_distance() -> None:
    points, labels = orthant(60, 3, classes=3)
    others = orthant(50, 3, seed=1)[0]
    theirs = KNeighborsClassifier(60, weights=lambda d: d**-3.0).fit(points, labels)
    found = WideDeepClassifier(dimension=3, embed="unit").fit(points, labels)
    np.testing.assert_allclose(found.predict_proba(others), theirs.predict_proba(others), rtol=1e-8)


def test_singular_limit_votes_with_the_limit_kernel() -> None:
    points, labels = orthant(40, 2)
    others = orthant(20, 2, seed=1)[0]
    weights = log_limit(torch.from_numpy(others @ points.T), dual_of("optimal", 2)).exp().numpy()
    expected = weights @ np.eye(2)[labels] / weights.sum(1, keepdims=True)
    found = WideDeepClassifier("limit", dimension=2, embed="unit").fit(points, labels)
    np.testing.assert_allclose(found.predict_proba(others), expected, rtol=1e-6)


def test_regression_is_the_solved_kernel_system() -> None:
    points, labels = orthant(30, 3)
    others = orthant(20, 3, seed=1)[0]
    dual = dual_of("optimal", 4)
    kernel, across = (
        tangent_kernel(torch.from_numpy(x @ points.T).clamp(0, 1), dual, 6).numpy() for x in (points, others)
    )
    expected = across @ np.linalg.solve(kernel, 2.0 * labels - 1)
    found = WideDeepClassifier("ridgeless", depth=6, embed="unit").fit(points, labels)
    np.testing.assert_allclose(found.decision_function(others), expected, rtol=1e-6, atol=1e-8)
    assert not hasattr(found, "predict_proba")


@pytest.mark.parametrize("embed", ["box", "unit"])
@pytest.mark.parametrize("mode", ["hilbert", "limit", "vote", "ridgeless"])
def test_training_labels_are_repeated(mode: str, embed: str) -> None:
    points, labels = orthant(80, 3, classes=3)
    found = WideDeepClassifier(mode, embed=embed).fit(points, labels)
    np.testing.assert_array_equal(found.predict(points), labels)


def test_coinciding_points_share_the_vote() -> None:
    points = np.array([[0.2, 0.4], [0.2, 0.4], [0.2, 0.4], [0.9, 0.1]])
    found = WideDeepClassifier().fit(points, [0, 1, 1, 0])
    np.testing.assert_allclose(found.predict_proba(points), [[1 / 3, 2 / 3]] * 3 + [[1, 0]])


@pytest.mark.parametrize("mode", ["hilbert", "limit", "vote", "ridgeless"])
def test_rotation_changes_no_vote(mode: str) -> None:
    # A narrow cone, so that all inner products stay positive.
    points, labels = orthant(40, 3)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(4, 4)))[0]
    others = orthant(20, 3, seed=1)[0]
    plain, turned = (WideDeepClassifier(mode, embed="unit").fit(points @ r, labels) for r in (np.eye(4), rotation))
    np.testing.assert_allclose(
        turned.decision_function(others @ rotation), plain.decision_function(others), rtol=1e-6, atol=1e-8
    )


def test_units_of_the_features_change_no_vote_in_the_box() -> None:
    points, labels = orthant(40, 3)
    others = orthant(20, 3, seed=1)[0]
    scale, shift = np.array([1.0, 100.0, 1e-3, 5.0]), np.array([0.0, -7.0, 2.0, 1e3])
    plain = WideDeepClassifier().fit(points, labels).predict_proba(others)
    scaled = WideDeepClassifier().fit(points * scale + shift, labels).predict_proba(others * scale + shift)
    np.testing.assert_allclose(scaled, plain, rtol=1e-6)


def test_box_puts_features_on_the_orthant_of_the_sphere() -> None:
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    features[:, 4] = 2.0
    network = InfiniteNetwork("hilbert", "input", "optimal", 20, "box").fit(features, torch.zeros(30).long(), 1)
    unit = network.on_sphere(3 * features)
    assert unit.shape == (30, 6)
    assert (unit >= 0).all()
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(30, dtype=F64))
    inside = (features - features.amin(0)) / (features.amax(0) - features.amin(0))
    torch.testing.assert_close(network.points[:, :4], inside[:, :4] / 5**0.5)


def test_intrinsic_dimension_of_a_plane_in_many_dimensions_is_two() -> None:
    draw = np.random.default_rng(0)
    points = torch.from_numpy(draw.random((800, 2)) @ draw.normal(size=(2, 10)))
    assert intrinsic_dimension(points, largest=10) == pytest.approx(2, abs=0.3)
    assert intrinsic_dimension(torch.cat([points, points]), largest=10) == pytest.approx(2, abs=0.3)
    assert intrinsic_dimension(points[:2], largest=10) == 10
    assert intrinsic_dimension(points[:1].expand(20, -1), largest=10) == 10
    classifier = WideDeepClassifier(dimension="intrinsic").fit(points.numpy(), draw.integers(2, size=800))
    assert classifier.dimension_ == pytest.approx(2, abs=0.4)


def test_more_noisy_examples_bring_the_vote_nearer_to_the_best_rule() -> None:
    others = orthant(500, 2, seed=9)[0]
    best = others[:, :2].argmax(1)
    agreement = []
    for examples in (100, 3000):
        found = WideDeepClassifier(dimension=2, embed="unit").fit(*orthant(examples, 2))
        agreement.append((found.predict(others) == best).mean())
    neighbour = KNeighborsClassifier(1).fit(*orthant(3000, 2)).predict(others)
    assert agreement[0] < agreement[1]
    assert agreement[1] > (neighbour == best).mean() + 0.03


def test_tensors_give_what_arrays_give() -> None:
    points, labels = orthant(30, 3)
    left = WideDeepClassifier().fit(torch.from_numpy(points), torch.from_numpy(labels))
    right = WideDeepClassifier().fit(points, labels)
    np.testing.assert_array_equal(left.predict_proba(torch.from_numpy(points + 0.1)), right.predict_proba(points + 0.1))


@parametrize_with_checks([WideDeepClassifier(), WideDeepClassifier("ridgeless", depth=3), WideDeepClassifier("limit")])
def test_is_a_scikit_learn_estimator(estimator: WideDeepClassifier, check: object) -> None:
    check(estimator)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mode", "deep"),
        ("dimension", 0.5),
        ("dimension", "guess"),
        ("activation", "swish"),
        ("activation", (0.0, 0.0)),
        ("activation", ("a",)),
        ("activation", (0.0, 1.0)),
        ("depth", 0),
        ("embed", "ball"),
    ],
)
def test_bad_options_are_named(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=option):
        WideDeepClassifier(**{option: value}).fit(*orthant(20, 2))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=option):
        WideDeepHead(**{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [lambda u: 0 * u, lambda u: u / 0])
def test_functions_that_are_no_activation_say_why(function: object) -> None:
    with pytest.raises(OptionError, match="activation is 0 or not finite"):
        hermite_coefficients(function)  # type: ignore[arg-type]


class Bench:
    """Features and targets of two parts, as a run offers them."""

    outputs = 3

    def __init__(self, kind: str = "classes") -> None:
        points, labels = orthant(40, 4, classes=3)
        targets = torch.from_numpy(labels)
        self.inputs = torch.from_numpy(points).float()
        self.splits = SimpleNamespace(train=SimpleNamespace(targets=targets if kind == "classes" else targets.float()))

    def features(self, model: nn.Module, part: str) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return features_and_output(model, self.inputs)


def network(seed: int = 0) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def test_head_is_the_classifier_on_the_networks_features() -> None:
    bench, model = Bench(), network()
    features = bench.features(model, "train")[0]
    classifier = WideDeepClassifier(dimension="intrinsic").fit(features, bench.splits.train.targets)
    others = torch.from_numpy(orthant(20, 4, seed=1)[0]).float()
    expected = classifier.predict_proba(features_and_output(model, others)[0].detach())
    changed = WideDeepHead().apply(model, bench)
    np.testing.assert_allclose(changed(others).softmax(1).numpy(), expected, rtol=1e-3, atol=1e-5)


def test_saved_head_brings_its_points_into_an_empty_one() -> None:
    bench = Bench()
    changed = WideDeepHead(dimension=3).apply(network(), bench)
    file = io.BytesIO()
    torch.save(changed.state_dict(), file)
    file.seek(0)
    fresh = WideDeepHead(dimension=3).rebuild(network(seed=1), 3)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(fresh(bench.inputs + 0.1), changed(bench.inputs + 0.1))


def test_head_refuses_targets_that_are_numbers() -> None:
    with pytest.raises(ConflictError, match="wide-deep-optimality needs classes"):
        WideDeepHead().apply(network(), Bench("numbers"))


def test_edit_leaves_a_pretrained_network_as_it_is() -> None:
    recipe = Recipe(Part("m:m"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD"))
    assert edit(recipe, depth=3).after[0].options == {"depth": 3}
    assert edit(recipe).train_share == 1.0
    assert edit(recipe.replace(model=Part("m:m", {"pretrained": True}))).train_share == 0.0
    assert edit(recipe, frozen=True).train_share == 0.0
