"""The bottleneck against the authors' code, nearest neighbours and Lloyd's algorithm; what training leaves alone."""

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
from repertory.core.randomness import seeded
from repertory.datasets import Examples, Normaliser, Splits
from repertory.errors import DataError, OptionError
from repertory.layers import KeyValueBottleneck
from repertory.layers.key_value_bottleneck import (
    BottleneckNetwork,
    KeyInitialisation,
    bottleneck,
    edit,
    initialise_keys,
    moved_keys,
    nearest_keys,
    replace_with_bottleneck,
)
from repertory.scenarios.bench import Bench
from repertory.scenarios.supervised import trained
from repertory.training.budget import Budget

RELEASED = json.loads((Path(__file__).parent / "key_value_bottleneck_released.json").read_text(encoding="utf-8"))


def pattern(shape: tuple[int, ...], phase: float) -> Tensor:
    """Return numbers in [-1, 1] that any version of any library makes alike."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return (0.37 * places * places + phase).sin().float().view(shape)


def released(**options: Any) -> KeyValueBottleneck:
    """Return the layer with the keys and values on which the authors' code was run; heads are given in pieces."""
    layer = KeyValueBottleneck(6, 4, codebooks=3, pairs=6, dim_key=2, splitter="chunk", **options)
    layer.keys.copy_(pattern((3, 6, 2), 0.1))
    layer.values.data.copy_(pattern((3, 6, 4), 0.5))
    return layer


def made(seed: int = 0, **options: Any) -> KeyValueBottleneck:
    with seeded(seed, "layer"):
        return KeyValueBottleneck(**{"dim": 8, "outputs": 3, "codebooks": 4, "pairs": 5, "dim_key": 3, **options})


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_chosen_keys_and_votes_are_the_authors() -> None:
    layer, embedding = released(topk=2), pattern((9, 3, 1, 2), 0.9).flatten(1)
    assert layer.chosen(embedding)[:, 0].tolist() == RELEASED["chosen"]
    torch.testing.assert_close(layer(embedding), torch.tensor(RELEASED["votes"]), rtol=1e-5, atol=1e-6)


def test_masked_choice_is_the_authors() -> None:
    layer = released()
    layer.values.data *= torch.tensor(RELEASED["used"])[..., None]
    embedding = pattern((9, 3, 1, 2), 0.9).flatten(1)
    assert layer.eval().chosen(embedding)[:, 0, :, 0].tolist() == RELEASED["masked"]
    assert layer.train().chosen(embedding)[:, 0, :, 0].tolist() != RELEASED["masked"]
    assert layer.usage() == pytest.approx(torch.tensor(RELEASED["used"]).double().mean().item())


def test_moving_keys_are_the_authors() -> None:
    keys = pattern((3, 6, 2), 0.1)
    counts, sums = torch.ones(3, 6), keys.clone()
    for number in range(3):
        heads = pattern((9, 3, 1, 2), 1.0 + number)[:, :, 0].transpose(0, 1)
        keys, counts, sums = moved_keys(heads, keys, counts, sums, decay=0.8)
    for found, name in ((keys, "keys"), (counts, "counts"), (sums, "sums")):
        torch.testing.assert_close(found, torch.tensor(RELEASED[name]), rtol=1e-5, atol=1e-6)


def test_projections_have_columns_of_length_one() -> None:
    layer = made()
    assert layer.projections is not None
    torch.testing.assert_close(layer.projections.norm(dim=1), torch.ones(4, 3))
    embedding = rows(5, 8)
    for book, projection in enumerate(layer.projections):
        torch.testing.assert_close(layer.heads(embedding)[book], embedding @ projection)


