"""MDCS against the released code, by hand, against a plain loop, and in its limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Part, Recipe, Step
from repertory.algorithms import FixMatch
from repertory.algorithms.mdcs import MDCS, consistency_loss, diversity_loss, edit, expert_adjustments
from repertory.errors import ConflictError, DataError, OptionError
from repertory.layers import MultiExpertNetwork, split_into_experts
from repertory.losses import BalancedSoftmaxLoss
from repertory.testing.subject import Subject
from repertory.testing.tiny import baseline_recipe
from repertory.testing.use import tiny_bench

RELEASED = json.loads((Path(__file__).parent / "mdcs_released.json").read_text())
LAMBDAS = (-0.5, 1.0, 2.5)
COUNTS = torch.tensor([90, 31, 11])


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int = 0, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle: list[nn.Module] = [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), *middle, nn.Tanh(), nn.Linear(8, 3))


def experts(**options: Any) -> MultiExpertNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return split_into_experts(network(norm=options.pop("norm", False)), 3, (4,), scale=5.0, **options)


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(6, 4, generator=generator)
    strong = inputs + torch.randn(6, 4, generator=generator) / 3
    return {"input": inputs, "target": torch.tensor([0, 0, 0, 1, 1, 2]), "strong": strong}


def step_of(model: nn.Module, method: MDCS, criterion: nn.Module | None = None, **more: Any) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    given = {"classes": 3, "class_counts": COUNTS, **more}
    return Step(model, optimizer, criterion or nn.CrossEntropyLoss(), [method], **given)


@pytest.mark.parametrize("case", RELEASED["cases"], ids=lambda case: f"epoch {case['epoch']}, {len(case['target'])}")
def test_equals_the_released_code_and_its_gradient(case: dict[str, Any]) -> None:
    raw = torch.tensor(case["logits"], dtype=torch.float64, requires_grad=True)
    target = torch.tensor(case["target"])
    adjusted = raw + expert_adjustments(torch.tensor(RELEASED["class_counts"]).double(), LAMBDAS)
    diversity = diversity_loss(adjusted, target.repeat(2)).mean()
    weak, strong = adjusted.split(len(target), 1)
    loss = diversity + 0.6 * min(case["epoch"] / 20, 1) * consistency_loss(weak, strong, target)
    loss.backward()
    assert diversity.item() == pytest.approx(case["diversity"], abs=1e-6)
    assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
    torch.testing.assert_close(raw.grad, torch.tensor(case["gradient"]).double(), rtol=0, atol=1e-6)


def test_the_rare_class_of_two_by_hand() -> None:
    values = diversity_loss(torch.zeros(3, 1, 2) + expert_adjustments([100, 10], LAMBDAS), torch.tensor([1]))
    assert values.item() == pytest.approx(0.2748 + 2.3979 + 5.7597, abs=2e-4)


def test_one_expert_with_lambda_one_is_balanced_softmax() -> None:
    raw, target = logits(1, 6, 3), batch()["target"]
    found = diversity_loss(raw + expert_adjustments(COUNTS, [1.0]), target)
    torch.testing.assert_close(found, BalancedSoftmaxLoss(COUNTS, reduction="none").double()(raw[0], target))


def test_equal_counts_leave_plain_cross_entropy_of_each_expert() -> None:
    raw, target = logits(3, 6, 3), batch()["target"]
    found = diversity_loss(raw + expert_adjustments([7, 7, 7], LAMBDAS), target)
    expected = sum(functional.cross_entropy(each, target, reduction="none") for each in raw)
    torch.testing.assert_close(found, expected)


def test_consistency_equals_a_sum_over_recognised_examples_by_brute_force() -> None:
    weak, strong, target = logits(3, 6, 3), logits(3, 6, 3, seed=1), batch()["target"]
    expected, kept = 0.0, 0
    for first, second in zip(weak, strong):
        values = []
        for a, b, y in zip(first, second, target):
            if a.argmax() == y:
                p, q = (a / 2).softmax(0), (b / 2).softmax(0)
                values.append(float((p * (p / q).log()).sum()))
        kept += len(values)
        expected += 4 * sum(values) / len(values)
    assert 3 < kept < 15
    assert consistency_loss(weak, strong, target, temperature=2.0).item() == pytest.approx(expected, rel=1e-9)


def test_consistency_is_zero_for_equal_views_and_where_nothing_is_recognised() -> None:
    weak, target = logits(3, 6, 3), batch()["target"]
    assert consistency_loss(weak, weak, target).item() == pytest.approx(0.0, abs=1e-12)
    strong = logits(3, 6, 3, seed=1).requires_grad_()
    wrong = functional.one_hot((target + 1) % 3, 3).double().expand(3, 6, 3)
    loss = consistency_loss(wrong, strong, target)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(strong.grad, torch.zeros_like(strong))


def test_consistency_teaches_strong_views_of_recognised_examples_alone() -> None:
    weak = logits(3, 6, 3).requires_grad_()
    strong, target = logits(3, 6, 3, seed=1).requires_grad_(), batch()["target"]
    consistency_loss(weak, strong, target).backward()
    assert weak.grad is None
    right = weak.argmax(-1) == target
    assert torch.equal(strong.grad.abs().sum(-1) > 0, right)


def test_gradients_are_those_of_finite_differences() -> None:
    weak, strong, target = logits(2, 6, 3), logits(2, 6, 3, seed=1).requires_grad_(), batch()["target"]
    assert torch.autograd.gradcheck(lambda views: consistency_loss(weak, views, target, 2.0), (strong,))
    assert torch.autograd.gradcheck(lambda views: diversity_loss(views, target), (strong,))


def test_half_precision_equals_float64_on_the_same_logits() -> None:
    weak, strong, target = (100 * logits(3, 6, 3)).half(), (100 * logits(3, 6, 3, seed=1)).half(), batch()["target"]
    for function, given in ((consistency_loss, (weak, strong)), (diversity_loss, (strong,))):
        found = function(*given, target)
        exact = function(*(each.double() for each in given), target)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("norm", [False, True])
def test_a_step_equals_a_plain_loop_with_one_forward_pass(norm: bool) -> None:
    model, mine = experts(norm=norm), experts(norm=norm)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9)
    step = step_of(model, MDCS(warmup=4.0, temperature=2.0))
    entries = batch()
    for epoch in range(3):
        both = torch.cat([entries["input"], entries["strong"]])
        loss = torch.zeros(())
        raw = mine.expert_logits(both)
        for values, factor in zip(raw, LAMBDAS):
            adjusted = values + factor * COUNTS.float().log()
            loss = loss + functional.cross_entropy(adjusted, entries["target"].repeat(2))
            weak, strong = adjusted.detach()[:6], adjusted[6:]
            right = weak.argmax(1) == entries["target"]
            if right.any():
                divergence = functional.kl_div(
                    (strong[right] / 2).log_softmax(1), (weak[right] / 2).softmax(1), reduction="batchmean"
                )
                loss = loss + 0.6 * (epoch + 1) / 4 * 4 * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert step(entries).item() == pytest.approx(loss.item(), rel=1e-5)
        step.end_epoch()
    for left, right_ in zip(model.state_dict().values(), mine.state_dict().values()):
        torch.testing.assert_close(left, right_, rtol=1e-4, atol=1e-6)


def test_without_warmup_the_full_weight_counts_from_the_start() -> None:
    first, second = (step_of(experts(), MDCS(warmup=warmup))(batch()).item() for warmup in (0.0, 1.0))
    assert first == second > step_of(experts(), MDCS(warmup=2.0))(batch()).item()


def test_zero_lambdas_and_weight_are_a_plain_ensemble() -> None:
    model, plain = experts(), experts()
    step = step_of(model, MDCS(lambdas=[0, 0, 0], weight=0.0))
    entries = batch()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    raw = plain.expert_logits(torch.cat([entries["input"], entries["strong"]]))
    sum(functional.cross_entropy(each, entries["target"].repeat(2)) for each in raw).backward()
    optimizer.step()
    step(entries)
    for left, right in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(left, right)


def test_the_output_is_the_mean_of_raw_logits_of_weak_views() -> None:
    seen = []

    class Witness(MDCS):
        def loss(self, state: Any, inner: Any) -> Tensor:
            values = super().loss(state, inner)
            seen.append((state.output.detach(), values.detach()))
            return values

    model = experts()
    inputs = batch()["input"]
    expected = torch.stack([expert(model.stem(inputs)) for expert in model.experts]).mean(0).detach()
    assert torch.equal(model(inputs), expected)
    step_of(model, Witness())(batch())
    torch.testing.assert_close(seen[0][0], expected)
    assert seen[0][1].shape == (6,)


def test_another_criterion_takes_the_place_of_cross_entropy() -> None:
    entries = batch()
    smooth = nn.CrossEntropyLoss(label_smoothing=0.3)
    found = step_of(experts(), MDCS(weight=0.0), smooth)(entries).item()
    raw = experts().expert_logits(torch.cat([entries["input"], entries["strong"]]))
    adjusted = raw + expert_adjustments(COUNTS, LAMBDAS)
    expected = sum(smooth(each, entries["target"].repeat(2)) for each in adjusted)
    assert found == pytest.approx(expected.item(), rel=1e-6)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    mean = weighted(adjusted.flatten(0, 1), entries["target"].repeat(6))
    assert step_of(experts(), MDCS(weight=0.0), weighted)(entries).item() == pytest.approx(3 * mean.item(), rel=1e-6)


def test_passes_of_both_views_are_counted() -> None:
    step = step_of(experts(), MDCS())
    step(batch())
    assert (step.run.counts.forward, step.run.counts.backward) == (12, 12)


@pytest.mark.parametrize(
    "options",
    [
        {"lambdas": []},
        {"lambdas": 1.0},
        {"lambdas": [0.0, float("nan")]},
        {"weight": -1.0},
        {"warmup": -1.0},
        {"temperature": 0.0},
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        MDCS(**options)


def test_what_a_step_lacks_is_said() -> None:
    with pytest.raises(ConflictError, match=r"not a Sequential; give repertory.layers.split_into_experts"):
        step_of(network(), MDCS())
    with pytest.raises(OptionError, match="2 numbers, but the network has 3 experts"):
        step_of(experts(), MDCS(lambdas=[0, 1]))
    with pytest.raises(ConflictError, match=r"mdcs needs 'class_counts'.*bincount"):
        step_of(experts(), MDCS(), class_counts=None)
    with pytest.raises(ConflictError, match="mdcs needs 'strong'"):
        step_of(experts(), MDCS())((batch()["input"], batch()["target"]))
    with pytest.raises(ConflictError, match=r"\(6, 4\) and strong ones \(3, 4\)"):
        step_of(experts(), MDCS())({**batch(), "strong": batch()["strong"][:3]})
    with pytest.raises(DataError, match="class_counts has 4 classes, but the experts give 3"):
        step_of(experts(), MDCS(), class_counts=torch.ones(4))(batch())
    with pytest.raises(ConflictError, match="both own the slot 'forward'"):
        Step(
            experts(), torch.optim.SGD(network().parameters(), 0.1), nn.CrossEntropyLoss(), [MDCS(), FixMatch()],
            classes=3, class_counts=COUNTS, streams={"unlabelled": []},
        )  # fmt: skip


def test_functions_refuse_what_does_not_belong_together() -> None:
    with pytest.raises(DataError, match=r"\(3, 6, 3\) and classes \(5,\)"):
        diversity_loss(logits(3, 6, 3), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(DataError, match=r"strong \(3, 5, 3\)"):
        consistency_loss(logits(3, 6, 3), logits(3, 5, 3), torch.zeros(6, dtype=torch.int64))


def test_a_recipe_has_an_expert_for_each_lambda_and_keeps_pretrained_weights() -> None:
    recipe = Recipe(
        Part("timm:x", {"pretrained": True}), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD", {"lr": 0.1})
    )
    edited = edit(recipe, lambdas=[0, 1], split="layer2", weight=0.3)
    assert dict(edited.surgery[0].options) == {"experts": 2, "scale": 30.0, "split": "layer2", "fresh": False}
    assert edited.methods[0].build().weight == 0.3
    assert len(edited.methods[0].build().lambdas) == 2


def test_a_bench_gives_strong_views_and_class_counts() -> None:
    recipe = edit(baseline_recipe(), warmup=1.0)
    bench = tiny_bench(Subject.of("mdcs"), recipe)
    learner = bench.fresh_model()
    assert isinstance(learner.network, MultiExpertNetwork)
    before = [parameter.detach().clone() for parameter in learner.parameters()]
    bench.train(learner, 1.0)
    assert bench.counts.forward == 2 * bench.counts.steps * recipe.batch_size
    assert not any(torch.equal(*pair) for pair in zip(before, learner.parameters()))
