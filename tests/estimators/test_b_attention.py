"""B-attention against the authors' numbers, plain attention, brute force, and what must not matter."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize, scaled_dot_product_attention

from repertory.core.randomness import seeded
from repertory.errors import ConflictError, DataError, OptionError
from repertory.estimators import BAttention, BAttentionFeatures
from repertory.estimators.b_attention import (
    BAttentionEncoder,
    BAttentionSearch,
    cluster_loss,
    contexts_of,
    edit,
    profile_graph,
    profile_scores,
    profile_similarity,
    profiles,
    transformer,
)
from repertory.recipe import Part, Recipe
from repertory.training.budget import Budget

RELEASED = json.loads((Path(__file__).parent / "b_attention_released.json").read_text(encoding="utf-8"))
SMALL: dict[str, Any] = {"k": 5, "outputs": 6, "steps": 4, "batch": 8}


def pattern(shape: tuple[int, ...], phase: float) -> Tensor:
    """Numbers in [-1, 1] that any version of any library makes alike."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return (0.37 * places * places + phase).sin().view(shape)


def filled(module: Any) -> Any:
    module = module.double()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(pattern(parameter.shape, number) / 2)
    return module


def contexts() -> tuple[Tensor, Tensor]:
    """Two contexts of 5 rows of 4 numbers, of which the second has 3 rows only."""
    x = normalize(pattern((2, 5, 4), 0.5), dim=-1)
    x[1, 3:] = 0
    there = torch.ones(2, 5, dtype=torch.bool)
    there[1, 3:] = False
    return x, there


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return normalize(drawn(*shape, seed=seed), dim=-1)


def expected(name: str, part: str) -> Tensor:
    return torch.tensor(RELEASED[name][part], dtype=torch.float64)


@pytest.mark.parametrize("version", ["gcn", "transformer"])
def test_network_is_that_of_the_authors_code(version: str) -> None:
    x, there = contexts()
    encoder = BAttentionEncoder(4, 5, 2, 3, inner=6, hidden=7, temperature=0.7, version=version)
    filled(encoder.layers)
    filled(encoder.head)
    found = encoder.layers[0].attention(x, there)
    torch.testing.assert_close(found.flatten(0, 1), expected(version, "attention"), rtol=0, atol=1e-9)
    torch.testing.assert_close(encoder.encode(x, there), expected(version, "node"), rtol=0, atol=2e-9)
    torch.testing.assert_close(encoder(x, there), expected(version, "head"), rtol=0, atol=2e-9)


def test_several_heads_are_those_of_the_authors_code() -> None:
    x, there = contexts()
    attention = filled(BAttention(4, 5, inner=6, heads=3, version="transformer"))
    torch.testing.assert_close(
        attention(x, there).flatten(0, 1), expected("transformer, 3 heads", "attention"), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("pairs", ["maxmax", "allmax", "allall", "alltopk"])
def test_loss_is_that_of_the_authors_code(pairs: str) -> None:
    features = normalize(pattern((7, 3), 0.2), dim=1)
    found = cluster_loss(features, torch.tensor([0, 0, 1, 1, 1, 2, 2]), pairs)
    assert float(found) == pytest.approx(RELEASED["loss"][pairs], rel=1e-12)


def test_features_alone_are_plain_attention_without_a_scale() -> None:
    x, _ = contexts()
    attention = filled(BAttention(4, 5, inner=6, heads=2, version="transformer"))
    with torch.no_grad():
        attention.fuse.weight.copy_(torch.tensor([[1.0, 0.0]]))
        attention.fuse.bias.zero_()
    q, k, v = attention.project(x).view(2, 5, 2, 9).transpose(1, 2).chunk(3, dim=-1)
    plain = scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.out(plain))


@pytest.mark.parametrize(("scores", "weight"), [("S", (0.7, 0.0)), ("Q", (0.0, 0.7))])
def test_one_kind_of_scores_is_a_weight_of_zero_on_the_other(scores: str, weight: tuple[float, float]) -> None:
    x, there = contexts()
    one, both = filled(BAttention(4, 5, scores=scores)), filled(BAttention(4, 5))
    with torch.no_grad():
        for attention in (one, both):
            attention.fuse.weight.copy_(torch.tensor([weight]))
    torch.testing.assert_close(one(x, there), both(x, there))


def test_agreement_is_one_with_itself_and_between_equal_profiles() -> None:
    x, _ = contexts()
    profile = nn.Linear(5, 10).double().requires_grad_(False)
    profile.weight[5:], profile.bias[5:] = profile.weight[:5], profile.bias[:5]
    scores = profile_scores(x, profile)
    torch.testing.assert_close(scores.diagonal(dim1=1, dim2=2), torch.ones(2, 5).double())
    assert scores.abs().max() <= 1 + 1e-12
    x[0, 4] = x[0, 2]
    assert float(profile_scores(x, profile)[0, 2, 4]) == pytest.approx(1.0)


