"""The small pieces that tests and claims share."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from repertory import Step
from repertory.testing import worlds


def stepper(model: nn.Module, lr: float = 0.1) -> Step:
    return Step(model, torch.optim.SGD(model.parameters(), lr=lr), nn.CrossEntropyLoss())


def test_building_mnist1d_leaves_the_global_generators_alone() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), np.random.random(), torch.rand(1).item()

    def seed() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    seed()
    expected = draws()
    seed()
    worlds.mnist1d.cache_clear()
    world = worlds.mnist1d()
    assert draws() == expected
    assert world.inputs.shape == (4000, 40)
    assert world.test_targets.unique().tolist() == list(range(10))


def test_noisy_labels_move_exactly_the_share_to_other_classes() -> None:
    labels = torch.arange(10).repeat(20)
    before = labels.clone()
    noisy = worlds.noisy_labels(labels, 0.2, seed=0)
    assert int((noisy != labels).sum()) == 40
    assert torch.equal(labels, before)
    assert torch.equal(noisy, worlds.noisy_labels(labels, 0.2, seed=0))
    assert not torch.equal(noisy, worlds.noisy_labels(labels, 0.2, seed=1))


def test_networks_of_a_seed_are_equal_and_of_two_seeds_are_not() -> None:
    first, same, other = (worlds.mlp([4, 8, 3], seed)[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_training_follows_a_cosine_from_the_optimizers_own_rate() -> None:
    step = stepper(worlds.mlp([4, 3]), lr=0.5)
    rates: list[float] = []
    step.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    worlds.train(step, torch.randn(10, 4), torch.zeros(10, dtype=torch.int64), epochs=2, batch_size=5)
    assert rates == pytest.approx([0.5, 0.25 * (1 + 0.5**0.5), 0.25, 0.25 * (1 - 0.5**0.5)])
    assert step.run.epoch == 2


def test_training_shows_each_example_once_an_epoch_in_an_order_of_the_seed() -> None:
    def order(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        passes = worlds.batches(torch.randn(7, 2), torch.arange(7), 3, generator)
        return [batch["index"].tolist() for batch in passes]

    assert sorted(i for rows in order(0) for i in rows) == list(range(7))
    assert [len(rows) for rows in order(0)] == [3, 3, 1]
    assert order(0) == order(0) != order(1)


def test_calibration_error_equals_a_loop_over_bins() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(200, 4, generator=generator)
    targets = torch.randint(4, (200,), generator=generator)
    confidence, chosen = logits.softmax(1).max(1)
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            gap = (chosen[inside] == targets[inside]).float().mean() - confidence[inside].mean()
            expected += float(gap.abs() * inside.sum()) / 200
    assert worlds.ece(logits, targets) == pytest.approx(expected, abs=1e-6)


def test_prediction_is_in_evaluation_mode_and_puts_the_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 3))
    inputs = torch.randn(6, 4)
    assert torch.equal(worlds.predict(model, inputs), worlds.predict(model, inputs))
    assert model.training


def test_digit_pairs_are_labelled_left_digit_first_and_share_no_digit_between_parts() -> None:
    world, digits = worlds.digit_pairs(seed=3, train=50, test=20), worlds.digits(3)

    def classes(halves: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        distances = torch.cdist(halves.double(), inputs.double(), compute_mode="donot_use_mm_for_euclid_dist")
        assert not distances.min(1).values.any()
        return targets[distances.argmin(1)]

    for inputs, targets, own in (
        (world.inputs, world.targets, (digits.inputs, digits.targets)),
        (world.test_inputs, world.test_targets, (digits.test_inputs, digits.test_targets)),
    ):
        assert torch.equal(targets // 10, classes(inputs[:, :64], *own))
        assert torch.equal(targets % 10, classes(inputs[:, 64:], *own))