@pytest.mark.parametrize("topk", [1, 3])
def test_nearest_keys_by_brute_force(topk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heads, keys = rows(4, 7, 3), rows(4, 9, 3, seed=1)
    wanted = torch.cdist(heads, keys).argsort(-1)[..., :topk]
    assert torch.equal(nearest_keys(heads, keys, topk), wanted)
    monkeypatch.setattr(bottleneck, "_HELD", 70)
    assert torch.equal(nearest_keys(heads, keys, topk), wanted)


def test_keys_that_are_left_out_are_chosen_only_when_no_others_are_left() -> None:
    heads, keys = torch.zeros(2, 1, 1), torch.tensor([[[0.0], [1.0], [2.0]]]).repeat(2, 1, 1)
    left_out = torch.tensor([[True, False, False], [True, True, True]])
    assert nearest_keys(heads, keys, 1, left_out)[0, 0].tolist() == [1]
    assert nearest_keys(heads, keys, 2, left_out)[0, 0].tolist() == [1, 2]
    assert nearest_keys(heads, keys, 3, left_out)[1, 0].sort().values.tolist() == [0, 1, 2]


def test_with_a_key_on_every_example_it_is_the_nearest_neighbour() -> None:
    embeddings, labels, asked = rows(20, 4), torch.arange(20) % 3, rows(11, 4, seed=1)
    layer = KeyValueBottleneck(4, 3, codebooks=1, pairs=20, dim_key=4, splitter="chunk")
    layer.keys.copy_(embeddings[None])
    layer.values.data.copy_(functional.one_hot(labels, 3)[None])
    assert torch.equal(layer(asked).argmax(1), labels[torch.cdist(asked, embeddings).argmin(1)])


@pytest.mark.parametrize("topk", [1, 2])
def test_votes_by_brute_force(topk: int) -> None:
    layer, embedding = made(topk=topk), rows(6, 2, 8)
    layer.values.data.normal_(generator=torch.Generator().manual_seed(2))
    wanted = torch.zeros(6, 3)
    for example in range(6):
        for token in range(2):
            heads = layer.heads(embedding[example, token][None])[:, 0]
            for book in range(4):
                near = (layer.keys[book] - heads[book]).norm(dim=1).argsort()[:topk]
                wanted[example] += layer.values.detach()[book, near].sum(0) / (4 * 2)
    torch.testing.assert_close(layer(embedding), wanted)
    assert layer(embedding[:0]).shape == (0, 3)


def test_values_start_at_nothing_so_that_the_prediction_is_uniform() -> None:
    layer = made()
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(rows(5, 8)).softmax(1), torch.full((5, 3), 1 / 3))


@pytest.mark.parametrize("topk", [1, 2])
def test_a_step_changes_only_the_values_that_its_example_chose(topk: int) -> None:
    layer, embedding = made(topk=topk, pairs=12), rows(30, 8)
    layer.values.data.normal_(generator=torch.Generator().manual_seed(2))
    chosen = layer.chosen(embedding)
    before, outputs = layer.values.detach().clone(), layer(embedding).detach()
    step = Step(layer, torch.optim.SGD(layer.parameters(), lr=1.0), nn.CrossEntropyLoss())
    step((embedding[:1], torch.tensor([1])))
    changed = (layer.values != before).any(-1)
    wanted = torch.zeros(4, 12, dtype=torch.bool)
    for book in range(4):
        wanted[book, chosen[0, 0, book]] = True
    assert torch.equal(changed, wanted)
    shared = torch.tensor([bool(wanted[torch.arange(4)[:, None], row[0]].any()) for row in chosen])
    assert not shared.all()
    assert torch.equal(layer(embedding)[~shared], outputs[~shared])


def test_only_values_have_a_gradient() -> None:
    layer, embedding = made().double(), rows(5, 8).double().requires_grad_()
    assert [name for name, _ in layer.named_parameters()] == ["values"]
    loss = layer(embedding).square().sum() + layer(embedding).sum()
    loss.backward()
    assert embedding.grad is None
    values = rows(4, 5, 3, seed=3).double().requires_grad_()

    def votes(values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"values": values}, embedding.detach())

    assert torch.autograd.gradcheck(votes, values)


def test_half_precision_chooses_as_float32_does() -> None:
    layer, embedding = made(), rows(50, 8).bfloat16()
    layer.values.data.normal_(generator=torch.Generator().manual_seed(2))
    plain = layer(embedding.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(embedding), plain)


def test_a_move_without_memory_is_a_step_of_lloyds_algorithm() -> None:
    heads, keys = rows(2, 12, 2), rows(2, 4, 2, seed=1)
    found, counts, _ = moved_keys(heads, keys, torch.zeros(2, 4), torch.zeros(2, 4, 2), decay=0.0, epsilon=0.0)
    nearest = torch.cdist(heads, keys).argmin(-1)
    for book in range(2):
        for place in range(4):
            own = heads[book, nearest[book] == place]
            assert counts[book, place] == len(own)
            torch.testing.assert_close(found[book, place], own.mean(0) if len(own) else keys[book, place])


