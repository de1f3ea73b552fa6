"""KaLM-Embedding against hand calculation, the released trainer, limits, and loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from repertory import Part, Step
from repertory.datasets.texts import from_pairs
from repertory.errors import DataError, OptionError
from repertory.losses import FocalInfoNCE, InfoNCELoss, MatryoshkaLoss
from repertory.losses.kalm_embedding import (
    MinedNegatives,
    SemiHomogeneousBatches,
    edit,
    focal_weights,
    mine_negatives,
    mix_negatives,
)
from repertory.models.text import HashedText
from repertory.scenarios import retrieval
from repertory.scenarios.bench import Bench
from repertory.scenarios.methods import arm
from repertory.scenarios.retrieval import RetrievalBench
from repertory.testing.tiny import baseline_recipe
from repertory.training.budget import Budget
from repertory.training.loaders import BatchLoader
from repertory.transforms.model_soups import uniform_soup

PAIRS, DIM, NEGATIVES = 5, 4, 3
IDS = torch.arange(PAIRS)
RELEASED = json.loads((Path(__file__).parent / "kalm_embedding_released.json").read_text(encoding="utf-8"))
PLAIN = {"temperature": 0.1, "mixed_pairs": 0, "mixed_list": False}


def batch(negatives: int = NEGATIVES, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(PAIRS, 2 + negatives, DIM, generator=generator, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_focal_loss_of_three_candidates_by_hand() -> None:
    value = functional.cross_entropy(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), reduction="none")
    weight = focal_weights(value, gamma=0.5)
    assert value.item() == pytest.approx(0.407606, abs=1e-6)
    assert weight.item() == pytest.approx(0.578584, abs=1e-6)
    assert (weight * value).item() == pytest.approx(0.235834, abs=1e-6)


def test_the_surer_a_query_the_less_it_counts() -> None:
    weights = focal_weights(torch.tensor([5.0, 1.0, 0.1, 0.0]), gamma=0.5)
    assert weights.diff().max() < 0
    assert torch.equal(focal_weights(torch.rand(4), gamma=0.0), torch.ones(4))


def test_without_weights_and_mixtures_it_is_infonce_bit_for_bit() -> None:
    made = FocalInfoNCE(**{**PLAIN, "gamma": 0.0})
    assert torch.equal(made(batch(), IDS), InfoNCELoss(temperature=0.1)(batch(), IDS))
    assert torch.equal(made(batch()[:, 0], IDS // 2), InfoNCELoss(temperature=0.1)(batch()[:, 0], IDS // 2))


def released(name: str) -> tuple[Tensor, Any]:
    queries, passages = (torch.tensor(RELEASED[key], dtype=torch.float64) for key in ("queries", "passages"))
    return torch.cat([queries[:, None], passages.view(len(queries), RELEASED["group_size"], -1)], 1), RELEASED[name]


@pytest.mark.parametrize("name", ["plain", "extended", "matryoshka"])
def test_equals_the_released_trainer_as_far_as_that_goes(name: str) -> None:
    embedding, found = released(name)
    embedding.requires_grad_()
    options = {**PLAIN, "temperature": RELEASED["temperature"], "gamma": 0.0}
    criterion: torch.nn.Module = FocalInfoNCE(**options, extended=name == "extended")
    if name == "matryoshka":
        criterion = MatryoshkaLoss(criterion, RELEASED["sizes"], RELEASED["weights"])
    loss = criterion(embedding, torch.arange(len(embedding)))
    loss.backward()
    assert embedding.grad is not None
    assert loss.item() == pytest.approx(found["loss"], rel=1e-9)
    for ours, theirs in (
        (embedding.grad[:, 0], "query_gradient"),
        (embedding.grad[:, 1:].flatten(0, 1), "passage_gradient"),
    ):
        torch.testing.assert_close(ours, torch.tensor(found[theirs], dtype=torch.float64), rtol=1e-7, atol=1e-9)


def test_detached_weights_scale_the_gradient_of_infonce_and_others_add_the_product_rule() -> None:
    embedding = batch().requires_grad_()
    values = InfoNCELoss(temperature=0.1, reduction="none")(embedding, IDS)
    chances = (-values).exp().detach()
    for detach, slope in (
        (True, (1 - chances) ** 0.5),
        (False, (1 - chances) ** 0.5 + 0.5 * (1 - chances) ** -0.5 * chances * values.detach()),
    ):
        (expected,) = torch.autograd.grad(values, embedding, slope / PAIRS, retain_graph=True)
        made = FocalInfoNCE(**PLAIN, gamma=0.5, detach=detach)
        (found,) = torch.autograd.grad(made(embedding, IDS), embedding)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gamma", [0.3, 0.5, 2.0])
def test_gradients_are_those_of_finite_differences(gamma: float) -> None:
    made = FocalInfoNCE(temperature=0.5, gamma=gamma, mixed_pairs=0, mix_gradient=True)
    # The weights of a list are constants, so only a list of two equal negatives has no slope in them.
    embedding = batch(2)
    embedding[:, 3] = embedding[:, 2]
    base = embedding[:, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: made(torch.cat([e, e[:, 2:]], 1), IDS), (base,))
    assert torch.autograd.gradcheck(lambda e: made(e[:, 0], IDS // 2), (batch().requires_grad_(),))


def test_a_query_that_is_quite_sure_has_no_loss_and_no_gradient() -> None:
    pairs = torch.eye(3).unsqueeze(1).repeat(1, 2, 1).requires_grad_()
    loss = FocalInfoNCE(temperature=0.001)(pairs, torch.arange(3))
    loss.backward()
    assert pairs.grad is not None
    assert loss.item() == 0
    assert not pairs.grad.any()


def test_mixtures_have_length_one_and_lie_between_the_two_they_are_made_of() -> None:
    negatives = functional.normalize(batch()[:, 2:], dim=-1)
    mixed = mix_negatives(batch()[:, 0], batch()[:, 2:], count=50, key=torch.tensor(3))
    torch.testing.assert_close(mixed.norm(dim=-1), torch.ones(PAIRS, 50, dtype=torch.float64))
    # In the plane of some two of the negatives, on the shorter way between them.
    for row in range(PAIRS):
        errors = []
        for a in range(NEGATIVES):
            for b in range(a):
                basis = torch.stack([negatives[row, a], negatives[row, b]], 1)
                share = torch.linalg.lstsq(basis, mixed[row].T).solution
                inside = (share >= -1e-9).all(0)
                errors.append((basis @ share - mixed[row].T).norm(dim=0).where(inside, math.inf))
        assert torch.stack(errors).amin(0).max() < 1e-9


def test_the_shares_of_a_pair_are_drawn_from_beta_two_two() -> None:
    negatives = torch.eye(2, dtype=torch.float64).expand(1, 2, 2)
    mixed = mix_negatives(torch.ones(1, 2), negatives, count=20000, key=torch.tensor(0))[0]
    share = mixed[:, 0] / mixed.sum(1)
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)
    assert share.var().item() == pytest.approx(0.05, abs=0.003)
    # P(share < 1/4) = 3/16 - 2/64
    assert (share < 0.25).double().mean().item() == pytest.approx(0.15625, abs=0.01)


def test_all_pairs_of_negatives_are_drawn_alike_and_missing_ones_never() -> None:
    negatives = torch.eye(4).expand(1, 4, 4).clone()
    negatives[0, 3] = 0
    used = mix_negatives(torch.ones(1, 4), negatives, count=6000, key=torch.tensor(1))[0] > 0
    assert used.sum(1).unique().tolist() == [2]
    torch.testing.assert_close(
        used.double().mean(0)[:3], torch.full((3,), 2 / 3, dtype=torch.float64), rtol=0, atol=0.03
    )
    assert not used[:, 3].any()


def test_mixing_equal_negatives_gives_them_back() -> None:
    negatives = batch()[:, 2:3].expand(-1, 3, -1)
    for how in ("pair", "list"):
        mixed = mix_negatives(batch()[:, 0], negatives, how)
        torch.testing.assert_close(mixed, functional.normalize(negatives[:, :1], dim=-1))


def test_a_list_is_weighted_by_the_softmax_of_similarities() -> None:
    queries, negatives = batch()[:, 0], functional.normalize(batch()[:, 2:], dim=-1)
    weights = (functional.cosine_similarity(queries[:, None], negatives, dim=-1) / 0.3).softmax(1)
    expected = functional.normalize((weights[..., None] * negatives).sum(1), dim=-1)
    torch.testing.assert_close(mix_negatives(queries, batch()[:, 2:], "list", temperature=0.3)[:, 0], expected)
    assert not mix_negatives(queries.clone().requires_grad_(), batch()[:, 2:], "list").requires_grad
    cold = mix_negatives(queries, batch()[:, 2:], "list", temperature=1e-4)[:, 0]
    torch.testing.assert_close(cold, negatives[torch.arange(PAIRS), weights.argmax(1)])


def test_a_query_without_two_negatives_has_no_mixture() -> None:
    negatives = batch()[:, 2:].clone()
    negatives[0, 1:] = 0
    negatives[1] = 0
    assert not mix_negatives(batch()[:, 0], negatives)[:2].any()
    listed = mix_negatives(batch()[:, 0], negatives, "list")
    torch.testing.assert_close(listed[0, 0], functional.normalize(negatives[0, 0], dim=0))
    assert not listed[1].any()


def test_mixtures_can_only_raise_the_loss_and_absent_ones_leave_it() -> None:
    plain = FocalInfoNCE(**PLAIN, gamma=0.0, reduction="none")
    mixing = FocalInfoNCE(temperature=0.1, gamma=0.0, mixed_pairs=3, reduction="none")
    embedding = batch()
    embedding[0, 2:] = 0
    before, after = plain(embedding, IDS), mixing(embedding, IDS)
    assert (after[1:] > before[1:]).all()
    torch.testing.assert_close(after[0], before[0])
    mixing.eval()
    assert torch.equal(mixing(embedding, IDS), before)


def test_mixtures_are_negatives_of_their_own_query_only() -> None:
    made, embedding = FocalInfoNCE(temperature=0.1, gamma=0.0, mixed_pairs=0, reduction="none"), batch()
    mixed = mix_negatives(embedding[:, 0], embedding[:, 2:], "list", temperature=0.1)[:, 0]
    before = InfoNCELoss(temperature=0.1, reduction="none")(embedding, IDS)
    own = functional.cosine_similarity(embedding[:, 0], embedding[:, 1]) / 0.1
    further = functional.cosine_similarity(embedding[:, 0], mixed) / 0.1
    # log(Z + exp(further)) from -log(exp(own) / Z)
    torch.testing.assert_close(made(embedding, IDS), torch.logaddexp(before + own, further) - own)


def test_mixtures_pass_gradients_to_negatives_only_where_asked() -> None:
    found = []
    for mix_gradient in (False, True):
        embedding = batch().requires_grad_()
        made = FocalInfoNCE(temperature=0.1, gamma=0.0, mixed_pairs=0, mix_gradient=mix_gradient)
        made(embedding, IDS).backward()
        found.append(embedding.grad)
    assert torch.allclose(found[0][:, :1], found[1][:, :1])
    assert not torch.allclose(found[0][:, 2:], found[1][:, 2:])


def test_each_use_draws_anew_and_a_saved_loss_goes_on_as_it_would_have() -> None:
    made, other = FocalInfoNCE(temperature=0.1), FocalInfoNCE(temperature=0.1)
    first = made(batch(), IDS)
    state = {name: value.clone() for name, value in made.state_dict().items()}
    second = made(batch(), IDS)
    assert first != second
    other.load_state_dict(state)
    assert torch.equal(other(batch(), IDS), second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_a_low_temperature_is_near_float64(dtype: torch.dtype, as_float64: Any) -> None:
    # Without the mixtures that are drawn.
    loss, embedding = FocalInfoNCE(temperature=0.01, mixed_pairs=0), batch().to(dtype)
    as_float64(lambda rows: loss(rows, IDS), embedding)
    # The square of a length overflows float16; a loss of cosines does not see it.
    torch.testing.assert_close(loss(8192 * embedding, IDS), loss(embedding, IDS))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"gamma": -0.5},
        {"detach": None},
        {"mixed_pairs": -1},
        {"mixed_list": 1},
        {"mix_gradient": "yes"},
        {"reduction": "max"},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        FocalInfoNCE(**options)


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(DataError, match="at least 2 negatives"):
        mix_negatives(torch.ones(2, 3), torch.ones(2, 1, 3))
    with pytest.raises(DataError, match=r"\(2, 3\) and negatives \(2, 2, 4\)"):
        mix_negatives(torch.ones(2, 3), torch.ones(2, 2, 4))
    with pytest.raises(OptionError, match="how='both'"):
        mix_negatives(torch.ones(2, 3), torch.ones(2, 2, 3), "both")


def test_negatives_come_from_the_window_of_ranks_and_are_never_the_passage_itself() -> None:
    passages = torch.randn(60, 8, generator=generator())
    positives = torch.arange(40)
    queries = passages[:40] + 0.3 * torch.randn(40, 8, generator=generator(1))
    found, kept = mine_negatives(queries, passages, positives, 4, (1, 9), 2, generator=generator())
    order = functional.cosine_similarity(queries[:, None], passages[None], dim=-1).argsort(1, descending=True)
    for query in range(40):
        own = order[query].tolist()
        window = set(own[1:9]) - {query}
        assert len(set(found[query].tolist())) == 4
        assert set(found[query].tolist()) <= window
        assert bool(kept[query]) == (own.index(query) < 2)
    assert 0 < kept.sum() < 40


def test_every_pair_is_kept_without_the_filter() -> None:
    passages = torch.randn(20, 4, generator=generator())
    _, kept = mine_negatives(-passages, passages, torch.arange(20), 2, (0, 10), None, generator=generator())
    assert kept.all()
    _, kept = mine_negatives(-passages, passages, torch.arange(20), 2, (0, 10), 10, generator=generator())
    assert not kept.any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ranks": (50, 57)}, r"ranks=\[50, 57\] is not allowed: 7 negatives need"),
        ({"ranks": (50,)}, "give two whole numbers"),
        ({"ranks": (-1, 20)}, "ranks=-1"),
        ({"filter_topk": 0}, "filter_topk=0"),
        ({"count": 0}, "count=0"),
        ({}, "20 passages are too few for 7 negatives from rank 50 on"),
    ],
)
def test_what_cannot_be_mined_is_refused(options: dict[str, Any], said: str) -> None:
    passages = torch.randn(20, 4, generator=generator())
    with pytest.raises((OptionError, DataError), match=said):
        mine_negatives(passages, passages, torch.arange(20), **options)


def test_positives_beyond_the_passages_are_refused() -> None:
    with pytest.raises(DataError, match="from 0 to 20"):
        mine_negatives(torch.ones(2, 3), torch.ones(20, 3), torch.tensor([0, 20]), 2, (0, 9))


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("count", [64, 61])
def test_batches_hold_one_task_but_for_the_share_that_is_exchanged(ratio: float, count: int) -> None:
    groups = torch.randint(3, (80,), generator=generator())
    rows = torch.randperm(80, generator=generator())[:count]
    order = SemiHomogeneousBatches(groups, batch_size=8, ratio=ratio)
    loader = BatchLoader(torch.zeros(80), torch.zeros(80), batch_size=8, rows=rows, sampler=order)
    batches = [batch["index"] for batch in loader]
    assert sorted(torch.cat(batches).tolist()) == sorted(rows.tolist())
    moved = {1.0: 0, 0.5: 4, 0.0: 8}[ratio]
    pure = sum(len(groups[each[: len(each) - moved]].unique()) <= 1 for each in batches)
    # What is left over of three tasks fills fewer than three batches.
    assert pure >= len(batches) - 3
    if ratio == 1.0:
        assert pure < len(batches) or count == 64
    whole = sum(len(groups[each].unique()) == 1 for each in batches)
    assert whole == pure if ratio == 1.0 else whole < pure


def test_batches_of_tasks_are_drawn_anew_each_epoch_and_leave_the_global_generator_alone() -> None:
    order = SemiHomogeneousBatches(torch.arange(40) % 4, batch_size=5)
    before = torch.get_rng_state()
    first, second, again = (order(torch.arange(40), torch.zeros(40), generator(seed)) for seed in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_example_without_a_task_is_refused() -> None:
    with pytest.raises(DataError, match="groups has 4 entries, but there is an example 4"):
        SemiHomogeneousBatches([0, 0, 1, 1], batch_size=2)(torch.arange(5), torch.zeros(5), generator())
    with pytest.raises(OptionError, match=r"ratio=1\.5"):
        SemiHomogeneousBatches([0], batch_size=2, ratio=1.5)


WORDS = [f"{first}{second}" for first in "abcdefgh" for second in ("ox", "um", "ia", "er", "on")]
DATA = from_pairs(
    [("question", [f"where is {w}?" for w in WORDS]), ("answer", [f"the {w} is over there" for w in WORDS])],
    "words",
    "words",
)


def bench_of(**options: Any) -> Bench:
    recipe = edit(
        retrieval.baseline(DATA, Part("repertory.models.text:HashedText", {"buckets": 512}), epochs=2), **options
    )
    return RetrievalBench(
        recipe, DATA.prepare(0), in_shape=DATA.in_shape, outputs=0, task="pairs", seed=0, budget=Budget("steps", 4)
    )


def test_mined_negatives_become_further_texts_of_each_pair_and_take_off_training() -> None:
    bench = bench_of(negatives=2, ranks=[1, 8], filter_topk=5)
    assert bench.recipe.train_share == 0.5
    before = bench.splits.train
    (part,) = bench.recipe.curation
    kept = part.build().choose(bench)
    after = bench.splits.train.inputs
    assert after.shape == (len(before), 4, before.inputs.shape[2])
    assert torch.equal(after[:, :2], before.inputs)
    passages = {bytes(text.tolist()) for text in before.inputs[:, 1]}
    for row in after:
        texts = [bytes(text.tolist()) for text in row[1:]]
        assert len(set(texts)) == 3
        assert set(texts) <= passages
    assert 0 < len(kept) <= len(before)
    assert bench.counts.forward == len(before)


def test_mining_needs_pairs_of_texts() -> None:
    bench = bench_of()
    bench.task = "classification"
    with pytest.raises(DataError, match="the data have classes"):
        MinedNegatives(count=2, ranks=[1, 8]).choose(bench)


def test_recipe_of_pairs_keeps_its_network_and_temperature() -> None:
    recipe = retrieval.baseline(DATA, Part("repertory.models.text:HashedText"))
    edited = edit(recipe, gamma=1.0)
    assert edited == recipe.replace(criterion=edited.criterion)
    made = edited.criterion.build()
    assert (made.temperature, made.gamma) == (0.05, 1.0)
    assert edit(recipe, temperature=0.02).criterion.options["temperature"] == 0.02


def test_recipe_of_classes_gets_an_embedding_and_pairs_of_a_class() -> None:
    edited = edit(baseline_recipe("retrieval"), dim=3)
    assert edited.sampler == Part("repertory.core.sampling:ClassBatches", {"per_class": 2}, "kalm-embedding")
    assert [part.options for part in edited.surgery] == [{"dim": 3}]
    assert not edited.curation
    with pytest.raises(OptionError, match="negatives=3 mines passages for pairs of texts"):
        edit(baseline_recipe("retrieval"), negatives=3)


def test_prefixes_of_the_embedding_are_trained_by_the_same_loss() -> None:
    recipe = retrieval.baseline(DATA, Part("repertory.models.text:HashedText", {"buckets": 64, "outputs": 8}))
    edited = arm("kalm-embedding:sizes=[4,8],weights=[0.3,1]", recipe, "pairs", "retrieval").recipe
    model = HashedText(outputs=8, buckets=64)
    criterion = edited.criterion.build(outputs=0)
    assert isinstance(criterion, MatryoshkaLoss)
    assert all(isinstance(each, FocalInfoNCE) for each in criterion.criteria)
    batch = {"input": DATA.inputs[:8], "target": DATA.targets[:8]}
    seen: list[Tensor] = []
    model.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    found = Step(model, torch.optim.SGD(model.parameters(), 0.1), criterion)(batch)
    cuts = [functional.normalize(seen[0][..., :size], dim=-1) for size in (4, 8)]
    parts = [criterion.criteria[0](cut, batch["target"]).mean() for cut in cuts]
    torch.testing.assert_close(found, 0.3 * parts[0] + parts[1])


def test_a_soup_of_one_fine_tuning_is_that_fine_tuning() -> None:
    state = HashedText(buckets=16).state_dict()
    soup = uniform_soup([state, state, state])
    assert all(torch.equal(soup[name], state[name]) for name in state)
