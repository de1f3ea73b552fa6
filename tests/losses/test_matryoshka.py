"""Matryoshka representations against hand calculation, single sizes, the released code and exact search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from repertory import Part, Recipe
from repertory.core.neighbours import nearest_neighbours
from repertory.errors import ConflictError, DataError, OptionError
from repertory.losses import (
    AdaptiveRetrieval,
    ContrastiveLoss,
    MatryoshkaLoss,
    MRLHead,
    MRLLoss,
    NormalisedSoftmaxLoss,
    SoftTripleLoss,
)
from repertory.losses.matryoshka import edit, nested_linear, truncate
from repertory.losses.matryoshka.sizes import halved
from repertory.scenarios.methods import arm
from repertory.training.build import build_learner

CLASSES, DIM, BATCH = 3, 4, 6
SIZES = [1, 2, 4]
RELEASED = json.loads((Path(__file__).parent / "matryoshka_released.json").read_text(encoding="utf-8"))


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)
    return embedding, torch.tensor([0, 1, 2, 0, 1, 2])


def with_classes(size: int) -> NormalisedSoftmaxLoss:
    made = NormalisedSoftmaxLoss(CLASSES, dim=size, temperature=0.2).double()
    generator = torch.Generator().manual_seed(size)
    made.weight_of_classes.data = torch.randn(CLASSES, size, generator=generator, dtype=torch.float64)
    return made


def released(kind: str) -> tuple[MRLLoss, Tensor, Tensor, dict[str, Any]]:
    found = RELEASED[kind]
    weights = RELEASED["relative_importance"]
    made = MRLLoss(3, RELEASED["sizes"], weights, efficient=kind == "efficient").double()
    for parameter, values in zip(made.parameters(), found["weights_and_biases"], strict=True):
        parameter.data = torch.tensor(values, dtype=torch.float64)
    embedding = torch.tensor(RELEASED["embedding"], dtype=torch.float64, requires_grad=True)
    return made, embedding, torch.tensor(RELEASED["target"]), found


@pytest.mark.parametrize("kind", ["separate", "efficient"])
def test_classifiers_equal_the_released_code(kind: str) -> None:
    made, embedding, target, found = released(kind)
    for ours, theirs in zip(made.head(embedding), found["logits"], strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64))
    loss = made(embedding, target)
    loss.backward()
    assert loss.item() == pytest.approx(found["loss"], rel=1e-12)
    torch.testing.assert_close(embedding.grad, torch.tensor(found["gradient"], dtype=torch.float64))


def test_a_prefix_is_cut_first_and_scaled_then() -> None:
    vector = torch.tensor([[3.0, 4.0, 12.0]])
    torch.testing.assert_close(truncate(vector, 2), torch.tensor([[0.6, 0.8]]))
    assert torch.equal(truncate(torch.zeros(1, 3), 2), torch.zeros(1, 2))


def test_around_a_loss_it_is_the_weighted_sum_over_cut_and_scaled_prefixes() -> None:
    embedding, target = batch()
    made = MatryoshkaLoss(with_classes, SIZES, weights=[0.5, 1.0, 3.0])
    expected = sum(
        weight * functional.cross_entropy(
            functional.normalize(embedding[:, :size], dim=1)
            @ functional.normalize(with_classes(size).weight_of_classes, dim=1).T / 0.2,
            target,
        )
        for size, weight in zip(SIZES, (0.5, 1.0, 3.0))
    )  # fmt: skip
    torch.testing.assert_close(made(embedding, target), expected)


def test_sentence_transformers_formula_on_pairs() -> None:
    # Multiple negatives ranking: cross-entropy of each query over all passages, at each size after slice and scale.
    generator = torch.Generator().manual_seed(2)
    queries, passages = torch.randn(2, 5, 8, generator=generator)

    class Ranking(nn.Module):
        def forward(self, queries: Tensor, passages: Tensor, scale: float = 1.0) -> Tensor:
            return functional.cross_entropy(scale * queries @ passages.T, torch.arange(len(queries)))

    made = MatryoshkaLoss(Ranking(), sizes=[8, 4, 2], weights=[1.0, 0.3, 0.2])
    expected = torch.zeros(())
    for size, weight in ((8, 1.0), (4, 0.3), (2, 0.2)):
        q, p = (functional.normalize(rows[:, :size], p=2, dim=-1) for rows in (queries, passages))
        expected = expected + weight * functional.cross_entropy(20 * q @ p.T, torch.arange(5))
    torch.testing.assert_close(made(queries, passages, scale=20.0), expected)


def test_texts_of_an_example_are_each_cut() -> None:
    from repertory.losses.info_nce import InfoNCELoss

    texts = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(3))
    ids = torch.arange(4)
    made = MatryoshkaLoss(InfoNCELoss(), sizes=[4, 8])
    expected = InfoNCELoss()(texts[..., :4], ids) + InfoNCELoss()(texts, ids)
    torch.testing.assert_close(made(texts, ids), expected)


def test_one_size_is_the_loss_itself() -> None:
    embedding, target = batch()
    whole = MatryoshkaLoss(with_classes, [DIM])
    torch.testing.assert_close(whole(embedding, target), with_classes(DIM)(embedding, target))
    heads = MRLLoss(CLASSES, [DIM]).double()
    torch.testing.assert_close(
        heads(embedding, target), functional.cross_entropy(heads.logits(embedding), target), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("made", [MatryoshkaLoss(with_classes, [2, 4], [1, 0]), MRLLoss(CLASSES, [2, 4], [1, 0])])
def test_a_coordinate_learns_from_the_sizes_that_contain_it_only(made: nn.Module) -> None:
    embedding, target = batch()
    embedding.requires_grad_()
    made.double()(embedding, target).backward()
    assert embedding.grad is not None
    assert torch.equal(embedding.grad[:, 2:], torch.zeros(BATCH, 2, dtype=torch.float64))
    assert (embedding.grad[:, :2] != 0).all()


def test_shared_classifier_is_the_whole_one_with_later_coordinates_at_zero() -> None:
    embedding, _ = batch()
    head = MRLHead(CLASSES, SIZES, efficient=True).double()
    for size, logits in zip(SIZES, head(embedding), strict=True):
        padded = functional.pad(embedding[:, :size], (0, DIM - size))
        torch.testing.assert_close(logits, head.largest(padded))


def test_shared_products_have_the_gradients_of_separate_ones() -> None:
    embedding, _ = batch()
    head = nn.Linear(DIM, CLASSES).double()
    generator = torch.Generator().manual_seed(4)
    toward = [torch.randn(BATCH, CLASSES, generator=generator, dtype=torch.float64) for _ in SIZES]
    found = []
    for shared in (True, False):
        leaf = embedding.clone().requires_grad_()
        outputs = (
            nested_linear(leaf, head.weight, head.bias, SIZES)
            if shared
            else tuple(functional.linear(leaf[:, :m], head.weight[:, :m], head.bias) for m in SIZES)
        )
        found.append(torch.autograd.grad(outputs, (leaf, *head.parameters()), toward))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_shared_products_pass_finite_differences_twice_and_work_an_example_at_a_time() -> None:
    embedding, _ = batch()
    weight = torch.randn(CLASSES, DIM + 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    embedding = functional.pad(embedding, (0, 1), value=0.3)
    arguments = [each[:2].clone().requires_grad_() for each in (embedding, weight)]

    def call(features: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return nested_linear(features, weight, None, SIZES)

    assert torch.autograd.gradcheck(call, arguments)
    assert torch.autograd.gradgradcheck(call, arguments)
    alone = torch.func.vmap(torch.func.grad(lambda row: call(row[None], weight)[1].sum()))(embedding)
    torch.testing.assert_close(alone, functional.pad(weight[:, :2].sum(0).expand(BATCH, 2), (0, 3)))


@pytest.mark.parametrize("efficient", [False, True])
def test_gradients_are_those_of_finite_differences(efficient: bool) -> None:
    embedding, target = batch()
    made = MRLLoss(CLASSES, SIZES, efficient=efficient).double()
    names = [name for name, _ in made.named_parameters()]

    def loss(embedding: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(names, parameters)), (embedding, target))

    values = [parameter.detach().clone().requires_grad_() for parameter in made.parameters()]
    assert torch.autograd.gradcheck(loss, (embedding.requires_grad_(), *values))
    around = MatryoshkaLoss(ContrastiveLoss(0.5), SIZES)
    assert torch.autograd.gradcheck(lambda rows: around(rows, target), embedding)


def test_reductions_agree_and_leave_the_given_loss_alone() -> None:
    embedding, target = batch()
    for made in (MatryoshkaLoss(inner := with_classes(DIM), [DIM]), MRLLoss(CLASSES, SIZES).double()):
        mean = made(embedding, target)
        made.reduction = "none"
        values = made(embedding, target)
        made.reduction = "sum"
        assert values.shape == (BATCH,)
        torch.testing.assert_close(values.mean(), mean)
        torch.testing.assert_close(values.sum(), made(embedding, target))
    assert inner.reduction == "mean"


def test_a_shared_loss_keeps_one_set_of_parameters() -> None:
    inner = with_classes(DIM)
    made = MatryoshkaLoss(inner, [DIM])
    assert [id(p) for p in made.parameters()] == [id(inner.weight_of_classes)]
    assert len(list(MatryoshkaLoss(with_classes, SIZES).parameters())) == 3


def test_logits_are_those_of_the_largest_size_wherever_it_stands() -> None:
    embedding, _ = batch()
    made = MatryoshkaLoss(with_classes, [4, 1])
    assert made.logits is not None
    torch.testing.assert_close(made.logits(embedding), with_classes(4).logits(embedding))
    assert MatryoshkaLoss(ContrastiveLoss(), SIZES).logits is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_small_temperatures_is_near_float64(dtype: torch.dtype, as_float64: Any) -> None:
    embedding, target = batch()
    made = MatryoshkaLoss(lambda size: NormalisedSoftmaxLoss(CLASSES, dim=size, temperature=0.01), SIZES[1:])
    names, values = zip(*made.named_parameters())
    drawn = [torch.randn(p.shape, generator=torch.Generator().manual_seed(7)).to(dtype) for p in values]

    def loss(rows: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(made, dict(zip(names, weights)), (rows, target))

    as_float64(loss, embedding.to(dtype), *drawn)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("efficient", [False, True])
def test_classifiers_under_autocast_are_near_float64(dtype: torch.dtype, efficient: bool, as_float64: Any) -> None:
    embedding, target = batch()
    made = MRLLoss(CLASSES, SIZES, efficient=efficient)
    names, values = zip(*made.named_parameters())
    drawn = [torch.randn(p.shape, generator=torch.Generator().manual_seed(7)).to(dtype) for p in values]

    def loss(rows: Tensor, *weights: Tensor) -> Tensor:
        return functional_call(made, dict(zip(names, weights)), (rows, target))

    # Products in bfloat16, as those of a linear layer.
    as_float64(loss, embedding.to(dtype), *drawn, rtol=0.02)


def test_heads_are_the_same_under_autocast_up_to_its_precision() -> None:
    embedding, target = batch()
    made = MRLLoss(CLASSES, SIZES, efficient=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = made(embedding.float(), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, made(embedding.float(), target), rtol=0.02, atol=0.02)


def gallery(seed: int = 7) -> Tensor:
    return torch.randn(60, 8, generator=torch.Generator().manual_seed(seed)) * torch.linspace(2, 0.5, 8)


def test_a_shortlist_of_everything_is_the_exact_search() -> None:
    rows = gallery()
    found, places = AdaptiveRetrieval([2, 8], shortlist=60).fit(rows).search(rows[:9], k=5)
    expected, exact = nearest_neighbours(rows[:9], rows, 5)
    assert torch.equal(places, exact)
    torch.testing.assert_close(found, expected)
    own = torch.arange(9)
    _, others = AdaptiveRetrieval([2, 8], shortlist=60).fit(rows).search(rows[:9], k=5, own=own)
    assert torch.equal(others, nearest_neighbours(rows[:9], rows, 5, own=own)[1])


def test_the_last_size_orders_what_the_first_one_found() -> None:
    rows, k = gallery(), 3
    search = AdaptiveRetrieval([2, 8], shortlist=10).fit(rows)
    near, places = search.search(rows[:9], k=k)
    _, shortlist = nearest_neighbours(rows[:9, :2], rows[:, :2], 10)
    cosines = functional.cosine_similarity(rows[:9, None], rows[shortlist], dim=-1)
    expected, order = cosines.topk(k, dim=1)
    assert torch.equal(places, shortlist.gather(1, order))
    torch.testing.assert_close(near, expected)


def test_a_funnel_halves_the_shortlist_at_every_size() -> None:
    rows, kept = gallery(), None
    search = AdaptiveRetrieval([1, 2, 4, 8], shortlist=16).fit(rows)
    for size, count in ((1, 16), (2, 8), (4, 4), (8, 3)):
        cosines = functional.cosine_similarity(rows[:5, None, :size], rows[None, :, :size], dim=-1)
        if kept is not None:
            cosines = torch.full_like(cosines, -9.0).scatter(1, kept, cosines.gather(1, kept))
        kept = cosines.topk(count, dim=1).indices
    assert kept is not None
    assert torch.equal(search.search(rows[:5], k=3)[1], kept)
    assert search.products(k=3) == 60 * 1 + 16 * 2 + 8 * 4 + 4 * 8


def test_one_size_searches_exactly_and_long_lists_are_cut_to_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gallery()
    exact = nearest_neighbours(rows[:, :4], rows[:, :4], 3)[1]
    assert torch.equal(AdaptiveRetrieval([4]).fit(rows).search(rows, 3)[1], exact)
    whole = AdaptiveRetrieval([2, 4]).fit(rows)
    assert torch.equal(whole.search(rows, 3)[1], exact)
    monkeypatch.setattr("repertory.losses.matryoshka.search._HELD", 60 * 4 * 2)
    assert torch.equal(whole.search(rows, 3)[1], exact)


def test_a_gallery_row_of_zeros_is_found_last() -> None:
    rows = torch.cat([gallery()[:4], torch.zeros(1, 8)]).abs()
    assert AdaptiveRetrieval([2, 8]).fit(rows).search(rows[:1], 5)[1][0, -1] == 4


def test_what_cannot_be_searched_is_refused() -> None:
    rows = gallery()
    with pytest.raises(DataError, match=r"call fit"):
        AdaptiveRetrieval([2]).search(rows)
    with pytest.raises(OptionError, match="k=61 is more than the 60 rows"):
        AdaptiveRetrieval([2]).fit(rows).search(rows, 61)
    with pytest.raises(DataError, match=r"embeddings have shape \(60, 8\); sizes=\[16\]"):
        AdaptiveRetrieval([16]).fit(rows)
    with pytest.raises(DataError, match="queries: row 1 is not finite"):
        AdaptiveRetrieval([2]).fit(rows).search(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]))
    with pytest.raises(OptionError, match="shortlist=0"):
        AdaptiveRetrieval([2], shortlist=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": []}, r"sizes=\[\]"),
        ({"sizes": 8}, "sizes=8"),
        ({"sizes": [2, 0]}, "sizes=0"),
        ({"sizes": [2, 2]}, "a size comes twice"),
        ({"weights": [1.0]}, r"weights=\[1.0\] .* one number for each"),
        ({"weights": [1.0, -1.0]}, "weights=-1.0"),
        ({"weights": [0.0, 0.0]}, "one of them must be above 0"),
        ({"reduction": "max"}, "reduction='max'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    for make in (
        lambda **given: MatryoshkaLoss(ContrastiveLoss(), **given),
        lambda **given: MRLLoss(CLASSES, **given),
    ):
        with pytest.raises(OptionError, match=message):
            make(**{"sizes": [2, 4], **options})


def test_what_does_not_fit_is_refused() -> None:
    embedding, target = batch()
    with pytest.raises(OptionError, match="criterion='softmax'"):
        MatryoshkaLoss("softmax", [2, 4])  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"sizes=\[2\] do not fit embeddings of shape \(6, 4\).*must be 4"):
        MatryoshkaLoss(ContrastiveLoss(), [2])(embedding, target)
    with pytest.raises(OptionError, match=r"sizes=\[2, 8\] do not fit embeddings of shape \(6, 4\)"):
        MRLLoss(CLASSES, [2, 8])(embedding, target)
    with pytest.raises(OptionError, match=r"sizes=\[4, 2\].*must grow"):
        MRLHead(CLASSES, [4, 2])
    with pytest.raises(OptionError, match=r"sizes=.*do not fit features"):
        nested_linear(embedding, torch.zeros(3, 5).double(), None, [2])
    with pytest.raises(OptionError, match="size=5"):
        truncate(embedding, 5)
    with pytest.raises(RuntimeError, match="size mismatch"):
        MRLHead(CLASSES, [2, 4]).load_state_dict(MRLHead(CLASSES, [2, 5]).state_dict())


BASE = Recipe(
    Part("repertory.models.small:mlp"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:AdamW", {"lr": 1e-3})
)


def test_a_recipe_that_classifies_gets_an_embedding_and_heads() -> None:
    learner = build_learner(edit(BASE, dim=16), (5,), CLASSES, seed=0)
    assert isinstance(learner.criterion, MRLLoss)
    assert learner.criterion.head.sizes == (8, 16)
    assert learner(torch.randn(2, 5)).shape == (2, CLASSES)
    assert learner.embed(torch.randn(2, 5)).shape == (2, 16)
    assert build_learner(edit(BASE, sizes=[2, 6], efficient=True), (5,), CLASSES, seed=0).criterion.head.efficient


def test_a_recipe_that_embeds_keeps_its_loss_at_every_size() -> None:
    loss = Part("repertory.losses.normalised_softmax:NormalisedSoftmaxLoss", {"dim": 16, "temperature": 0.3})
    learner = build_learner(edit(BASE.replace(criterion=loss)), (5,), CLASSES, seed=0)
    assert isinstance(learner.criterion, MatryoshkaLoss)
    shapes = [(each.temperature, tuple(each.weight_of_classes.shape)) for each in learner.criterion.criteria]
    assert shapes == [(0.3, (3, 8)), (0.3, (3, 16))]
    embedding = learner.embed(torch.randn(2, 5))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    with pytest.raises(OptionError, match="efficient=True"):
        edit(BASE.replace(criterion=loss), efficient=True)


def test_halves_stop_at_eight() -> None:
    assert halved(2048) == [8, 16, 32, 64, 128, 256, 512, 1024, 2048]
    assert halved(20) == [10, 20]


def test_it_goes_around_the_loss_of_a_method_before_it_and_not_around_another_head() -> None:
    both = arm("softtriple:dim=8+matryoshka:sizes=[4,8]", BASE, "classification", "supervised")
    made = build_learner(both.recipe, (5,), CLASSES, seed=0).criterion
    assert isinstance(made, MatryoshkaLoss)
    assert [tuple(each.centers.shape) for each in made.criteria] == [(3, 10, 4), (3, 10, 8)]
    assert isinstance(made.criteria[0], SoftTripleLoss)
    assert made.lr_scale == pytest.approx(10.0)
    for text in ("matryoshka+softtriple", "ebv+matryoshka"):
        with pytest.raises(ConflictError, match="both replace the"):
            arm(text, BASE, "classification", "supervised")


def test_soft_targets_reach_a_loss_that_takes_them() -> None:
    embedding, target = batch()
    soft = functional.one_hot(target, CLASSES).double()
    made = MRLLoss(CLASSES, SIZES).double()
    torch.testing.assert_close(made(embedding, soft), made(embedding, target))
    assert made.takes == {}
    assert MatryoshkaLoss(with_classes, SIZES).takes == {"target": "hard"}
