"""Gradient matching: the authors' numbers, gradients one class at a time, and the loop step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from condensing_world import bench_of, convnet, wave
from torch import Tensor, nn
from torch.nn import functional as F

from repertory.curation.condensing import RealClasses, RealExamples, frozen_network
from repertory.curation.condensing.matching import (
    _in_turn,
    class_gradients,
    gradient_distance,
    matching_loss,
    summed_gradient,
)
from repertory.curation.dc import DatasetCondensation
from repertory.errors import ConflictError, DataError, DivergedError, OptionError

RELEASED = json.loads(Path(__file__).with_name("gradient_matching_released.json").read_text(encoding="utf-8"))
NAMES = {"rows": "ours", "squared": "mse", "cosine": "cos"}
TINY = "repertory.testing.tiny:network"


@pytest.mark.parametrize("distance", NAMES)
def test_distances_are_those_of_the_authors(distance: str) -> None:
    shapes = {"conv": (2, 3, 2, 2), "norm": (3,), "linear": (4, 5), "conv1d": (2, 3, 2)}
    made = {name: wave(*shape, step=0.9 + 0.2 * k) for k, (name, shape) in enumerate(shapes.items())}
    real = {name: wave(*shape, step=1.7 + 0.3 * k) for k, (name, shape) in enumerate(shapes.items())}
    expected = RELEASED["distances"][NAMES[distance]]
    assert gradient_distance(made, real, distance).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("contrastive", [False, True])
@pytest.mark.parametrize("distance", NAMES)
def test_loss_and_its_gradient_by_the_pixels_are_those_of_the_authors(distance: str, contrastive: bool) -> None:
    logits, parameters = frozen_network(convnet(), wave(1, 1, 4, 4, step=1))
    made = wave(3, 2, 1, 4, 4, step=2.1).requires_grad_()
    loss = matching_loss(
        *(logits, parameters, made, wave(3, 4, 1, 4, 4, step=1.3)), contrastive=contrastive, distance=distance
    )
    expected = RELEASED["losses"][f"{NAMES[distance]}/{'contrastive' if contrastive else 'classwise'}"]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
    (pixels,) = torch.autograd.grad(loss, made)
    torch.testing.assert_close(
        pixels.flatten()[:16], torch.tensor(expected["pixels"], dtype=torch.float64), rtol=1e-6, atol=1e-8
    )


def test_equal_gradients_are_nothing_apart_and_opposite_ones_twice_the_rows() -> None:
    gradients = {"conv": wave(3, 2, 2, 2, step=0.7), "linear": wave(4, 5, step=1.3), "bias": wave(4, step=1)}
    opposite = {name: -value for name, value in gradients.items()}
    assert gradient_distance(gradients, gradients).item() == pytest.approx(0, abs=1e-5)
    assert gradient_distance(gradients, opposite).item() == pytest.approx(2 * (3 + 4), abs=1e-5)


def test_vectors_do_not_count_and_lengths_do_not_matter() -> None:
    made, real = {"w": wave(4, 5, step=1.3), "b": wave(4, step=1)}, {"w": wave(4, 5, step=0.4), "b": wave(4, step=2)}
    whole = gradient_distance(made, real)
    assert torch.equal(whole, gradient_distance({**made, "b": 9 * made["b"]}, real))
    assert gradient_distance({**made, "w": 1000 * made["w"]}, real).item() == pytest.approx(whole.item(), rel=1e-5)
    assert gradient_distance({"b": made["b"]}, {"b": real["b"]}).item() == 0


def test_rows_of_zeros_are_one_apart() -> None:
    assert gradient_distance({"w": torch.zeros(3, 4)}, {"w": torch.ones(3, 4)}).item() == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    # Squares of these lengths do not fit into float16.
    made, real = (300 * wave(2, 200, step=step).to(dtype) for step in (0.7, 1.3))
    expected = gradient_distance({"w": made.double()}, {"w": real.double()})
    found = gradient_distance({"w": made}, {"w": real})
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_that_do_not_match_are_refused() -> None:
    with pytest.raises(DataError, match="different names or shapes"):
        gradient_distance({"w": torch.zeros(3, 4)}, {"w": torch.zeros(4, 3)})
    with pytest.raises(OptionError, match="distance='l1'"):
        gradient_distance({}, {}, "l1")


def by_class(model: nn.Module, inputs: Tensor) -> list[tuple[Tensor, ...]]:
    return [
        torch.autograd.grad(F.cross_entropy(model(own), torch.full((len(own),), k)), list(model.parameters()))
        for k, own in enumerate(inputs)
    ]


def test_gradients_of_all_classes_at_once_are_those_of_each() -> None:
    model, inputs = convnet(), wave(3, 4, 1, 4, 4, step=1.3)
    logits, parameters = frozen_network(model, inputs[0])
    found = class_gradients(logits, parameters, inputs)
    for name, *each in zip(parameters, *by_class(model, inputs)):
        torch.testing.assert_close(found[name], torch.stack(each))


def test_classes_in_turn_are_classes_at_once() -> None:
    logits, parameters = frozen_network(convnet(), wave(1, 1, 4, 4, step=1))
    inputs, weights = wave(3, 4, 1, 4, 4, step=1.3), torch.rand(3, 4, dtype=torch.float64)
    for weighed in (None, weights):
        found = _in_turn(logits, parameters, inputs, weighed)
        for name, expected in class_gradients(logits, parameters, inputs, weighed).items():
            torch.testing.assert_close(found[name], expected)


def test_the_summed_gradient_is_the_mean_over_classes() -> None:
    logits, parameters = frozen_network(convnet(), wave(1, 1, 4, 4, step=1))
    inputs, weights = wave(3, 4, 1, 4, 4, step=1.3), torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4, [1, 0, 0, 0]])
    for weighed in (None, weights.double()):
        one = summed_gradient(logits, parameters, inputs, weighed)
        for name, each in class_gradients(logits, parameters, inputs, weighed).items():
            torch.testing.assert_close(one[name], each.mean(0), rtol=1e-6, atol=1e-9)


def test_weights_leave_out_what_only_fills_a_smaller_class() -> None:
    logits, parameters = frozen_network(convnet(), wave(1, 1, 4, 4, step=1))
    inputs = wave(3, 4, 1, 4, 4, step=1.3)
    weights = torch.tensor([[0.5, 0.5, 0, 0]] * 3, dtype=torch.float64)
    found = class_gradients(logits, parameters, inputs, weights)
    for name, expected in class_gradients(logits, parameters, inputs[:, :2]).items():
        torch.testing.assert_close(found[name], expected)


def test_with_one_class_both_losses_are_equal() -> None:
    # Of a single class every gradient is 0, so two outputs are needed: the class is the first of them.
    logits, parameters = frozen_network(nn.Linear(4, 2).double(), torch.zeros(1, 4))
    made, real = wave(1, 2, 4, step=1.1), wave(1, 5, 4, step=0.3)
    first, second = (
        matching_loss(logits, parameters, made, real, contrastive=contrastive) for contrastive in (False, True)
    )
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("contrastive", [False, True])
def test_the_gradient_by_the_pixels_is_that_of_finite_differences(contrastive: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(wave(*parameter.shape, step=0.9 + number))
    logits, parameters = frozen_network(model, torch.zeros(1, 2))
    real = wave(2, 3, 2, step=0.8)

    def loss(made: Tensor) -> Tensor:
        return matching_loss(logits, parameters, made, real, contrastive=contrastive)

    assert torch.autograd.gradcheck(loss, wave(2, 1, 2, step=2.3).requires_grad_())


def data(classes: int = 3, each: int = 6) -> tuple[Tensor, Tensor]:
    targets = torch.arange(classes * each) % classes
    noise = torch.randn(len(targets), 6, generator=torch.Generator().manual_seed(0))
    return noise + 2 * F.one_hot(targets, 6), targets


def method(**options: Any) -> DatasetCondensation:
    return DatasetCondensation(**{"iterations": 2, "updates": 3, "passes": 2, "batch": 4, "start": "real", **options})


def test_the_loop_is_the_published_one() -> None:
    bench = bench_of(*data(), 2, TINY)
    found = method(lr_inputs=0.3, lr_network=0.05).condense(bench)
    # By hand: draws from the same generators, networks from the same names, plain loops.
    bench = bench_of(*data(), 2, TINY)
    real = RealClasses.of(bench, "dc")
    made = bench.splits.normaliser(bench.splits.train.inputs[RealExamples().rows(bench)])
    velocity = torch.zeros_like(made)
    for iteration in range(2):
        model = bench.fresh_model(f"dc-{iteration}").network
        for update in range(3):
            real.draw(16)
            drawn, _ = real.draw(4)
            made = made.detach().requires_grad_()
            loss = torch.zeros(())
            for k, wanted in enumerate(by_class(model, drawn)):
                own = F.cross_entropy(model(made[2 * k : 2 * k + 2]), torch.full((2,), k))
                gradients = torch.autograd.grad(own, list(model.parameters()), create_graph=True)
                for a, b in zip(gradients, wanted):
                    if a.ndim > 1:
                        loss = loss + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
            velocity = 0.5 * velocity + torch.autograd.grad(loss, made)[0]
            made = made.detach() - 0.3 * velocity
            for _ in range(2 if update < 2 else 0):
                model.zero_grad()
                F.cross_entropy(model(made), torch.tensor([0, 0, 1, 1, 2, 2])).backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.05 * parameter.grad
    torch.testing.assert_close(found.inputs, bench.splits.normaliser.undo(made), rtol=1e-4, atol=1e-5)
    assert found.targets.tolist() == [0, 0, 1, 1, 2, 2]


def test_matching_comes_nearer_to_the_real_gradients() -> None:
    bench = bench_of(*data(), 1, TINY)
    real = RealClasses.of(bench, "other").draw(6)[0]
    normalised = [
        bench.splits.normaliser(method(iterations=n, updates=5, batch=6).condense(bench).inputs).unflatten(0, (3, 1))
        for n in (0, 15)
    ]
    apart = []
    for k in range(5):
        logits, parameters = frozen_network(bench.fresh_model(f"judge-{k}").network, real[0])
        apart.append([matching_loss(logits, parameters, made, real).item() for made in normalised])
    before, after = torch.tensor(apart).mean(0)
    assert after < 0.7 * before


def test_published_loops_depend_on_the_size_of_the_set() -> None:
    bench = bench_of(*data(2, 12), 10, TINY)
    DatasetCondensation(iterations=2, batch=5, start="real").condense(bench)
    # Ten updates with a real pass of 10 and a made one of 20; 50 passes of 20 after all but the last.
    assert bench.counts.forward == 2 * (10 * (10 + 20) + 9 * 50 * 20)
    assert bench.counts.backward == 2 * (10 * (10 + 4 * 20) + 9 * 50 * 20)
    bench = bench_of(*data(2, 12), 9, TINY)
    DatasetCondensation(iterations=3, batch=5, start="real").condense(bench)
    assert bench.counts.forward == 3 * (10 + 18)


def test_noise_or_real_examples_are_where_it_starts() -> None:
    bench = bench_of(*data(), 2, TINY)
    real, noise = (method(iterations=0, start=start).condense(bench).inputs for start in ("real", "noise"))
    rows = {tuple(row) for row in bench.splits.train.inputs.tolist()}
    assert all(tuple(row) in rows for row in real.tolist())
    assert not any(tuple(row) in rows for row in noise.tolist())
    again = method(iterations=0, start="noise").condense(bench_of(*data(), 2, TINY)).inputs
    assert torch.equal(noise, again)


def images() -> Any:
    inputs = torch.randint(256, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return bench_of(inputs, torch.arange(12) % 3, 1, "repertory.models.small:small_cnn", width=4)


def test_siamese_augmentation_changes_what_is_made_within_the_range_of_the_data() -> None:
    start, plain, changed = (
        method(**options).condense(images()).inputs
        for options in ({"iterations": 0}, {"strategy": ()}, {"strategy": ["crop", "rotate"]})
    )
    for made in (plain, changed):
        assert made.shape == start.shape
        assert 0 < float((made.float() - start.float()).norm()) < 10 * float(start.float().norm())
    assert not torch.allclose(plain, changed)


def test_what_cannot_be_condensed_is_said() -> None:
    bench = bench_of(*data(), 1, TINY)
    with pytest.raises(DataError, match=r"are no images .* leave the augmentation out"):
        method(strategy=["crop"]).condense(bench)
    with pytest.raises(DivergedError, match=r"lr_inputs=3e\+38"):
        method(lr_inputs=3e38).condense(bench)
    bench.splits.train.targets = bench.splits.train.targets.float()
    with pytest.raises(ConflictError, match="dc needs classes"):
        method().condense(bench)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("iterations", -1),
        ("updates", 0),
        ("passes", 0),
        ("lr_inputs", 0),
        ("lr_network", -1.0),
        ("batch", 0),
        ("distance", "l1"),
        ("strategy", "crop"),
        ("strategy", ["blur"]),
        ("start", "mean"),
    ],
)
def test_bad_options_are_named(option: str, value: object) -> None:
    with pytest.raises(OptionError, match=option):
        DatasetCondensation(**{option: value})
