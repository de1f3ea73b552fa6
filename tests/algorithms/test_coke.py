"""CoKe: its clustering against the authors' code and by hand, its loss written out, and what it reads and when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms import SAM
from repertory.algorithms.coke import CoKe, OnlineConstrainedKMeans, averaged_labels, cluster_loss, sharpened
from repertory.errors import DataError, OptionError

RELEASED = json.loads((Path(__file__).parent / "coke_released.json").read_text(encoding="utf-8"))
EXAMPLES, BATCH = 12, 6


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def kmeans_from(centers: Tensor, **options: Any) -> OnlineConstrainedKMeans:
    kmeans = OnlineConstrainedKMeans(*centers.shape, **options)
    kmeans.centers.copy_(centers)
    kmeans.previous.copy_(centers)
    return kmeans


def kmeans_of(sizes: tuple[int, ...], **options: Any) -> OnlineConstrainedKMeans:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OnlineConstrainedKMeans(sizes, 4, **options)


def dense(labels: Tensor, weights: Tensor, clusters: int) -> Tensor:
    return torch.zeros(len(labels), clusters).scatter_add_(1, labels, weights)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(number: int) -> dict[str, Any]:
    inputs = torch.randn(EXAMPLES, 6, generator=torch.Generator().manual_seed(0))
    epoch, place = divmod(number, EXAMPLES // BATCH)
    index = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(epoch))[place * BATCH :][:BATCH]
    noise = torch.randn(2, BATCH, 6, generator=torch.Generator().manual_seed(number)) / 5
    return {"input": inputs[index], "views": list(inputs[index] + noise), "index": index}


def step_of(method: CoKe, **options: Any) -> Step:
    return Step(
        network(), lambda groups: torch.optim.SGD(groups, lr=0.05), nn.CrossEntropyLoss(), [method],
        **{"epochs": 5, "examples": EXAMPLES, **options},
    )  # fmt: skip


def train(step: Step, first: int, last: int) -> list[float]:
    losses = []
    for number in range(first, last):
        losses.append(float(step(batch(number))))
        if (number + 1) % (EXAMPLES // BATCH) == 0:
            step.end_epoch()
    return losses


@pytest.mark.parametrize("case", ["bounded", "even", "second stage"])
def test_reproduces_the_released_clustering_on_the_same_stream(case: str) -> None:
    expected = RELEASED[case]
    size = len(RELEASED["batches"][0]["index"])
    kmeans = kmeans_from(torch.tensor(RELEASED["first"]), ratio=expected["ratio"], dual_step=expected["dual_lr"] / size)
    kept, examples = expected.get("kept", 1), 20
    several, shares = torch.zeros(examples, kept, dtype=torch.int64), torch.zeros(examples, kept)
    labels, duals, targets = [], [], []
    for number, entry in enumerate(RELEASED["batches"]):
        if number and entry["epoch"] != RELEASED["batches"][number - 1]["epoch"]:
            kmeans.end_epoch()
            if kmeans.epochs == expected.get("stage"):
                kmeans.average()
        index = torch.tensor(entry["index"])
        if kmeans.averaged > 1:
            sharp = sharpened(shares[index], expected["label_temperature"])
            targets.append(dense(several[index], sharp, len(kmeans.centers)).tolist())
        found = kmeans.observe(torch.tensor(entry["features"]))
        if kmeans.averaged:
            several[index], shares[index] = averaged_labels(several[index], shares[index], found, 1 / kmeans.averaged)
        labels.append(found.tolist())
        duals.append(kmeans.duals.tolist())
    kmeans.end_epoch()
    assert labels == expected["labels"]
    torch.testing.assert_close(torch.tensor(duals), torch.tensor(expected["duals"]), rtol=0, atol=2e-6)
    torch.testing.assert_close(kmeans.centers, torch.tensor(expected["centers"]), rtol=0, atol=2e-6)
    torch.testing.assert_close(kmeans.previous, torch.tensor(expected["previous"]), rtol=0, atol=2e-6)
    torch.testing.assert_close(torch.tensor(targets), torch.tensor(expected["targets"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.6, [0.0, 0.0, 0.2]), (1.0, [-0.416667, 0.083333, 0.333333]), (0.0, [0.0, 0.0, 0.0])]
)
def test_duals_by_hand(ratio: float, expected: list[float]) -> None:
    kmeans = kmeans_from(torch.eye(3), ratio=ratio, dual_step=0.25)
    assert kmeans.observe(torch.eye(3)[[0, 0, 0, 1]]).tolist() == [0, 0, 0, 1]
    assert kmeans.duals.tolist() == pytest.approx(expected, abs=1e-6)


def test_centers_by_hand_and_those_that_are_not_hit_stay() -> None:
    kmeans = kmeans_from(torch.tensor([[0.6, 0.8], [-1.0, 0.0]]), dual_step=0.0)
    kmeans.observe(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(kmeans.centers, torch.tensor([[0.70711, 0.70711], [-1.0, 0.0]]), rtol=0, atol=1e-5)
    kmeans.observe(torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(kmeans.centers[0], torch.tensor([0.8629, 0.5054]), rtol=0, atol=1e-4)
    kmeans.end_epoch()
    kmeans.observe(torch.tensor([[0.0, 1.0]]))
    assert kmeans.centers[0].tolist() == [0.0, 1.0]
    assert kmeans.previous[0].tolist() == pytest.approx([0.8629, 0.5054], abs=1e-4)


def test_a_cluster_that_nothing_is_near_wins_examples_by_its_dual() -> None:
    rows = unit(60, 4)
    rows[:, 0] = rows[:, 0].abs() + 1
    rows = F.normalize(rows, dim=1)
    away = torch.cat([F.normalize(rows[:2], dim=1), -torch.eye(4)[:1]])
    sizes = {}
    for step in (0.0, 0.05):
        kmeans = kmeans_from(away.clone(), ratio=0.6, dual_step=step)
        for _ in range(30):
            found = torch.cat([kmeans.observe(part) for part in rows.split(10)])
            kmeans.end_epoch()
        sizes[step] = found.bincount(minlength=3).tolist()
    assert sizes[0.0][2] == 0
    assert min(sizes[0.05]) >= 8  # the bound is 12


def test_averaged_labels_sum_to_one_and_the_lightest_gives_way() -> None:
    labels, weights = torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3)
    history = [4, 7, 4, 2, 9]
    for number, new in enumerate(history, 1):
        labels, weights = averaged_labels(labels, weights, torch.tensor([new]), 1 / number)
        assert float(weights.sum()) == pytest.approx(1.0)
        if number == 4:  # so far it is the share of each in the history
            assert dict(zip(labels[0].tolist(), weights[0].tolist())) == pytest.approx({4: 0.5, 7: 0.25, 2: 0.25})
    # 7 had a quarter, which the other two got; then all gave a fifth to 9.
    assert dict(zip(labels[0].tolist(), weights[0].tolist())) == pytest.approx({4: 8 / 15, 9: 0.2, 2: 4 / 15})


def test_sharpened_weights_by_hand_and_what_has_no_weight_gets_none() -> None:
    assert sharpened(torch.tensor([2 / 3, 1 / 3, 0.0]), 0.5).tolist() == pytest.approx([0.6608, 0.3392, 0.0], abs=1e-4)


def test_the_loss_of_two_versions_written_out() -> None:
    u, v, centers = unit(2, 3, 4), unit(2, 3, 4, seed=1), unit(5, 4, seed=2)
    labels = torch.tensor([[1], [4], [0]])
    expected = []
    for i in range(3):
        total = 0.0
        for one, other in ((0, 1), (1, 0)):
            soft = (u[other, i] @ centers.T / 0.3).softmax(0)
            target = 0.2 * F.one_hot(labels[i, 0], 5) + 0.8 * soft
            for rows in (u, v):
                total -= float((target * (rows[one, i] @ centers.T / 0.3).log_softmax(0)).sum())
        expected.append(total / 4)
    found = cluster_loss(u, v, centers, labels, torch.ones(3, 1), 0.3, alpha=0.2)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_one_version_is_cross_entropy_with_the_weighted_labels() -> None:
    u, v, centers = unit(1, 3, 4), unit(1, 3, 4, seed=1), unit(5, 4, seed=2)
    labels, weights = torch.tensor([[1, 2], [4, 0], [0, 3]]), torch.tensor([[0.7, 0.3], [1.0, 0.0], [0.5, 0.5]])
    target = dense(labels, weights, 5)
    each = [F.cross_entropy(rows[0] @ centers.T / 0.3, target, reduction="none") for rows in (u, v)]
    found = cluster_loss(u, v, centers, labels, weights, 0.3, beta=0.6)
    torch.testing.assert_close(found, 0.4 * each[0] + 0.6 * each[1])


def test_gradient_by_finite_differences_and_none_through_the_soft_target() -> None:
    u, v = (unit(2, 3, 4, seed=seed, dtype=torch.float64).requires_grad_() for seed in (0, 1))
    centers = unit(5, 4, seed=2, dtype=torch.float64)
    given = (centers, torch.tensor([[1], [4], [0]]), torch.ones(3, 1, dtype=torch.float64), 0.3)
    assert torch.autograd.gradcheck(lambda rows: cluster_loss(u.detach(), rows, *given), v)
    (grad,) = torch.autograd.grad(cluster_loss(u, v.detach(), *given, alpha=0.0)[0], u)
    soft = (u.detach()[:, 0] @ centers.T / 0.3).softmax(1).flip(0)
    by_hand = ((u.detach()[:, 0] @ centers.T / 0.3).softmax(1) - soft) @ centers / 0.3 / 4
    torch.testing.assert_close(grad[:, 0], by_hand)


def test_half_precision_at_a_low_temperature_is_close_to_double() -> None:
    method = CoKe(clusters=[4], temperature=0.01, dim=4)
    step = step_of(method, precision="bf16")
    train(step, 0, 2)
    kept: list[Tensor] = []
    method.projector.register_forward_hook(lambda _, __, output: kept.append(output.detach()))
    method.predictor.register_forward_hook(lambda _, __, output: kept.append(output.detach()))
    index = batch(2)["index"]
    labels = method.labels.read(index).long()
    found = step(batch(2))
    u, v = (F.normalize(rows.double(), dim=1).unflatten(0, (2, BATCH)) for rows in kept)
    expected = cluster_loss(u, v, method.kmeans.previous.double(), labels, torch.ones(BATCH, 1), 0.01)
    assert kept[0].dtype == torch.bfloat16
    assert float(found) == pytest.approx(float(expected.mean()), rel=1e-4)


def test_the_first_epoch_clusters_and_updates_nothing() -> None:
    method = CoKe(clusters=[3, 4], dim=4)
    step = step_of(method)
    before = [p.detach().clone() for p in step.run.parameters]
    train(step, 0, 2)
    assert all(torch.equal(p, old) for p, old in zip(step.run.parameters, before))
    assert (step.run.counts.forward, step.run.counts.backward) == (2 * EXAMPLES, 0)
    assert method.labels.written(torch.arange(EXAMPLES)).all()
    train(step, 2, 3)
    assert not all(torch.equal(p, old) for p, old in zip(step.run.parameters, before))


def test_labels_and_centers_of_the_loss_are_those_of_the_epoch_before() -> None:
    method = CoKe(clusters=[3], dim=4, temperature=0.5)
    step = step_of(method)
    train(step, 0, 2)
    labels, centers = method.labels.read(torch.arange(EXAMPLES)).long(), method.kmeans.centers.clone()
    outputs: list[Tensor] = []
    method.projector.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
    method.predictor.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
    for number in (2, 3):
        outputs.clear()
        found = float(step(batch(number)))
        u, v = (F.normalize(rows, dim=1).unflatten(0, (2, BATCH)) for rows in outputs)
        expected = cluster_loss(u, v, centers, labels[batch(number)["index"]], torch.ones(BATCH, 1), 0.5)
        assert found == pytest.approx(float(expected.mean()), rel=1e-5)
    assert not torch.equal(method.kmeans.centers, centers)


def test_a_second_pass_of_a_step_clusters_nothing() -> None:
    method = CoKe(clusters=[3], dim=4)
    step = Step(
        network(), lambda groups: torch.optim.SGD(groups, lr=0.05), nn.CrossEntropyLoss(), [SAM(), method],
        epochs=5, examples=EXAMPLES,
    )  # fmt: skip
    train(step, 0, 3)
    assert float(method.kmeans.counts.sum()) == BATCH
    assert step.run.counts.forward == 2 * EXAMPLES + 2 * 2 * BATCH


def test_no_gradient_reaches_centers_and_one_view_passes_half_as_much() -> None:
    method = CoKe(clusters=[3], views=1, dim=4)
    step = step_of(method)
    train(step, 0, 3)
    assert not any(buffer.requires_grad for buffer in method.kmeans.buffers())
    assert (step.run.counts.forward, step.run.counts.backward) == (3 * BATCH, BATCH)


def test_the_second_stage_begins_when_its_share_of_the_epochs_is_over_and_resumes_exactly() -> None:
    def fresh() -> tuple[CoKe, Step]:
        method = CoKe(clusters=[3, 4], views=1, dim=4, second_stage=0.6, kept=2)
        return method, step_of(method)

    method, step = fresh()
    train(step, 0, 4)
    assert method.kmeans.averaged == 0
    train(step, 4, 6)
    assert method.kmeans.averaged == 1
    train(step, 6, 9)
    assert method.kmeans.averaged == 2
    weights = method.averages.read(torch.arange(EXAMPLES))[:, :, 1]
    torch.testing.assert_close(weights.sum(2), torch.ones(EXAMPLES, 2))
    other, again = fresh()
    again.load_state_dict(step.state_dict())
    assert other.kmeans.averaged == 2
    assert train(again, 9, 10) == train(step, 9, 10)
    torch.testing.assert_close(again.state_dict()["model"], step.state_dict()["model"], rtol=0, atol=0)


def test_the_number_of_clusters_follows_the_examples_as_on_imagenet() -> None:
    method = CoKe()
    assert method._numbers(1_281_167) == [3000, 4000, 5000]
    assert method._numbers(1257) == [94, 125, 157]


@pytest.mark.parametrize(
    ("clusters", "examples", "words"),
    [(None, None, "clusters=None depends on the number of examples.*examples="), ([3, 20], 12, "more than the 12")],
)
def test_clusters_that_do_not_fit_the_data_are_refused(clusters: Any, examples: int | None, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        step_of(CoKe(clusters=clusters), examples=examples)


def test_several_clusterings_at_once_are_each_of_them_alone() -> None:
    sizes, batches = (2, 5, 3), [unit(6, 4, seed=seed) for seed in range(1, 7)]
    options = {"ratio": 0.5, "dual_step": 0.05}
    together = kmeans_of(sizes, **options)
    alone = [kmeans_from(own.clone(), **options) for own in together.centers.split(sizes)]
    for number, rows in enumerate(batches):
        assert together.observe(rows).T.tolist() == [one.observe(rows).tolist() for one in alone]
        if number % 2:
            for kmeans in (together, *alone):
                kmeans.end_epoch()
            if number == 3:
                for kmeans in (together, *alone):
                    kmeans.average()
    for name in ("centers", "previous", "duals", "counts"):
        torch.testing.assert_close(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))


def test_features_that_cannot_be_clustered_are_refused() -> None:
    kmeans = OnlineConstrainedKMeans(3, 2)
    with pytest.raises(DataError, match=r"features \(4, 3\) must be \(batch, 2\)"):
        kmeans.observe(torch.zeros(4, 3))
    with pytest.raises(DataError, match="not finite"):
        kmeans.observe(torch.full((1, 2), float("nan")))
