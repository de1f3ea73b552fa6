"""Dropout by count: what is kept, and what the masks depend on."""

from __future__ import annotations

import copy

import pytest
import torch

from repertory.errors import OptionError
from repertory.layers.dropout import CountedDropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_drops_the_given_share_and_keeps_the_mean(rate: float) -> None:
    dropped = CountedDropout(rate, seed=5)(torch.ones(200_000))
    assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])


def test_masks_of_calls_and_of_seeds_are_unrelated() -> None:
    drop, other = CountedDropout(0.5, seed=1), CountedDropout(0.5, seed=2)
    masks = torch.stack([drop(torch.ones(50_000)), drop(torch.ones(50_000)), other(torch.ones(50_000))]) - 1
    torch.testing.assert_close(masks @ masks.T / 50_000, torch.eye(3), rtol=0, atol=0.02)


def test_nothing_happens_in_evaluation_and_at_rate_zero() -> None:
    values = torch.randn(3)
    drop = CountedDropout(0.5)
    key = drop.key.clone()
    assert drop.eval()(values) is values
    assert CountedDropout(0.0)(values) is values
    assert drop.key == key


def test_a_saved_layer_goes_on_where_it_stood() -> None:
    drop, values = CountedDropout(0.5, seed=9), torch.ones(100)
    drop(values)
    resumed = CountedDropout(0.5)
    resumed.load_state_dict(copy.deepcopy(drop.state_dict()))
    assert torch.equal(resumed(values), drop(values))


def test_gradient_passes_what_was_kept() -> None:
    values = torch.ones(20, dtype=torch.float64, requires_grad=True)
    dropped = CountedDropout(0.5)(values)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"rate": 1.0}, {"rate": -0.1}, {"seed": -1}])
def test_bad_options_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        CountedDropout(**{"rate": 0.5, **options})  # type: ignore[arg-type]
