"""Tests of AST: smoother experts, and each of the things that help the student."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional
from trajectory_bench import SMALL, Bench, convolutions, draw, drawn, perceptron

from repertory.curation.mtt import MTT
from repertory.curation.smooth_trajectories import AST, edit
from repertory.curation.trajectories import (
    ExpertTraining,
    ExpertTrajectories,
    FlatNetwork,
    balance,
    gradient_penalty,
    matching_loss,
    representatives,
    unrolled,
)
from repertory.errors import DataError, OptionError
from repertory.recipe import Part, Recipe

RELEASED = json.loads((Path(__file__).parent / "smooth_trajectories_released.json").read_text())
OFF: dict[str, Any] = {
    "momentum": 0.0,
    "balanced": False,
    "intermediate": "none",
    "perturbation": 0.0,
    "initialisation": "random",
    "expert_momentum": 0.0,
    "expert_weight_decay": 0.0,
    "expert_decay": 1.0,
    "clipped": False,
    "penalty": 0.0,
}


def wave(size: int, frequency: float, phase: float) -> Tensor:
    return (frequency * torch.arange(size, dtype=torch.float64) + phase).sin()


def released_network() -> FlatNetwork:
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    for i, value in enumerate(module.parameters()):
        value.data = wave(value.numel(), 0.7 + i, 0.1 + i).view_as(value) / 2
    return FlatNetwork(module)


def released_snapshots(network: FlatNetwork) -> Tensor:
    """How far each parameter has gone after 0 to 8 epochs."""
    sizes = [math.prod(shape) for shape in network.shapes.values()]
    moves = [torch.cat([wave(n, 1.1 * (i + 1), e) for i, n in enumerate(sizes)]) for e in range(9)]
    return network.vector() + 0.05 * torch.arange(9.0, dtype=torch.double)[:, None] * torch.stack(moves)


IMAGES, LABELS = wave(108, 1.3, 0.2).view(6, 2, 3, 3), torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("case", "start", "options"),
    [
        ("plain", 1, {}),
        ("momentum", 1, {"momentum": 0.9}),
        ("balanced early", 1, {"balanced": True}),
        ("balanced late", 3, {"balanced": True}),
        ("equal", 2, {"intermediate": "equal"}),
        ("rising", 2, {"intermediate": "rising"}),
        ("all", 3, {"momentum": 0.9, "balanced": True, "intermediate": "equal"}),
    ],
)
def test_loss_and_its_gradients_are_those_of_the_authors_code(case: str, start: int, options: dict[str, Any]) -> None:
    network = released_network()
    snapshots = released_snapshots(network)[start : start + 4]
    inputs, rate = IMAGES.clone().requires_grad_(), torch.tensor(0.1, dtype=torch.double, requires_grad=True)
    factor = balance(start, 4) if options.get("balanced") else 1.0
    momentum = options.get("momentum", 0.0)
    vectors = unrolled(network, snapshots[0], inputs, LABELS, rate, steps=7, momentum=momentum, factor=factor)
    loss = matching_loss(vectors, snapshots[1:], options.get("intermediate", "none"))
    loss.backward()
    expected = RELEASED["matching"][case]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-8)
    assert inputs.grad is not None
    assert rate.grad is not None
    assert inputs.grad.flatten()[::9].tolist() == pytest.approx(expected["pixels"], rel=1e-6, abs=1e-9)
    assert rate.grad.item() == pytest.approx(expected["rate"], rel=1e-7)


def test_step_of_an_expert_is_that_of_the_authors_code() -> None:
    network = released_network()
    network.module.float()
    experts, before = ExpertTrajectories(1, 1, network.size), network.vector()
    training = ExpertTraining(epochs=1, lr=0.1, batch=6, clipped=True, penalty=2.0)
    training.train(network, IMAGES.float(), LABELS, experts, 0, generator=torch.Generator())
    step = before - experts.read(0, 1, 1)[0]
    assert step[::7].tolist() == pytest.approx(RELEASED["expert"]["step"], rel=2e-4, abs=1e-6)


def test_perturbation_is_that_of_the_authors_code(monkeypatch: pytest.MonkeyPatch) -> None:
    network = released_network()
    noise = torch.tensor(RELEASED["perturbed"]["noise"], dtype=torch.double)
    monkeypatch.setattr(torch, "randn", lambda shape, generator: noise.view(shape))
    pieces = network.pieces(network.perturbed(network.vector(), 1.0, torch.Generator()))
    found = pieces["0.weight"].flatten().tolist()
    assert found == pytest.approx(RELEASED["perturbed"]["kernel"], rel=1e-8)


def test_perturbation_is_bounded_and_for_convolutions_alone() -> None:
    network = FlatNetwork(nn.Sequential(convolutions(), nn.Conv1d(3, 2, 2)))
    before = network.pieces(network.vector())
    after = network.pieces(network.perturbed(network.vector(), 0.5, torch.Generator().manual_seed(1)))
    generator = torch.Generator().manual_seed(1)
    for name, value in before.items():
        if value.ndim < 3:
            assert torch.equal(after[name], value)
            continue
        noise = torch.randn(value.shape, generator=generator)
        moved = (after[name] - value).norm() / value.norm()
        assert 0 < moved <= 0.5 * noise.abs().max() / noise.norm()
    assert torch.equal(network.perturbed(network.vector(), 0.0, generator), network.vector())


def test_balance_by_hand() -> None:
    values = [balance(start, 20) for start in (0, 9, 10, 19)]
    assert values == pytest.approx([0.5568, 0.7325, 1.2920, 1.7604], abs=5e-5)
    assert balance(0, 1) == pytest.approx(math.log(8) / math.log(5))
    assert [balance(start, 5) >= 1 for start in range(5)] == [False, False, True, True, True]
    with pytest.raises(OptionError, match="start=20"):
        balance(20, 20)


@pytest.mark.parametrize(("intermediate", "weights"), [("none", (0, 0)), ("equal", (1, 1)), ("rising", (1 / 3, 2 / 3))])
def test_distance_on_the_way_by_hand(intermediate: str, weights: tuple[float, float]) -> None:
    vectors, targets = [draw(5, seed=number) for number in range(9)], draw(3, 5, seed=9)

    def relative(place: int, number: int) -> float:
        return float((vectors[place] - targets[number]).norm() ** 2 / (vectors[0] - targets[number]).norm() ** 2)

    # 8 steps, 3 epochs: the expert is met after 2, 4 and all 8 steps.
    expected = relative(8, 2) + weights[0] * relative(2, 0) + weights[1] * relative(4, 1)
    assert matching_loss(vectors, targets, intermediate).item() == pytest.approx(expected, rel=1e-5)


def test_fewer_steps_than_epochs_cannot_meet_them() -> None:
    with pytest.raises(OptionError, match="steps=2 cannot meet"):
        matching_loss([draw(5)] * 3, draw(3, 5, seed=1), "equal")
    with pytest.raises(OptionError, match="steps=2 cannot meet"):
        AST(steps=2)
    assert AST(steps=2, intermediate="none").steps == 2


def test_penalty_vanishes_where_slopes_have_length_one() -> None:
    weight = draw(2, 6).double()
    weight = weight / weight.sum(0).norm()
    inputs = draw(4, 6).double()
    assert gradient_penalty(lambda x: x @ weight.T, inputs).item() < 1e-20
    assert gradient_penalty(lambda x: 3 * x @ weight.T, inputs).item() == pytest.approx(4.0)


def test_penalty_is_over_the_channels_of_a_pixel_or_over_the_image() -> None:
    slope = draw(1, 2, 3, 3).double()

    def linear(x: Tensor) -> Tensor:
        return (x * slope).flatten(1).sum(1, keepdim=True)

    inputs = draw(5, 2, 3, 3).double()
    by_pixel = (slope[0].square().sum(0).sqrt() - 1).square().mean()
    assert gradient_penalty(linear, inputs).item() == pytest.approx(by_pixel.item())
    assert gradient_penalty(linear, inputs, "example").item() == pytest.approx((slope.norm().item() - 1) ** 2)
    with pytest.raises(OptionError, match="norm='image'"):
        gradient_penalty(linear, inputs, "image")


@pytest.mark.parametrize("norm", ["channels", "example"])
def test_gradient_of_the_penalty_is_that_of_finite_differences(norm: str) -> None:
    inputs, generator = draw(3, 2, 2, 2).double(), torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 8, generator=generator).double()

    def penalty(weight: Tensor) -> Tensor:
        return gradient_penalty(lambda x: (x.flatten(1) @ hidden.T).tanh() @ weight, inputs, norm)

    assert torch.autograd.gradcheck(penalty, draw(4, 3).double().requires_grad_())


def test_expert_is_trained_by_sgd_with_a_scaled_loss_and_a_decayed_rate() -> None:
    inputs, targets = draw(10, 6), torch.arange(10) % 3
    network, module = FlatNetwork(perceptron()), perceptron()
    training = ExpertTraining(epochs=5, lr=0.2, momentum=0.9, weight_decay=0.01, batch=4, decay=0.6, clipped=True)
    experts = ExpertTrajectories(1, 5, network.size)
    training.train(network, inputs, targets, experts, 0, generator=torch.Generator().manual_seed(2))
    order, rate = torch.Generator().manual_seed(2), 0.2
    weights = list(module.parameters())
    moves = [torch.zeros_like(weight) for weight in weights]
    for epoch in range(5):
        if epoch == 4:  # after epoch 5 // 2 + 1, momentum starts afresh
            rate, moves = 0.12, [torch.zeros_like(weight) for weight in weights]
        for rows in torch.randperm(10, generator=order).split(4):
            loss = (0.5 + 0.05 * epoch) * functional.cross_entropy(module(inputs[rows]), targets[rows])
            slopes = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, slope, move in zip(weights, slopes, moves):
                    move.mul_(0.9).add_(slope + 0.01 * weight)
                    weight.sub_(rate * move)
        torch.testing.assert_close(experts.read(0, epoch + 1, epoch + 1)[0], FlatNetwork(module).vector())


def test_smoothed_experts_move_less_in_their_first_epochs() -> None:
    inputs, targets = draw(30, 6), draw(30, 6)[:, :3].argmax(1)
    speeds = []
    for clipped in (False, True):
        network = FlatNetwork(perceptron())
        experts = ExpertTrajectories(1, 3, network.size)
        training = ExpertTraining(epochs=3, lr=0.05, batch=10, clipped=clipped)
        training.train(network, inputs, targets, experts, 0, generator=torch.Generator().manual_seed(0))
        speeds.append(experts.speeds()[0])
    # Halved slopes of a loss that has hardly changed yet.
    assert 0.5 <= (speeds[1] / speeds[0])[0] < 0.6
    assert (speeds[1] < speeds[0]).all()


def test_representatives_are_nearest_to_the_centres_of_scikit_learns_clusters() -> None:
    centres = 10 * draw(6, 2)
    targets = torch.arange(60) % 2
    outputs = centres[torch.arange(60) % 6] + draw(60, 2, seed=1)
    rows = representatives(outputs, targets, 3, torch.Generator().manual_seed(0))
    assert targets[rows].tolist() == [0, 0, 0, 1, 1, 1]
    for label in range(2):
        members = (targets == label).nonzero().flatten()
        means = torch.from_numpy(KMeans(3, n_init=5, random_state=0).fit(outputs[members].numpy()).cluster_centers_)
        nearest = members[torch.cdist(means, outputs[members]).argmin(1)]
        assert sorted(nearest.tolist()) == sorted(rows[3 * label : 3 * label + 3].tolist())


def test_equal_examples_are_made_up_for_by_others() -> None:
    rows = representatives(torch.ones(8, 2), torch.arange(8) % 2, 3, torch.Generator().manual_seed(0))
    assert len(rows.unique()) == 6
    with pytest.raises(DataError, match="class 1 has 4 examples, of which 5 cannot"):
        representatives(draw(9, 2), torch.arange(9) % 2, 5, torch.Generator())


def test_set_begins_as_representatives_by_the_last_experts_outputs() -> None:
    bench = Bench()
    made = AST(**{**SMALL, "iterations": 0}).condense(bench)
    outputs = bench.predicted(bench.splits.normaliser(bench.splits.train.inputs)).detach()
    generator = bench.generator("trajectories/representatives")
    rows = representatives(outputs, bench.splits.train.targets, 2, generator)
    torch.testing.assert_close(made.inputs, bench.splits.train.inputs[rows])
    assert made.targets.tolist() == [0, 0, 1, 1, 2, 2]
    _, experts = AST(**SMALL).experts(Bench())
    assert torch.equal(FlatNetwork(bench.predicted).vector(), experts.read(1, 4, 4)[0])


def test_passes_of_the_penalty_are_counted() -> None:
    bench = Bench()
    AST(**SMALL, **{**OFF, "penalty": 2.0}).condense(bench)
    # 2 experts of 4 epochs over 12 examples, each passed once more and differentiated twice; 3 iterations of 4 steps.
    assert bench.counts == {"forward": 2 * 96 + 72, "backward": 5 * 96 + 4 * 72}


@pytest.mark.parametrize("network", [perceptron, convolutions])
def test_with_all_switches_off_it_is_mtt(network: Any) -> None:
    shape = (1, 4, 4) if network is convolutions else (6,)
    plain = MTT(**SMALL).condense(Bench(shape, network))
    assert torch.equal(AST(**SMALL, **OFF).condense(Bench(shape, network)).inputs, plain.inputs)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("momentum", 0.9),
        ("balanced", True),
        ("intermediate", "rising"),
        ("perturbation", 1.0),
        ("initialisation", "representative"),
        ("expert_momentum", 0.9),
        ("expert_weight_decay", 0.1),
        ("expert_decay", 0.6),
        ("clipped", True),
        ("penalty", 2.0),
    ],
)
def test_every_switch_makes_a_difference(option: str, value: object) -> None:
    made = []
    for options in (OFF, {**OFF, option: value}):
        module = drawn(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)))
        bench = Bench((1, 4, 4), lambda seed, module=module: module)
        made.append(AST(**{**SMALL, "starts": 3, "expert_epochs": 5}, **options, strategy=()).condense(bench).inputs)
    assert not torch.equal(*made)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("momentum", 1.0),
        ("balanced", "yes"),
        ("intermediate", "all"),
        ("perturbation", -1.0),
        ("initialisation", "herding"),
        ("expert_momentum", 1.0),
        ("expert_weight_decay", -1.0),
        ("expert_decay", 0.0),
        ("clipped", 1),
        ("penalty", -1.0),
        ("penalty_norm", "pixels"),
        ("starts", 49),
    ],
)
def test_bad_options_are_named(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=option):
        AST(**{option: value})


def test_edit_replaces_the_real_examples() -> None:
    recipe = Recipe(Part("torch.nn:Linear"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD"))
    recipe = recipe.add("curation", Part("repertory.curation.condensing:RealExamples"))
    (part,) = edit(recipe, momentum=0.5).curation
    assert part.build().momentum == 0.5
