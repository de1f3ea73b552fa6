"""Projection heads by hand, the linear theory against descent and brute force, and probes against what is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from repertory import Part, Recipe
from repertory.core.classifier import features_and_output
from repertory.errors import DataError, OptionError, UserError
from repertory.layers import FixedReweightingHead, ProjectionHead
from repertory.layers.embedding import with_embedding
from repertory.layers.projection_head import (
    ProjectedNetwork,
    add_projection_head,
    edit,
    feature_gains,
    feature_moments,
    layer_gains,
    layer_report,
    linear_probe,
    optimal_gains,
    spectral_loss,
)
from repertory.losses import NormalisedSoftmaxLoss
from repertory.training.learner import Learner

STRENGTH = torch.tensor([1.0, 0.8, 0.5, 0.3], dtype=torch.float64)
NOISE = torch.tensor([0.3, 0.6, 0.2, 0.2], dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def added(model: nn.Module, **options: object) -> ProjectedNetwork:
    made = add_projection_head(model, 3, **options)  # type: ignore[arg-type]
    assert isinstance(made, ProjectedNetwork)
    return made


def descended(width: int, steps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return both layers of a linear network after gradient descent from small weights."""
    second, cross = feature_moments(STRENGTH, NOISE)
    first, last = (
        (0.05 * drawn(*shape, seed=seed + i)).requires_grad_() for i, shape in enumerate(((width, 4), (8, width)))
    )
    for _ in range(steps):
        slopes = torch.autograd.grad(spectral_loss(last @ first, second, cross), [first, last])
        with torch.no_grad():
            torch._foreach_sub_([first, last], slopes, alpha=0.1)
    return first.detach(), last.detach()


def test_gains_before_and_behind_a_linear_head_are_those_that_descent_finds() -> None:
    gains = optimal_gains(*feature_moments(STRENGTH, NOISE))
    torch.testing.assert_close(gains, torch.tensor([0.9174, 0.8000, 1.7241, 2.3077]).double(), rtol=0, atol=1e-4)
    first, last = descended(width=8, steps=1600)
    torch.testing.assert_close(feature_gains(last @ first), gains, rtol=1e-3, atol=0)
    torch.testing.assert_close(feature_gains(first), layer_gains(gains, 1, 2), rtol=0.02, atol=0)


def test_a_narrow_network_keeps_the_features_that_lower_the_loss_most() -> None:
    second, cross = feature_moments(STRENGTH, NOISE)
    gains = optimal_gains(second, cross, width=2)
    assert (gains > 0).tolist() == [True, False, True, False]
    first, last = descended(width=2, steps=700)
    torch.testing.assert_close(feature_gains(last @ first), gains, rtol=1e-2, atol=1e-2)
    for kept in ([0, 1], [0, 3], [1, 2], [2, 3]):
        other = torch.zeros(4, dtype=torch.float64)
        other[kept] = optimal_gains(second, cross)[kept]
        assert spectral_loss(other.diag(), second, cross) > spectral_loss(gains.diag(), second, cross)


def test_optimum_cannot_be_improved() -> None:
    second, cross = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.7, -0.4, 0.5]).double()
    weight = optimal_gains(second, cross).diag().requires_grad_()
    best = spectral_loss(weight, second, cross)
    assert best.item() == pytest.approx(-(0.7**2) - 1.0)
    (slope,) = torch.autograd.grad(best, weight)
    torch.testing.assert_close(slope, torch.zeros_like(slope))
    for seed in range(20):
        assert spectral_loss(weight.detach() + 0.1 * drawn(3, 3, seed=seed), second, cross) > best.detach()


def test_loss_on_the_distribution_is_the_mean_over_samples() -> None:
    second, cross = feature_moments(STRENGTH, NOISE)
    weight, count = drawn(3, 4, seed=3), 400_000
    signal = STRENGTH * drawn(count, 4, seed=4)
    first, again = ((signal + NOISE * drawn(count, 4, seed=seed)) @ weight.T for seed in (5, 6))
    sampled = (first * first.roll(1, 0)).sum(1).square().mean() - 2 * (first * again).sum(1).mean()
    assert spectral_loss(weight, second, cross).item() == pytest.approx(sampled.item(), rel=0.02)


