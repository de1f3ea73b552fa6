"""InfoNCE against torch's cross-entropy, the formula of sentence-transformers, and loops over pairs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from repertory.errors import DataError, OptionError
from repertory.losses import ContrastiveLoss, InfoNCELoss
from repertory.losses.info_nce import candidate_logits

PAIRS, DIM, NEGATIVES = 5, 4, 2
IDS = torch.arange(PAIRS)


def batch(negatives: int = NEGATIVES, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(PAIRS, 2 + negatives, DIM, generator=generator, dtype=torch.float64)


def cosine(first: Tensor, second: Tensor) -> float:
    return float(functional.cosine_similarity(first, second, dim=0))


def test_two_pairs_by_hand() -> None:
    pairs = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]])
    # Cosines 1 with the own passage, 0 with the other.
    expected = math.log(1 + math.exp(-2))
    assert InfoNCELoss(temperature=0.5)(pairs, torch.tensor([0, 1])).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("negatives", [0, NEGATIVES])
def test_equals_the_multiple_negatives_ranking_loss_of_sentence_transformers(negatives: int) -> None:
    embedding = batch(negatives)
    queries, columns = embedding[:, 0], embedding[:, 1:].unbind(1)
    # All positives, then all first negatives, ...; the scores times scale=20; the i-th column is right.
    candidates = torch.cat(columns)
    scores = functional.cosine_similarity(queries[:, None], candidates[None], dim=-1) * 20.0
    expected = functional.cross_entropy(scores, torch.arange(PAIRS))
    torch.testing.assert_close(InfoNCELoss(temperature=1 / 20)(embedding, IDS), expected)


def test_equals_a_loop_over_candidates_with_shared_passages_and_missing_negatives() -> None:
    embedding, ids = batch(), torch.tensor([0, 1, 0, 2, 3])
    embedding[1, 2] = embedding[3, 3] = 0
    values = InfoNCELoss(temperature=0.1, reduction="none")(embedding, ids)
    for query in range(PAIRS):
        kept = [
            cosine(embedding[query, 0], embedding[other, place])
            for other in range(PAIRS)
            for place in range(1, 2 + NEGATIVES)
            if bool(embedding[other, place].any())
            if place > 1 or other == query or ids[other] != ids[query]
        ]
        own = cosine(embedding[query, 0], embedding[query, 1])
        expected = -math.log(math.exp(own / 0.1) / sum(math.exp(value / 0.1) for value in kept))
        assert values[query].item() == pytest.approx(expected, rel=1e-9)


def test_extended_compares_queries_with_queries_and_positives_with_positives() -> None:
    embedding, ids = batch(0), torch.tensor([0, 1, 0, 2, 3])
    values = InfoNCELoss(temperature=0.1, extended=True, reduction="none")(embedding, ids)
    for query in range(PAIRS):
        others = [other for other in range(PAIRS) if ids[other] != ids[query]]
        own = cosine(embedding[query, 0], embedding[query, 1])
        kept = [own]
        for mine, theirs in ((0, 1), (0, 0), (1, 1)):
            kept += [cosine(embedding[query, mine], embedding[other, theirs]) for other in others]
        expected = -own / 0.1 + math.log(sum(math.exp(value / 0.1) for value in kept))
        assert values[query].item() == pytest.approx(expected, rel=1e-9)


def test_one_class_of_two_and_others_are_the_pairs_of_a_search_in_both_directions() -> None:
    embedding, labels = batch(0)[:, 0], torch.tensor([0, 1, 0, 1, 2])
    values = InfoNCELoss(temperature=0.2, reduction="none")(embedding, labels)
    unit = functional.normalize(embedding)
    logits = unit @ unit.T / 0.2
    for row, partner in ((0, 2), (2, 0), (1, 3), (3, 1)):
        kept = [partner, *(other for other in range(PAIRS) if labels[other] != labels[row])]
        torch.testing.assert_close(values[row], logits[row, kept].logsumexp(0) - logits[row, partner])
    assert values[4].item() == 0


def test_classes_of_two_examples_equal_the_supervised_contrastive_loss() -> None:
    embedding, labels = batch(0)[:4, 0], torch.tensor([0, 1, 1, 0])
    ours = InfoNCELoss(temperature=0.2)(embedding, labels)
    torch.testing.assert_close(ours, ContrastiveLoss(temperature=0.2)(embedding, labels))


def test_the_positive_of_an_example_is_the_next_of_its_class() -> None:
    labels = torch.tensor([0, 1, 0, 0, 1])
    place = candidate_logits(batch(0)[:, 0], labels, temperature=1.0)[1]
    assert place.tolist() == [2, 4, 3, 0, 1]


def test_a_batch_of_classes_without_any_positive_is_zero_with_a_zero_gradient() -> None:
    embedding = batch(0)[:, 0].requires_grad_()
    loss = InfoNCELoss()(embedding, IDS)
    loss.backward()
    assert loss.item() == 0
    assert embedding.grad is not None
    assert not embedding.grad.any()


def test_one_pair_alone_has_nothing_to_be_told_from() -> None:
    assert InfoNCELoss()(batch(0)[:1], IDS[:1]).item() == 0


def test_length_does_not_matter() -> None:
    made = InfoNCELoss(extended=True)
    torch.testing.assert_close(made(batch(), IDS), made(7 * batch(), IDS))


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("ids", [IDS, torch.tensor([0, 1, 0, 2, 2])])
def test_gradients_are_those_of_finite_differences(extended: bool, ids: Tensor) -> None:
    made, embedding = InfoNCELoss(temperature=0.5, extended=extended), batch()
    assert torch.autograd.gradcheck(lambda e: made(e, ids), (embedding.requires_grad_(),))
    assert torch.autograd.gradcheck(lambda e: made(e[:, 0], ids), (embedding.detach().requires_grad_(),))


def test_a_missing_negative_and_a_zero_query_get_no_gradient_and_the_others_theirs() -> None:
    embedding = batch()
    embedding[0, 2] = embedding[1, 0] = 0
    zero = torch.zeros(PAIRS, 2 + NEGATIVES, 1, dtype=torch.bool)
    zero[0, 2] = zero[1, 0] = True
    embedding.requires_grad_()
    loss = InfoNCELoss(temperature=0.1)
    (gradient,) = torch.autograd.grad(loss(embedding, IDS), embedding)
    assert not gradient[0, 2].any()
    assert not gradient[1, 0].any()
    assert torch.autograd.gradcheck(lambda rows: loss(rows.masked_fill(zero, 0), IDS), embedding)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_a_low_temperature_is_near_float64(dtype: torch.dtype, as_float64: Any) -> None:
    loss, embedding = InfoNCELoss(temperature=0.01), batch().to(dtype)
    as_float64(lambda rows: loss(rows, IDS), embedding)
    # The square of a length overflows float16; a loss of cosines does not see it.
    torch.testing.assert_close(loss(8192 * embedding, IDS), loss(embedding, IDS))


def test_autocast_does_not_change_the_loss() -> None:
    made, embedding = InfoNCELoss(), batch().float()
    plain = made(embedding, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(embedding, IDS), plain)


def test_reductions_agree() -> None:
    values = InfoNCELoss(reduction="none")(batch(), IDS)
    assert values.shape == (PAIRS,)
    torch.testing.assert_close(values.mean(), InfoNCELoss()(batch(), IDS))
    torch.testing.assert_close(values.sum(), InfoNCELoss(reduction="sum")(batch(), IDS))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": math.nan}, {"reduction": "max"}])
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        InfoNCELoss(**options)


@pytest.mark.parametrize(
    ("shape", "count", "said"),
    [
        ((5, 3, 4), 4, r"\(5, 3, 4\) and targets \(4,\)"),
        ((5,), 5, r"must be \(batch, texts, dim\)"),
        ((5, 1, 4), 5, "hold 1 texts an example; the least is 2"),
    ],
)
def test_what_does_not_match_is_refused(shape: tuple[int, ...], count: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        InfoNCELoss()(torch.ones(shape), torch.zeros(count, dtype=torch.int64))
