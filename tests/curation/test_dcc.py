"""Contrastive gradient matching: what is shared cancels, when the sum is matched, and the loop."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from condensing_world import bench_of, wave
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.curation.condensing import frozen_network, matching
from repertory.curation.condensing.matching import class_gradients, summed_gradient
from repertory.curation.dc import DatasetCondensation
from repertory.curation.dcc import DCC
from repertory.errors import OptionError
from repertory.scenarios.methods import arm
from repertory.testing.tiny import baseline_recipe

TINY = "repertory.testing.tiny:network"


def data(classes: int = 3, each: int = 6) -> tuple[Tensor, Tensor]:
    targets = torch.arange(classes * each) % classes
    noise = torch.randn(len(targets), 6, generator=torch.Generator().manual_seed(0))
    return noise + 2 * F.one_hot(targets, 6), targets


def method(**options: Any) -> DCC:
    return DCC(**{"iterations": 4, "updates": 3, "passes": 2, "batch": 4, **options})


def test_what_all_classes_share_cancels_in_the_sum_and_not_by_class() -> None:
    classes, dim = 4, 5
    means, shared = wave(classes, 1, dim, step=1.3), 10 * wave(dim, step=0.2)
    model = nn.Linear(dim, classes).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    logits, parameters = frozen_network(model, means[0])
    alone = summed_gradient(logits, parameters, means)["weight"]
    torch.testing.assert_close(summed_gradient(logits, parameters, means + shared)["weight"], alone)
    # The closed form, with the softmax equal to 1 / classes at zero weights.
    errors = torch.full((classes, classes), 1 / classes, dtype=torch.float64) - torch.eye(classes, dtype=torch.float64)
    torch.testing.assert_close(alone, errors.T @ means[:, 0] / classes)
    first, second = (class_gradients(logits, parameters, x)["weight"] for x in (means, means + shared))
    assert (first - second).norm() > first.norm()


def matched(monkeypatch: pytest.MonkeyPatch, made: Any) -> list[bool]:
    """Condense, and return for each update whether the sum was matched."""
    seen, whole = [], matching.matching_loss

    def note(*given: Any, contrastive: bool, **more: Any) -> Tensor:
        seen.append(contrastive)
        return whole(*given, contrastive=contrastive, **more)

    monkeypatch.setattr(matching, "matching_loss", note)
    made.condense(bench_of(*data(), 1, TINY))
    return seen


@pytest.mark.parametrize(
    ("outer", "inner", "by_class"),
    [
        (0.5, 10, {0, 1, 2, 3, 4, 5}),
        (0.5, 2, {0, 1, 3, 4}),
        (0.0, 10, set()),
        (1.0, 3, set(range(12))),
        (1.0, 0, set()),
    ],
)
def test_the_warm_up_has_an_outer_and_an_inner_end(
    monkeypatch: pytest.MonkeyPatch, outer: float, inner: int, by_class: set[int]
) -> None:
    seen = matched(monkeypatch, method(outer_warmup=outer, inner_warmup=inner))
    assert {k for k, contrastive in enumerate(seen) if not contrastive} == by_class
    assert len(seen) == 12


def test_with_warm_up_throughout_it_is_matching_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    # Both draw from generators named by their slug.
    monkeypatch.setattr(DCC, "slug", property(lambda self: "dc", lambda self, value: None), raising=False)
    options = {"iterations": 2, "updates": 3, "passes": 2, "batch": 4, "start": "real"}
    first = DCC(outer_warmup=1.0, **options).condense(bench_of(*data(), 2, TINY))
    second = DatasetCondensation(**options).condense(bench_of(*data(), 2, TINY))
    third = DCC(outer_warmup=0.0, **options).condense(bench_of(*data(), 2, TINY))
    assert torch.equal(first.inputs, second.inputs)
    assert not torch.allclose(first.inputs, third.inputs)


def test_matching_comes_nearer_to_the_summed_gradient() -> None:
    bench = bench_of(*data(), 1, TINY)
    inputs, targets = data()
    real = torch.stack([bench.splits.normaliser(inputs[targets == k]) for k in range(3)])
    sets = [
        bench.splits.normaliser(method(iterations=n, outer_warmup=0.0).condense(bench).inputs).unflatten(0, (3, 1))
        for n in (0, 20)
    ]
    apart = []
    for k in range(5):
        logits, parameters = frozen_network(bench.fresh_model(f"judge-{k}").network, real[0])
        apart.append([matching.matching_loss(logits, parameters, made, real, contrastive=True).item() for made in sets])
    before, after = torch.tensor(apart).mean(0)
    assert after < 0.8 * before


def test_published_loops_are_other_ones_for_a_single_example() -> None:
    bench = bench_of(*data(), 1, TINY)
    DCC(iterations=1, batch=5).condense(bench)
    assert bench.counts.forward == 10 * (15 + 3) + 9 * 5 * 3


def test_siamese_augmentation_is_the_same_for_real_and_made_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where all images are copies of their class's one, so are the augmented ones, and the gradients agree.
    one = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    bench = bench_of(one.repeat(4, 1, 1, 1), torch.arange(12) % 3, 1, "repertory.testing.tiny:conv_network")
    losses, whole = [], matching.matching_loss

    def note(*given: Any, **more: Any) -> Tensor:
        losses.append(whole(*given, **more))
        return losses[-1]

    monkeypatch.setattr(matching, "matching_loss", note)
    method(strategy=["crop", "rotate", "colour", "cutout"], iterations=2, outer_warmup=0.5).condense(bench)
    # 1 - cos of equal rows is 0 but for the small number in the denominator and dead units.
    for first, second in itertools.pairwise(losses[:3]):
        assert abs(first.item() - second.item()) < 1
    assert losses[0].item() < 0.1
    monkeypatch.setattr(matching.GradientMatcher, "_changed", lambda self, real, made, generator: (
        torch.roll(real, 1, -1), made))  # fmt: skip
    losses.clear()
    method(strategy=["crop"], iterations=1).condense(bench)
    assert losses[0].item() > 0.5


def test_it_takes_the_place_of_real_examples_and_of_nothing_else() -> None:
    recipe = baseline_recipe("condensation")
    edited = arm("dcc:iterations=5,outer_warmup=0.2", recipe, "classification", "condensation").recipe
    assert [(part.factory, part.slug) for part in edited.curation] == [("repertory.curation.dcc:DCC", "dcc")]
    assert edited.replace(curation=recipe.curation) == recipe
    with pytest.raises(Exception, match="dc and dcc both make the condensed set"):
        arm("dc+dcc", recipe, "classification", "condensation")


@pytest.mark.parametrize(("option", "value"), [("outer_warmup", 1.5), ("outer_warmup", -0.1), ("inner_warmup", -1)])
def test_bad_options_are_named(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=option):
        DCC(**{option: value})
