"""Lion against hand calculation, the authors' formula, a maintained package, and its own invariances."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from repertory import Part, Recipe, Step
from repertory.errors import OptionError, UserError
from repertory.optim import Lion
from repertory.optim.lion import edit

SHAPES = [(7, 5), (5,), (3, 2, 4), (1,)]


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def gradients(step: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) * scale for shape in SHAPES]


def trained(optimizer_class: type = Lion, steps: int = 30, scale: float = 1.0, **options: object) -> list[Tensor]:
    parameters = weights()
    optimizer = optimizer_class(parameters, **{"lr": 0.01, **options})
    for step in range(steps):
        for parameter, gradient in zip(parameters, gradients(step, scale)):
            parameter.grad = gradient
        optimizer.step()
    return [p.detach() for p in parameters]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_two_steps_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Lion([weight], lr=0.1)
    weight.grad = torch.full_like(weight, 0.5)
    optimizer.step()
    assert weight.item() == pytest.approx(0.9)
    assert optimizer.state[weight]["exp_avg"].item() == pytest.approx(0.005)
    # The old momentum outweighs a small gradient of the other sign: c = 0.9 * 0.005 - 0.1 * 0.001 > 0.
    weight.grad = torch.full_like(weight, -0.001)
    optimizer.step()
    assert weight.item() == pytest.approx(0.8)
    assert optimizer.state[weight]["exp_avg"].item() == pytest.approx(0.00494)


def test_without_gradient_only_decays() -> None:
    weight = nn.Parameter(torch.tensor([2.0, -4.0]))
    optimizer = Lion([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([1.9, -3.8]))


def test_equals_the_formula_of_the_paper() -> None:
    lr, decay, (beta1, beta2) = 0.01, 0.1, (0.8, 0.95)
    values = [p.detach().double() for p in weights()]
    momenta = [torch.zeros_like(v) for v in values]
    for step in range(30):
        for value, momentum, gradient in zip(values, momenta, (g.double() for g in gradients(step))):
            direction = (beta1 * momentum + (1 - beta1) * gradient).sign()
            value.sub_(lr * (direction + decay * value))
            momentum.copy_(beta2 * momentum + (1 - beta2) * gradient)
    ours = trained(betas=(beta1, beta2), weight_decay=decay)
    torch.testing.assert_close(ours, [v.float() for v in values], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_pytorch_optimizer(weight_decay: float) -> None:
    from pytorch_optimizer import Lion as Theirs

    options = {"betas": (0.9, 0.99), "weight_decay": weight_decay}
    torch.testing.assert_close(trained(**options), trained(Theirs, **options), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"maximize": True}, {"bf16_momentum": True}, {"lr": torch.tensor(0.01)}],
)
def test_foreach_equals_the_loop_bit_for_bit(options: dict[str, object]) -> None:
    assert equal(trained(foreach=True, **options), trained(foreach=False, **options))


def test_foreach_takes_parameters_of_several_types() -> None:
    results = []
    for foreach in (True, False):
        parameters = [*weights(), *weights(torch.bfloat16), *weights(torch.float64)]
        optimizer = Lion(parameters, lr=0.01, weight_decay=0.1, foreach=foreach)
        for step in range(3):
            for parameter, gradient in zip(parameters, gradients(step) * 3):
                parameter.grad = gradient.to(parameter.dtype)
            optimizer.step()
        results.append([p.detach() for p in parameters])
    assert equal(*results)


@pytest.mark.parametrize("scale", [2.0**-8, 2.0**8])
def test_the_scale_of_the_gradients_does_not_matter(scale: float) -> None:
    assert equal(trained(scale=scale), trained())


def test_every_coordinate_moves_by_the_learning_rate_or_not_at_all() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = Lion([weight], lr=0.25)
    weight.grad = torch.tensor([1e-6, 0.0, -1e6])
    optimizer.step()
    assert weight.tolist() == [-0.25, 0.0, 0.25]


def test_is_sign_descent_without_momentum_in_the_step() -> None:
    expected = [p.detach().clone() for p in weights()]
    for step in range(30):
        for value, gradient in zip(expected, gradients(step)):
            value -= 0.01 * gradient.sign()
    torch.testing.assert_close(trained(betas=(0.0, 0.99)), expected, rtol=0, atol=1e-6)


def test_reshaping_a_tensor_commutes_with_the_step() -> None:
    shaped, flat = weights()[2], nn.Parameter(weights()[2].detach().flatten().flip(0))
    for parameter in (shaped, flat):
        optimizer = Lion([parameter], lr=0.01, weight_decay=0.1)
        for step in range(5):
            gradient = gradients(step)[2]
            parameter.grad = gradient if parameter is shaped else gradient.flatten().flip(0)
            optimizer.step()
    assert torch.equal(shaped.flatten().flip(0), flat)


def test_maximize_mirrors_the_descent_on_the_negated_gradient() -> None:
    assert equal(trained(maximize=True, weight_decay=0.1), trained(scale=-1.0, weight_decay=0.1))


def test_groups_have_options_of_their_own() -> None:
    first, second = weights()[:2]
    start = [first.detach().clone(), second.detach().clone()]
    optimizer = Lion([{"params": [first]}, {"params": [second], "lr": 0.5, "weight_decay": 0.1}], lr=0.1)
    first.grad, second.grad = torch.ones_like(first), -torch.ones_like(second)
    optimizer.step()
    torch.testing.assert_close(first.detach(), start[0] - 0.1)
    torch.testing.assert_close(second.detach(), start[1] * 0.95 + 0.5)


def test_parameters_without_a_gradient_stay_and_get_no_state() -> None:
    used, unused = weights()[:2]
    before = unused.detach().clone()
    for foreach in (True, False):
        optimizer = Lion([{"params": [used, unused]}, {"params": weights()[2:]}], weight_decay=1.0, foreach=foreach)
        used.grad = torch.ones_like(used)
        optimizer.step()
        assert torch.equal(unused, before)
        assert list(optimizer.state) == [used]


def test_complex_parameters_are_pairs_of_real_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(4, 2, generator=generator)
    number, pair = nn.Parameter(torch.view_as_complex(pairs.clone())), nn.Parameter(pairs.clone())
    for parameter in (number, pair):
        optimizer = Lion([parameter], lr=0.1, weight_decay=0.1)
        generator.manual_seed(1)
        for _ in range(3):
            gradient = torch.randn(4, 2, generator=generator)
            parameter.grad = torch.view_as_complex(gradient) if parameter is number else gradient
            optimizer.step()
    assert torch.equal(torch.view_as_real(number), pair)


def test_refuses_sparse_gradients() -> None:
    layer = nn.Embedding(4, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="sparse=False"):
        Lion(layer.parameters()).step()


def test_the_closure_is_evaluated_with_gradient_and_its_value_returned() -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = Lion([weight], lr=0.5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert weight.item() == 2.5


@pytest.mark.parametrize("bf16_momentum", [False, True])
def test_resumes_from_a_saved_state_bit_for_bit(bf16_momentum: bool) -> None:
    straight = trained(steps=6, bf16_momentum=bf16_momentum)
    parameters = weights()
    optimizer = Lion(parameters, lr=0.01, bf16_momentum=bf16_momentum)
    for step in range(6):
        if step == 3:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = Lion(parameters, lr=0.9)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        for parameter, gradient in zip(parameters, gradients(step)):
            parameter.grad = gradient
        optimizer.step()
    assert equal([p.detach() for p in parameters], straight)
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {
        torch.bfloat16 if bf16_momentum else torch.float32
    }


def test_the_state_is_one_buffer_a_weight() -> None:
    parameters = weights()
    optimizer = Lion(parameters)
    for parameter, gradient in zip(parameters, gradients(0)):
        parameter.grad = gradient
    optimizer.step()
    state = optimizer.state_dict()["state"]
    assert {name for entry in state.values() for name in entry} == {"exp_avg"}
    assert [entry["exp_avg"].shape for entry in state.values()] == [p.shape for p in parameters]


def test_takes_over_a_state_that_knows_fewer_options() -> None:
    parameters = weights()
    optimizer = Lion(parameters)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        del group["bf16_momentum"], group["maximize"], group["foreach"]
    optimizer.load_state_dict(state)
    parameters[0].grad = torch.ones_like(parameters[0])
    optimizer.step()
    torch.testing.assert_close(parameters[0].detach(), weights()[0].detach() - 1e-4)


def test_gradients_are_left_as_they_were() -> None:
    parameters = weights()
    for foreach in (True, False):
        optimizer = Lion(parameters, maximize=True, foreach=foreach)
        for parameter, gradient in zip(parameters, gradients(0)):
            parameter.grad = gradient.clone()
        optimizer.step()
        assert equal([p.grad for p in parameters if p.grad is not None], gradients(0))


@pytest.mark.parametrize("foreach", [True, False])
def test_a_compiled_step_makes_the_same_update_and_is_compiled_once(foreach: bool) -> None:
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    results = []
    for compiled in (True, False):
        parameters = weights()
        optimizer = Lion(parameters, lr=torch.tensor(0.01), weight_decay=0.1, foreach=foreach)
        graphs = CompileCounter()
        step = torch.compile(optimizer.step, backend=graphs) if compiled else optimizer.step
        for number in range(4):
            for parameter, gradient in zip(parameters, gradients(number)):
                parameter.grad = gradient
            optimizer.param_groups[0]["lr"].fill_(0.01 / (number + 1))
            step()
        results.append([p.detach() for p in parameters])
        # One graph makes the state and the first step, one the steps after it.
        assert not compiled or 1 <= graphs.frame_count <= 2
    assert equal(*results)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"betas": (0.9, 1.0)},
        {"betas": 0.9},
        {"weight_decay": -0.1},
        {"maximize": 2},
        {"foreach": "yes"},
        {"bf16_momentum": "yes"},
    ],
)
def test_bad_options_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        Lion(weights(), **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=f"{name}="):
        Lion([{"params": weights(), **options}])


def test_replaces_adamw_at_a_third_of_its_rate_and_three_times_its_decay() -> None:
    recipe = Recipe(Part("m:f"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:AdamW", {"lr": 3e-3}))
    assert edit(recipe).optimizer.options == pytest.approx({"lr": 1e-3, "weight_decay": 0.03})
    assert edit(recipe, lr=0.5, betas=[0.95, 0.98]).optimizer.options["lr"] == 0.5
    optimizer = edit(recipe, betas=[0.95, 0.98]).optimizer.build(weights())
    assert optimizer.param_groups[0]["betas"] == [0.95, 0.98]
    other = recipe.replace(optimizer=Part("torch.optim:SGD", {"lr": 0.1}))
    assert edit(other).optimizer == Part("repertory.optim.lion:Lion", {}, "lion")


def test_drives_a_step() -> None:
    model = nn.Linear(3, 2)
    start = model.weight.detach().clone()
    step = Step(model, Lion(model.parameters(), lr=0.125), nn.CrossEntropyLoss())
    step((torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(8, dtype=torch.int64)))
    torch.testing.assert_close((model.weight - start).abs(), torch.full_like(start, 0.125))
