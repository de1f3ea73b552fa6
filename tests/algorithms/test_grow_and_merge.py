"""Grow and Merge against AutoNovel's code, by hand, in its limits, and on blobs that are easy to tell apart."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Step
from repertory.algorithms import SAM
from repertory.algorithms.grow_and_merge import (
    GM,
    GrowMerge,
    PlainTraining,
    align_rows,
    grow_classifier,
    merge_branches,
    novelty_scores,
    novelty_split,
    pair_bce,
    pair_targets,
)
from repertory.algorithms.grow_and_merge.pairs import batch_pair_loss, ramp_up
from repertory.core.frozen import FrozenCopy
from repertory.errors import ConflictError, DataError, OptionError, UserError
from repertory.losses import NormalisedSoftmaxLoss

RELEASED = json.loads((Path(__file__).parent / "grow_and_merge_released.json").read_text())
CENTRES = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0], [0.0, -4.0]])
"""Of blobs: two known ones, and two on the line between these, where a classifier is unsure."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(outputs: int = 4, seed: int = 0, norm: bool = False, inputs: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle: list[nn.Module] = [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(nn.Linear(inputs, 8), *middle, nn.ReLU(), nn.Linear(8, outputs))


def batch(examples: int = 12, known: int = 2, labelled: int = 4) -> dict[str, Any]:
    """The first examples labelled in turn, all others without a label."""
    inputs = torch.randn(examples, 3, generator=generator(1))
    views = list(inputs + 0.1 * torch.randn(2, examples, 3, generator=generator(2)))
    target = torch.full((examples,), -1).index_copy(0, torch.arange(labelled), torch.arange(labelled) % known)
    return {"input": inputs, "target": target, "index": torch.arange(examples), "views": views}


def step_of(model: nn.Module, method: GM, entries: dict[str, Any], lr: float = 0.1, **more: Any) -> Step:
    whole = [{name: entries[name] for name in ("input", "target", "index")}]
    given: dict[str, Any] = {"epochs": 4, "examples": len(entries["input"]), "training": whole, **more}
    methods = given.pop("methods", [method])
    return Step(model, torch.optim.SGD(model.parameters(), lr=lr), nn.CrossEntropyLoss(), methods, **given)


def passes(step: Step, entries: dict[str, Any], count: int = 4) -> list[float]:
    losses = []
    for _ in range(count):
        losses.append(float(step(entries)))
        step.end_epoch()
    return losses


