"""Balanced softmax by hand, by brute force, in its limits, and against the released code."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Part, Recipe, Step
from repertory.errors import DataError, OptionError
from repertory.losses import BalancedSoftmaxLoss
from repertory.losses.balanced_softmax import adjusted_logits, edit
from repertory.training.build import build_learner

RELEASED = json.loads((Path(__file__).parent / "balanced_softmax_released.json").read_text())
COUNTS = [500, 120, 40, 9, 2]


def batch(size: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(size, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (size,), generator=generator)


def test_equals_the_released_code_and_its_gradient() -> None:
    logits = torch.tensor(RELEASED["logits"], dtype=torch.float64, requires_grad=True)
    criterion = BalancedSoftmaxLoss(torch.tensor(RELEASED["class_counts"]), reduction="none").double()
    values = criterion(logits, torch.tensor(RELEASED["target"]))
    values.mean().backward()
    # The logarithms of the counts are kept in float32.
    torch.testing.assert_close(values, torch.tensor(RELEASED["values"]).double(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(logits.grad, torch.tensor(RELEASED["gradient"]).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("tau", "expected"), [(1.0, 2.3979), (2.5, 5.7597), (0.5, 1.4260)])
def test_the_rare_class_of_two_by_hand(tau: float, expected: float) -> None:
    loss = BalancedSoftmaxLoss([100, 10], tau)(torch.zeros(1, 2), torch.tensor([1]))
    assert loss.item() == pytest.approx(expected, abs=1e-4) == pytest.approx(math.log(1 + 10**tau), abs=1e-4)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_equals_weighted_exponentials_by_brute_force(tau: float) -> None:
    logits, target = batch()
    weights = torch.tensor(COUNTS, dtype=torch.float64) ** tau
    expected = torch.stack(
        [-(weights[y] * v[y].exp() / (weights * v.exp()).sum()).log() for v, y in zip(logits, target)]
    )
    found = BalancedSoftmaxLoss(COUNTS, tau, reduction="none").double()(logits, target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_equals_a_softmax_over_as_many_copies_of_a_class_as_it_has_examples() -> None:
    logits, target = batch(classes=3)
    copies = logits.repeat_interleave(torch.tensor([4, 2, 1]), dim=1).softmax(1)
    mass = torch.stack([copies[:, :4].sum(1), copies[:, 4:6].sum(1), copies[:, 6]], 1)
    found = BalancedSoftmaxLoss([4, 2, 1]).double()(logits, target)
    torch.testing.assert_close(found, functional.nll_loss(mass.log(), target), rtol=1e-6, atol=1e-7)


def test_is_cross_entropy_bit_for_bit_when_tau_is_zero() -> None:
    logits, target = batch()
    found = BalancedSoftmaxLoss(COUNTS, tau=0.0)(logits.float(), target)
    assert torch.equal(found, functional.cross_entropy(logits.float(), target))


def test_equal_counts_change_nothing_and_only_ratios_of_counts_matter() -> None:
    logits, target = batch()
    even = BalancedSoftmaxLoss([7] * 5).double()(logits, target)
    torch.testing.assert_close(even, functional.cross_entropy(logits, target))
    double = BalancedSoftmaxLoss([2 * count for count in COUNTS]).double()(logits, target)
    torch.testing.assert_close(double, BalancedSoftmaxLoss(COUNTS).double()(logits, target), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("criterion", "best"), [(BalancedSoftmaxLoss([60, 30, 10]), [1, 1, 1]), (nn.CrossEntropyLoss(), [60, 30, 10])]
)
def test_the_counts_explain_the_frequencies_so_that_a_constant_network_learns_even_logits(
    criterion: nn.Module, best: list[int]
) -> None:
    logits = torch.tensor(best).double().log().requires_grad_()
    target = torch.arange(3).repeat_interleave(torch.tensor([60, 30, 10]))
    criterion.double()(logits.expand(100, 3), target).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-7)


def test_bayes_rule_after_training_undoes_the_frequencies() -> None:
    likelihood = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], dtype=torch.float64)
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    posterior = (likelihood * prior).log()
    corrected = adjusted_logits(posterior, [70, 20, 10], tau=-1.0).softmax(1)
    torch.testing.assert_close(corrected, likelihood, rtol=1e-6, atol=1e-6)


def test_probabilities_as_targets_mix_the_losses_of_classes() -> None:
    logits, _ = batch()
    criterion = BalancedSoftmaxLoss(COUNTS, reduction="none").double()
    mixed = functional.one_hot(torch.tensor([0] * 6), 5) * 0.3 + functional.one_hot(torch.tensor([4] * 6), 5) * 0.7
    first, last = (criterion(logits, torch.full((6,), label)) for label in (0, 4))
    torch.testing.assert_close(criterion(logits, mixed.double()), 0.3 * first + 0.7 * last)


def test_a_class_without_an_example_counts_as_one_and_stays_finite() -> None:
    logits, target = batch()
    found = BalancedSoftmaxLoss([500, 120, 40, 9, 0])(logits, target)
    assert torch.equal(found, BalancedSoftmaxLoss([500, 120, 40, 9, 1])(logits, target))
    assert found.isfinite()


def test_gradients_are_those_of_finite_differences() -> None:
    logits, target = batch()
    criterion = BalancedSoftmaxLoss(COUNTS, 1.7, reduction="none").double()
    assert torch.autograd.gradcheck(lambda logits: criterion(logits, target), (logits.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_float64_on_the_same_logits(dtype: torch.dtype) -> None:
    logits, target = batch()
    half = (100 * logits).to(dtype)
    criterion = BalancedSoftmaxLoss([10**7, 120, 40, 9, 2], 2.5, reduction="none")
    exact = criterion.double()(half.double(), target)
    values = criterion.float()(half, target)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=1e-6, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(criterion(half, target), values)


def test_counts_travel_with_the_state_but_take_no_step() -> None:
    saved, fresh = BalancedSoftmaxLoss(COUNTS), BalancedSoftmaxLoss([1] * 5)
    fresh.load_state_dict(saved.state_dict())
    logits, target = batch()
    assert torch.equal(saved(logits, target), fresh(logits, target))
    assert not list(saved.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"tau": -0.1},
        {"tau": math.inf},
        {"reduction": "max"},
        {"class_counts": [3]},
        {"class_counts": [3, -1]},
        {"class_counts": [3.0, math.nan]},
        {"class_counts": [[3, 1]]},
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        BalancedSoftmaxLoss(**{"class_counts": COUNTS, **options})


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), r"5 classes.*\(4, 3\)"),
        (torch.zeros(4, 5), torch.zeros(3, dtype=torch.int64), r"\(4, 5\) and targets \(3,\)"),
        (torch.zeros(4, 5), torch.tensor([0, 1, 2, 5]), "from 0 to 5, but class_counts has 5"),
        (torch.zeros(2, 5), torch.tensor([0, -1]), "from -1 to 0"),
        (torch.zeros(2, 5), torch.zeros(2, 4), "must be"),
    ],
)
def test_what_does_not_belong_together_is_refused(logits: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        BalancedSoftmaxLoss(COUNTS)(logits, target)


def network(in_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Linear(in_shape[0], outputs)


def test_a_recipe_gives_the_loss_its_counts_and_the_network_predicts_alone() -> None:
    recipe = Recipe(
        Part(f"{__name__}:network"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD", {"lr": 0.1})
    )
    learner = build_learner(edit(recipe, tau=0.7), (4,), 5, seed=0, class_counts=torch.tensor(COUNTS))
    torch.testing.assert_close(learner.criterion.log_counts.exp(), torch.tensor(COUNTS).float())
    assert learner.criterion.tau == 0.7
    inputs = torch.ones(2, 4)
    assert torch.equal(learner(inputs), learner.network(inputs))


def test_trains_in_a_step_with_a_value_an_example() -> None:
    model = nn.Linear(4, 5)
    step = Step(model, torch.optim.SGD(model.parameters(), 0.1), BalancedSoftmaxLoss(COUNTS))
    before = model.weight.detach().clone()
    step((torch.ones(6, 4), batch()[1]))
    assert not torch.equal(before, model.weight)