def test_layers_share_the_gain_evenly() -> None:
    gains = torch.tensor([0.25, 16.0, 0.0])
    assert layer_gains(gains, 0, 2).tolist() == [1.0, 1.0, 0.0]
    assert layer_gains(gains, 1, 2).tolist() == [0.5, 4.0, 0.0]
    torch.testing.assert_close(layer_gains(gains, 3, 3), gains)


def test_moments_that_cannot_be_are_refused() -> None:
    one = torch.ones(2)
    for second, cross in ((one, 2 * one), (0 * one, one), (one, torch.ones(3)), (one[None], one[None])):
        with pytest.raises(DataError, match="cannot be those of features"):
            optimal_gains(second, cross)
    with pytest.raises(OptionError, match=r"weight of shape \(2, 3\) does not fit 2 features"):
        spectral_loss(torch.ones(2, 3), one, one)
    with pytest.raises(OptionError, match="layer=3"):
        layer_gains(one, 3, 2)


def test_fixed_head_by_hand() -> None:
    head = FixedReweightingHead(3, kappa=2.0)
    features = torch.full((1, 3), 8.0, requires_grad=True)
    assert head(features).tolist() == [[8.0, 4.0, 2.0]]
    head(features).sum().backward()
    assert features.grad is not None
    assert features.grad.tolist() == [[1.0, 0.5, 0.25]]
    assert not list(head.parameters())
    values = drawn(2, 3)
    assert torch.equal(FixedReweightingHead(3, kappa=1.0)(values), values)


def test_fixed_head_refuses_weights_that_vanish() -> None:
    with pytest.raises(OptionError, match=r"kappa=1\.5 .* last of 512 features by 1e-90.* at most 1\.1863"):
        FixedReweightingHead(512, kappa=1.5)
    assert FixedReweightingHead(512, kappa=1.1863).weight[-1] > 0


@pytest.mark.parametrize(("kind", "numbers"), [("mlp", 8 * 5 + 5 + 5 * 4 + 4), ("linear", 36), ("fixed", 0)])
def test_heads_have_their_sizes(kind: str, numbers: int) -> None:
    head = ProjectionHead(8, kind, hidden=5, output=None if kind == "fixed" else 4)
    assert sum(parameter.numel() for parameter in head.parameters()) == numbers
    assert head(torch.ones(2, 8)).shape == (2, head.out_features)


def test_mlp_is_two_layers_with_a_relu() -> None:
    head, features = ProjectionHead(3).double(), drawn(4, 3)
    first, _, last = head.layers
    torch.testing.assert_close(head(features), last(first(features).clamp(min=0)))


@pytest.mark.parametrize("kind", ["mlp", "linear", "fixed"])
def test_gradients(kind: str) -> None:
    assert torch.autograd.gradcheck(ProjectionHead(3, kind).double(), (drawn(2, 3, seed=2).requires_grad_(),))


def test_identity_leaves_features_and_networks_as_they_are() -> None:
    features, model = drawn(2, 3), network()
    assert torch.equal(ProjectionHead(3, "identity")(features), features)
    assert add_projection_head(model, 3, kind="identity") is model


@pytest.mark.parametrize("kind", ["mlp", "linear", "fixed"])
def test_a_network_gives_what_enters_and_what_leaves_its_head(kind: str) -> None:
    plain = network()
    model, inputs = added(copy.deepcopy(plain), kind=kind), torch.randn(4, 5)
    features, projected = model.both(inputs)
    torch.testing.assert_close(features, plain[:2](inputs))
    assert torch.equal(model.encode(inputs), features)
    torch.testing.assert_close(projected, model.head(features))
    torch.testing.assert_close(model(inputs), plain[2](projected))
    assert features_and_output(model, inputs)[0].equal(projected)
    assert model.encode(inputs).requires_grad


