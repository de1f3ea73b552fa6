"""The loss scale: what the optimizer sees is unscaled, and a step that overflows is skipped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repertory import Method, Step
from repertory.core.precision import Precision
from repertory.errors import OptionError


def test_gradients_are_divided_by_the_scale_in_place() -> None:
    precision, gradient = Precision("fp16"), torch.full((3,), 2.0**16)
    precision.unscale([gradient])
    assert gradient.tolist() == [1.0, 1.0, 1.0]
    assert precision.take_step()


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_overflow_skips_one_step_and_halves_the_scale(bad: float) -> None:
    precision = Precision("fp16")
    precision.unscale([torch.ones(2), torch.tensor([bad, 1.0])])
    precision.unscale([torch.ones(2)])
    assert not precision.take_step()
    assert precision.scale == 2.0**15
    assert precision.take_step()


def test_the_scale_doubles_after_two_thousand_good_steps_in_a_row() -> None:
    precision = Precision("fp16")
    for _ in range(1999):
        assert precision.take_step()
    assert precision.scale == 2.0**16
    precision.take_step()
    assert precision.scale == 2.0**17


def test_the_count_of_good_steps_starts_again_after_an_overflow_and_is_saved() -> None:
    precision, fresh = Precision("fp16"), Precision("fp16")
    for _ in range(5):
        precision.take_step()
    fresh.load_state_dict(precision.state_dict())
    assert (fresh.good_steps, fresh.scale) == (5, 2.0**16)
    precision.unscale([torch.tensor([float("inf")])])
    precision.take_step()
    assert precision.good_steps == 0


def test_the_scale_never_falls_below_one() -> None:
    precision = Precision("fp16")
    for _ in range(40):
        precision.unscale([torch.tensor([float("nan")])])
        precision.take_step()
    assert precision.scale == 1.0


@pytest.mark.parametrize("name", ["32", "bf16"])
def test_without_float16_nothing_is_scaled_or_skipped(name: str) -> None:
    precision, gradient = Precision(name), torch.tensor([float("nan"), 4.0])
    precision.unscale([gradient])
    assert gradient[1].item() == 4.0
    assert precision.take_step()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(OptionError, match="precision='64'"):
        Precision("64")


class Overflowing(Method):
    """Makes the second of two gradients overflow."""

    slug = "overflowing"

    def __init__(self) -> None:
        super().__init__()
        self.armed = False

    def gradient(self, state, inner):  # type: ignore[no-untyped-def]
        loss = inner(state)
        inner(state.replace(evaluation=1))
        return loss

    def loss(self, state, inner):  # type: ignore[no-untyped-def]
        factor = 1e30 if self.armed and state.evaluation == 1 else 1.0
        return inner(state).double() * factor * factor


def step_with(method: Method | None, precision: str) -> tuple[Step, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = Step(model, optimizer, nn.CrossEntropyLoss(), [method] if method else [], precision=precision)
    return step, model.weight


BATCH = (torch.tensor([[1.0, 0.5], [-1.0, 2.0]]), torch.tensor([0, 1]))


def test_a_step_in_float16_is_that_in_float32_up_to_rounding() -> None:
    (half, weight), (full, reference) = step_with(None, "fp16"), step_with(None, "32")
    half(BATCH)
    full(BATCH)
    assert half.precision.scale == 2.0**16
    torch.testing.assert_close(weight, reference, rtol=1e-3, atol=1e-3)


def test_a_step_whose_second_gradient_overflows_leaves_the_weights_and_the_next_one_moves_them() -> None:
    method = Overflowing()
    step, weight = step_with(method, "fp16")
    start = weight.detach().clone()
    method.armed = True
    step(BATCH)
    assert torch.equal(weight, start)
    assert step.precision.scale == 2.0**15
    method.armed = False
    step(BATCH)
    assert not torch.equal(weight, start)


def test_clipping_sees_unscaled_gradients() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = Step(model, optimizer, nn.CrossEntropyLoss(), precision="fp16", clip_norm=1e-3)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    step(BATCH)
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - start
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)
