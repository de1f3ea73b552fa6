"""RCAL against a plain loop, in its limits, and its first stage on a bench."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Part, Step
from repertory.algorithms import RCAL, SAM
from repertory.algorithms.rcal import edit
from repertory.core import Method
from repertory.errors import ConflictError, DataError, OptionError
from repertory.estimators import RobustGaussianCalibrator
from repertory.testing.subject import Subject
from repertory.testing.tiny import baseline_recipe
from repertory.testing.use import tiny_bench

OFF = {"beta": 0.0, "mixup": 0.0, "multiple": 0.0}


def network(norm: bool = False) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def everything() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = torch.tensor([0] * 12 + [1] * 6 + [2] * 2)
    return {"input": torch.randn(20, 4, generator=generator), "target": target, "index": torch.arange(20)}


def batch() -> dict[str, Tensor]:
    chosen = torch.tensor([0, 3, 13, 15, 19, 7])
    return {name: values[chosen] for name, values in everything().items()}


def step_of(method: RCAL, model: nn.Module | None = None, lr: float = 0.1, **more: Any) -> Step:
    model = network() if model is None else model
    given = {"classes": 3, "training": [everything()], **more}
    criterion = given.pop("criterion", nn.CrossEntropyLoss())
    return Step(model, torch.optim.SGD(model.parameters(), lr=lr), criterion, [method], **given)


def test_a_step_equals_a_plain_loop() -> None:
    method, model, mine = RCAL(beta=0.3), network(), network()
    step = step_of(method, model)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    with torch.no_grad():
        first = mine[:2](everything()["input"])
    seen: list[dict[str, Any]] = []
    evaluate = method._evaluate
    step.run.forward = lambda state, criterion: (seen.append(state.batch), evaluate(state, criterion))[1]
    for _ in range(3):
        loss = step(batch())
        entries = seen[-1]
        mixed, virtual = entries["rcal/mixed"], entries["rcal/virtual"]
        share = float(mixed["shares"][0])
        partner = [int((batch()["target"] == t).nonzero()[0]) for t in mixed["target"]]
        assert len(partner) == 6
        logits = mine(mixed["inputs"])
        real = share * functional.cross_entropy(logits, batch()["target"])
        real = real + (1 - share) * functional.cross_entropy(logits, mixed["target"])
        drawn = functional.cross_entropy(mine[2](virtual["input"]), virtual["target"])
        distance = (mine[:2](batch()["input"]) - first[batch()["index"]]).square().sum(1).mean()
        # 12, 6 and 2 examples are filled up to 12 each: 16 virtual ones beside 20.
        expected = (20 * real + 16 * drawn) / 36 + 0.3 * distance
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert len(virtual["input"]) == 5  # 6 * 16 / 20, rounded up
    torch.testing.assert_close(model.state_dict(), mine.state_dict(), rtol=1e-4, atol=1e-6)


def test_inputs_are_mixed_with_those_whose_labels_come_with_them() -> None:
    method = RCAL(beta=0.0, multiple=0.0)
    step = step_of(method, network())
    seen: list[dict[str, Any]] = []
    inner = method._evaluate
    step.run.forward = lambda state, criterion: (seen.append(state.batch), inner(state, criterion))[1]
    shares = []
    for _ in range(20):
        step(batch())
        mixed = seen[-1]["rcal/mixed"]
        share = mixed["shares"][0]
        partner = (mixed["inputs"] - share * batch()["input"]) / (1 - share)
        gaps = torch.cdist(partner, batch()["input"])
        if share < 0.99:
            places = gaps.argmin(1)
            assert gaps.amin(1).max() < 1e-3
            assert places.sort()[0].tolist() == list(range(6))
            assert torch.equal(batch()["target"][places], mixed["target"])
        shares.append(float(share))
    assert min(shares) < 0.3 < 0.7 < max(shares)


def test_virtual_features_are_those_of_the_calibrator_on_the_first_features() -> None:
    method = RCAL(neighbors=3, nearest=1, gamma_mean=0.8, gamma_covariance=0.2, alpha=0.5)
    model = network()
    with torch.no_grad():
        first = model[:2](everything()["input"])
    step = step_of(method, model)
    step(batch())
    torch.testing.assert_close(method.first.read(torch.arange(20)), first)
    made = RobustGaussianCalibrator(3, 1, 0.8, 0.2, 0.5, random_state=method.calibrator.random_state)
    rows, labels = made.fit(first, everything()["target"]).sample()
    torch.testing.assert_close(method.virtual.entries()[1], torch.from_numpy(rows).float())
    assert method.labels.entries()[1][:, 0].tolist() == labels.tolist()
    assert labels.tolist() == [1] * 6 + [2] * 10


def test_features_are_held_to_the_first_ones_as_beta_grows() -> None:
    moved = []
    for beta in (0.0, 1.0, 10.0):
        model, method = network(), RCAL(beta=beta)
        first = model[:2](everything()["input"]).detach()
        step = step_of(method, model, lr=1e-2)
        for _ in range(100):
            step(everything())
        moved.append((model[:2](everything()["input"]).detach() - first).norm().item())
    assert moved[0] > 1.5 * moved[1] > 4 * moved[2]


def test_first_features_are_taken_in_evaluation_mode_and_modes_are_put_back() -> None:
    model = network(norm=True)
    model.eval()
    with torch.no_grad():
        expected = model[:2](everything()["input"])
    model.train()
    method = RCAL()
    step_of(method, model)(batch())
    torch.testing.assert_close(method.first.read(torch.arange(20)), expected)
    assert all(module.training for module in model.modules())
    assert int(model[1].num_batches_tracked) == 1


@pytest.mark.parametrize("norm", [False, True])
def test_is_the_baseline_bit_for_bit_when_all_is_off(norm: bool) -> None:
    weights = []
    for methods in ([RCAL(**OFF)], []):
        model = network(norm)
        step = Step(
            model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), methods, classes=3, training=[]
        )
        for _ in range(3):
            step(batch())
        weights.append(model.state_dict())
    assert all(torch.equal(*pair) for pair in zip(*(each.values() for each in weights)))


def test_classes_of_equal_size_need_no_virtual_features() -> None:
    even = {**everything(), "target": torch.arange(20) % 2}
    method = RCAL(beta=0.0, mixup=0.0)
    model, plain = network(), network()
    step_of(method, model, training=[even])(batch())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    functional.cross_entropy(plain(batch()["input"]), batch()["target"]).backward()
    optimizer.step()
    torch.testing.assert_close(model.state_dict(), plain.state_dict())


def test_passes_are_counted_with_those_over_the_training_set() -> None:
    for options, passes in (({}, (20 + 12, 12)), ({"beta": 0.0}, (20 + 6, 6)), ({"mixup": 0.0}, (20 + 6, 6))):
        step = step_of(RCAL(**options))
        step(batch())
        assert (step.run.counts.forward, step.run.counts.backward) == passes


def test_examples_that_the_training_loader_left_out_are_not_held() -> None:
    left = {name: values[:10] for name, values in everything().items()}
    outside = {name: values[12:] for name, values in everything().items()}
    held, free = (step_of(RCAL(**{**OFF, "beta": beta}), training=[left])({**outside}).item() for beta in (50.0, 1e-9))
    assert held == pytest.approx(free, rel=1e-6)


def test_a_criterion_of_one_number_a_batch_works_too() -> None:
    class Mean(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return functional.cross_entropy(output, target)

    each, whole = (step_of(RCAL(), network(), criterion=criterion) for criterion in (nn.CrossEntropyLoss(), Mean()))
    for _ in range(3):
        torch.testing.assert_close(whole(batch()), each(batch()))
    torch.testing.assert_close(whole.run.model.state_dict(), each.run.model.state_dict())


def test_works_inside_sam_and_shows_other_methods_the_output_of_plain_inputs() -> None:
    evaluations = []

    class Witness(Method):
        slug = "witness"

        def loss(self, state: Any, inner: Any) -> Tensor:
            values = inner(state)
            evaluations.append(state.evaluation)
            if state.evaluation == 0:
                torch.testing.assert_close(state.output, state.run.model(state.batch["input"]))
            assert values.shape == (6,)
            return values

    model = network()
    step = Step(
        model, torch.optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss(), [Witness(), SAM(), RCAL()],
        classes=3, training=[everything()],
    )  # fmt: skip
    plain = step_of(RCAL(), network())
    # The loss returned is the one before SAM moves the weights.
    torch.testing.assert_close(step(batch()), plain(batch()))
    assert evaluations == [0, 1]


def test_micro_batches_make_the_update_of_one_batch() -> None:
    whole, split = network(), network()
    whole_step, split_step = step_of(RCAL(), whole), step_of(RCAL(), split, accumulate=2)
    first, second = whole_step({**everything()}), split_step({**everything()})
    assert first.item() == pytest.approx(second.item(), rel=1e-5)
    torch.testing.assert_close(whole.state_dict(), split.state_dict(), rtol=1e-4, atol=1e-5)


def test_bench_learns_features_first_and_leaves_the_classifier_free() -> None:
    recipe = edit(baseline_recipe(), share=0.5, multiple=2.0)
    assert recipe.train_share == 0.5
    bench = tiny_bench(Subject.of("rcal"), recipe)
    learner = bench.fresh_model()
    drawn = {name: value.clone() for name, value in learner.state_dict().items()}
    learner = recipe.before[0].build().apply(learner, bench)
    changed = {name for name, value in learner.state_dict().items() if not torch.equal(value, drawn[name])}
    assert changed == {"network.1.weight", "network.1.bias"}
    assert all(parameter.requires_grad for parameter in learner.parameters())
    steps = bench.counts.steps
    bench.train(learner, recipe.train_share)
    assert bench.counts.steps == 2 * steps == 8


def test_pretrained_models_and_a_share_of_nothing_go_without_the_first_stage() -> None:
    pretrained = baseline_recipe().replace(model=Part("timm:x", {"pretrained": True}))
    assert not edit(pretrained).before
    assert not edit(baseline_recipe(), share=0.0).before
    assert edit(baseline_recipe()).before[0].options == {"share": 0.5, "temperature": 0.2}


@pytest.mark.parametrize(
    "options", [{"beta": -1.0}, {"mixup": -1.0}, {"multiple": -0.5}, {"nearest": 0}, {"gamma_mean": 2.0}]
)
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        RCAL(**options)
    with pytest.raises(OptionError, match="share"):
        edit(baseline_recipe(), share=1.0)


def test_what_a_step_lacks_is_said() -> None:
    with pytest.raises(ConflictError, match=r"rcal needs 'training'.*without\s+augmentation"):
        step_of(RCAL(), training=None)
    with pytest.raises(ConflictError, match="rcal needs 'index'"):
        step_of(RCAL())({name: batch()[name] for name in ("input", "target")})
    with pytest.raises(DataError, match="gave no batch"):
        step_of(RCAL(), training=[])(batch())
    with pytest.raises(DataError, match=r"must be a tensor of floats, not torch.int64; give mixup=0"):
        step_of(RCAL(**{**OFF, "mixup": 1.0}))({**batch(), "input": torch.zeros(6, 4, dtype=torch.int64)})