def test_smoothed_counts_keep_their_sum() -> None:
    heads, counts = rows(1, 12, 2), torch.rand(1, 4, generator=torch.Generator().manual_seed(0))
    keys = rows(1, 4, 2, seed=1)
    found, after, sums = moved_keys(heads, keys, counts, keys * counts[..., None], decay=0.7, epsilon=0.5)
    smooth = (sums / found)[..., 0]
    torch.testing.assert_close(smooth.sum(), after.sum())
    torch.testing.assert_close(after.sum(), 0.7 * counts.sum() + 0.3 * 12)
    assert float((smooth / after).std()) > 0.01


def test_keys_end_where_the_embeddings_are() -> None:
    centers = torch.tensor([[5.0, 5.0], [-5.0, 5.0], [5.0, -5.0]])
    embeddings = centers.repeat(40, 1) + rows(120, 2) / 10
    layer = made(dim=2, codebooks=1, pairs=12, dim_key=2, splitter="chunk")
    generator = torch.Generator().manual_seed(0)
    initialise_keys(layer, embeddings, epochs=20, batch_size=30, generator=generator)
    distances = torch.cdist(layer.keys[0], centers)
    assert distances.amin(1).max() < 0.5
    assert distances.amin(0).max() < 0.5


def test_without_a_threshold_keys_that_nothing_chooses_stay() -> None:
    layer = KeyValueBottleneck(1, 2, codebooks=1, pairs=3, dim_key=1, splitter="chunk")
    layer.keys.copy_(torch.tensor([[[0.0], [10.0], [-10.0]]]))
    generator = torch.Generator().manual_seed(0)
    initialise_keys(layer, torch.tensor([[9.0], [8.0]]), epochs=300, threshold=0.0, generator=generator)
    torch.testing.assert_close(layer.keys.flatten(), torch.tensor([0.0, 8.5, -10.0]), rtol=0, atol=1e-3)
    initialise_keys(layer, torch.tensor([[9.0], [8.0]]), epochs=300, threshold=0.1, generator=generator)
    # Smoothed counts leave a mean a little beside its heads.
    assert 7.99 <= layer.keys.min() <= layer.keys.max() <= 9.01


def test_a_replaced_key_is_not_drawn_back_to_its_first_place() -> None:
    layer = KeyValueBottleneck(1, 2, codebooks=1, pairs=2, dim_key=1, splitter="chunk")
    layer.keys.copy_(torch.tensor([[[1000.0], [2000.0]]]))
    generator = torch.Generator().manual_seed(0)
    initialise_keys(layer, torch.tensor([[1.0], [2.0]]), epochs=3, generator=generator)
    assert 0.99 <= layer.keys.min() <= layer.keys.max() <= 2.01