@pytest.mark.parametrize("case", RELEASED["cases"], ids=lambda case: f"k={case['k']}")
def test_pairs_and_their_loss_equal_the_released_code(case: dict[str, Any]) -> None:
    features = torch.tensor(RELEASED["features"])
    similar = pair_targets(features, case["k"])
    assert torch.equal(similar, torch.tensor(case["similar"]) > 0)
    first, second = (
        torch.tensor(RELEASED[name], dtype=torch.float64).requires_grad_() for name in ("logits", "logits_bar")
    )
    every = torch.ones(len(features), dtype=torch.bool)
    for loss in (
        pair_bce(first.softmax(1), second.softmax(1), similar).mean(),
        batch_pair_loss(features, first.softmax(1), second.softmax(1), every, case["k"]),
    ):
        assert loss.item() == pytest.approx(case["loss"], rel=1e-12)
        for gradient, name in zip(torch.autograd.grad(loss, [first, second]), ("grad", "grad_bar")):
            torch.testing.assert_close(gradient, torch.tensor(case[name], dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_weight_rises_as_in_the_released_code() -> None:
    for epoch, value in RELEASED["ramp"]:
        assert ramp_up(epoch / 200) == pytest.approx(value, rel=1e-12)


def test_pairs_with_the_same_largest_features_are_similar_whatever_their_order() -> None:
    features = torch.tensor([[3.0, 1, 2], [6, 0, 5], [1, 3, 2], [2, 1, 3]])
    expected = [[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]]
    assert pair_targets(features, 2).int().tolist() == expected
    assert bool(pair_targets(features, 3).all())
    permuted = torch.tensor([2, 0, 1])
    assert torch.equal(pair_targets(features[:, permuted], 2), pair_targets(features, 2))


def test_sure_and_right_pairs_cost_nothing_and_wrong_ones_as_much_as_the_logarithm_allows() -> None:
    sure = torch.eye(2, dtype=torch.float64)
    right, wrong = pair_bce(sure, sure, sure > 0), pair_bce(sure, sure, sure == 0)
    assert float(right.abs().max()) < 1e-6
    torch.testing.assert_close(wrong, torch.full_like(wrong, 16.118095650958319))


def test_gradient_of_the_pair_loss() -> None:
    first, second = (torch.randn(n, 3, generator=generator(n), dtype=torch.float64).requires_grad_() for n in (4, 5))
    similar = torch.rand(4, 5, generator=generator()) < 0.5
    assert torch.autograd.gradcheck(lambda a, b: pair_bce(a.softmax(1), b.softmax(1), similar), (first, second))


def test_half_precision_gives_the_loss_of_float64(as_float64: Callable[..., list[Tensor]]) -> None:
    logits = 8 * torch.randn(2, 6, 3, generator=generator())
    first, second = logits.bfloat16()
    similar = torch.rand(6, 6, generator=generator()) < 0.5

    def loss(a: Tensor, b: Tensor) -> Tensor:
        wide = [value.to(torch.promote_types(value.dtype, torch.float32)) for value in (a, b)]
        return pair_bce(wide[0].softmax(1), wide[1].softmax(1), similar)

    as_float64(loss, first, second)


def test_only_chosen_examples_have_pairs() -> None:
    features = torch.rand(7, 5, generator=generator())
    first, second = torch.randn(2, 7, 3, generator=generator()).softmax(2)
    chosen = torch.tensor([1, 0, 1, 1, 0, 0, 1]) > 0
    similar = pair_targets(features[chosen], 2)
    expected = 0.0
    for i, p in enumerate(first[chosen]):
        for j, q in enumerate(second[chosen]):
            alike = float(p @ q) if similar[i, j] else 1 - float(p @ q)
            expected -= float(torch.tensor(alike + 1e-7).log()) / 16
    assert float(batch_pair_loss(features, first, second, chosen, 2)) == pytest.approx(expected, rel=1e-5)
    assert float(batch_pair_loss(features, first, second, torch.zeros(7, dtype=torch.bool), 2)) == 0.0


def test_novelty_of_a_sure_and_of_an_unsure_example() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
    one = 1 - 3.0**-1
    assert novelty_scores(logits).tolist() == pytest.approx([one, 2 / (2 + 20.085536923187668)])
    assert novelty_scores(logits, "energy").tolist() == pytest.approx([-1.0986122886681098, -3.0949228])


def test_split_rejects_as_large_a_share_of_known_examples_as_was_asked_for() -> None:
    known, scores = torch.rand(2, 400, generator=generator())
    assert float(novelty_split(known, known, 0.95).double().mean()) == pytest.approx(0.05, abs=0.003)
    mask = novelty_split(scores, known, 0.8)
    assert torch.equal(novelty_split(scores.flip(0), known, 0.8), mask.flip(0))
    assert float(scores[mask].min()) > float(scores[~mask].max())


def test_split_takes_the_newest_where_too_few_look_new() -> None:
    mask = novelty_split(torch.tensor([0.1, 0.3, 0.2]), torch.tensor([0.9]), least=2)
    assert mask.tolist() == [False, True, True]


def test_a_grown_classifier_says_the_same_of_old_classes() -> None:
    model, inputs = network(), torch.randn(5, 3, generator=generator())
    before, state = model(inputs), torch.get_rng_state()
    grown = grow_classifier(model, 3, generator())
    assert grown is model
    assert torch.equal(model(inputs)[:, :4], before)
    assert model(inputs).shape == (5, 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert grow_classifier(model, 0)[-1].out_features == 7
    lonely = grow_classifier(nn.Linear(3, 2, bias=False).double(), 1, generator())
    assert isinstance(lonely, nn.Linear)
    assert (lonely.out_features, lonely.bias, lonely.weight.dtype) == (3, None, torch.float64)


def test_aligned_rows_are_as_long_as_the_others_on_average() -> None:
    weight, bias = torch.randn(6, 4, generator=generator()), torch.ones(6)
    old, before = weight[:4].clone(), weight[4:].clone()
    direction = functional.normalize(before)
    align_rows(weight, bias, 2)
    assert torch.equal(weight[:4], old)
    assert float(weight[4:].norm(dim=1).mean()) == pytest.approx(float(old.norm(dim=1).mean()))
    torch.testing.assert_close(functional.normalize(weight[4:]), direction)
    factor = float(old.norm(dim=1).mean() / before.norm(dim=1).mean())
    assert bias.tolist() == pytest.approx([1.0] * 4 + [factor] * 2)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_merged_weights_and_statistics_lie_between_the_branches(momentum: float) -> None:
    static, dynamic = network(norm=True), network(seed=1, norm=True)
    for model, shift in ((static, 0.0), (dynamic, 5.0)):
        for _ in range(3):
            model(torch.randn(16, 3, generator=generator()) + shift)
    before = [copy.deepcopy(model).state_dict() for model in (static, dynamic)]
    frozen = FrozenCopy(static)
    merge_branches(frozen, dynamic, momentum, new=1)
    for model in (frozen.model, dynamic):
        for name, value in model.state_dict().items():
            old, grown = (state[name] for state in before)
            if not value.is_floating_point():
                assert torch.equal(value, grown)
                continue
            mixed = momentum * old + (1 - momentum) * grown
            if name.startswith("3."):
                torch.testing.assert_close(value[:-1], mixed[:-1])
            elif momentum in (0.0, 1.0):
                assert torch.equal(value, mixed)
            else:
                torch.testing.assert_close(value, mixed)
    weight, grown = dynamic[-1].weight.detach(), before[1]["3.weight"][-1]
    torch.testing.assert_close(functional.normalize(weight[-1], dim=0), functional.normalize(grown, dim=0))
    assert float(weight[-1].norm()) == pytest.approx(float(weight[:-1].norm(dim=1).mean()), rel=1e-5)


def test_loss_of_growing_by_hand() -> None:
    model, entries = network(), batch()
    method = GM(new=2, k=2, consistency=7.0, distillation=0.5, temperature=3.0, quantile=0.5)
    step = step_of(model, method, entries, lr=0.0)
    step.run.epoch, step.run.progress = 1, 0.25
    said = model(entries["input"])[:, :2].detach()
    step(entries)
    index, novel = method.novel
    assert index.tolist() == list(range(12))
    with torch.no_grad():
        # As if it had grown since.
        model[2].weight *= 3
    loss = float(step(entries))
    with torch.no_grad():
        scores = 1 - said.softmax(1).amax(1)
        assert torch.equal(novel, (scores > scores[:4].sort().values[2]) & (entries["target"] < 0))
        assert 2 <= int(novel.sum()) < 8
        first, second = (model(view) for view in entries["views"])
        features = model[:-1](entries["views"][0])
        p, q = first[:, 2:].softmax(1), second[:, 2:].softmax(1)
        pairs = pair_bce(p[novel], q[novel], pair_targets(features[novel], 2)).mean()
        change = (p - q).square().mean() + (first[:, :2].softmax(1) - second[:, :2].softmax(1)).square().mean()
        kept = functional.kl_div(
            (first[:, :2] / 3).log_softmax(1)[~novel],
            (said / 3).log_softmax(1)[~novel],
            log_target=True,
            reduction="batchmean",
        )
        # A quarter of the run is half of growing, which is two thirds of the ramp.
        ramp = torch.tensor(-5 * (1 - 0.5 / 0.75) ** 2).exp()
        assert loss == pytest.approx(float(pairs + 7.0 * ramp * change + 0.5 * 9 * kept), rel=1e-5)


def test_loss_after_merging_by_hand() -> None:
    model, entries = network(), batch()
    method = GM(new=2, k=2, growing=0.0, momentum=1.0, distillation=0.5, quantile=0.5, confident=0.5)
    said = model(entries["input"]).detach()
    step = step_of(model, method, entries, lr=0.0)
    step(entries)
    with torch.no_grad():
        model[2].weight *= 3
    loss = float(step(entries))
    novel = method.novel[1]
    with torch.no_grad():
        logits, known = model(entries["input"]), entries["target"] >= 0
        sure_new, new = said[:, 2:].softmax(1).max(1)
        sure_old, old = said[:, :2].softmax(1).max(1)
        label = torch.where(known, entries["target"], torch.where(novel, new + 2, old))
        learnt = known.clone()
        for sure, own in ((sure_new, novel), (sure_old, ~known & ~novel)):
            rows = own.nonzero().flatten()
            learnt[rows[sure[rows].argsort(descending=True)[: max(1, round(len(rows) / 2))]]] = True
        right = functional.cross_entropy(logits[learnt], label[learnt])
        kept = functional.kl_div(
            (logits[:, :2] / 2).log_softmax(1)[~novel], (said[:, :2] / 2).log_softmax(1)[~novel], log_target=True,
            reduction="batchmean",
        )  # fmt: skip
        assert loss == pytest.approx(float(right + 0.5 * 4 * kept), rel=1e-5)


def test_branches_grow_until_their_share_and_are_merged_once() -> None:
    model, entries = network(), batch()
    before = copy.deepcopy(model).state_dict()
    method = GM(new=2, k=2, growing=0.5, momentum=1.0, quantile=0.5)
    step = step_of(model, method, entries)
    passes(step, entries, 2)
    assert not method.merged
    assert not torch.equal(model[0].weight, before["0.weight"])
    assert torch.equal(method.static.model[0].weight, before["0.weight"])
    for group in step.optimizer.param_groups:
        group["lr"] = 0.0
    passes(step, entries, 1)
    assert method.merged
    # All of the static branch but for the new rows.
    assert torch.equal(model[0].weight, before["0.weight"])
    assert torch.equal(model[2].weight[:2], before["2.weight"][:2])
    assert not torch.equal(model[2].weight[2:], before["2.weight"][2:])


def test_a_further_step_begins_a_further_time_step() -> None:
    entries, method = batch(), GM(new=2, k=2, growing=0.0)
    step_of(network(), method, entries)(entries)
    assert method.merged
    other = network(seed=1)
    step_of(other, method, entries)
    assert not method.merged
    assert len(method.novel[0]) == 0
    assert torch.equal(method.static.model[0].weight, other[0].weight)


def test_looking_at_all_examples_leaves_modes_and_statistics_alone() -> None:
    model, entries = network(norm=True), batch()
    model.train()
    model[3].eval()
    step_of(model, GM(new=2, k=2, growing=0.0), entries)(entries)
    # One pass for the update, none of the two looks before it.
    assert int(model[1].num_batches_tracked) == 1
    assert [layer.training for layer in model] == [True, True, True, False]


def test_without_merging_the_dynamic_branch_stays() -> None:
    model, entries = network(), batch()
    method = GM(new=2, k=2, growing=1.0, quantile=0.5)
    step = step_of(model, method, entries)
    passes(step, entries)
    assert not method.merged


def test_no_new_class_is_replay() -> None:
    model, entries = network(outputs=2), batch()
    method = GM(new=0, k=2, consistency=0.0, momentum=0.0, distillation=0.0, confident=1.0)
    step = step_of(model, method, entries)
    plain, said = copy.deepcopy(model), model(entries["input"]).argmax(1)
    passes(step, entries)
    label = torch.where(entries["target"] < 0, said, entries["target"])
    reference = Step(plain, torch.optim.SGD(plain.parameters(), lr=0.1), nn.CrossEntropyLoss())
    for _ in range(4):
        reference((entries["input"], label))
    assert not bool(method.novel[1].any())
    for value, expected in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(value, expected)


def test_labels_of_other_classes_are_never_read() -> None:
    found = []
    for hidden in (-1, 3):
        entries = batch()
        entries["target"] = entries["target"].where(entries["target"] >= 0, hidden)
        model = network()
        passes(step_of(model, GM(new=2, k=2, quantile=0.5), entries), entries)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_passes_are_counted() -> None:
    model, entries = network(), batch()
    step = step_of(model, GM(new=2, k=2, growing=0.5, quantile=0.5), entries)
    passes(step, entries)
    # Two updates on two versions, two on one; before each half a look at all examples.
    assert step.run.counts.backward == 2 * 2 * 12 + 2 * 12
    assert step.run.counts.forward == step.run.counts.backward + 2 * 12


def test_reference_scores_draw_the_line_in_place_of_the_labelled_examples() -> None:
    entries = batch()
    found = []
    for reference in (torch.zeros(5), torch.ones(5)):
        method = GM(new=2, k=2)
        method.reference = reference
        step_of(network(), method, entries)(entries)
        found.append(int(method.novel[1].sum()))
    assert found == [8, 2]


def test_another_method_goes_around_it() -> None:
    model, entries = network(), batch()
    step = step_of(model, GM(new=2, k=2), entries, methods=[SAM(rho=0.05), (method := GM(new=2, k=2))])
    assert step.explain() == "step[grow-and-merge] > gradient[sam] > loss[grow-and-merge]"
    losses = passes(step, entries)
    assert method.merged
    plain = network()
    assert losses[1] != passes(step_of(plain, GM(new=2, k=2), entries), entries)[1]


def blobs(classes: list[int], examples: int, seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.tensor(classes).repeat_interleave(examples)
    return CENTRES[labels] + 0.3 * torch.randn(len(labels), 2, generator=generator(seed)), labels


def learner_of_blobs(**options: Any) -> GrowMerge:
    model = network(outputs=2, inputs=2, seed=3)
    inputs, labels = blobs([0, 1], 30, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    train = PlainTraining(epochs=40, batch_size=64, optimizer=partial(torch.optim.Adam, lr=0.01))
    learner = GrowMerge(model, GM(k=2, **options), train=train)
    learner.remember(inputs, labels)
    learner.calibrate(blobs([0, 1], 30, 5)[0])
    return learner


def test_clean_blobs_are_all_found_and_known_ones_kept() -> None:
    learner = learner_of_blobs()
    inputs, labels = blobs([1, 2, 3], 30, 1)
    state = torch.get_rng_state()
    learner.step(inputs, new_classes=2)
    assert torch.equal(torch.get_rng_state(), state)
    test, truth = blobs([0, 1, 2, 3], 50, 2)
    found = learner.predict(test)
    assert learner.classes == 4
    assert torch.equal(found[truth < 2], truth[truth < 2])
    names = [found[truth == label].unique().tolist() for label in (2, 3)]
    assert sorted(names) == [[2], [3]]
    assert learner.rejected.shape == labels.shape
    learner.step(inputs, new_classes=0)
    assert learner.classes == 4
    assert not bool(learner.rejected.any())


def test_the_line_is_drawn_by_examples_that_were_held_out() -> None:
    learner = learner_of_blobs()
    held, inputs = blobs([0, 1], 30, 5)[0], blobs([0, 2, 3], 20, 1)[0]
    with torch.no_grad():
        before, scores = novelty_scores(learner.model(held)), novelty_scores(learner.model(inputs))
    learner.step(inputs, new_classes=2)
    torch.testing.assert_close(learner.method.reference, before)
    assert torch.equal(learner.rejected, novelty_split(scores, before, least=2))


def test_the_same_seed_gives_the_same_classes() -> None:
    first, second = learner_of_blobs(), learner_of_blobs()
    inputs, _ = blobs([2, 3], 20, 1)
    for learner in (first, second):
        learner.step(inputs, new_classes=2)
    for value, other in zip(first.model.parameters(), second.model.parameters()):
        assert torch.equal(value, other)


def test_a_lone_new_class_is_learnt_without_pairs() -> None:
    learner = learner_of_blobs()
    learner.step(blobs([0, 2], 30, 1)[0], new_classes=1)
    test, truth = blobs([0, 1, 2], 20, 2)
    assert float((learner.predict(test) == truth).double().mean()) > 0.95


def test_as_many_examples_of_a_class_are_kept_as_was_said() -> None:
    learner = learner_of_blobs(exemplars=7)
    assert learner._labels[0].bincount().tolist() == [7, 7]
    inputs = blobs([0, 2, 3], 20, 1)[0]
    learner.step(inputs, new_classes=2)
    kept, labels = learner._inputs[1], learner._labels[1]
    assert labels.bincount().tolist() == [0, 0, 7, 7]
    with torch.no_grad():
        sure, found = learner.model(inputs).softmax(1).max(1)
        for label in (2, 3):
            least = sure[found == label].sort(descending=True).values[6]
            assert bool((learner.model(kept[labels == label]).softmax(1)[:, label] >= least - 1e-6).all())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pair_targets(torch.rand(3, 4), 5), OptionError, "k=5 is not from 1 to 4, the width of the features"),
        (lambda: pair_targets(torch.rand(3), 1), DataError, r"must be rows \(examples, width\)"),
        (lambda: pair_bce(torch.rand(2, 3), torch.rand(2, 4), torch.ones(2, 2) > 0), DataError, "of the same classes"),
        (lambda: pair_bce(torch.rand(2, 3), torch.rand(2, 3), torch.ones(2, 1) > 0), DataError, r"must be \(2, 2\)"),
        (lambda: novelty_split(torch.rand(2), torch.rand(2), least=3), DataError, "2 examples are fewer than the 3"),
        (lambda: novelty_split(torch.rand(2), torch.rand(0)), DataError, "known has 0 scores"),
        (lambda: novelty_split(torch.tensor([torch.nan]), torch.rand(2)), DataError, "score is not finite"),
        (lambda: novelty_scores(torch.rand(2, 2), "entropy"), OptionError, "score='entropy' is not allowed"),
        (lambda: grow_classifier(nn.Sequential(nn.ReLU()), 1), UserError, "has no nn.Linear"),
        (lambda: grow_classifier(nn.Sequential(nn.LazyLinear(2)), 1), UserError, "is a LazyLinear"),
        (lambda: merge_branches(FrozenCopy(network()), network(), 1.5, 1), OptionError, "momentum=1.5 is not allowed"),
        (lambda: GM(new=-1), OptionError, "new=-1 is not allowed"),
        (lambda: GM(confident=0.0), OptionError, "confident=0.0 is not allowed"),
        (lambda: step_of(network(), GM(new=2, k=9), batch()), OptionError, "k=9 is more than the 8 features"),
        (lambda: step_of(network(), GM(k=2), batch())(batch()), ConflictError, "not told how many classes are new"),
        (lambda: step_of(network(), GM(new=4, k=2), batch())(batch()), OptionError, "new=4 leaves none"),
        (lambda: step_of(network(), GM(new=2), batch(labelled=0))(batch(labelled=0)), DataError, "no example of a"),
        (lambda: step_of(network(), GM(new=2), batch(labelled=11))(batch(labelled=11)), DataError, "fewer than the 2"),
        (lambda: step_of(network(), GM(new=2), batch(), training=[])(batch()), DataError, "training=... gave no batch"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_loss_that_holds_the_classifier_is_refused() -> None:
    with pytest.raises(ConflictError, match="NormalisedSoftmaxLoss holds the classifier"):
        Step(
            network(), partial(torch.optim.SGD, lr=0.1), NormalisedSoftmaxLoss(4, 4), [GM(new=2)], epochs=1, training=()
        )


def test_sets_that_cannot_be_learnt_from_are_refused() -> None:
    learner = GrowMerge(network(outputs=2), GM(k=2))
    with pytest.raises(DataError, match="call remember"):
        learner.step(torch.rand(5, 3), 1)
    with pytest.raises(DataError, match="labels from 0 to 2 do not fit 2 outputs"):
        learner.remember(torch.rand(3, 3), torch.arange(3))
    with pytest.raises(DataError, match="give one label an input"):
        learner.remember(torch.rand(3, 3), torch.arange(2))
    with pytest.raises(DataError, match="no example to calibrate"):
        learner.calibrate(torch.rand(0, 3))
    learner.remember(torch.rand(4, 3), torch.arange(4) % 2)
    with pytest.raises(DataError, match="unlabelled has 1 examples, fewer than the 2 new classes"):
        learner.step(torch.rand(1, 3), 2)
    with pytest.raises(OptionError, match="new_classes=-1 is not allowed"):
        learner.step(torch.rand(5, 3), -1)
    told = GrowMerge(network(outputs=2), GM(new=2, k=2))
    told.remember(torch.rand(4, 3), torch.arange(4) % 2)
    with pytest.raises(OptionError, match="new=2 is for a Step of your own"):
        told.step(torch.rand(5, 3), 2)