def test_rows_that_are_not_there_get_and_give_nothing() -> None:
    x, there = contexts()
    attention = filled(BAttention(4, 5))
    queries, keys = attention.project(x).view(2, 5, 1, 8).transpose(1, 2).chunk(2, dim=-1)
    weights = attention.weights(queries, keys, x, there)
    torch.testing.assert_close(weights[1, 0].sum(1), torch.tensor([1.0, 1, 1, 0, 0]).double())
    assert weights[1, 0, :, 3:].abs().max() == 0


def test_filling_up_changes_nothing_for_attention_by_features() -> None:
    x, there = contexts()
    wide, narrow = filled(BAttention(4, 5, scores="S")), BAttention(4, 3, scores="S").double()
    narrow.project, narrow.out, narrow.fuse = wide.project, wide.out, wide.fuse
    torch.testing.assert_close(wide(x, there)[1, :3], narrow(x[1:, :3])[0])


def test_order_of_the_neighbours_has_a_meaning_for_profiles_only() -> None:
    x, _ = contexts()
    turned = x[:, [0, 3, 1, 4, 2]]
    for scores in ("S", "B"):
        encoder = BAttentionEncoder(4, 5, 2, 3, scores=scores).double()
        filled(encoder.layers)
        same = bool(torch.allclose(encoder(turned), encoder(x), atol=1e-10))
        assert same == (scores == "S")


@pytest.mark.parametrize("version", ["gcn", "transformer"])
def test_gradients_of_the_layer(version: str) -> None:
    x, there = contexts()
    attention = filled(BAttention(4, 5, heads=2, version=version))
    assert torch.autograd.gradcheck(lambda rows: attention(rows, there)[there], (x.requires_grad_(),))
    names, values = zip(*attention.named_parameters())
    assert torch.autograd.gradcheck(
        lambda *given: functional_call(attention, dict(zip(names, given)), (x.detach(), there))[there], values
    )


@pytest.mark.parametrize("version", ["gcn", "transformer"])
def test_network_and_loss_in_bfloat16_are_near_float64(version: str, as_float64: Any) -> None:
    x, there = contexts()
    encoder = BAttentionEncoder(4, 5, outputs=6, version=version)
    filled(encoder.layers)
    filled(encoder.head)
    exact = encoder.double()(x, there)
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder.float()(x.float(), there)
    torch.testing.assert_close(found.double(), exact, rtol=0.0, atol=0.03 * float(exact.detach().abs().max()))
    rows, labels = drawn(6, 5).bfloat16(), torch.tensor([0, 0, 1, 1, 2, 2])
    as_float64(lambda features: cluster_loss(features, labels), rows)


def test_similarity_of_three_rows_by_hand() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    root = 2**-0.5
    cosines = torch.tensor([[1, 0, root], [0, 1, root], [root, root, 1]])
    torch.testing.assert_close(profile_similarity(features, "S"), cosines)
    rows = cosines / torch.tensor([1.5, 1.5, 2.0]).sqrt()[:, None]
    torch.testing.assert_close(profile_similarity(features), rows @ rows.T)
    assert float(profile_similarity(features)[0, 1]) == pytest.approx(1 / 3)


def test_fused_similarity_weighs_both_alike() -> None:
    features = drawn(9, 4)
    both = [profile_similarity(features, mode) for mode in ("S", "Q")]
    standard = [(values - values.mean()) / values.std(correction=0) for values in both]
    torch.testing.assert_close(profile_similarity(features, "B"), (standard[0] + standard[1]) / 2)


@pytest.mark.parametrize("mode", ["S", "Q", "B"])
def test_links_to_all_others_are_the_dense_similarity(mode: str) -> None:
    features = drawn(12, 4)
    weights, places = profile_graph(features, 11, mode)
    dense = profile_similarity(features, mode).gather(1, places)
    if mode == "B":
        # Means are taken over the links, without the diagonal.
        parts = [profile_similarity(features, part).gather(1, places) for part in ("S", "Q")]
        dense = sum((part - part.mean()) / part.std(correction=0) for part in parts) / 2
    torch.testing.assert_close(weights, dense)


def test_sparse_profiles_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    features, k = drawn(20, 4), 5
    cosines = profile_similarity(features, "S")
    kept = cosines >= cosines.topk(k + 1).values[:, -1:]
    rows = normalize(cosines * kept, dim=1)
    weights, places = profile_graph(features, k)
    torch.testing.assert_close(weights, (rows @ rows.T).gather(1, places))
    monkeypatch.setattr(profiles, "_HELD", 60)
    torch.testing.assert_close(profile_graph(features, k)[0], weights)


