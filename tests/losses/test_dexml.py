"""DEXML against hand calculation, brute force, the released code, scikit-learn, and direct differentiation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory.core.sampling import ClassBatches
from repertory.errors import DataError, OptionError
from repertory.losses import DecoupledSoftmaxLoss, DEXMLLoss, SoftTopKLoss
from repertory.losses.dexml import (
    backward_in_chunks,
    decoupled_softmax,
    edit,
    label_propensities,
    ndcg_at_k,
    precision_at_k,
    propensity_precision_at_k,
    recall_at_k,
    soft_top_k,
)
from repertory.testing.tiny import baseline_recipe

RELEASED = json.loads((Path(__file__).parent / "dexml_released.json").read_text(encoding="utf-8"))
QUERIES, LABELS = 5, 7


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def problem(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores, and relevances with one to three right labels a query."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(QUERIES, LABELS, generator=generator, dtype=torch.float64)
    right = torch.zeros(QUERIES, LABELS, dtype=torch.float64)
    for row, count in enumerate((1, 2, 3, 2, 1)):
        right[row, torch.randperm(LABELS, generator=generator)[:count]] = 1
    return scores, right


def lists(right: Tensor) -> Tensor:
    rows = [row.nonzero().flatten().tolist() for row in right]
    most = max(map(len, rows))
    return torch.tensor([row + [-1] * (most - len(row)) for row in rows])


def test_by_hand_a_right_label_that_is_found_is_not_pushed_down() -> None:
    scores = double([[4.0, 2.0, 0.0, 0.0, 0.0]]).requires_grad_()
    target = torch.tensor([[1, 1, 0, 0, 0]])
    softmax = -scores.log_softmax(1)[:, :2].mean()
    (by_softmax,) = torch.autograd.grad(softmax, scores)
    assert softmax.item() == pytest.approx(1.1742, abs=1e-4)
    assert by_softmax[0, 0].item() == pytest.approx(0.3401, abs=1e-4)
    loss = decoupled_softmax(scores, target)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert loss.item() == pytest.approx(0.1971, abs=1e-4)
    torch.testing.assert_close(gradient, double([[-0.0260, -0.1444, 0.0568, 0.0568, 0.0568]]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", RELEASED["cases"], ids=lambda case: f"{case['loss']}-{case['k']}-{case['weighted']}")
def test_values_and_gradients_equal_the_released_code(case: dict[str, Any]) -> None:
    places, values = torch.tensor(RELEASED["target_inds"]), double(RELEASED["target_vals"])
    relevance = torch.zeros(3, 6, dtype=torch.float64).scatter_add_(1, places, values)
    scores = double(RELEASED["scores"]).requires_grad_()
    target = (relevance > 0).double() if case["k"] == "num_pos" else relevance
    made: nn.Module
    if case["loss"] == "topk":
        k = "positives" if case["k"] == "num_pos" else case["k"]
        made = SoftTopKLoss(k, temperature=1.0, weighted=case["weighted"])
    else:
        made = DecoupledSoftmaxLoss(temperature=1.0, weighted=case["weighted"])
    loss = made(scores, target)
    loss.backward()
    assert loss.item() == pytest.approx(case["value"], rel=1e-9)
    torch.testing.assert_close(scores.grad, double(case["gradient"]))


def test_memberships_and_their_gradient_equal_the_released_code() -> None:
    found = RELEASED["membership"]
    scores = double(RELEASED["scores"]).requires_grad_()
    members = soft_top_k(scores, found["k"])
    torch.testing.assert_close(members, double(found["value"]))
    (members * torch.arange(6)).sum().backward()
    torch.testing.assert_close(scores.grad, double(found["gradient_of_sum_weighted_by_place"]))


def test_decoupled_softmax_by_a_loop_over_right_labels() -> None:
    scores, right = problem()
    expected = []
    for row, own in zip(scores, right > 0):
        wrong = row[~own].exp().sum()
        expected.append(-torch.stack([(s.exp() / (s.exp() + wrong)).log() for s in row[own]]).mean())
    torch.testing.assert_close(decoupled_softmax(scores, right), torch.stack(expected))


def test_one_right_label_is_softmax_cross_entropy() -> None:
    scores, _ = problem()
    target = torch.tensor([0, 3, 6, 1, 1])
    made = DecoupledSoftmaxLoss(temperature=0.5)
    torch.testing.assert_close(made(scores, target), functional.cross_entropy(scores / 0.5, target))


def test_nothing_wrong_or_nothing_right_costs_nothing() -> None:
    scores = torch.randn(2, LABELS, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.stack([torch.ones(LABELS), torch.zeros(LABELS)])
    for made in (DecoupledSoftmaxLoss(reduction="none"), SoftTopKLoss("positives", reduction="none")):
        values = made(scores, target)
        (gradient,) = torch.autograd.grad(values.sum(), scores)
        assert not values.any()
        assert not gradient.any()
    assert decoupled_softmax(scores, target)[0].item() == 0


@pytest.mark.parametrize("made", [DecoupledSoftmaxLoss(temperature=1.0), SoftTopKLoss(2, temperature=1.0)])
def test_lists_tables_of_any_type_and_their_order_agree(made: nn.Module) -> None:
    scores, right = problem()
    expected = made(scores, right)
    for target in (lists(right), lists(right).flip(1), right.bool(), right.long(), right * 3):
        torch.testing.assert_close(made(scores, target), expected)


def test_lists_without_a_label_cost_nothing() -> None:
    assert DecoupledSoftmaxLoss()(torch.zeros(2, LABELS), torch.zeros(2, 0, dtype=torch.int64)).item() == 0


@pytest.mark.parametrize("made", [DecoupledSoftmaxLoss(temperature=1.0), SoftTopKLoss(2, temperature=1.0)])
def test_gradients_of_single_examples_are_those_of_the_batch(made: nn.Module) -> None:
    scores, right = problem()
    expected = torch.autograd.functional.jacobian(lambda s: made(s, right), scores) * QUERIES
    for target in (right, lists(right)):
        alone = torch.func.vmap(torch.func.grad(lambda s, t: made(s[None], t[None])))(scores, target)
        torch.testing.assert_close(alone, expected)


def test_ignored_labels_are_as_if_they_were_not_there() -> None:
    scores, right = problem()
    wrong = torch.zeros_like(right, dtype=torch.bool)
    wrong[:, 0] = right[:, 0] == 0
    for row in range(QUERIES):
        kept = ~wrong[row]
        alone = decoupled_softmax(scores[row : row + 1, kept], right[row : row + 1, kept])
        torch.testing.assert_close(decoupled_softmax(scores, right, ignored=wrong)[row : row + 1], alone)
        members = soft_top_k(scores[row : row + 1, kept], 2)
        found = soft_top_k(scores, 2, ignored=wrong)[row : row + 1]
        torch.testing.assert_close(found[:, kept], members)
        assert not found[:, wrong[row]].any()


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_memberships_add_up_to_k_and_follow_the_scores(k: int, scale: float) -> None:
    scores = scale * problem(k)[0]
    members = soft_top_k(scores, k)
    torch.testing.assert_close(members.sum(1), torch.full((QUERIES,), float(k), dtype=torch.float64))
    assert torch.equal(members.argsort(1), scores.argsort(1)) or scale > 1
    torch.testing.assert_close(soft_top_k(scores + 7.0, k), members)
    torch.testing.assert_close(soft_top_k(scores, k, log=True).exp(), members)


def test_a_sharp_top_k_is_the_hard_one_and_k_may_differ_by_row() -> None:
    scores, _ = problem()
    hard = torch.zeros_like(scores).scatter(1, scores.topk(3, dim=1).indices, 1.0)
    torch.testing.assert_close(soft_top_k(scores, 3, alpha=1e6), hard)
    each = torch.tensor([1, 2, 3, 4, 6])
    torch.testing.assert_close(soft_top_k(scores, each).sum(1), each.double())
    torch.testing.assert_close(soft_top_k(scores, each)[2], soft_top_k(scores, 3)[2])


def test_gradient_through_the_top_k_is_the_implicit_one() -> None:
    scores, _ = problem()
    scores.requires_grad_()
    members = soft_top_k(scores, 2, alpha=1.5)
    v = 1.5 * members * (1 - members)
    jacobian = torch.diag_embed(v) - v[:, :, None] * v[:, None, :] / v.sum(1)[:, None, None]
    found = torch.func.vmap(torch.func.jacrev(lambda row: soft_top_k(row[None], 2, alpha=1.5)[0]))(scores.detach())
    torch.testing.assert_close(found, jacobian.detach())
    (gradient,) = torch.autograd.grad((members * torch.arange(LABELS)).sum(), scores)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(QUERIES, dtype=torch.float64))


def test_gradients_are_those_of_finite_differences() -> None:
    scores, right = problem()
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: decoupled_softmax(s, lists(right)), scores)
    assert torch.autograd.gradcheck(lambda s: soft_top_k(s, 2), scores)
    assert torch.autograd.gradcheck(lambda s: SoftTopKLoss("positives", temperature=0.5)(s, right), scores)
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 0, 1, 1, 1, 2])
    for made in (DEXMLLoss("decoupled", temperature=0.5), DEXMLLoss("top-k", temperature=0.5)):
        assert torch.autograd.gradcheck(lambda r, made=made: made(r, target), rows)


def test_drawn_labels_are_as_asked_for_and_the_others_neither_right_nor_wrong() -> None:
    scores, right = problem()
    made = DecoupledSoftmaxLoss(temperature=1.0, sample=1, reduction="none")
    values = torch.stack([made(scores, right) for _ in range(200)])
    for row, own in enumerate(right > 0):
        each = functional.softplus(scores[row, ~own].logsumexp(0) - scores[row, own])
        # Every value is that of one right label alone, and each of them comes up.
        assert torch.isclose(values[:, row, None], each).any(1).all()
        assert torch.isclose(values[:, row, None], each).any(0).all()
    expected = DecoupledSoftmaxLoss(temperature=1.0)(scores, right).item()
    assert values.mean().item() == pytest.approx(expected, rel=0.05)


def test_drawing_everything_is_drawing_nothing_and_follows_the_relevances() -> None:
    scores, right = problem()
    for make in (DecoupledSoftmaxLoss, lambda **options: SoftTopKLoss(2, **options)):
        for target in (right, lists(right)):
            torch.testing.assert_close(make(sample=LABELS)(scores, target), make()(scores, target))
    made = DecoupledSoftmaxLoss(temperature=1.0, sample=1)
    row, relevance = double([[2.0, 0.0, -1.0]]), double([[9.0, 1.0, 0.0]])
    first = functional.softplus(double([-1.0 - 2.0])).item()
    share = np.mean([math.isclose(made(row, relevance).item(), first, rel_tol=1e-6) for _ in range(400)])
    assert share == pytest.approx(0.9, abs=0.05)


def test_unsampled_right_labels_take_no_part_in_the_top_k() -> None:
    scores = double([[3.0, 2.0, 1.0, 0.0]])
    target = torch.tensor([[0, 1, 2]])
    made = SoftTopKLoss(1, temperature=1.0, sample=1)
    alone = {-soft_top_k(scores[:, [place, 3]], 1, log=True)[0, 0].item() for place in (0, 1, 2)}
    found = {made(scores, target).item() for _ in range(50)}
    assert sorted(found) == pytest.approx(sorted(alone))


def test_draws_go_on_where_a_saved_state_left_off() -> None:
    scores, right = problem()
    made, again = (DecoupledSoftmaxLoss(sample=1) for _ in range(2))
    first = [made(scores, right).item() for _ in range(3)]
    again.load_state_dict(made.state_dict())
    assert made(scores, right).item() == again(scores, right).item()
    assert len(set(first)) > 1


def test_in_a_batch_the_other_examples_of_the_class_are_right_and_do_not_compete() -> None:
    rows = functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(3)), dim=1).double()
    target = torch.tensor([0, 0, 0, 1, 1, 2])
    values = DEXMLLoss(temperature=0.2, reduction="none")(5 * rows, target)
    tops = DEXMLLoss("top-k", temperature=0.2, reduction="none")(rows, target)
    for i in range(6):
        others = [j for j in range(6) if j != i]
        scores = (rows[i : i + 1] @ rows[others].T) / 0.2
        right = (target[others] == target[i])[None]
        torch.testing.assert_close(values[i : i + 1], decoupled_softmax(scores, right))
        expected = SoftTopKLoss("positives", temperature=1.0)(scores, right)
        torch.testing.assert_close(tops[i], expected)
    assert values[5].item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("made", [DecoupledSoftmaxLoss(temperature=0.01), SoftTopKLoss(2, temperature=0.25)])
def test_scores_of_half_precision_are_near_float64(made: nn.Module, dtype: torch.dtype, as_float64: Any) -> None:
    scores, right = problem()
    as_float64(lambda rows: made(rows, right), scores.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_saturated_top_k_of_half_precision_has_its_threshold_between_the_kth_score_and_the_next(
    dtype: torch.dtype,
) -> None:
    scores, right = problem()
    half = (100 * scores).to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(SoftTopKLoss(2, temperature=0.01)(half, right), half)
    assert not gradient[right == 0].sign().clamp(max=0).any()
    values = SoftTopKLoss(2, temperature=0.01, reduction="none")(half, right).detach().double()
    scaled = half.detach().double() * 2 / 0.01
    kth, following = scaled.topk(3, dim=1).values[:, 1:, None].unbind(1)
    count = right.sum(1)
    for edge, within in ((following, torch.ge), (kth, torch.le)):
        assert within(values, (functional.softplus(edge - scaled) * right).sum(1) / count).all()


def test_embeddings_are_compared_in_float32_under_autocast() -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(DEXMLLoss()(rows, torch.arange(6) % 3), DEXMLLoss()(rows, torch.arange(6) % 3).float())


def encoder(dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4)).double()


def contrast(queries: Tensor, labels: Tensor) -> Tensor:
    return DecoupledSoftmaxLoss(temperature=0.5)(queries @ labels.T, torch.arange(len(queries)) * 2)


def test_gradients_in_chunks_are_those_of_one_piece() -> None:
    queries = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    labels = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    whole, cut = encoder(), encoder()
    expected = contrast(whole(queries), whole(labels))
    expected.backward()
    loss = backward_in_chunks(contrast, (cut, queries.split(3)), (cut, labels.split(4)))
    torch.testing.assert_close(loss, expected.detach())
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_chunks_are_encoded_again_with_the_same_random_numbers() -> None:
    labels = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    whole, cut = encoder(0.5), encoder(0.5)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        rows = torch.cat([whole(part) for part in labels.split(4)])
        after = torch.rand(())
        rows.square().sum().backward()
        torch.manual_seed(1)
        backward_in_chunks(lambda rows: rows.square().sum(), (cut, labels.split(4)))
        assert torch.rand(()) == after
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_batch_norm_counts_each_chunk_once() -> None:
    cut = nn.BatchNorm1d(3)
    backward_in_chunks(lambda rows: rows.square().sum(), (cut, torch.randn(8, 3).split(4)))
    assert int(cut.num_batches_tracked) == 2


def test_chunks_that_cannot_be_differentiated_are_refused() -> None:
    with pytest.raises(DataError, match="no chunk"):
        backward_in_chunks(lambda rows: rows.sum(), (encoder(), []))
    with pytest.raises(DataError, match=r"the loss has shape \(2, 4\)"):
        backward_in_chunks(lambda rows: rows, (encoder(), [torch.zeros(2, 3).double()]))


def test_metrics_equal_scikit_learn_and_a_loop() -> None:
    from sklearn.metrics import ndcg_score

    scores, right = problem(8)
    propensities = label_propensities(torch.arange(1.0, LABELS + 1), examples=100)
    for k in (1, 2, 5):
        assert ndcg_at_k(scores, right, k) == pytest.approx(ndcg_score(right.numpy(), scores.numpy(), k=k))
        shown = scores.argsort(1, descending=True)[:, :k]
        hits = [[float(right[row, label]) for label in labels] for row, labels in enumerate(shown)]
        assert precision_at_k(scores, right, k) == pytest.approx(np.mean([sum(row) / k for row in hits]))
        found = [sum(row) / float(own.sum()) for row, own in zip(hits, right)]
        assert recall_at_k(scores, right, k) == pytest.approx(np.mean(found))
        gained = sum(float(right[row, label] / propensities[label]) for row in range(QUERIES) for label in shown[row])
        best = sum(sum(sorted((1 / propensities[own > 0]).tolist(), reverse=True)[:k]) for own in right)
        assert propensity_precision_at_k(scores, right, propensities, k) == pytest.approx(gained / best)
        assert precision_at_k(scores, lists(right), k) == precision_at_k(scores, right, k)


def test_queries_without_a_right_label_are_left_out_of_the_metrics() -> None:
    scores, right = problem(9)
    without = torch.cat([right, torch.zeros(1, LABELS, dtype=torch.float64)])
    more = torch.cat([scores, scores[:1]])
    for metric in (precision_at_k, recall_at_k, ndcg_at_k):
        assert metric(more, without, 2) == metric(scores, right, 2)
    with pytest.raises(DataError, match="no query has a right label"):
        recall_at_k(scores, torch.zeros_like(right), 2)
    with pytest.raises(OptionError, match="k=8"):
        precision_at_k(scores, right, 8)
    with pytest.raises(DataError, match="propensities"):
        propensity_precision_at_k(scores, right, torch.ones(3), 2)


def test_propensities_by_hand_and_rare_labels_are_likelier_to_be_missed() -> None:
    found = label_propensities(double([0.0, 10.0, 1000.0]), examples=10000, a=0.5, b=0.4)
    c = (math.log(10000) - 1) * 1.4**0.5
    torch.testing.assert_close(found, double([1 / (1 + c * (n + 0.4) ** -0.5) for n in (0, 10, 1000)]))
    assert (found.diff() > 0).all()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(4, LABELS), r"scores \(5, 7\) and targets \(4, 7\) of torch.float32 do not match"),
        (torch.zeros(5, 3), r"targets \(5, 3\) of torch.float32"),
        (torch.zeros(5, 3, dtype=torch.bool), r"targets \(5, 3\) of torch.bool"),
        (torch.tensor([0, 1, 2, 3, 7]), "labels from 0 to 7, but there are scores of 7"),
        (torch.tensor([[0], [1], [2], [3], [-2]]), "labels from -2 to 3"),
    ],
)
def test_targets_that_do_not_match_are_refused(target: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DecoupledSoftmaxLoss()(torch.zeros(QUERIES, LABELS), target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DecoupledSoftmaxLoss(temperature=0.0), "temperature=0.0"),
        (lambda: DecoupledSoftmaxLoss(sample=0), "sample=0"),
        (lambda: DecoupledSoftmaxLoss(reduction="max"), "reduction='max'"),
        (lambda: SoftTopKLoss(k=0), "k=0"),
        (lambda: SoftTopKLoss(k="all"), "k='all'"),
        (lambda: SoftTopKLoss(alpha=-1.0), "alpha=-1.0"),
        (lambda: SoftTopKLoss(iterations=0), "iterations=0"),
        (lambda: DEXMLLoss("softmax"), "loss='softmax'"),
        (lambda: SoftTopKLoss(k=7)(torch.zeros(1, 7), torch.tensor([0])), "k=7"),
        (lambda: soft_top_k(torch.zeros(7), 2), r"scores of shape \(7,\)"),
        (lambda: label_propensities(torch.ones(2), examples=1), "examples=1"),
    ],
)
def test_bad_options_are_named(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_embeddings_and_classes_must_match() -> None:
    with pytest.raises(DataError, match=r"embeddings \(6, 4\) and targets \(5,\)"):
        DEXMLLoss()(torch.zeros(6, 4), torch.zeros(5, dtype=torch.int64))


def test_a_recipe_gets_the_loss_and_batches_with_several_of_a_class() -> None:
    edited = edit(baseline_recipe("retrieval"), per_class=3, loss="top-k", temperature=0.1)
    assert edited.sampler is not None
    sampler = edited.sampler.build()
    assert isinstance(sampler, ClassBatches)
    assert sampler.group == 3
    made = edited.criterion.build()
    assert isinstance(made, DEXMLLoss)
    assert (made.loss, made.temperature) == ("top-k", 0.1)
