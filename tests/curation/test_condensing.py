"""What condensers share: real examples by class, augmentation, networks as functions, and the slot of the set."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from condensing_world import bench_of, convnet, wave
from torch import Tensor, nn

from repertory.curation.condensing import (
    STRATEGY,
    RealClasses,
    RealExamples,
    draw_augmentation,
    frozen_network,
    herding,
    k_center,
    sgd_passes,
    synthetic_start,
    to_raw,
)
from repertory.curation.condensing.augmentation import _OPERATIONS
from repertory.errors import DataError, OptionError

RELEASED = json.loads(Path(__file__).with_name("gradient_matching_released.json").read_text(encoding="utf-8"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", RELEASED["images"])
def test_operations_are_those_of_the_authors(name: str) -> None:
    images = wave(2, 3, 8, 8, step=0.37).float()
    changed = _OPERATIONS[name](images, torch.tensor(RELEASED["draws"][name])[:, None])
    expected = torch.tensor(RELEASED["images"][name]).view(3, 8, 8)
    torch.testing.assert_close(changed[0], expected, rtol=1e-5, atol=2e-6)
    assert not torch.allclose(changed[0], images[0])


def test_mirroring_happens_to_half_of_the_images() -> None:
    images = torch.rand(2, 1, 4, 4)
    changed = _OPERATIONS["flip"](images, torch.tensor([[0.4, 0.6], [0, 0], [0, 0]]))
    assert torch.equal(changed, torch.stack([images[0].flip(2), images[1]]))


@pytest.mark.parametrize("name", STRATEGY)
def test_one_draw_changes_every_image_alike_and_can_be_differentiated(name: str) -> None:
    change = draw_augmentation(generator(3), [name])
    images = torch.rand(3, 2, 6, 8, dtype=torch.float64, generator=generator(), requires_grad=True)
    together = change(images)
    assert together.shape == images.shape
    torch.testing.assert_close(together, torch.cat([change(one) for one in images.split(1)]))
    assert torch.autograd.gradcheck(change, images[:1].detach().requires_grad_())


@pytest.mark.parametrize("name", STRATEGY)
def test_draws_of_their_own_differ_between_images(name: str) -> None:
    image = torch.rand(1, 3, 8, 8, generator=generator())
    found = draw_augmentation(generator(1), [name], batch=16)(image.expand(16, -1, -1, -1))
    assert len({tuple(one.flatten().tolist()) for one in found}) > 1


def test_each_operation_is_drawn_and_draws_repeat() -> None:
    images, one = torch.rand(1, 3, 8, 8, generator=generator()), generator(1)
    found = [draw_augmentation(one)(images) for _ in range(60)]
    again = generator(1)
    assert all(torch.equal(first, draw_augmentation(again)(images)) for first in found)
    assert sum(torch.equal(each, images.flip(3)) for each in found) > 0
    assert torch.equal(draw_augmentation(generator(), [])(images), images)


def test_augmentation_says_what_it_cannot_do() -> None:
    with pytest.raises(OptionError, match="strategy='blur'"):
        draw_augmentation(generator(), ["blur"])
    with pytest.raises(DataError, match=r"shape \(2, 5\) are no images"):
        draw_augmentation(generator())(torch.zeros(2, 5))


def test_draws_hold_different_examples_of_the_class_weighted_to_their_mean() -> None:
    targets = torch.tensor([1, 0, 1, 1, 2, 1])
    real = RealClasses(torch.arange(6.0)[:, None], targets, 3, generator())
    seen = set()
    for _ in range(20):
        inputs, weights = real.draw(3)
        assert weights.tolist() == [[1, 0, 0], pytest.approx([1 / 3] * 3), [1, 0, 0]]
        assert (inputs[0, 0], inputs[2, 0]) == (1, 4)
        drawn = set(inputs[1].flatten().tolist())
        assert len(drawn) == 3
        seen |= drawn
    assert seen == {0, 2, 3, 5}
    assert real.draw(9)[0].shape == (3, 4, 1)


def test_a_class_without_examples_is_named() -> None:
    with pytest.raises(DataError, match="class 1 has no example"):
        RealClasses(torch.zeros(2, 1), torch.tensor([0, 2]), 3, generator())


def brute_herding(features: Tensor, count: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(count):
        rest = [k for k in range(len(features)) if k not in chosen]
        chosen.append(min(rest, key=lambda k: float((features[[*chosen, k]].mean(0) - features.mean(0)).norm())))
    return chosen


def test_herding_keeps_the_mean_as_near_as_one_more_example_can() -> None:
    features = torch.randn(30, 4, generator=generator())
    assert herding(features, 12).tolist() == brute_herding(features, 12)


def test_centres_are_added_where_they_are_farthest() -> None:
    features = torch.randn(30, 4, generator=generator())
    chosen = k_center(features, 8)
    apart = torch.cdist(features, features)
    for number, row in itertools.pairwise(chosen.tolist()):
        so_far = chosen[: chosen.tolist().index(row)]
        assert row == int(apart[:, so_far].amin(1).argmax())
        assert number != row
    # Two points apart by more than the radius cannot share a centre: greedy is within twice the best radius.
    assert len(chosen.unique()) == 8


def test_copies_do_not_choose_an_example_twice() -> None:
    for choose in (herding, k_center):
        assert sorted(choose(torch.zeros(4, 2), 4).tolist()) == [0, 1, 2, 3]


def test_a_set_starts_as_real_examples_and_returns_to_the_units_of_the_data() -> None:
    inputs = torch.randint(256, (12, 1, 4, 4), generator=generator(), dtype=torch.uint8)
    bench = bench_of(inputs, torch.arange(12) % 3, 2, "repertory.testing.tiny:conv_network")
    started, targets = synthetic_start(bench)
    assert started.is_leaf
    assert started.requires_grad
    back = to_raw(bench, started, targets)
    torch.testing.assert_close(back.inputs, inputs[RealExamples().rows(bench)].float(), rtol=0, atol=1e-4)
    assert back.targets.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_network_as_a_function_is_the_network() -> None:
    model, inputs = convnet(), wave(5, 1, 4, 4, step=1.1)
    expected = model(inputs)
    logits, parameters = frozen_network(model, inputs)
    torch.testing.assert_close(logits(parameters, inputs), expected)
    moved = {name: 2 * value for name, value in parameters.items()}
    assert not torch.allclose(logits(moved, inputs), expected)
    torch.testing.assert_close(model(inputs), expected)


def test_norm_layers_take_the_statistics_of_the_given_inputs_and_keep_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    inputs = torch.randn(50, 3, generator=generator())
    logits, parameters = frozen_network(model, inputs)
    hidden = model[0](inputs)
    expected = (hidden - hidden.mean(0)) / (hidden.var(0) + 1e-5).sqrt()
    torch.testing.assert_close(logits(parameters, inputs[:2]), expected[:2], rtol=1e-4, atol=1e-5)
    assert model[1].momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_frozen_weights_are_no_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    logits, parameters = frozen_network(model, torch.zeros(1, 3))
    assert sorted(parameters) == ["1.bias", "1.weight"]
    assert logits(parameters, torch.zeros(1, 3)).shape == (1, 2)


def test_passes_are_plain_gradient_descent() -> None:
    model, inputs, targets = convnet(), wave(6, 1, 4, 4, step=1.1), torch.arange(6) % 3
    logits, parameters = frozen_network(model, inputs)
    options = {"lr": 0.3, "batch_size": 8, "generator": generator()}
    found = sgd_passes(logits, parameters, inputs, targets, passes=3, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], value)
    assert not torch.equal(found["5.weight"], parameters["5.weight"])


def test_passes_see_every_example_once() -> None:
    seen: list[float] = []

    def note(batch: Tensor) -> Tensor:
        seen.extend(batch.flatten().tolist())
        return batch

    logits, parameters = frozen_network(nn.Linear(1, 2), torch.zeros(1, 1))
    sgd_passes(
        *(logits, parameters, torch.arange(7.0)[:, None], torch.zeros(7, dtype=torch.int64)),
        passes=2,
        lr=0.1,
        batch_size=3,
        generator=generator(),
        augment=note,
    )
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7))
    assert seen[:7] != seen[7:]