def test_noise_on_one_similarity_hardly_moves_the_agreement_of_many() -> None:
    # Two groups of directions; the two rows differ, but every other row sees them alike.
    features = torch.cat([torch.eye(6).double()[[0] * 20 + [1] * 20], torch.eye(6).double()[[0, 0]]])
    features[-2, 2], features[-1, 2] = 1.0, -1.0
    assert float(profile_similarity(features, "S")[-2, -1]) == pytest.approx(0.0)
    assert float(profile_similarity(features, "Q")[-2, -1]) > 0.9


def test_loss_by_hand() -> None:
    # All cosines are 1: pairs of a class are near enough, and the nearest pair of two classes costs 1 + 1.
    assert float(cluster_loss(torch.ones(2, 3), torch.tensor([0, 1]))) == pytest.approx(2.0)
    # Opposite rows of one class: (0 + 0 + 1.95 + 1.95) / 4 * 10; there is no other class.
    one_class = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(cluster_loss(one_class, torch.zeros(2, dtype=torch.int64))) == pytest.approx(9.75)


def test_loss_by_brute_force_and_its_gradient() -> None:
    features, labels = drawn(6, 3).requires_grad_(), torch.tensor([0, 0, 1, 1, 2, 2])
    rows = normalize(features.detach(), dim=1)
    near, far = [], []
    for i in range(6):
        for j in range(6):
            cosine = float(rows[i] @ rows[j])
            (near if labels[i] == labels[j] else far).append(cosine)
    wanted = 4 * sum(max(0.0, 0.8 - c) for c in near) / len(near) + max(0.0, 0.5 + max(far))
    found = cluster_loss(features, labels, margin=0.5, positive_margin=0.8, positive_weight=4.0)
    assert float(found.detach()) == pytest.approx(wanted)
    for pairs in ("allmax", "allall", "alltopk", "maxmax"):
        assert torch.autograd.gradcheck(lambda f, p=pairs: cluster_loss(f, labels, p), (features,))


