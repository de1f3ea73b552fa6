"""GDA-CLIP against closed forms, scikit-learn, the authors' numbers, and what must not matter."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.covariance import OAS, LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.mixture import GaussianMixture
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from repertory.core.classifier import features_and_output
from repertory.errors import ConflictError, DataError, OptionError
from repertory.estimators import GDAClassifier
from repertory.estimators.gda_clip import (
    Gaussians,
    GDAHead,
    edit,
    estimate,
    fit_unlabelled,
    linear_rule,
    synthesise_new_classes,
    tune_alpha,
)
from repertory.recipe import Part, Recipe

Array = np.ndarray


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def blobs(examples: int = 12, width: int = 5, classes: int = 3, seed: int = 0) -> tuple[Array, Array]:
    """`examples` of each class, around means of size 2, with a covariance that is not round."""
    draw = np.random.default_rng(seed)
    means, mixing = 2 * draw.normal(size=(classes, width)), draw.normal(size=(width, width))
    labels = np.repeat(np.arange(classes), examples)
    return means[labels] + draw.normal(size=(len(labels), width)) @ mixing, labels


def texts(classes: int = 3, width: int = 5, seed: int = 7) -> Array:
    return unit(np.random.default_rng(seed).normal(size=(classes, width)))


# What the authors' scripts for few shots and for base-to-new (with 6 neighbours) give for these features.
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 2, 0, 1, 0])
STEPS = np.arange(56.0)
FEATURES = unit(np.sin(1.7 * STEPS + 0.3 * STEPS**2).reshape(14, 4))
NEW_TEXTS = unit(np.sin(3.1 * np.arange(8.0) + 1).reshape(2, 4))
AUTHORS = {
    "ks": (
        [
            [1.077014, -0.216598, 0.286078, 0.81116],
            [-0.386358, -0.208722, 0.136414, 0.115235],
            [0.512355, 0.168235, 0.307749, 0.028009],
        ],
        [-1.44648, -1.211567, -1.185767],
    ),
    "class-pinv": (
        [
            [10.048083, -1.828163, 2.737551, 6.031414],
            [-2.005319, -0.530805, 0.173152, -0.072132],
            [3.928077, 0.126218, 1.769838, 1.083334],
        ],
        [-4.008384, -1.473601, -1.60027],
    ),
    "new": (
        [[0.796854, -0.704049, 1.118654, -0.18287], [0.810859, -0.707758, 1.115583, -0.172378]],
        [-1.327555, -1.330246],
    ),
}


@pytest.mark.parametrize("precision", ["ks", "class-pinv"])
def test_weights_and_biases_are_those_of_the_authors_code(precision: str) -> None:
    coef, intercept = linear_rule(estimate(FEATURES, LABELS, 3, precision=precision))
    np.testing.assert_allclose(coef, AUTHORS[precision][0], atol=2e-6)
    np.testing.assert_allclose(intercept, AUTHORS[precision][1], atol=2e-6)


def test_new_classes_are_those_of_the_authors_code() -> None:
    coef, intercept = linear_rule(synthesise_new_classes(FEATURES, NEW_TEXTS, neighbours=6))
    np.testing.assert_allclose(coef, AUTHORS["new"][0], atol=2e-6)
    np.testing.assert_allclose(intercept, AUTHORS["new"][1], atol=2e-6)


def test_four_points_by_hand() -> None:
    # S = diag(0, 1/3), so P = 2 (3 S + I / 3)^-1 = diag(6, 1.5).
    features = np.array([[1.0, 0.5], [1.0, -0.5], [-1.0, 0.5], [-1.0, -0.5]])
    gaussians = estimate(features, np.array([0, 0, 1, 1]), 2)
    coef, intercept = linear_rule(gaussians)
    np.testing.assert_allclose(gaussians.precision, np.diag([6.0, 1.5]), atol=1e-12)
    np.testing.assert_allclose(coef, [[6.0, 0.0], [-6.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(intercept, np.log(0.5) - 3.0)


@pytest.mark.parametrize("precision", ["ks", "pinv", "class-pinv", "ledoit-wolf", "oas"])
def test_logits_differ_as_log_densities_do(precision: str) -> None:
    features, labels = blobs()
    features, labels = features[:-5], labels[:-5]
    gaussians = estimate(features, labels, 3, precision=precision, prior="empirical")
    coef, intercept = linear_rule(gaussians)
    points = np.random.default_rng(1).normal(size=(20, 5))
    covariance = np.linalg.inv(gaussians.precision)
    shares = [12 / 31, 12 / 31, 7 / 31]
    densities = np.stack(
        [multivariate_normal(m, covariance).logpdf(points) + np.log(s) for m, s in zip(gaussians.means, shares)],
        axis=1,
    )
    logits = points @ coef.T + intercept
    np.testing.assert_allclose(logits - logits[:, :1], densities - densities[:, :1], rtol=1e-6, atol=1e-8)


def test_agrees_with_linear_discriminant_analysis() -> None:
    features, labels = blobs()
    other = LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3).fit(features, labels)
    own = GDAClassifier(precision="pinv", normalize=False).fit(features, labels)
    # Their covariance is divided by N, ours by N - 1.
    np.testing.assert_allclose(other.coef_, own.coef_ * 36 / 35, rtol=1e-8)
    points = np.random.default_rng(1).normal(size=(50, 5))
    np.testing.assert_array_equal(own.predict(points), other.predict(points))


@pytest.mark.parametrize(("name", "other"), [("ledoit-wolf", LedoitWolf), ("oas", OAS)])
def test_shrunk_precision_agrees_with_scikit_learn(name: str, other: type) -> None:
    features, labels = blobs(examples=3)
    gaussians = estimate(features, labels, 3, precision=name)
    fitted = other(assume_centered=True).fit(features - gaussians.means[labels])
    np.testing.assert_allclose(gaussians.precision, fitted.precision_, rtol=1e-8)


@pytest.mark.parametrize("seed", range(8))
def test_pinv_of_a_singular_covariance_is_the_pseudo_inverse(seed: int) -> None:
    # Rounding makes the factorisation of such a matrix succeed at times, and fail at others.
    features, labels = blobs(seed=seed)
    features[:, 4] = features[:, :4].sum(1)
    gaussians = estimate(features, labels, 3, precision="pinv")
    centred = features - gaussians.means[labels]
    expected = np.linalg.pinv(centred.T @ centred / 35, rcond=1e-9)
    np.testing.assert_allclose(gaussians.precision, expected, rtol=1e-6, atol=1e-9)


def test_averaged_class_covariance_differs_from_the_pooled_one_when_classes_differ_in_size() -> None:
    features, labels = blobs()
    pooled, averaged = (estimate(features, labels, 3, precision=p).precision for p in ("pinv", "class-pinv"))
    np.testing.assert_allclose(averaged, pooled * 33 / 35, rtol=1e-8)
    features, labels = features[:-9], labels[:-9]
    ratio = np.divide(*(estimate(features, labels, 3, precision=p).precision for p in ("pinv", "class-pinv")))
    assert np.ptp(ratio) > 0.1


def test_one_example_a_class_is_the_nearest_mean() -> None:
    features = np.random.default_rng(0).normal(size=(4, 3))
    classifier = GDAClassifier(normalize=False).fit(features, np.arange(4))
    points = np.random.default_rng(1).normal(size=(30, 3))
    nearest = np.linalg.norm(points[:, None] - features, axis=2).argmin(1)
    np.testing.assert_array_equal(classifier.precision_, np.eye(3))
    np.testing.assert_array_equal(classifier.predict(points), nearest)


def test_alpha_zero_is_the_zero_shot_classifier() -> None:
    features, labels = blobs()
    classifier = GDAClassifier(alpha=0).fit(features, labels, text_weights=texts())
    np.testing.assert_allclose(classifier.decision_function(features), 100 * unit(features) @ texts().T)


def test_text_branch_adds_the_gaussian_logits_to_the_cosines() -> None:
    features, labels = blobs()
    alone = GDAClassifier().fit(features, labels).decision_function(features)
    both = GDAClassifier(alpha=0.3, text_scale=20).fit(features, labels, text_weights=5 * texts())
    expected = 20 * unit(features) @ texts().T + 0.3 * alone
    np.testing.assert_allclose(both.decision_function(features), expected, rtol=1e-8)


@pytest.mark.parametrize("precision", ["ks", "pinv"])
def test_order_and_rotation_change_no_logit(precision: str) -> None:
    features, labels = blobs()
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    order = np.random.default_rng(4).permutation(len(labels))
    plain, turned = GDAClassifier(precision=precision, alpha=1), GDAClassifier(precision=precision, alpha=1)
    plain.fit(features, labels, text_weights=texts())
    turned.fit(features[order] @ rotation, labels[order], text_weights=texts() @ rotation)
    points = np.random.default_rng(5).normal(size=(9, 5))
    np.testing.assert_allclose(turned.decision_function(points @ rotation), plain.decision_function(points), rtol=1e-6)


@pytest.mark.parametrize("precision", ["ks", "pinv", "oas"])
def test_scale_of_unnormalised_features_changes_no_logit(precision: str) -> None:
    features, labels = blobs()
    plain, scaled = (GDAClassifier(precision=precision, normalize=False).fit(c * features, labels) for c in (1.0, 1e-3))
    np.testing.assert_allclose(
        scaled.decision_function(1e-3 * features), plain.decision_function(features), rtol=1e-6, atol=1e-9
    )


def test_normalised_features_have_length_one() -> None:
    features, labels = blobs()
    lengths = np.random.default_rng(2).uniform(0.1, 9, size=(len(labels), 1))
    plain, scaled = GDAClassifier().fit(features, labels), GDAClassifier().fit(lengths * features, labels)
    np.testing.assert_allclose(scaled.coef_, plain.coef_, rtol=1e-8)


def test_tuned_alpha_is_the_smallest_of_the_best() -> None:
    zero_shot = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    gaussian = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    # Label 1 for the last example needs a weight above 1 (with factors, above 2 and 1/15); above 2 the first is lost.
    assert tune_alpha(zero_shot, gaussian, np.array([0, 1, 0])) == 1e-4
    assert tune_alpha(zero_shot, 0.5 * gaussian, np.array([1, 1, 1])) == 10.0
    assert tune_alpha(zero_shot, 15 * gaussian, np.array([0, 1, 1])) == 0.1


def test_grid_takes_the_weight_with_the_best_validation_accuracy() -> None:
    features, labels = blobs()
    validation = blobs(seed=0, examples=40)
    found = {}
    for alpha in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0):
        fixed = GDAClassifier(alpha=alpha).fit(features, labels, text_weights=texts())
        found[alpha] = fixed.score(*validation)
    chosen = GDAClassifier().fit(features, labels, text_weights=texts(), validation=validation)
    assert len(set(found.values())) > 2
    assert chosen.alpha_ == max(found, key=lambda alpha: found[alpha])


def test_validation_labels_outside_of_the_classes_count_as_wrong() -> None:
    features, labels = blobs()
    names = np.array(["b", "d", "f"])[labels]
    found = {}
    for label in ("a", "b", "c", "d", "f", "z"):
        validation = (features, np.full(len(labels), label))
        fitted = GDAClassifier().fit(features, names, text_weights=texts(), validation=validation)
        found[label] = fitted.alpha_
    # Where all is wrong the first of the grid is kept.
    assert found["a"] == found["c"] == found["z"] == 1e-4
    assert max(found["b"], found["d"]) > 1e-4


def test_two_classes_give_one_decision_value() -> None:
    features, labels = blobs(classes=2)
    classifier = GDAClassifier().fit(features, labels)
    logits = unit(features) @ classifier.coef_.T + classifier.intercept_
    np.testing.assert_allclose(classifier.decision_function(features), logits[:, 1] - logits[:, 0])
    np.testing.assert_allclose(classifier.predict_proba(features)[:, 1], 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_give_what_arrays_give(dtype: torch.dtype) -> None:
    features, labels = blobs()
    tensor = torch.from_numpy(features).to(dtype).requires_grad_()
    array = tensor.detach().double().numpy()
    names = torch.from_numpy(labels)
    left = GDAClassifier().fit(tensor, names, torch.from_numpy(texts()), validation=(tensor, names))
    right = GDAClassifier().fit(array, labels, texts(), validation=(array, labels))
    np.testing.assert_array_equal(left.predict_proba(tensor), right.predict_proba(array))


@parametrize_with_checks([GDAClassifier(), GDAClassifier(precision="ledoit-wolf", normalize=False)])
def test_is_a_scikit_learn_estimator(estimator: GDAClassifier, check: object) -> None:
    check(estimator)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("precision", "identity"),
        ("alpha", -1.0),
        ("alpha", "best"),
        ("prior", "equal"),
        ("text_scale", 0),
        ("normalize", 1),
    ],
)
def test_bad_options_are_named(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=option):
        GDAClassifier(**{option: value}).fit(*blobs())
    with pytest.raises(OptionError, match=option):
        GDAHead(**{option: value})


def test_data_that_cannot_be_fitted_says_why() -> None:
    features, labels = blobs()
    with pytest.raises(DataError, match="one class only"):
        GDAClassifier().fit(features, np.zeros(len(labels)))
    with pytest.raises(DataError, match=r"needs validation=\(features, labels\)"):
        GDAClassifier().fit(features, labels, text_weights=texts())
    with pytest.raises(DataError, match=r"text_weights has shape \(2, 5\), but it needs \(3, 5\)"):
        GDAClassifier(alpha=1).fit(features, labels, text_weights=texts()[:2])
    with pytest.raises(DataError, match="class 1 has no example"):
        estimate(features, np.where(labels == 1, 0, labels), 3)
    with pytest.raises(OptionError, match="neighbours=64"):
        synthesise_new_classes(features, texts())
    with pytest.raises(OptionError, match="iterations=0"):
        fit_unlabelled(features, texts(), iterations=0)


def test_mixture_is_expectation_maximisation_written_out() -> None:
    features, start = unit(blobs()[0]), texts()
    found = fit_unlabelled(features, start, iterations=3, text_scale=5)
    logits = 5 * features @ start.T
    for _ in range(3):
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        means = np.stack([np.average(features, axis=0, weights=shares[:, k]) for k in range(3)])
        covariance = np.zeros((5, 5))
        for x, row in zip(features, shares):
            for mean, share in zip(means, row):
                covariance += share * np.outer(x - mean, x - mean) / (len(features) - 1)
        inverse = np.linalg.inv(covariance + np.eye(5) * np.trace(covariance) / (len(features) - 1))
        prior = shares.mean(0)
        logits = np.stack(
            [
                np.log(p) - 0.5 * np.einsum("nd,de,ne->n", features - m, inverse, features - m)
                for p, m in zip(prior, means)
            ],
            axis=1,
        )
    np.testing.assert_allclose(found.means, means, rtol=1e-8)
    np.testing.assert_allclose(found.precision, inverse, rtol=1e-8)
    np.testing.assert_allclose(found.prior, prior, rtol=1e-8)


def test_mixture_of_many_examples_agrees_with_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    centres = np.array([[3.0, 0.0, 0.0], [0.0, 2.5, 0.0], [0.0, 0.0, 2.0]])
    labels = draw.choice(3, size=6000, p=[0.5, 0.3, 0.2])
    features = centres[labels] + draw.normal(size=(6000, 3)) * [1.0, 0.5, 0.8]
    own = fit_unlabelled(features, unit(centres + 0.5), iterations=200, text_scale=3)
    other = GaussianMixture(3, covariance_type="tied", means_init=centres, reg_covar=0, tol=1e-8, max_iter=500)
    other.fit(features)
    np.testing.assert_allclose(own.means, other.means_, atol=0.01)
    np.testing.assert_allclose(own.precision, other.precisions_, rtol=0.01, atol=0.01)
    np.testing.assert_allclose(own.prior, other.weights_, atol=0.005)


def test_class_without_examples_keeps_its_text_as_mean() -> None:
    features = unit(np.abs(blobs()[0]))
    start = np.vstack([texts(2), -unit(np.ones((1, 5)))])
    found = fit_unlabelled(features, start, iterations=2, text_scale=1e4)
    np.testing.assert_allclose(found.means[2], start[2])
    # The two others are as if it were not there, and nothing is taken for it.
    alone = fit_unlabelled(features, start[:2], iterations=2, text_scale=1e4)
    np.testing.assert_allclose(found.means[:2], alone.means)
    np.testing.assert_allclose(linear_rule(found)[1][:2], linear_rule(alone)[1])
    coef, intercept = linear_rule(found)
    assert intercept[2] == pytest.approx(np.log(found.prior[2]) - 0.5 * start[2] @ found.precision @ start[2])
    assert (features @ coef.T + intercept).argmax(1).max() < 2


class Bench:
    """Features and targets of two parts, as a run offers them."""

    def __init__(self, outputs: int = 3) -> None:
        self.outputs = outputs
        parts = {}
        for name, (features, labels) in {"train": blobs(examples=15), "validation": blobs(examples=9)}.items():
            inputs = torch.from_numpy(features).float()
            parts[name] = SimpleNamespace(inputs=inputs, targets=torch.from_numpy(labels))
        self.splits = SimpleNamespace(**parts)

    def features(self, model: nn.Module, part: str) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return features_and_output(model, getattr(self.splits, part).inputs)


def network(seed: int = 0, bias: bool = True) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3, bias=bias))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def outputs_of(model: nn.Module, bench: Bench) -> torch.Tensor:
    with torch.no_grad():
        return model(bench.splits.validation.inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_head_adds_the_gaussian_logits_to_the_networks_own(bias: bool) -> None:
    bench, model = Bench(), network(bias=bias)
    features, own = bench.features(model, "validation")
    train, targets = bench.features(model, "train")[0], bench.splits.train.targets
    gaussian = GDAClassifier(normalize=False).fit(train, targets).decision_function(features)
    changed = GDAHead(alpha=0.1).apply(model, bench)
    assert isinstance(changed[-1], nn.Linear)
    expected = own.double() + 0.1 * torch.from_numpy(gaussian)
    torch.testing.assert_close(outputs_of(changed, bench).double(), expected, rtol=1e-4, atol=1e-4)


def test_normalised_head_is_the_classifier_with_the_networks_rows_as_texts() -> None:
    bench, model = Bench(), network()
    train, validation = bench.features(model, "train")[0], bench.features(model, "validation")[0]
    classifier = GDAClassifier().fit(
        train, bench.splits.train.targets, model[-1].weight, (validation, bench.splits.validation.targets)
    )
    expected = torch.from_numpy(classifier.decision_function(validation))
    changed = GDAHead(normalize=True).apply(model, bench)
    torch.testing.assert_close(outputs_of(changed, bench).double(), expected, rtol=1e-4, atol=1e-3)


def test_head_chooses_alpha_on_the_validation_part() -> None:
    bench = Bench()
    accuracies = {}
    for alpha in ("grid", 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0):
        outputs = outputs_of(GDAHead(alpha=alpha).apply(network(), bench), bench)
        accuracies[alpha] = float((outputs.argmax(1) == bench.splits.validation.targets).float().mean())
    tuned = accuracies.pop("grid")
    assert tuned == max(accuracies.values())
    assert len(set(accuracies.values())) > 2


def test_head_at_alpha_zero_leaves_the_outputs_bit_for_bit() -> None:
    bench, model = Bench(), network()
    before = outputs_of(model, bench)
    assert torch.equal(outputs_of(GDAHead(alpha=0).apply(model, bench), bench), before)


def test_head_without_zero_shot_branch_ignores_the_networks_classifier() -> None:
    bench, left, right = Bench(), network(), network()
    right[-1].weight.data.neg_()
    left, right = (GDAHead(zero_shot=False).apply(model, bench) for model in (left, right))
    assert torch.equal(outputs_of(left, bench), outputs_of(right, bench))
    features, targets = bench.features(network(), "train")[0], bench.splits.train.targets
    alone = GDAClassifier(normalize=False).fit(features, targets)
    torch.testing.assert_close(left[-1].weight.double(), torch.from_numpy(alone.coef_), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_rebuilt_network_takes_the_saved_weights(normalize: bool) -> None:
    bench, head, model, fresh = Bench(), GDAHead(normalize=normalize), network(bias=False), network(1, bias=False)
    state = torch.random.get_rng_state()
    changed, fresh = head.apply(model, bench), head.rebuild(fresh, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    fresh.load_state_dict(changed.state_dict())
    assert torch.equal(outputs_of(fresh, bench), outputs_of(changed, bench))


def test_head_refuses_what_is_no_classifier() -> None:
    wide, numbers = Bench(outputs=4), Bench()
    wide.splits.train.targets[0] = 3
    with pytest.raises(ConflictError, match="3 outputs for 4 classes"):
        GDAHead().apply(network(), wide)
    numbers.splits.train.targets = numbers.splits.train.targets.float()
    with pytest.raises(ConflictError, match="needs classes"):
        GDAHead().apply(network(), numbers)


@pytest.mark.parametrize(
    ("pretrained", "frozen", "share", "zero_shot"),
    [(False, None, 1.0, True), (True, None, 0.0, False), (True, False, 1.0, True), (False, True, 0.0, False)],
)
def test_pretrained_networks_are_not_trained(
    pretrained: bool, frozen: bool | None, share: float, zero_shot: bool
) -> None:
    model = Part("torch.nn:Linear", {"pretrained": pretrained})
    recipe = Recipe(model, Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD", {"lr": 0.1}))
    edited = edit(recipe, frozen, precision="oas")
    assert edited.train_share == share
    head = edited.after[0].build()
    assert (head.zero_shot, head.precision) == (zero_shot, "oas")


def test_gaussians_without_labels_or_examples_go_through_the_same_rule() -> None:
    gaussians = Gaussians(np.eye(2), 2 * np.eye(2), np.array([0.25, 0.75]))
    coef, intercept = linear_rule(gaussians, np.eye(2)[::-1], text_scale=10, alpha=3)
    np.testing.assert_allclose(coef, [[6, 10], [10, 6]])
    np.testing.assert_allclose(intercept, [3 * (np.log(0.25) - 1), 3 * (np.log(0.75) - 1)])
