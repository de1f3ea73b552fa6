"""NGAME: clusters and loss against the authors' code and brute force; orders, curriculum and multi-label use."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from repertory import Part, Recipe, Step
from repertory.algorithms.ngame import (
    NGAME,
    ClusterBatches,
    NGAMELoss,
    WithPartners,
    balanced_clusters,
    cluster_size,
    draw_positives,
    edit,
    halve,
    in_batch_margin_loss,
    relevance,
)
from repertory.core.sampling import ClassBatches
from repertory.errors import ConflictError, DataError, OptionError

# Rows in the first half by `b_kmeans_dense` of pyxclib, which the authors' code calls, for wave(rows, dim, 1.7, 0.3)
# and centres that start at the two rows; run aside in float64.
HALVES = [
    (12, 3, (0, 7), [0, 4, 5, 9, 10, 11]),
    (13, 4, (2, 5), [0, 1, 2, 3, 10, 11, 12]),
    (40, 5, (1, 30), [0, 1, 3, 4, 6, 9, 12, 15, 17, 18, 20, 21, 23, 26, 29, 32, 34, 35, 37, 38]),
    (41, 6, (40, 3), [0, 2, 5, 7, 8, 10, 13, 15, 16, 18, 21, 23, 24, 26, 29, 31, 32, 34, 37, 39, 40]),
]
# Negatives, margin, temperature, then loss and length of its gradient by `TripletMarginLossOHNM` of the authors' code
# for scores wave(6, 6, 0.9, 0.2) and the labels of RELEVANT; run aside in float64.
LOSSES = [
    (1, 0.3, 0.1, 0.965304986134991, 0.5773502691896257),
    (3, 0.3, 0.1, 0.3201784501142242, 0.1764294164557939),
    (3, 0.3, None, 0.5929094691269456, 0.3849001794597505),
    (3, 0.8, 0.1, 0.48683468841927713, 0.1764571480588451),
    (4, 0.3, 0.1, 0.2401141455246262, 0.13235719823762085),
    (4, 0.8, None, 0.7363487685118759, 0.2886751345948129),
]
RELEVANT = torch.eye(6, dtype=torch.bool)
RELEVANT[[0, 4, 5], [3, 1, 2]] = True


def wave(rows: int, dim: int, frequency: float, phase: float) -> Tensor:
    return (frequency * torch.arange(rows * dim, dtype=torch.float64) + phase).sin().view(rows, dim)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("rows", "dim", "starts", "first"), HALVES)
def test_halves_are_those_of_the_library_that_the_authors_call(
    rows: int, dim: int, starts: tuple[int, int], first: list[int]
) -> None:
    found = halve(wave(rows, dim, 1.7, 0.3)[None], torch.tensor([starts]))
    assert found[0].nonzero().flatten().tolist() == first


@pytest.mark.parametrize("count", [150, 151])
def test_halves_equal_a_plain_loop(count: int) -> None:
    rows = functional.normalize(draw(count, 6), dim=1)
    centres, before, first = rows[[3, 7]], -2.0, torch.arange(0)
    while True:
        order = (rows @ (centres[0] - centres[1])).argsort(descending=True)
        first, second = order.tensor_split([(count + 1) // 2])
        centres = functional.normalize(torch.stack([rows[first].mean(0), rows[second].mean(0)]), dim=1)
        now = float((rows[first] @ centres[0]).sum() + (rows[second] @ centres[1]).sum()) / count
        if now - before < 1e-4:
            break
        before = now
    assert halve(rows[None], torch.tensor([[3, 7]]))[0].nonzero().flatten().tolist() == first.sort().values.tolist()


def test_parts_that_are_halved_together_come_out_as_alone() -> None:
    parts, starts = draw(5, 9, 4), torch.tensor([[0, 1], [8, 2], [3, 4], [5, 0], [1, 7]])
    alone = [halve(part[None], start[None]) for part, start in zip(parts, starts)]
    assert torch.equal(halve(parts, starts), torch.cat(alone))


def test_two_groups_far_apart_are_found_exactly() -> None:
    rows = torch.tensor([[3.0, 0.1], [0.2, 1.0]]).repeat(20, 1) + 0.1 * draw(40, 2)
    found = balanced_clusters(rows, 20)
    assert set(found[::2].tolist()) != set(found[1::2].tolist())
    assert found.bincount().tolist() == [20, 20]
    assert len(found[::2].unique()) == 1


def test_a_half_cannot_be_improved_by_swapping_two_rows() -> None:
    rows = functional.normalize(draw(12, 3), dim=1)
    first = halve(rows[None], torch.tensor([[0, 1]]), tolerance=1e-12)[0]
    centres = functional.normalize(torch.stack([rows[first].sum(0), rows[~first].sum(0)]), dim=1)
    gain = rows @ (centres[0] - centres[1])
    assert gain[first].min() >= gain[~first].max()


@pytest.mark.parametrize(("rows", "size"), [(64, 8), (61, 8), (37, 5), (5, 4), (3, 2), (2, 2), (9, 100), (7, 1)])
def test_clusters_hold_at_most_so_many_rows_and_differ_by_one_at_most(rows: int, size: int) -> None:
    sizes = balanced_clusters(draw(rows, 3), size).bincount()
    assert int(sizes.sum()) == rows
    assert int(sizes.max()) <= size
    assert int(sizes.min()) >= 1
    assert int(sizes.max() - sizes.min()) <= 1
    assert size in (1, 100) or len(sizes) == 2 ** (len(sizes) - 1).bit_length()


def test_members_of_a_cluster_are_nearer_to_each_other_than_random_rows() -> None:
    rows = functional.normalize(draw(256, 8), dim=1)
    cosines = rows @ rows.T
    clusters = balanced_clusters(rows, 8)
    same = (clusters[:, None] == clusters) & ~torch.eye(256, dtype=torch.bool)
    assert cosines[same].mean() > cosines.mean() + 0.3


def test_zero_rows_and_equal_rows_are_shared_out() -> None:
    assert balanced_clusters(torch.zeros(8, 3), 2).bincount().tolist() == [2] * 4
    assert balanced_clusters(torch.ones(7, 3), 2).bincount().tolist() == [2, 2, 2, 1]


def test_clusters_depend_on_the_generator_alone() -> None:
    rows = draw(64, 4)
    assert torch.equal(balanced_clusters(rows, 4, generator(3)), balanced_clusters(rows, 4, generator(3)))


@pytest.mark.parametrize("bad", [torch.full((4, 2), torch.nan), torch.zeros(0, 2), torch.zeros(4)])
def test_rows_that_cannot_be_clustered_are_refused(bad: Tensor) -> None:
    with pytest.raises(DataError, match="embeddings"):
        balanced_clusters(bad, 2)


def test_starts_must_differ() -> None:
    with pytest.raises(OptionError, match="starts"):
        halve(draw(1, 4, 2), torch.tensor([[1, 1]]))


def test_size_doubles_at_each_epoch_of_the_curriculum() -> None:
    published = (10, 20, 25, 50, 75, 100, 125, 150, 200)
    assert [cluster_size(epoch, published) for epoch in (0, 9, 10, 19, 20, 24, 25, 299)] == [1, 1, 2, 2, 4, 4, 8, 512]


def test_order_is_random_before_clusters_and_whole_clusters_after() -> None:
    sampler, rows = ClusterBatches(24), torch.arange(24)
    assert torch.equal(sampler(rows, rows, generator()), torch.randperm(24, generator=generator()))
    sampler.update(draw(24, 3), size=4)
    order = sampler(rows, rows, generator())
    assert torch.equal(order.sort().values, rows)
    assert sampler.clusters is not None
    runs = [name for name, _ in itertools.groupby(sampler.clusters[order].tolist())]
    assert len(runs) == len(set(runs)) == 8
    assert not torch.equal(order, sampler(rows, rows, generator(1)))


def test_order_of_some_rows_leaves_the_others_out_and_knows_new_ones() -> None:
    sampler = ClusterBatches()
    sampler.update(draw(6, 3), size=3, index=torch.tensor([0, 2, 4, 6, 8, 10]))
    rows = torch.tensor([10, 1, 4, 8, 30])
    assert sorted(sampler(rows, rows, generator()).tolist()) == sorted(rows.tolist())
    assert sampler.clusters is not None
    assert sampler.clusters[1::2].unique().numel() == 5


def test_works_as_a_sampler_and_as_a_batch_sampler_of_a_data_loader() -> None:
    data = TensorDataset(torch.arange(10))
    sampler = ClusterBatches(10, seed=4)
    sampler.update(draw(10, 3), size=5)
    epochs = [[int(i) for (batch,) in DataLoader(data, batch_size=5, sampler=sampler) for i in batch] for _ in range(9)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 2
    batches = ClusterBatches(10, batch_size=4, seed=4)
    batches.load_state_dict(sampler.state_dict())
    loader = DataLoader(data, batch_sampler=batches)
    assert [len(batch) for (batch,) in loader] == [4, 4, 2]
    assert len(loader) == 3
    batches.set_epoch(0)
    assert [int(i) for (batch,) in loader for i in batch] == epochs[0]


def test_sampler_refuses_what_it_cannot_order() -> None:
    with pytest.raises(OptionError, match="examples=None"):
        list(ClusterBatches())
    with pytest.raises(DataError, match="3 embeddings"):
        ClusterBatches(4).update(draw(3, 2), size=2)
    with pytest.raises(DataError, match="index names 2"):
        ClusterBatches(4).update(draw(3, 2), size=2, index=torch.arange(2))


def test_partners_are_others_of_the_class_and_all_of_them_in_turn() -> None:
    targets = torch.tensor([2, 0, 1, 0, 2, 2, 0, 5])
    rows = torch.arange(8) + 3
    sampler, seen = WithPartners(ClusterBatches()), set()
    for seed in range(60):
        pairs = sampler(rows, targets, generator(seed)).view(-1, 2) - 3
        assert len(pairs) == 4
        assert torch.equal(targets[pairs[:, 0]], targets[pairs[:, 1]])
        lonely = torch.isin(pairs[:, 0], torch.tensor([2, 7]))
        assert torch.equal(pairs[:, 0] == pairs[:, 1], lonely)
        seen |= {tuple(pair) for pair in pairs.tolist()}
    # Ordered pairs of two classes with three members, and the two lonely ones.
    assert len(seen) == 6 + 6 + 2
    with pytest.raises(DataError, match="partners"):
        sampler(rows, targets.float(), generator())


def test_loss_of_two_points_by_hand() -> None:
    scores, own = torch.tensor([[0.9, 0.5], [0.2, 0.8]]), torch.eye(2, dtype=torch.bool)
    assert in_batch_margin_loss(scores, own, margin=0.3, negatives=1).tolist() == [0.0, 0.0]
    torch.testing.assert_close(in_batch_margin_loss(scores, own, margin=0.5, negatives=1), torch.tensor([0.1, 0.0]))


@pytest.mark.parametrize(("negatives", "margin", "temperature", "loss", "length"), LOSSES)
def test_loss_is_that_of_the_authors_code(
    negatives: int, margin: float, temperature: float | None, loss: float, length: float
) -> None:
    scores = wave(6, 6, 0.9, 0.2).requires_grad_()
    found = in_batch_margin_loss(scores, RELEVANT, margin=margin, negatives=negatives, temperature=temperature).mean()
    found.backward()
    assert scores.grad is not None
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert scores.grad.norm().item() == pytest.approx(length, abs=1e-12)


def test_a_label_that_is_true_besides_the_drawn_one_is_never_a_negative() -> None:
    scores = torch.tensor([[0.5, 0.9], [0.9, 0.5]], requires_grad=True)
    everything = torch.ones(2, 2, dtype=torch.bool)
    loss = in_batch_margin_loss(scores, everything, negatives=5)
    assert loss.tolist() == [0.0, 0.0]
    loss.sum().backward()
    assert scores.grad is not None
    assert not scores.grad.any()


def test_positives_of_a_mask_are_averaged_over() -> None:
    scores = draw(3, 5)
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    relevant = mask.clone()
    each = [in_batch_margin_loss(scores, relevant, torch.tensor([column, 2, -1])) for column in (0, 1)]
    torch.testing.assert_close(in_batch_margin_loss(scores, relevant, mask), (each[0] + each[1]) / 2)
    assert each[0][2] == 0


def test_class_loss_equals_a_plain_loop() -> None:
    embedding, target = draw(9, 4), torch.tensor([0, 0, 1, 2, 1, 0, 3, 2, 2])
    cosines = functional.normalize(embedding, dim=1) @ functional.normalize(embedding, dim=1).T
    values = []
    for i in range(9):
        hardest = sorted((float(cosines[i, j]) for j in range(9) if target[j] != target[i]), reverse=True)[:2]
        positives = [j for j in range(9) if target[j] == target[i] and j != i]
        total = 0.0
        for p in positives:
            excess = [max(0.0, s - float(cosines[i, p]) + 0.3) for s in hardest]
            weights = torch.tensor([s / 0.1 * (e > 0) for s, e in zip(hardest, excess)]).softmax(0)
            total += sum(e * float(w) for e, w in zip(excess, weights)) / 2
        values.append(total / max(1, len(positives)))
    found = NGAMELoss(negatives=2, reduction="none")(embedding, target)
    torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_labels_drawn_for_points_are_theirs_and_all_come_in_turn() -> None:
    sets = torch.tensor([[4, 2, -1], [7, -1, -1], [-1, -1, -1]])
    drawn = torch.stack([draw_positives(sets, generator(seed)) for seed in range(40)])
    assert set(drawn[:, 0].tolist()) == {2, 4}
    assert set(drawn[:, 1].tolist()) == {7}
    assert set(drawn[:, 2].tolist()) == {-1}


def test_multi_label_loss_masks_all_labels_of_a_point_and_skips_points_without() -> None:
    points, labels = draw(4, 3), draw(4, 3, seed=1)
    labels[3] = points[0]
    sets = torch.tensor([[1, 2], [2, -1], [3, -1], [-1, -1]])
    drawn = torch.tensor([1, 2, 3, -1])
    loss = NGAMELoss(negatives=3, reduction="none")
    values = loss((points, labels), (drawn, sets))
    assert values[3] == 0
    # Point 0 has label 2 too, and nobody has the label that was not drawn: label 3 is its one negative.
    cosine = functional.normalize(points, dim=1) @ functional.normalize(labels, dim=1).T
    alone = in_batch_margin_loss(cosine[:1, [0, 2]], torch.tensor([[True, False]]), negatives=1)
    three = NGAMELoss(negatives=1, reduction="none")((points, labels), (drawn, sets))
    torch.testing.assert_close(three[:1], alone)
    assert relevance(drawn, sets).tolist() == [
        [True, True, False, False],
        [False, True, False, False],
        [False, False, True, False],
        [False, False, False, False],
    ]


def test_gradients_are_those_of_finite_differences() -> None:
    target, sets = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([[0, 2], [1, -1], [2, -1], [3, -1], [4, -1]])
    criterion = NGAMELoss(negatives=2)
    assert torch.autograd.gradcheck(lambda e: criterion(e, target), draw(5, 3).requires_grad_())
    pairs = (draw(5, 3).requires_grad_(), draw(5, 3, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(lambda p, z: criterion((p, z), (torch.arange(5), sets)), pairs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_small_temperatures_is_near_float64(dtype: torch.dtype, as_float64: Any) -> None:
    embedding, target = draw(8, 4).to(dtype), torch.arange(8) % 3
    loss = NGAMELoss(temperature=1e-3)
    as_float64(lambda rows: loss(rows, target), embedding)
    # The square of a length overflows float16; a loss of cosines does not see it.
    torch.testing.assert_close(loss(8192 * embedding, target), loss(embedding, target))


def test_length_of_embeddings_does_not_matter_and_zero_vectors_are_allowed() -> None:
    embedding, target = draw(6, 3), torch.arange(6) % 2
    torch.testing.assert_close(NGAMELoss()(embedding, target), NGAMELoss()(7 * embedding, target))
    # Three negatives at the margin of 0.3 and three places that are empty, all of weight 1/6.
    assert NGAMELoss()(torch.zeros(6, 3), target).item() == pytest.approx(3 * 0.3 / 36)


@pytest.mark.parametrize(
    ("embedding", "target"),
    [
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.int64)),
        ((torch.zeros(4, 3), torch.zeros(4, 3)), torch.zeros(4, dtype=torch.int64)),
        ((torch.zeros(4, 3), torch.zeros(3, 3)), (torch.zeros(4, dtype=torch.int64), torch.zeros(4, 1))),
        (torch.zeros(4, 3), (torch.zeros(4, dtype=torch.int64), torch.zeros(4, 1))),
    ],
)
def test_embeddings_and_targets_that_do_not_match_are_refused(embedding: object, target: object) -> None:
    with pytest.raises(DataError):
        NGAMELoss()(embedding, target)


def test_scores_without_a_diagonal_need_a_positive() -> None:
    with pytest.raises(DataError, match="no diagonal"):
        in_batch_margin_loss(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    "options", [{"grow_at": 10}, {"grow_at": [-1]}, {"grow_at": ["1"]}, {"refresh": 0}, {"partners": 2}]
)
def test_bad_options_are_named(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        NGAME(**options)  # type: ignore[arg-type]


def test_curriculum_beyond_the_planned_epochs_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(OptionError, match="grow_at"):
        Step(model, torch.optim.SGD(model.parameters(), 0.1), NGAMELoss(), methods=[NGAME()], epochs=10)


def build(epochs: int = 6) -> Step:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    method = NGAME(grow_at=[2, 4], refresh=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Step(model, optimizer, NGAMELoss(), methods=[method], epochs=epochs, examples=12)


def epoch(step: Step) -> Tensor:
    """One pass in the order that the method asks for."""
    assert step.run.sampler is not None
    inputs, target = draw(12, 3).float(), torch.arange(12) % 3
    order = step.run.sampler(torch.arange(12), target, generator(step.run.epoch))
    for index in order.split(4):
        step({"input": inputs[index], "target": target[index], "index": index})
    step.end_epoch()
    return order


def test_clusters_come_with_the_epochs_of_the_curriculum_and_hold_the_embeddings_of_training() -> None:
    step = build()
    method = step.methods[0]
    assert isinstance(method, NGAME)
    largest = []
    for _ in range(5):
        epoch(step)
        clusters = method.batches.clusters
        largest.append(0 if clusters is None else int(clusters.bincount().max()))
    # After the passes 0 to 4: the clusters of epochs 1 to 5, made anew for 2 and 4.
    assert largest == [0, 2, 2, 3, 3]
    assert method.table.written(torch.arange(12)).all()


def test_a_run_that_is_resumed_goes_on_in_the_same_order() -> None:
    straight, first, second = build(), build(), build()
    for _ in range(3):
        epoch(straight)
        epoch(first)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        assert torch.equal(epoch(straight), epoch(second))
    assert torch.equal(straight.run.model.weight, second.run.model.weight)


def test_embeddings_of_perturbed_weights_are_not_kept() -> None:
    from repertory.algorithms import SAM

    method = NGAME(grow_at=[1], refresh=1)
    model = nn.Linear(2, 2)
    inputs = draw(4, 2).float()
    expected = model(inputs).detach()
    step = Step(model, torch.optim.SGD(model.parameters(), 0.1), NGAMELoss(), methods=[SAM(rho=5.0), method])
    step((inputs, torch.arange(4) % 2, torch.arange(4)))
    torch.testing.assert_close(method.table.read(torch.arange(4)), expected)


def test_points_with_label_sets_train_in_a_step() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return self.layer(both[0]), self.layer(both[1])

    points, labels = draw(8, 5).float(), draw(6, 5, seed=1).float()
    sets = torch.tensor([[0, 1], [1, -1], [2, 3], [3, -1], [4, 5], [5, -1], [0, 5], [2, -1]])
    model, method = Encoder(), NGAME(grow_at=[1], refresh=1)
    step = Step(model, torch.optim.Adam(model.parameters(), 0.05), NGAMELoss(), methods=[method], examples=8)
    drawn = draw_positives(sets, generator())
    batch = {"input": (points, labels[drawn]), "target": (drawn, sets), "index": torch.arange(8)}
    expected, others = (part.detach() for part in model(batch["input"]))
    cosine = functional.normalize(expected, dim=1) @ functional.normalize(others, dim=1).T
    value = in_batch_margin_loss(cosine, relevance(drawn, sets)).mean()
    torch.testing.assert_close(step(batch), value)
    step.end_epoch()
    torch.testing.assert_close(method.table.read(torch.arange(8)), expected)
    assert method.batches.clusters is not None
    assert method.batches.clusters.bincount().tolist() == [2, 2, 2, 2]


def recipe() -> Recipe:
    return Recipe(Part("torch.nn:Identity"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD", {"lr": 0.1}))


def test_recipe_names_the_order_and_keeps_the_loss_when_asked() -> None:
    own, kept = edit(recipe(), dim=8, margin=0.2), edit(recipe(), own_loss=False)
    assert own.criterion.build().margin == 0.2
    assert own.methods[0].build().partners
    assert own.surgery[0].options == {"dim": 8}
    assert (kept.criterion, kept.surgery) == (recipe().criterion, ())
    assert not kept.methods[0].build().partners
    assert isinstance(kept.sampler.build(), ClusterBatches) if kept.sampler else False


def test_another_method_that_orders_the_examples_is_refused() -> None:
    class Other(NGAME):
        slug = "other"

    model = nn.Linear(2, 2)
    with pytest.raises(ConflictError, match="sampler"):
        Step(model, torch.optim.SGD(model.parameters(), 0.1), NGAMELoss(), methods=[NGAME(), Other()])
    assert ClassBatches().group == 4