def test_tokens_are_embeddings_of_their_own_for_the_keys() -> None:
    first, second = made(), made()
    tokens = rows(6, 4, 8)
    initialise_keys(first, tokens, epochs=1, batch_size=6, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(4, 5), torch.zeros(4, 5, 3)
    keys, counts, _ = moved_keys(second.heads(tokens[order]), second.keys, *zeros)
    stayed = counts >= 0.1 * 24 / 5
    assert stayed.any()
    assert torch.equal(first.keys[stayed], keys[stayed])


def test_initialising_is_repeatable_and_leaves_values_and_the_global_generator_alone() -> None:
    first, second, state = made(), made(), torch.get_rng_state()
    for layer in (first, second):
        initialise_keys(layer, rows(40, 8), batch_size=16, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first.keys, second.keys)
    assert not torch.equal(first.keys, made().keys)
    assert not first.values.any()
    assert torch.equal(torch.get_rng_state(), state)


def test_training_moves_neither_keys_nor_encoder() -> None:
    with seeded(0, "network"):
        body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        model = replace_with_bottleneck(body, 3, codebooks=4, pairs=5, dim_key=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = Step(model, torch.optim.SGD(model.parameters(), lr=1.0), nn.CrossEntropyLoss())
    step.run.model.train()
    for number in range(3):
        step((rows(6, 4, seed=number), torch.arange(6) % 3))
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["bottleneck.values"]
    assert torch.equal(model(rows(5, 4)), model.bottleneck(model.encode(rows(5, 4))))


def bench_of(recipe: Recipe, unlabelled: Examples | None = None) -> Bench:
    examples = Examples(rows(24, 5), torch.arange(24) % 3)
    splits = Splits(
        train=examples,
        validation=examples,
        test=examples,
        unlabelled=unlabelled,
        normaliser=Normaliser(torch.zeros(()), torch.ones(())),
        indices={},
        clean_targets=examples.targets,
    )
    return Bench(
        recipe, splits, in_shape=(5,), outputs=3, task="classification", seed=0, budget=Budget("compute", 24 * 3 * 4)
    )


def plain_recipe() -> Recipe:
    return Recipe(
        model=Part("repertory.testing.tiny:network"),
        criterion=Part("torch.nn:CrossEntropyLoss"),
        optimizer=Part("torch.optim:AdamW", {"lr": 0.1}),
        batch_size=8,
        epochs=4,
    )


def test_keys_are_placed_before_training_at_the_cost_of_one_pass() -> None:
    recipe = edit(plain_recipe(), codebooks=2, pairs=4, dim_key=3)
    bench = bench_of(recipe)
    untouched = bench.fresh_model()
    learner, _ = trained(bench)
    assert not torch.equal(learner.network.bottleneck.keys, untouched.network.bottleneck.keys)  # type: ignore[union-attr, arg-type]
    assert learner.network.bottleneck.usage() > 0  # type: ignore[union-attr, operator]
    assert bench.counts.forward == bench.counts.backward + 24
    assert bench.counts.passes <= 24 * 3 * 4 + 24
    by_hand = bench.fresh_model()
    initialise_keys(
        by_hand.network.bottleneck,  # type: ignore[arg-type]
        by_hand.network.encode(rows(24, 5)),  # type: ignore[operator]
        generator=bench.generator("key-value-bottleneck"),
    )
    assert torch.equal(learner.network.bottleneck.keys, by_hand.network.bottleneck.keys)  # type: ignore[union-attr, arg-type]


def test_inputs_without_labels_place_keys_too() -> None:
    more = Examples(rows(30, 5, seed=1), torch.full((30,), -1))
    bench = bench_of(edit(plain_recipe(), codebooks=2, pairs=4, dim_key=3), more)
    learner = KeyInitialisation().apply(bench.fresh_model(), bench)
    assert isinstance(learner.network, BottleneckNetwork)
    assert bench.counts.forward == 54


def test_recipe_trains_values_by_plain_sgd_with_smoothed_labels() -> None:
    edited = edit(plain_recipe(), codebooks=8, lr=0.5, topk=2)
    assert edited.optimizer == Part("torch.optim:SGD", {"lr": 4.0}, "key-value-bottleneck")
    assert edited.criterion.build().label_smoothing == 0.1
    model = edited.surgery[0].build(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), outputs=3)
    assert model.bottleneck.values.shape == (8, 256, 3)
    assert (model.bottleneck.dim, model.bottleneck.topk) == (6, 2)
    other = edit(plain_recipe().replace(criterion=Part("m:Loss", {}, "mine")))
    assert other.criterion == Part("m:Loss", {}, "mine")


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 0},
        {"outputs": 0},
        {"codebooks": 0},
        {"pairs": 0},
        {"dim_key": 0},
        {"topk": 6},
        {"splitter": "learned"},
        {"splitter": "chunk"},
        {"mask_unused": 1.5},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        made(**options)


@pytest.mark.parametrize("options", [{"epochs": -1}, {"batch_size": 0}, {"decay": 1.0}, {"threshold": -0.1}])
def test_bad_options_of_the_initialisation_are_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        initialise_keys(made(), rows(4, 8), **options)


def test_embeddings_that_do_not_fit_are_refused() -> None:
    for bad in (rows(4, 7), rows(8), rows(2, 2, 2, 8)):
        with pytest.raises(DataError, match=r"\(batch, 8\)"):
            made()(bad)
    for bad in (rows(0, 8), torch.full((2, 8), torch.nan)):
        with pytest.raises(DataError, match="finite numbers only"):
            initialise_keys(made(), bad)


def test_weights_of_another_size_are_refused_on_load() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        made().load_state_dict(made(pairs=6).state_dict())
