"""Tests of trajectory matching: unrolled students, experts, and what the examples learn from them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from trajectory_bench import SMALL, Bench, convolutions, draw, drawn, perceptron

from repertory.core.storage import Storage
from repertory.curation.condensing import RealExamples
from repertory.curation.mtt import MTT, edit
from repertory.curation.trajectories import (
    ExpertTraining,
    ExpertTrajectories,
    FlatNetwork,
    TrajectoryCondenser,
    matching_loss,
    unrolled,
)
from repertory.datasets.splits import Examples
from repertory.errors import ConflictError, DataError, DivergedError, OptionError, UserError
from repertory.recipe import Part, Recipe


@pytest.mark.parametrize("make", [perceptron, convolutions])
def test_flat_network_is_the_network(make: Any) -> None:
    module, inputs = make(), draw(4, 1, 4, 4) if make is convolutions else draw(4, 6)
    network, other = FlatNetwork(module), FlatNetwork(make(1))
    reference = copy.deepcopy(module)
    assert torch.equal(other(network.vector(), inputs), reference(inputs))
    assert torch.equal(other.vector(), FlatNetwork(make(1)).vector())
    other.load(network.vector())
    assert torch.equal(other.vector(), network.vector())
    assert network.size == sum(value.numel() for value in module.parameters())


def test_statistics_of_batch_norm_stay_as_they_were() -> None:
    network = FlatNetwork(convolutions().train())
    before = {name: value.clone() for name, value in network.module.named_buffers()}
    network(network.vector(), draw(4, 1, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in network.module.named_buffers())


def test_frozen_parameters_are_no_part_of_the_vector() -> None:
    module = perceptron()
    module[1].requires_grad_(False)
    network = FlatNetwork(module)
    assert network.size == 18
    assert torch.equal(network(network.vector(), draw(2, 6)), module(draw(2, 6)))
    with pytest.raises(UserError, match="no trainable parameter"):
        FlatNetwork(nn.ReLU())
    with pytest.raises(DataError, match=r"\(17,\) does not fit a network of 18"):
        network(torch.zeros(17), draw(2, 6))


@pytest.mark.parametrize(("momentum", "batch_size"), [(0.0, None), (0.9, None), (0.9, 4)])
def test_unrolled_student_takes_the_steps_of_torch_sgd(momentum: float, batch_size: int | None) -> None:
    module, inputs, targets = perceptron().double(), draw(6, 6).double(), torch.arange(6) % 3
    network, generator = FlatNetwork(copy.deepcopy(module)), torch.Generator().manual_seed(1)
    found = unrolled(
        network,
        network.vector(),
        inputs,
        targets,
        torch.tensor(0.3, dtype=torch.double),
        steps=3,
        momentum=momentum,
        factor=0.5,
        batch_size=batch_size,
        generator=generator,
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3, momentum=momentum)
    order = torch.Generator().manual_seed(1)
    rows = [*torch.randperm(6, generator=order).split(4), *torch.randperm(6, generator=order).split(4)]
    for step in range(3):
        torch.testing.assert_close(found[step], FlatNetwork(module).vector(), rtol=1e-12, atol=1e-12)
        optimizer.zero_grad()
        chosen = torch.arange(6) if batch_size is None else rows[step]
        (0.5 * functional.cross_entropy(module(inputs[chosen]), targets[chosen])).backward()
        optimizer.step()
    torch.testing.assert_close(found[3], FlatNetwork(module).vector(), rtol=1e-12, atol=1e-12)
    assert not found[0].grad_fn


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_through_the_students_training_are_those_of_finite_differences(momentum: float) -> None:
    network = FlatNetwork(drawn(nn.Linear(1, 2, bias=False)).double())
    assert network.size == 2
    start, target, labels = network.vector(), draw(1, 2, seed=3).double(), torch.tensor([0, 1, 1])

    def loss(inputs: Tensor, rate: Tensor) -> Tensor:
        return matching_loss(unrolled(network, start, inputs, labels, rate, steps=2, momentum=momentum), target)

    inputs, rate = draw(3, 1, seed=2).double().requires_grad_(), torch.tensor(0.5).double().requires_grad_()
    assert torch.autograd.gradcheck(loss, (inputs, rate))


def test_gradients_reach_pixels_of_convolutions_and_soft_labels() -> None:
    module = drawn(nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))).double()
    network = FlatNetwork(module)
    labels = torch.tensor([[0.3, 0.7]]).double()

    def loss(inputs: Tensor) -> Tensor:
        rate = torch.tensor(0.5).double()
        end = unrolled(network, network.vector(), inputs, labels, rate, steps=2, augment=lambda x: 2 * x)
        return matching_loss(end, network.vector()[None] + 0.1)

    assert torch.autograd.gradcheck(loss, draw(1, 1, 3, 3).double().requires_grad_())


def test_batches_are_augmented_before_the_student_sees_them() -> None:
    network, targets, rate = FlatNetwork(perceptron()), torch.arange(4) % 3, torch.tensor(0.1)
    doubled = unrolled(network, network.vector(), draw(4, 6), targets, rate, steps=2, augment=lambda x: 2 * x)
    expected = unrolled(network, network.vector(), 2 * draw(4, 6), targets, rate, steps=2)
    assert torch.equal(doubled[2], expected[2])


def test_student_starts_where_a_random_expert_was_after_a_random_epoch() -> None:
    made = MTT(**{**SMALL, "starts": 3, "expert_epochs": 4, "batch_size": 4})
    network, experts = made.experts(Bench())
    inputs, targets, rate = draw(6, 6), torch.arange(6) % 3, torch.tensor(0.1)
    met = set()
    for seed in range(20):
        found = made.distance(network, experts, inputs, targets, rate, torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        expert, start = (int(torch.randint(most, (1,), generator=generator)) for most in (2, 3))
        met.add((expert, start))
        begin, end = experts.snapshots[expert, start], experts.snapshots[expert, start + 2]
        vectors = unrolled(network, begin, inputs, targets, rate, steps=4, batch_size=4, generator=generator)
        expected = (vectors[4] - end).square().sum() / (begin - end).square().sum()
        torch.testing.assert_close(found, expected)
    assert len(met) == 6


def test_distance_is_nothing_on_the_expert_and_one_at_the_start() -> None:
    start, target = draw(7), draw(1, 7, seed=1)
    assert matching_loss([start, target[0]], target).item() == 0
    assert matching_loss([start], target).item() == 1
    halfway = (start + target[0]) / 2
    assert matching_loss([start, halfway], target).item() == pytest.approx(0.25)
    with pytest.raises(DataError, match="where the student starts"):
        matching_loss([start, halfway], start[None])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_student_with_the_experts_own_examples_ends_on_the_expert(momentum: float) -> None:
    inputs, targets = draw(12, 6), torch.arange(12) % 3
    network, experts = FlatNetwork(perceptron()), ExpertTrajectories(1, 2, FlatNetwork(perceptron()).size)
    training = ExpertTraining(epochs=2, lr=0.3, momentum=momentum, batch=5)
    training.train(network, inputs, targets, experts, 0, generator=torch.Generator().manual_seed(4))
    end = unrolled(
        network,
        experts.read(0, 0, 0)[0],
        inputs,
        targets,
        torch.tensor(0.3),
        steps=6,
        momentum=momentum,
        batch_size=5,
        generator=torch.Generator().manual_seed(4),
    )
    assert matching_loss(end, experts.read(0, 1, 2), "equal").item() < 1e-10
    assert torch.equal(experts.read(0, 0, 0)[0], FlatNetwork(perceptron()).vector())


def test_examples_learn_to_lead_to_the_expert() -> None:
    bench = Bench()
    made = MTT(**{**SMALL, "iterations": 40, "lr_rate": 0.01})
    network, experts = made.experts(bench)
    inputs, targets = draw(6, 6, seed=9), torch.arange(6) % 3
    found = made.match(network, experts, inputs, targets, torch.Generator().manual_seed(0))
    rate = torch.tensor(made.rate_)

    def far(examples: Tensor, rate: Tensor) -> float:
        generator = torch.Generator().manual_seed(1)
        values = [made.distance(network, experts, examples, targets, rate, generator).item() for _ in range(20)]
        return sum(values) / len(values)

    assert far(found, rate) < 0.7 * far(inputs, torch.tensor(0.1))
    assert made.rate_ > 0.1


def test_update_of_the_examples_is_gradient_descent_with_momentum() -> None:
    bench, targets = Bench(), torch.arange(6) % 3
    made = MTT(**{**SMALL, "iterations": 2, "lr_rate": 0.001})
    network, experts = made.experts(bench)
    generator = torch.Generator().manual_seed(3)
    inputs, rate = draw(6, 6), torch.tensor(0.1)
    moves = [torch.zeros(()), torch.zeros(())]
    for _ in range(2):
        values = [inputs.requires_grad_(), rate.requires_grad_()]
        slopes = torch.autograd.grad(made.distance(network, experts, inputs, targets, rate, generator), values)
        moves = [0.5 * move + slope for move, slope in zip(moves, slopes)]
        inputs, rate = inputs.detach() - moves[0], rate.detach() - 0.001 * moves[1]
    start = draw(6, 6)
    found = made.match(network, experts, start, targets, torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, inputs)
    assert torch.equal(start, draw(6, 6))
    assert made.rate_ == pytest.approx(rate.item())


def test_step_size_stays_positive() -> None:
    bench, targets = Bench(), torch.arange(6) % 3
    made = MTT(**{**SMALL, "lr_rate": 0.0, "lr_inputs": 0.0, "iterations": 1})
    network, experts = made.experts(bench)
    made.match(network, experts, draw(6, 6), targets, torch.Generator())
    assert made.rate_ == pytest.approx(0.1)
    # Examples that lead away from every expert, and a rate of learning that would turn the step around.
    made.lr_rate = 1e3
    made.match(network, experts, draw(6, 6), (targets + 1) % 3, torch.Generator().manual_seed(0))
    assert made.rate_ == pytest.approx(1e-6)


def test_condensed_set_is_in_the_units_of_the_data() -> None:
    bench = Bench()
    made = MTT(**SMALL).condense(bench)
    start = RealExamples().condense(Bench())
    assert made.inputs.shape == (6, 6)
    assert made.targets.tolist() == [0, 0, 1, 1, 2, 2]
    assert not torch.equal(made.inputs, start.inputs)
    torch.testing.assert_close(made.inputs, start.inputs, rtol=0, atol=5.0)
    # 2 experts of 4 epochs over 12 examples; 3 iterations of 4 steps on 6 made ones.
    assert bench.counts == {"forward": 96 + 72, "backward": 96 + 4 * 72}
    assert bench.shares == pytest.approx([1 / 4, 1 / 2, 2 / 3, 5 / 6, 1])


def test_nothing_is_trained_without_iterations() -> None:
    bench = Bench()
    made, real = MTT(iterations=0).condense(bench), RealExamples().condense(Bench())
    assert torch.equal(made.inputs, real.inputs)
    assert bench.counts == {"forward": 0, "backward": 0}


def test_same_seed_makes_the_same_set_and_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    noisy = lambda seed: nn.Sequential(perceptron(seed), nn.Dropout(0.5))  # noqa: E731
    first, second = (MTT(**SMALL).condense(Bench(network=noisy)) for _ in range(2))
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(state, torch.random.get_rng_state())


def test_images_are_augmented_for_experts_and_students(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(strategy: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        condenser = MTT(**SMALL, strategy=strategy)
        bench = Bench((1, 4, 4), convolutions)
        network, experts = condenser.experts(bench)
        network.module.train()
        found = condenser.distance(
            network,
            experts,
            draw(6, 1, 4, 4),
            torch.arange(6) % 3,
            torch.tensor(0.1),
            torch.Generator().manual_seed(0),
        )
        return experts.snapshots, found

    def draw_augmentation(generator: torch.Generator, strategy: tuple[str, ...], batch: int) -> Any:
        drawn_for.append((strategy, batch))
        return lambda images: 2 * images

    drawn_for: list[tuple[tuple[str, ...], int]] = []
    monkeypatch.setattr("repertory.curation.trajectories.condenser.draw_augmentation", draw_augmentation)
    plain, changed = made(()), made(("rotate",))
    # 2 experts of 4 epochs on 12 images, 5 a batch, then 4 steps on 6 made ones.
    assert drawn_for == 8 * [(("rotate",), 5), (("rotate",), 5), (("rotate",), 2)] + 4 * [(("rotate",), 6)]
    assert torch.equal(plain[0][:, 0], changed[0][:, 0])
    assert not torch.equal(plain[0], changed[0])
    assert plain[1] != changed[1]


@pytest.mark.parametrize("limit", [10, 2**32])
def test_snapshots_are_kept_in_memory_or_mapped(limit: int, tmp_path: Path) -> None:
    experts = ExpertTrajectories(2, 3, 5, Storage(limit=limit, folder=tmp_path))
    values = draw(2, 4, 5)
    for expert in range(2):
        for epoch in range(4):
            experts.write(expert, epoch, values[expert, epoch])
    assert len(experts) == 2
    assert experts.epochs == 3
    assert experts.bytes == 160
    assert torch.equal(experts.read(1, 1, 3), values[1, 1:])
    torch.testing.assert_close(experts.speeds()[0, 1], (values[0, 2] - values[0, 1]).norm())
    experts.save(tmp_path / "experts.pt")
    loaded = ExpertTrajectories.load(tmp_path / "experts.pt")
    assert torch.equal(loaded.snapshots, values)
    loaded.write(0, 0, torch.zeros(5))
    assert torch.equal(ExpertTrajectories.load(tmp_path / "experts.pt").snapshots, values)


def test_what_are_no_snapshots_is_refused(tmp_path: Path) -> None:
    torch.save({"snapshots": torch.zeros(2, 3)}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="holds no float32 snapshots"):
        ExpertTrajectories.load(tmp_path / "other.pt")
    experts = ExpertTrajectories(1, 2, 5)
    with pytest.raises(DataError, match="all experts must be one network"):
        experts.write(0, 0, torch.zeros(4))
    with pytest.raises(DataError, match="after 1 to 3 epochs is not there"):
        experts.read(0, 1, 3)
    with pytest.raises(OptionError, match="epochs=0"):
        ExpertTrajectories(1, 0, 5)


def test_divergence_is_an_error_that_says_what_to_lower() -> None:
    with pytest.raises(DivergedError, match=r"lower lr_inputs=1, lr_rate=1e-05 or rate=1e\+20"):
        MTT(**{**SMALL, "rate": 1e20}).condense(Bench())
    with pytest.raises(DivergedError, match="expert 0 stopped being finite"):
        MTT(**{**SMALL, "expert_lr": 1e30}).condense(Bench((1, 4, 4), convolutions))


def test_lengths_that_do_not_fit_are_refused() -> None:
    network = FlatNetwork(perceptron())
    with pytest.raises(DataError, match="2 inputs and 3 targets"):
        unrolled(network, network.vector(), draw(2, 6), torch.zeros(3, dtype=torch.long), torch.tensor(0.1), steps=1)
    rate = torch.tensor(0.1)
    with pytest.raises(OptionError, match="batch_size=1 of 2 examples needs a generator"):
        unrolled(network, network.vector(), draw(2, 6), torch.tensor([0, 1]), rate, steps=1, batch_size=1)
    with pytest.raises(DataError, match="2 inputs and 3 targets"):
        ExpertTraining().train(
            network, draw(2, 6), torch.arange(3), ExpertTrajectories(1, 50, 53), 0, generator=torch.Generator()
        )
    experts = ExpertTrajectories(1, 2, network.size)
    with pytest.raises(DataError, match="experts of 2 epochs end before epoch 3"):
        MTT(**SMALL).match(network, experts, draw(3, 6), torch.arange(3), torch.Generator())


def test_targets_that_are_no_classes_of_the_network_are_refused() -> None:
    network = FlatNetwork(perceptron())
    experts = ExpertTrajectories(1, 4, network.size)
    with pytest.raises(DataError, match="targets reach from 1 to 3, but the network has 3 outputs"):
        MTT(**SMALL).match(network, experts, draw(3, 6), torch.arange(1, 4), torch.Generator())
    bench = Bench()
    bench.splits.train = Examples(draw(12, 6), draw(12))
    with pytest.raises(ConflictError, match="needs classes"):
        MTT(**SMALL).condense(bench)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("iterations", -1),
        ("steps", 0),
        ("ahead", 0),
        ("starts", 0),
        ("lr_inputs", -1.0),
        ("lr_rate", -1.0),
        ("rate", 0.0),
        ("batch_size", 0),
        ("strategy", "crop"),
        ("strategy", ("mirror",)),
        ("experts", 0),
        ("expert_epochs", 3),
        ("expert_lr", 0.0),
        ("expert_batch", 0),
    ],
)
def test_bad_options_are_named(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=option):
        MTT(**{option: value})


def test_edit_replaces_the_real_examples() -> None:
    recipe = Recipe(Part("torch.nn:Linear"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD"))
    recipe = recipe.add("curation", Part("repertory.curation.condensing:RealExamples"))
    (part,) = edit(recipe, steps=5).curation
    assert isinstance(part.build(), TrajectoryCondenser)
    assert part.build().steps == 5