def test_a_search_goes_by_what_enters_the_head() -> None:
    recipe = with_embedding(Recipe(Part("m:f"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:AdamW")), 4, None)
    for order in (edit(recipe), with_embedding(edit(recipe), 4, "other")):
        model: nn.Module = network()
        for part in order.surgery:
            model = part.build(model, outputs=3)
        inputs = torch.randn(6, 5)
        torch.testing.assert_close(model(inputs).norm(dim=1), torch.ones(6))
        found = Learner(model, NormalisedSoftmaxLoss(3, dim=4)).embed(inputs)
        torch.testing.assert_close(found, network()[:2](inputs))


def test_a_network_of_ones_own_needs_a_head() -> None:
    with pytest.raises(UserError, match="Sequential has no ProjectionHead"):
        ProjectedNetwork(network())


def world() -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs of which the first coordinate has one class and the second another, and both classes."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = torch.arange(200) % 2, torch.arange(200) // 2 % 2
    inputs = torch.randn(200, 2, generator=generator) / 10 + torch.stack([coarse, fine], 1)
    return inputs, coarse, fine


def test_probes_find_what_the_layer_still_holds() -> None:
    inputs, coarse, fine = world()
    encoder, classifier = nn.Linear(2, 2), nn.Linear(2, 2)
    head = ProjectionHead(2, "linear")
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1e-3]]))
        head.layers[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    model = ProjectedNetwork(nn.Sequential(encoder, nn.Dropout(0.9), head, classifier)).train()
    report = layer_report(model, inputs, {"coarse": coarse, "fine": fine})
    # Gains alone make no difference to a probe, but what the head has dropped is gone.
    assert report["before the head"] == {"coarse": 1.0, "fine": 1.0}
    assert report["after the head"]["coarse"] == 1.0
    assert report["after the head"]["fine"] < 0.7
    assert model.network[1].training  # type: ignore[index]


def test_report_of_named_layers_and_of_all() -> None:
    inputs, coarse, _ = world()
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    assert list(layer_report(model, inputs, {"coarse": coarse})) == ["0", "2"]
    assert list(layer_report(model, inputs, {"coarse": coarse}, layers=["1"])) == ["1"]
    assert not model[0]._forward_hooks
    with pytest.raises(OptionError, match="layers names '3'"):
        layer_report(model, inputs, {"coarse": coarse}, layers=["3"])


def test_targets_that_cannot_be_probed_are_refused() -> None:
    inputs, coarse, _ = world()
    with pytest.raises(DataError, match=r"probe 'short' has targets of type torch.int64 and shape \(3,\)"):
        layer_report(network(), inputs, {"short": torch.arange(3)})
    with pytest.raises(DataError, match=r"'value' has targets of type torch\.float32"):
        layer_report(network(), inputs, {"value": coarse.float()})
    with pytest.raises(OptionError, match="held_out=1"):
        layer_report(network(), inputs, {"coarse": coarse}, held_out=1)
    with pytest.raises(DataError, match="all 200 targets are the same"):
        linear_probe(inputs, 0 * coarse, inputs, coarse)
    with pytest.raises(DataError, match="not finite"):
        linear_probe(inputs / 0, coarse, inputs, coarse)


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 0},
        {"kind": "deep"},
        {"hidden": 0},
        {"output": 0},
        {"kappa": 0.9},
        {"output": 4, "kind": "fixed"},
    ],
)
def test_bad_options_are_named(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))}="):
        ProjectionHead(**{"dim": 8, **options})  # type: ignore[arg-type]


def test_features_of_another_size_are_refused() -> None:
    for head in (ProjectionHead(8), FixedReweightingHead(8)):
        with pytest.raises(OptionError, match=r"dim=8 does not fit features of shape \(2, 3\)"):
            head(torch.ones(2, 3))