def clusters(classes: int = 4, each: int = 8, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(classes * each) % classes
    return (drawn(classes, width, seed=3)[labels] + 0.7 * drawn(len(labels), width, seed=4)).numpy(), labels


@pytest.mark.parametrize("feature", ["head", "node"])
@pytest.mark.parametrize("k", [5, 40])
def test_fitted_rows_are_seen_as_rows_refined_together(feature: str, k: int) -> None:
    X, labels = clusters()
    made = BAttentionFeatures(**{**SMALL, "k": k}, feature=feature).fit(X, labels)
    found = made.transform(X[:7])
    assert found.shape == (7, 6)
    np.testing.assert_allclose(found, made.refine(torch.from_numpy(X))[:7], atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0)


def test_contexts_are_the_row_and_its_nearest_neighbours_in_the_gallery() -> None:
    X, labels = clusters()
    made = BAttentionFeatures(**SMALL).fit(X, labels)
    queries, gallery = unit(3, 6, seed=7), unit(20, 6, seed=8)
    near = (queries @ gallery.T).argsort(1, descending=True)[:, :4]
    by_hand = torch.cat([queries[:, None], gallery[near]], 1)
    torch.testing.assert_close(made.transform(queries, gallery), made.network_(by_hand).detach())


def test_small_galleries_are_filled_up() -> None:
    X, labels = clusters()
    made = BAttentionFeatures(**SMALL).fit(X, labels)
    rows, gallery = unit(2, 6, seed=7), unit(2, 6, seed=8)
    context, there = contexts_of(rows, gallery, (rows @ gallery.T).argsort(1, descending=True), 5)
    assert there.tolist() == [[True, True, True, False, False]] * 2
    torch.testing.assert_close(made.transform(rows, gallery), made.network_(context, there).detach())
    assert made.refine(rows[:1]).shape == (1, 6)


def test_the_seed_decides_and_the_global_generator_does_not() -> None:
    X, labels = clusters()
    before = torch.get_rng_state()
    first, again, other = (BAttentionFeatures(**SMALL, random_state=s).fit(X, labels).transform(X) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(again, first)
    assert np.abs(other - first).max() > 0.01


def test_labels_may_be_words_and_length_of_features_does_not_matter() -> None:
    X, labels = clusters()
    words = np.array(["fig", "kiwi", "lime", "pear"])[labels]
    plain, other = (BAttentionFeatures(**SMALL).fit(*given) for given in ((X, labels), (4 * X, words)))
    np.testing.assert_array_equal(other.transform(2 * X), plain.transform(X))


def test_one_update_by_hand() -> None:
    # A batch of all rows, at the start of the warm-up.
    X, labels = clusters(each=3)
    made = BAttentionFeatures(**{**SMALL, "steps": 1, "batch": 12}, weight_decay=0.1).fit(X, labels)
    with seeded(0, "b-attention"):
        network = BAttentionEncoder(6, 5, outputs=6).double()
    rows = normalize(torch.from_numpy(X), dim=1)
    near = (rows @ rows.T).fill_diagonal_(-2).argsort(1, descending=True)[:, :4]
    loss = cluster_loss(network(torch.cat([rows[:, None], rows[near]], 1)), torch.from_numpy(labels))
    loss.backward()
    assert made.losses_ == pytest.approx([float(loss.detach())])
    for moved, start in zip(made.network_.parameters(), network.parameters()):
        gradient = 0 if start.grad is None else start.grad + 0.1 * start
        torch.testing.assert_close(moved, start - 0.05 * 0.008 * gradient, rtol=1e-9, atol=1e-12)


def test_a_batch_are_rows_around_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "_POOL", 8)
    labels = np.arange(32) % 4
    X = np.eye(6)[labels] + 0.01 * drawn(32, 6).numpy()
    made = BAttentionFeatures(**SMALL, pairs="allall").fit(X, labels)
    # Eight rows of one group have no pair of different classes: the loss is that of near rows alone.
    assert max(made.losses_) < 1e-6


class FakeBench:
    """What `apply` asks of a bench, with a budget of passes."""

    def __init__(self, amount: float, targets: Any = None) -> None:
        self.budget, self.device = Budget("compute", amount), torch.device("cpu")
        self.recipe = SimpleNamespace(train_share=0.5)
        self.spent = {"forward": 0, "backward": 0, "steps": 0}
        X, labels = clusters()
        self.rows = torch.from_numpy(X).float()
        self.targets = torch.from_numpy(labels) if targets is None else targets

    def embed(self, model: Any, part: str) -> tuple[Tensor, Tensor]:
        assert part == "train"
        self.count(forward=len(self.rows))
        return self.rows, self.targets

    def generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def count(self, **more: int) -> None:
        for name, value in more.items():
            self.spent[name] += value


def test_training_in_a_comparison_keeps_to_its_share_of_the_budget() -> None:
    # Half of 2000 passes: 32 for the embeddings, then 24 an update of 8 rows.
    bench = FakeBench(2000)
    search = BAttentionSearch(share=0.5, **{name: SMALL[name] for name in ("k", "outputs", "batch")})
    model = nn.Identity()
    assert search.apply(model, bench) is model
    assert bench.spent == {"forward": 32 + 41 * 8, "backward": 41 * 8, "steps": 41}
    assert search.refine(bench.rows).shape == (32, 6)
    assert search.refine(bench.rows).dtype == torch.float32


def test_edit_leaves_its_share_of_the_training() -> None:
    recipe = Recipe(*(Part("torch.nn:Identity") for _ in range(3)), train_share=0.8)
    changed = edit(recipe, share=0.25, k=8)
    assert changed.train_share == pytest.approx(0.6)
    assert changed.after[0].build().features.k == 8
    with pytest.raises(OptionError, match="share=1"):
        edit(recipe, share=1.0)
    with pytest.raises(OptionError, match="pairs='hardest'"):
        edit(recipe, pairs="hardest")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"heads": 4}, "heads=4 does not divide inner=6"),
        ({"version": "gat"}, "version='gat'"),
        ({"scores": "A"}, "scores='A'"),
        ({"feature": "last"}, "feature='last'"),
        ({"dropout": 1.0}, "dropout=1"),
        ({"temperature": 0}, "temperature=0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BAttentionFeatures(**{**SMALL, **options}).fit(*clusters())


def test_bad_data_is_refused() -> None:
    X, labels = clusters()
    with pytest.raises(DataError, match="requires y to be passed"):
        BAttentionFeatures(**SMALL).fit(X, None)
    with pytest.raises(DataError, match="y has 3 labels for 32 rows of X"):
        BAttentionFeatures(**SMALL).fit(X, labels[:3])
    with pytest.raises(DataError, match="y has 1 class in 32 rows"):
        BAttentionFeatures(**SMALL).fit(X, 0 * labels)
    with pytest.raises(OptionError, match=r"k=5 does not fit contexts of shape \(2, 4, 3\)"):
        BAttention(3, 5)(torch.ones(2, 4, 3))
    with pytest.raises(OptionError, match="k=4 is more than the 3 other rows"):
        profile_graph(drawn(4, 2), 4)
    with pytest.raises(DataError, match="places has 5 neighbours a row, but a context of k=5 takes 4"):
        contexts_of(drawn(1, 2), drawn(9, 2), torch.arange(5)[None], 5)
    with pytest.raises(DataError, match=r"features \(3, 2\) and labels \(2,\)"):
        cluster_loss(torch.ones(3, 2), torch.tensor([0, 1]))
    with pytest.raises(ConflictError, match="targets are numbers"):
        BAttentionSearch(k=5, outputs=6).apply(nn.Identity(), FakeBench(100, torch.rand(32)))
