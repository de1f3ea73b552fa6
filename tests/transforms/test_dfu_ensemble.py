"""Extend and ensemble: what is labelled, what is made, how votes are counted, and what it all costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imblearn.over_sampling import SMOTE
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.semi_supervised import SelfTrainingClassifier
from torch import Tensor, nn

import repertory
from repertory.core.randomness import generator_for
from repertory.core.state import Counts
from repertory.datasets import load
from repertory.errors import ConflictError, DataError, OptionError, UserError
from repertory.recipe import Part, Recipe
from repertory.scenarios import semi_supervised, supervised
from repertory.scenarios.bench import Bench
from repertory.scenarios.imperfect import UnevenBench
from repertory.transforms import Ensemble, ExtendAndEnsemble, extend_and_ensemble
from repertory.transforms.dfu_ensemble import (
    ClassGaussian,
    Smote,
    edit,
    extend,
    fit_temperature,
    fit_weights,
    make_generator,
    mean_probabilities,
    nearest_distances,
    pseudo_labels,
    quota,
)
from repertory.transforms.dfu_ensemble.diffusion import Diffusion

MLP = Part("repertory.models.small:mlp", {"width": 16, "depth": 1})


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=draws(seed), dtype=dtype)


def blobs(*counts: int, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return random(len(labels), width, seed=seed) + 3.0 * labels[:, None], labels


def refused(error: type[Exception], *words: str) -> Any:
    return pytest.raises(error, match="(?s)" + ".*".join(words))


# Which examples get a label


def test_pseudo_labels_with_a_cap_are_those_of_a_search_class_by_class() -> None:
    probabilities = (3 * random(60, 4)).softmax(1)
    bars = [0.5, 0.8, 0.9, 1.1]
    wanted = {}
    for label in range(4):
        own = [i for i in range(60) if int(probabilities[i].argmax()) == label]
        sure = [i for i in own if float(probabilities[i, label]) >= bars[label]]
        for row in sorted(sure, key=lambda i: -float(probabilities[i, label]))[:5]:
            wanted[row] = label
    rows, labels = pseudo_labels(probabilities, bars, cap=5)
    assert dict(zip(rows.tolist(), labels.tolist())) == wanted
    assert rows.tolist() == sorted(wanted)
    assert labels.bincount().tolist()[:1] == [5]
    assert 3 not in labels


def test_a_probability_at_the_threshold_is_sure_enough_and_none_is_above_one() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.7, 0.3], [0.0, 1.0]])
    assert pseudo_labels(probabilities, 0.75)[0].tolist() == [0, 2]
    assert pseudo_labels(probabilities, 1.0)[0].tolist() == [2]
    assert len(pseudo_labels(probabilities, 1.0001)[0]) == 0
    assert len(pseudo_labels(probabilities, 0.5, cap=0)[0]) == 0


def test_of_equally_sure_examples_the_first_are_kept() -> None:
    assert pseudo_labels(torch.tensor([[0.9, 0.1]] * 4), 0.9, cap=2)[0].tolist() == [0, 1]


@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_pseudo_labels_are_those_of_one_round_of_scikit_learn(threshold: float) -> None:
    inputs, labels = (each.numpy() for each in blobs(40, 40, 40, width=2))
    hidden = labels.copy()
    hidden[np.random.default_rng(0).random(len(labels)) < 0.8] = -1
    theirs = SelfTrainingClassifier(LogisticRegression(), threshold=threshold, max_iter=1).fit(inputs, hidden)
    known = hidden >= 0
    found = LogisticRegression().fit(inputs[known], hidden[known]).predict_proba(inputs[~known])
    rows, given = pseudo_labels(torch.from_numpy(found), threshold)
    assert rows.tolist() == (theirs.labeled_iter_[~known] == 1).nonzero()[0].tolist()
    assert given.tolist() == theirs.transduction_[~known][rows].tolist()
    assert 0 < len(rows) < (~known).sum()


def test_quota_fills_every_class_up_to_the_largest_pseudo_labels_included() -> None:
    counts, pseudo = torch.tensor([300, 300, 20, 40]), torch.tensor([50, 40, 2, 3])
    assert quota(counts, pseudo).tolist() == [0, 10, 328, 307]
    assert quota(counts, pseudo, ratio=0.2).tolist() == [0, 0, 48, 27]
    assert quota(counts, pseudo, ratio=2.0).tolist() == [350, 360, 678, 657]
    assert quota(counts, pseudo, ratio=0.0).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_temperature_is_where_the_likelihood_is_flat(factor: float) -> None:
    logits = random(400, 3, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(1), 1, generator=draws(1)).flatten()
    found = torch.tensor(fit_temperature(factor * logits, targets), dtype=torch.float64, requires_grad=True)
    nn.functional.cross_entropy(factor * logits / found, targets).backward()
    assert found.grad is not None
    assert abs(float(found.grad)) < 1e-5
    assert float(found.detach()) == pytest.approx(factor, rel=0.2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: pseudo_labels(p, 0.0), ("threshold=0.0", "above 0")),
        (lambda p: pseudo_labels(p, [0.5, -1.0]), ("threshold=-1.0",)),
        (lambda p: pseudo_labels(p, [0.5, 0.5, 0.5]), ("threshold", "each of the 2 classes")),
        (lambda p: pseudo_labels(p, 0.5, cap=-1), ("cap=-1",)),
        (lambda p: pseudo_labels(4 * p, 0.5), ("row 0", "softmax")),
        (lambda p: pseudo_labels(p * torch.nan, 0.5), ("row 0", "finite")),
        (lambda p: pseudo_labels(p[0], 0.5), ("shape", r"\(examples, classes\)")),
        (lambda p: quota(torch.tensor([3, 0]), torch.tensor([0, 9])), ("class 1 has no labelled example",)),
        (lambda p: quota(torch.tensor([3]), torch.tensor([0, 9])), ("counts", "pseudo_counts")),
        (lambda p: quota(torch.tensor([3]), torch.tensor([0]), -0.5), ("ratio=-0.5",)),
        (lambda p: fit_temperature(p, torch.tensor([0])), ("logits", "targets")),
    ],
)
def test_what_cannot_be_labelled_is_refused(call: Callable[[Tensor], Any], words: tuple[str, ...]) -> None:
    with refused(UserError, *words):
        call(torch.tensor([[0.5, 0.5], [0.1, 0.9]]))


# Votes


def test_mean_is_of_probabilities_and_not_of_logits() -> None:
    class Says(nn.Module):
        def __init__(self, *probabilities: float) -> None:
            super().__init__()
            self.register_buffer("logits", torch.tensor([probabilities]).log() + 7.0)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.logits.expand(len(inputs), -1)

    both = Ensemble([Says(0.6, 0.4), Says(0.2, 0.8)])(torch.zeros(2, 1))
    torch.testing.assert_close(both.exp(), torch.tensor([[0.4, 0.6]] * 2))
    torch.testing.assert_close(both.softmax(1), both.exp())
    weighted = Ensemble([Says(0.6, 0.4), Says(0.2, 0.8)], [3, 1])(torch.zeros(1, 1))
    torch.testing.assert_close(weighted.exp(), torch.tensor([[0.5, 0.5]]))
    alone = Ensemble([Says(0.6, 0.4), Says(0.2, 0.8)], [0, 2])(torch.zeros(1, 1))
    torch.testing.assert_close(alone.exp(), torch.tensor([[0.2, 0.8]]))


def test_equal_members_are_the_member() -> None:
    member, x = nn.Linear(5, 3), random(7, 5)
    torch.testing.assert_close(Ensemble([member] * 4)(x), member(x).log_softmax(1))
    stacked = member(x).softmax(1).expand(4, -1, -1)
    torch.testing.assert_close(mean_probabilities(stacked, torch.tensor([1.0, 2, 3, 4])), member(x).softmax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_votes_of_half_precision_members_are_counted_in_float32(dtype: torch.dtype) -> None:
    logits = 30 * random(2, 50, 4).to(dtype)
    members = [nn.Identity(), nn.Identity()]
    ensemble = Ensemble(members)
    for member, values in zip(ensemble.members, logits):
        member.register_forward_hook(lambda _, __, ___, values=values: values)
    found = ensemble(torch.zeros(50, 4))
    exact = logits.double().softmax(2).mean(0).log()
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


def test_gradient_of_an_ensemble_is_that_of_finite_differences() -> None:
    ensemble = Ensemble([nn.Linear(3, 4), nn.Linear(3, 4)], [0.3, 0.7]).double()
    assert torch.autograd.gradcheck(ensemble, (random(5, 3, dtype=torch.float64).requires_grad_(),))


def test_fitted_weights_are_the_best_of_a_grid() -> None:
    probabilities = (2 * random(2, 30, 3)).softmax(2)
    targets = torch.randint(3, (30,), generator=draws(2))
    weights = fit_weights(probabilities, targets)
    labels = nn.functional.one_hot(targets, 3)
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 201)] * 2)
    errors = (torch.tensordot(grid, probabilities, 1) - labels).square().sum((1, 2))
    best = grid[errors.argmin()]
    torch.testing.assert_close(weights, best / best.sum(), atol=0.01, rtol=0)
    assert float(weights.sum()) == pytest.approx(1)


def test_members_that_are_all_wrong_get_equal_weights() -> None:
    assert fit_weights(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]), torch.tensor([1])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with refused(DataError, "weights=", "2 finite numbers"):
        Ensemble([nn.Identity(), nn.Identity()], weights)


def test_an_ensemble_needs_a_member() -> None:
    with refused(DataError, "members is empty"):
        Ensemble([])


# Made examples


@pytest.mark.parametrize("shape", [(6,), (1, 2, 3)])
def test_gaussian_without_spread_gives_the_only_image_back(shape: tuple[int, ...]) -> None:
    inputs, labels = blobs(5, 1)
    images = inputs.view(-1, *shape)
    made = ClassGaussian(components=2, spread=0.0).fit(images, labels, draws()).sample(1, 3, draws())
    torch.testing.assert_close(made, images[-1:].expand(3, *shape))


def test_gaussian_has_the_class_mean_and_ledoit_and_wolfs_covariance() -> None:
    inputs, labels = blobs(60, 25)
    inputs[labels == 1] *= torch.tensor([4.0, 1, 1, 1, 1, 0.1])
    made = ClassGaussian(components=6).fit(inputs, labels, draws()).sample(1, 40_000, draws()).double()
    own = inputs[labels == 1].double()
    error = made.std(0) / len(made) ** 0.5
    assert ((made.mean(0) - own.mean(0)).abs() < 3 * error).all()
    # All directions are kept, and the rule does not depend on the axes.
    expected = torch.from_numpy(LedoitWolf().fit(own.numpy()).covariance_)
    torch.testing.assert_close(made.T.cov(), expected, rtol=0.05, atol=0.05)


def test_gaussian_varies_only_in_the_directions_that_it_keeps() -> None:
    inputs, labels = blobs(30, 30)
    inputs[:, 2] += 50 * random(60, seed=3)
    made = ClassGaussian(components=1).fit(inputs, labels, draws()).sample(0, 50, draws())
    spread = torch.linalg.svdvals(made.double() - made.double().mean(0))
    assert float(spread[1] / spread[0]) < 1e-5
    assert float(made.std(0).argmax()) == 2


def test_spread_scales_the_deviations_from_the_mean() -> None:
    inputs, labels = blobs(30, 8)
    once, twice = (ClassGaussian(spread=s).fit(inputs, labels, draws()).sample(1, 5, draws(2)) for s in (1.0, 2.0))
    mean = inputs[labels == 1].mean(0)
    torch.testing.assert_close(twice - mean, 2 * (once - mean), atol=1e-4, rtol=1e-4)


def test_smote_makes_what_imbalanced_learn_makes_of_the_whole_set() -> None:
    inputs, labels = blobs(20, 8)
    found = Smote(neighbours=3).fit(inputs, labels, draws()).sample(1, 12, draws(4))
    seed = int(torch.randint(2**31 - 1, (1,), generator=draws(4)))
    theirs = SMOTE(sampling_strategy={1: 20}, k_neighbors=3, random_state=seed)
    expected = theirs.fit_resample(inputs.double().numpy(), labels.numpy())[0][28:]
    torch.testing.assert_close(found, torch.from_numpy(expected).float())


def test_smote_takes_fewer_neighbours_in_a_small_class() -> None:
    inputs, labels = blobs(9, 2)
    made = Smote().fit(inputs, labels, draws()).sample(1, 20, draws())
    first, second = inputs[-2:]
    along = ((made - first) @ (second - first)) / (second - first).square().sum()
    torch.testing.assert_close(made, first + along[:, None] * (second - first), atol=1e-5, rtol=1e-5)
    assert 0 <= float(along.min()) < float(along.max()) <= 1


def test_diffusion_makes_images_of_the_class_that_it_is_told() -> None:
    # Uneven sides: they are padded to be halved, and cut again.
    bright, dark = torch.zeros(1, 3, 5), torch.zeros(1, 3, 5)
    bright[:, :, :2], dark[:, :, 3:] = 200.0, 200.0
    images = torch.stack([bright] * 6 + [dark] * 2) + 5 * random(8, 1, 3, 5)
    labels = torch.tensor([4] * 6 + [7] * 2)
    model = Diffusion(steps=60, width=16, batch=16, lr=1e-2).fit(images, labels, draws())
    for label, own, other in ((4, bright, dark), (7, dark, bright)):
        made = model.sample(label, 6, draws(label))
        assert made.shape == (6, 1, 3, 5)
        assert float(images.min()) - 1e-3 <= float(made.min()) < float(made.max()) <= float(images.max()) + 1e-3
        assert float((made - own).abs().mean()) < 0.7 * float((made - other).abs().mean())
    assert model.counts == Counts(forward=60 * 16 + 2 * 6 * 10, backward=60 * 16, steps=60)


def test_diffusion_sees_every_class_as_often() -> None:
    class Watched(Diffusion):
        seen: list[Tensor] = []

        def _predict(self, images: Tensor, times: Tensor, labels: Tensor) -> Tensor:
            self.seen.append(labels)
            return super()._predict(images, times, labels)

    images, labels = torch.rand(40, 1, 2, 2, generator=draws()), torch.tensor([0] * 39 + [1])
    Watched(steps=2, width=8, batch=200).fit(images, labels, draws())
    assert 0.4 < float(torch.cat(Watched.seen).double().mean()) < 0.6


def test_diffusion_trains_for_as_long_as_it_is_told() -> None:
    model = Diffusion(width=8, batch=2, sampling_steps=1)
    model.progress = lambda counts: counts.backward / 7
    model.fit(torch.rand(2, 1, 2, 2, generator=draws()), torch.tensor([0, 1]), draws())
    assert model.counts.steps == 4


@pytest.mark.parametrize("name", ["gaussian", "smote", "diffusion"])
def test_generators_draw_from_the_given_generator_alone(name: str) -> None:
    inputs, labels = blobs(5, 4, width=16)
    options = {"steps": 2, "width": 8, "batch": 2, "sampling_steps": 2} if name == "diffusion" else {}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    made = []
    for seed in (0, 0, 1):
        model, generator = make_generator(name, **options), draws(seed)
        model.fit(inputs.view(-1, 1, 4, 4), labels, generator)
        made.append(model.sample(1, 3, generator))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()


@pytest.mark.parametrize(("name", "package"), [("smote", "imblearn"), ("diffusion", "diffusers")])
def test_a_missing_package_is_named_with_how_to_install_it(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with refused(UserError, name, r'pip install "repertory\[synthesis\]"'):
        ExtendAndEnsemble(generator=name)
    assert ExtendAndEnsemble(generator=name, ratio=0.0).ratio == 0


@pytest.mark.parametrize("name", ["gaussian", "smote"])
def test_one_image_of_a_class_is_too_few(name: str) -> None:
    model = make_generator(name).fit(*blobs(5, 1), draws())
    with refused(DataError, "class 1 has one example alone", "ratio=0"):
        model.sample(1, 2, draws())
    with refused(DataError, "label=9", "fit it first"):
        model.sample(9, 2, draws())


def test_examples_that_nothing_can_be_made_of_are_refused() -> None:
    inputs, labels = blobs(3, 3)
    with refused(DataError, "example 2 is not finite"):
        ClassGaussian().fit(inputs.index_fill(0, torch.tensor([2]), torch.inf), labels, draws())
    with refused(DataError, "images", "labels"):
        Smote().fit(inputs, labels[:4], draws())
    with refused(DataError, "images", "gaussian"):
        Diffusion(width=8).fit(inputs, labels, draws())
    with refused(OptionError, "width=12", "multiple of 8"):
        Diffusion(width=12)
    with refused(DataError, "labels are", "int64"):
        ClassGaussian().fit(inputs, labels.float(), draws())


def test_nearest_distances_are_zero_for_remembered_examples() -> None:
    inputs, _ = blobs(5, 5)
    torch.testing.assert_close(nearest_distances(inputs[3:5], inputs), torch.zeros(2), atol=2e-3, rtol=0)
    torch.testing.assert_close(
        nearest_distances(inputs[:1] - 100, inputs), (inputs - inputs[:1] + 100).norm(dim=1).min()[None]
    )


# Everything together, in a loop of one's own


def logistic(inputs: Any, labels: Any, member: int) -> Callable[[Any], Any]:
    return LogisticRegression().fit(inputs, labels).predict_proba


def test_a_round_with_nothing_to_add_is_the_baseline() -> None:
    inputs, labels = (each.numpy() for each in blobs(20, 6))
    seen = []

    def fit(x: Any, y: Any, member: int) -> Callable[[Any], Any]:
        seen.append(x)
        return logistic(x, y, member)

    found = extend_and_ensemble(fit, inputs, labels, inputs[:3], members=1, threshold=2.0, ratio=0.0)
    np.testing.assert_array_equal(found.probabilities(inputs), logistic(inputs, labels, 0)(inputs))
    assert len(seen) == 1
    assert seen[0] is inputs


def test_members_are_trained_on_labels_pool_and_made_examples() -> None:
    inputs, labels = blobs(20, 6)
    pool = blobs(10, 4, seed=1)[0]
    seen: list[tuple[Tensor, Tensor]] = []

    def fit(x: Tensor, y: Tensor, member: int) -> Callable[[Tensor], Tensor]:
        seen.append((x, y))
        return lambda rows: torch.stack([1 - (rows.mean(1) > 1.5).float(), (rows.mean(1) > 1.5).float()], 1)

    found = extend_and_ensemble(fit, inputs, labels, pool, members=2, threshold=1.0)
    assert len(seen) == 4
    x, y = seen[-1]
    assert torch.equal(x[:40], torch.cat([inputs, pool]))
    assert torch.equal(y[:40], torch.cat([labels, torch.tensor([0] * 10 + [1] * 4)]))
    assert y.bincount().tolist() == [30, 30]
    assert torch.equal(x[40:], found.extension.made)
    assert not torch.cdist(x[40:], inputs).lt(1e-3).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": 0}, ("members=0",)),
        ({"threshold": 0.0}, ("threshold=0.0",)),
        ({"pool": torch.zeros(3, 5)}, ("pool", r"\(3, 5\)", "same shape")),
        ({"labels": torch.tensor([0] * 4 + [2] * 4)}, ("class 1 has no labelled example",)),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ("labels", r"\(3,\)")),
        ({"inputs": torch.full((8, 6), torch.nan)}, ("example 0 is not finite",)),
    ],
)
def test_bad_input_of_a_loop_is_refused(change: dict[str, Any], words: tuple[str, ...]) -> None:
    given: dict[str, Any] = {"inputs": blobs(4, 4)[0], "labels": blobs(4, 4)[1], "pool": torch.zeros(3, 6)} | change

    def fit(x: Any, y: Any, member: int) -> Callable[[Any], Any]:
        return lambda rows: torch.full((len(rows), int(y.max()) + 1), 1.0).softmax(1)

    with refused(UserError, *words):
        extend_and_ensemble(fit, **given)


# In a run


def bench_of(
    spec: str,
    *,
    epochs: int = 12,
    budget: str = "compute",
    kind: type[Bench] = Bench,
    before: Any = None,
    **options: Any,
) -> Bench:
    dataset = load(spec)
    module = semi_supervised if dataset.some_unlabelled else supervised
    recipe: Recipe = module.baseline(dataset, MLP, epochs=epochs)
    splits = dataset.prepare(0)
    amount = module.budget_of(budget, recipe, dataset, splits)
    recipe = edit(recipe if before is None else before(recipe), **options)
    return kind.of(recipe, dataset, splits, seed=0, budget=amount)


class Watched(Bench):
    """A bench that keeps what each training was given."""

    def train(self, model: Any, share: float, **more: Any) -> Any:
        if not hasattr(self, "trained"):
            self.trained: list[dict[str, Any]] = []
        before, steps = self.counts.passes, self.counts.steps
        result = super().train(model, share, **more)
        spent = {"compute": self.counts.passes - before, "steps": self.counts.steps - steps}
        self.trained.append({"splits": self.splits, "rows": self.rows, **spent})
        return result


def run(bench: Bench) -> Any:
    model, _ = supervised.trained(bench)
    return model


def test_only_training_and_unlabelled_examples_are_extended_from() -> None:
    bench = bench_of("digits?labels=60", kind=Watched, threshold=0.4, members=2)
    splits = bench.splits
    run(bench)
    extended = bench.trained[-1]["splits"].train
    part = bench.recipe.after[0]
    count = len(splits.train)
    assert torch.equal(extended.inputs[:count], splits.train.inputs)
    added = extended.inputs[count:].flatten(1).unique(dim=0)

    def found(rows: Tensor) -> int:
        both = torch.cat([added, rows.flatten(1).unique(dim=0)])
        return len(both) - len(both.unique(dim=0))

    assert found(splits.unlabelled.inputs) > 100
    # A digit may be there twice, so what the pool itself shares with the others is taken off.
    for held_out in (splits.validation, splits.test):
        pool = torch.cat([splits.unlabelled.inputs.flatten(1).unique(dim=0), held_out.inputs.flatten(1).unique(dim=0)])
        assert found(held_out.inputs) <= len(pool) - len(pool.unique(dim=0))
    assert bench.splits is splits
    assert bench.rows is None
    assert part.slug == "dfu-ensemble"
    assert extended.inputs.dtype is torch.uint8
    counts = extended.targets.bincount()
    assert counts.tolist() == [int(counts.max())] * 10


@pytest.mark.parametrize("budget", ["compute", "steps"])
def test_all_trainings_share_the_budget_of_one(budget: str) -> None:
    bench = bench_of("digits?labels=60", kind=Watched, threshold=0.4, budget=budget, members=2)
    model = run(bench)
    assert len(bench.trained) == 4
    passes = [each["compute"] for each in bench.trained]
    batch = 3 * bench.recipe.batch_size
    if budget == "compute":
        assert bench.counts.passes == pytest.approx(bench.budget.amount, abs=batch)
        assert passes[2] == pytest.approx(passes[3], abs=batch)
        assert passes[0] - passes[2] == pytest.approx(len(bench.splits.unlabelled), abs=2 * batch)
    else:
        assert bench.counts.steps == pytest.approx(bench.budget.amount, abs=2)
        assert max(passes) - min(passes) <= 2 * batch
    assert len(model.network.members) == 2


class Stub:
    """A generator that is trained for as long as it is told, and makes black images."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.progress: Callable[[Counts], float] = lambda counts: 1.0

    def fit(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        while self.progress(self.counts) < 1:
            self.counts = Counts(self.counts.forward + 4, self.counts.backward + 4, self.counts.steps + 1)

    def sample(self, label: int, count: int, generator: torch.Generator) -> Tensor:
        self.counts.forward += count
        return torch.zeros(count, 1, 8, 8)


@pytest.mark.parametrize("budget", ["compute", "steps"])
def test_what_a_diffusion_model_costs_is_part_of_the_budget(budget: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repertory.transforms.dfu_ensemble.make_generator", lambda name: Stub())
    options = {"members": 1, "ratio": 1.2, "threshold": 2.0, "generator": "diffusion", "synthesis": 0.2}
    bench = bench_of("digits?imbalance=2", kind=Watched, epochs=10, budget=budget, **options)
    run(bench)
    amount, made = bench.budget.amount, len(bench.trained[-1]["splits"].train) - len(bench.splits.train)
    spent = bench.counts.passes if budget == "compute" else bench.counts.steps
    assert spent == pytest.approx(amount, abs=3 * bench.recipe.batch_size if budget == "compute" else 2)
    assert made > 100
    first, second = (each[budget] for each in bench.trained)
    assert first - second == pytest.approx(0.2 * amount + (made if budget == "compute" else 0), rel=0.05)


def test_members_without_an_extension_are_the_baseline_at_their_share() -> None:
    bench = bench_of("digits?labels=60", members=2, threshold=2.0, ratio=0.0, epochs=4)
    found = run(bench).network.members[0]
    plain = bench_of("digits?labels=60", members=2, threshold=2.0, ratio=0.0, epochs=4)
    expected = plain.train(plain.fresh_model(), 0.5)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def test_made_examples_count_neither_as_classes_nor_as_data_when_models_are_judged() -> None:
    class Both(UnevenBench, Watched):
        pass

    bench = bench_of("digits?imbalance=8", kind=Both, members=1, epochs=3)
    plain = UnevenBench.of(bench.recipe, load("digits?imbalance=8"), bench.splits, seed=0, budget=bench.budget)
    run(bench)
    extended = bench.trained[-1]["splits"].train
    assert len(extended) > len(bench.splits.train)
    outputs = random(len(bench.splits.test), 10)
    kept, bench.splits = bench.splits, bench.trained[-1]["splits"]
    assert bench.metrics_of(outputs, kept.test.targets) == plain.metrics_of(outputs, kept.test.targets)


def test_made_images_have_the_units_of_the_data() -> None:
    bench = bench_of("digits?imbalance=4", kind=Watched, members=1, threshold=2.0, epochs=2)
    run(bench)
    real, extended = bench.splits.train, bench.trained[-1]["splits"].train
    own = real.inputs[real.targets == 9].double().mean(0)
    made = extended.inputs[len(real) :][extended.targets[len(real) :] == 9].double().mean(0)
    assert float((made - own).abs().mean()) < 10
    assert float(own.mean()) > 70


def test_rows_that_curation_left_out_stay_out() -> None:
    def before(recipe: Recipe) -> Recipe:
        return recipe.add("curation", Part("repertory.curation:DataDiet", {"keep": 0.5, "rule": "random"}))

    bench = bench_of("digits", kind=Watched, before=before, members=1, epochs=2, ratio=1.1)
    run(bench)
    size, rows = len(bench.splits.train), bench.trained[-1]["rows"]
    assert len(rows) - len(rows[rows < size]) == len(bench.trained[-1]["splits"].train) - size > 0
    assert torch.equal(rows[rows < size], bench.trained[0]["rows"])
    assert torch.equal(bench.rows, bench.trained[0]["rows"])


def test_calibration_lowers_what_too_sure_members_say() -> None:
    bench = bench_of("digits?labels=60", epochs=1)

    class Shouting(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.layer = nn.utils.skip_init(nn.Linear, 64, 10)
            self.layer.weight.data.copy_(30 * random(10, 64, seed=seed))
            self.layer.bias.data.zero_()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs.flatten(1))

    members = [Shouting(0), Shouting(1)]
    plain = ExtendAndEnsemble()._recognised(members, bench)
    found = ExtendAndEnsemble(calibrate=True)._recognised(members, bench)
    assert float(found.amax(1).mean()) < 0.5 < float(plain.amax(1).mean())
    torch.testing.assert_close(found.gather(1, plain.argmax(1)[:, None]).flatten(), found.amax(1))


def test_fitted_weights_are_those_of_the_validation_part() -> None:
    bench = bench_of("digits?labels=60", members=2, weights="fitted", epochs=3)
    model = run(bench)
    said = [bench.predict(member, "validation").softmax(1) for member in model.network.members]
    torch.testing.assert_close(model.network.weights, fit_weights(said, bench.splits.validation.targets))


def test_a_criterion_that_makes_the_logits_still_gives_an_ensemble() -> None:
    loss = Part("repertory.losses.normalised_softmax:NormalisedSoftmaxLoss", {"outputs": 10, "dim": 10})
    bench = bench_of("digits", members=2, epochs=1, before=lambda recipe: recipe.replace(criterion=loss))
    model = run(bench)
    said = torch.stack([bench.predict(member, "test").softmax(1) for member in model.network.members]).mean(0)
    torch.testing.assert_close(bench.predict(model, "test").exp(), said)


@pytest.mark.parametrize("options", ["members=2", "members=3,widths=[4,20],threshold=0.4"])
def test_a_saved_ensemble_predicts_as_it_did(options: str, tmp_path: Path) -> None:
    given = {"data": "digits?labels=60", "scenario": "semi_supervised", "model": "repertory:mlp", "epochs": 1}
    saved = repertory.fit(f"dfu-ensemble:{options}", out=tmp_path / "model", **given)
    splits = load("digits?labels=60").prepare(0)
    found = repertory.load(tmp_path / "model").predict(splits.test.inputs).outputs
    assert torch.equal(found, saved.predict(splits.test.inputs).outputs)
    accuracy = float((found.argmax(1) == splits.test.targets).double().mean())
    assert accuracy == pytest.approx(saved.about["metrics"]["test"]["accuracy"])
    widths = [member.network[1].out_features for member in saved.learner.network.members]
    assert widths == ([128, 4, 20] if "widths" in options else [128, 128])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": 0}, ("members=0",)),
        ({"threshold": 0}, ("threshold=0",)),
        ({"threshold": []}, ("threshold", "one a class")),
        ({"generator": "gan"}, ("generator='gan'",)),
        ({"first": 0.9}, ("synthesis=0.2", "below 0.1")),
        ({"widths": [32]}, ("widths", "2 members beside the first")),
        ({"weights": "best"}, ("weights='best'",)),
        ({"cap": -1}, ("cap=-1",)),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(OptionError, *words):
        ExtendAndEnsemble(**options)


def test_widths_need_a_model_that_has_them() -> None:
    recipe = Recipe(Part("repertory.testing.tiny:network"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD"))
    with refused(OptionError, r"widths=\[8\]", "tiny:network has none"):
        edit(recipe, members=2, widths=[8])


def test_what_has_no_single_examples_of_classes_is_refused() -> None:
    bench = bench_of("digits?labels=60", epochs=1)
    bench.splits.train.groups = torch.zeros(len(bench.splits.train), dtype=torch.int64)
    with refused(ConflictError, "bags", "leave it out"):
        ExtendAndEnsemble().apply(bench.fresh_model(), bench)


def test_a_budget_that_the_pool_takes_up_is_refused() -> None:
    bench = bench_of("digits?labels=60", epochs=1, members=4)
    with refused(OptionError, "members=4", "more epochs"):
        run(bench)


def test_a_pool_of_another_kind_is_refused() -> None:
    inputs, labels = blobs(4, 4)
    with refused(DataError, "pool", "row of probabilities each"):
        extend(inputs, labels, inputs, torch.ones(2, 2) / 2, None, generator_for(0, "x"), classes=2)
