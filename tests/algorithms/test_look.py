"""LOOK against hand calculation, plain loops, two maintained packages, and what must and must not have a gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Step
from repertory.algorithms import LOOK, SAM, look_accuracy, look_loss
from repertory.algorithms.look import votes
from repertory.core import Method
from repertory.errors import ConflictError, DataError, OptionError
from repertory.losses import NormalisedSoftmaxLoss

EXAMPLES, CLASSES, DIM = 12, 3, 4
POINTS = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]], dtype=torch.float64)
POINT_LABELS = torch.tensor([0, 0, 1, 1])


def data(seed: int = 0, size: int = EXAMPLES, entries: int = 30) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(size + entries, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (size + entries,), generator=generator)
    return rows[:size], labels[:size], rows[size:], labels[size:]


def by_loop(
    features: Tensor, labels: Tensor, memory: Tensor, memory_labels: Tensor, k: int, temperature: float, joins: bool
) -> Tensor:
    values = []
    for row, label in zip(functional.normalize(features, dim=1), labels):
        near = (functional.normalize(memory, dim=1) @ row / temperature).tolist()
        order = sorted(range(len(memory)), key=lambda j: -near[j])
        chosen = order[:k]
        if not any(memory_labels[j] == label for j in chosen):
            further = [j for j in order if memory_labels[j] == label][:1] if joins else []
            if not further:
                values.append(0.0)
                continue
            chosen = chosen + further
        total = sum(math.exp(near[j]) for j in chosen)
        values.append(-math.log(sum(math.exp(near[j]) for j in chosen if memory_labels[j] == label) / total))
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("k", "expected"),
    [(3, [0.2333, 0.6271, 0.6271, 0.2333]), (2, [0.1839, 0.5130, 0.5130, 0.1839]), (1, [0.0] * 4)],
)
def test_four_points_by_hand(k: int, expected: list[float]) -> None:
    index = torch.arange(4)
    found = look_loss(POINTS, POINT_LABELS, POINTS, POINT_LABELS, k=k, temperature=0.5, index=index, memory_index=index)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5e-5)


@pytest.mark.parametrize("joins", [True, False])
@pytest.mark.parametrize("k", [1, 2, 5, 29])
def test_equals_a_loop_over_examples_and_neighbours(k: int, joins: bool) -> None:
    given = data()
    found = look_loss(*given, k=k, temperature=0.3, no_positive="nearest" if joins else "skip")
    torch.testing.assert_close(found, by_loop(*given, k, 0.3, joins))


@pytest.mark.parametrize("k", [2, 7])
def test_memory_searched_in_chunks_gives_the_same_value_and_gradient(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, memory, memory_labels = data()
    results = []
    for held in (2**24, 5 * EXAMPLES):
        monkeypatch.setattr(votes, "_HELD", held)
        rows = features.clone().requires_grad_()
        loss = look_loss(rows, labels, memory, memory_labels, k=k)
        loss.sum().backward()
        results.append((loss.detach(), rows.grad))
    torch.testing.assert_close(results[0], results[1])


def test_all_neighbours_are_the_nca_loss_of_pytorch_metric_learning() -> None:
    from pytorch_metric_learning.losses import NCALoss

    features, labels, _, _ = data()
    index = torch.arange(EXAMPLES)
    rows = features.clone().requires_grad_()
    ours = look_loss(rows, labels, rows, labels, temperature=0.2, index=index, memory_index=index)
    theirs_rows = features.clone().requires_grad_()
    # exp(-d^2 / (2 T)) of unit vectors is exp(cos / T) up to a factor that cancels.
    theirs = NCALoss(softmax_scale=1 / (2 * 0.2))(theirs_rows, labels)
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-5, atol=1e-7)
    ours.mean().backward()
    theirs.backward()
    torch.testing.assert_close(rows.grad, theirs_rows.grad, rtol=1e-4, atol=1e-6)


def test_as_many_neighbours_as_memory_has_are_all_of_it() -> None:
    given = data()
    torch.testing.assert_close(look_loss(*given, k=30), look_loss(*given))


def test_neighbours_of_one_class_cost_nothing_and_pull_nothing() -> None:
    features, _, memory, _ = data()
    features.requires_grad_()
    ones = torch.ones(EXAMPLES, dtype=torch.int64)
    loss = look_loss(features, ones, memory, torch.ones(len(memory), dtype=torch.int64), k=5)
    loss.sum().backward()
    assert not loss.any()
    assert features.grad is not None
    assert not features.grad.any()


def test_a_class_mate_beyond_the_neighbours_has_no_say() -> None:
    memory = torch.tensor([[1.0, 0.1], [1.0, -0.1], [1.0, 0.2], [-1.0, 0.0]])
    near, far = torch.tensor([0, 1, 0, 0]), torch.tensor([0, 1, 0, 1])
    row, label = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert torch.equal(look_loss(row, label, memory, near, k=3), look_loss(row, label, memory, far, k=3))
    moved = torch.cat([memory[:3], torch.tensor([[-1.0, 0.5]])])
    assert torch.equal(look_loss(row, label, memory, near, k=3), look_loss(row, label, moved, near, k=3))


def test_rotating_all_features_or_scaling_them_changes_nothing() -> None:
    features, labels, memory, memory_labels = data()
    turn = torch.linalg.qr(data(1, size=DIM)[0])[0]
    plain = look_loss(features, labels, memory, memory_labels, k=4)
    torch.testing.assert_close(look_loss(features @ turn, labels, memory @ turn, memory_labels, k=4), plain)
    torch.testing.assert_close(look_loss(3 * features, labels, 0.5 * memory, memory_labels, k=4), plain)


def test_an_example_is_not_its_own_neighbour_even_where_memory_holds_it_twice() -> None:
    features, labels, memory, memory_labels = data()
    index, others = torch.arange(EXAMPLES), torch.arange(100, 130)
    with_own = torch.cat([features, memory, features])
    own_labels = torch.cat([labels, memory_labels, labels])
    found = look_loss(
        features, labels, with_own, own_labels, k=3, index=index, memory_index=torch.cat([index, others, index])
    )
    # The other examples of the batch are in memory too, so each is compared one by one.
    for i in range(EXAMPLES):
        keep = torch.cat([index, others, index]) != i
        alone = look_loss(features[i : i + 1], labels[i : i + 1], with_own[keep], own_labels[keep], k=3)
        torch.testing.assert_close(found[i : i + 1], alone)


def test_with_itself_among_them_the_nearest_neighbour_is_always_right() -> None:
    features, labels, _, _ = data()
    assert not look_loss(features, labels, features, labels, k=1).any()
    index = torch.arange(EXAMPLES)
    assert look_loss(features, labels, features, labels, k=1, index=index, memory_index=index).mean() > 0.5


def test_entries_that_are_not_there_do_not_count() -> None:
    features, labels, memory, memory_labels = data()
    gone = torch.arange(len(memory)) % 3 == 0
    marked = memory_labels.masked_fill(gone, -1)
    for k in (4, None):
        torch.testing.assert_close(
            look_loss(features, labels, memory, marked, k=k),
            look_loss(features, labels, memory[~gone], memory_labels[~gone], k=k),
        )
    # More neighbours than there are.
    torch.testing.assert_close(
        look_loss(features, labels, memory, marked, k=28),
        look_loss(features, labels, memory[~gone], memory_labels[~gone]),
    )


@pytest.mark.parametrize("k", [3, None])
def test_a_class_that_memory_does_not_know_counts_nothing(k: int | None) -> None:
    features, labels, memory, memory_labels = data()
    features.requires_grad_()
    labels = labels.clone()
    labels[0] = CLASSES
    loss = look_loss(features, labels, memory, memory_labels, k=k)
    (gradient,) = torch.autograd.grad(loss.sum(), features)
    others = look_loss(features[1:], labels[1:], memory, memory_labels, k=k)
    assert loss[0] == 0
    assert not gradient[0].any()
    torch.testing.assert_close(gradient[1:], torch.autograd.grad(others.sum(), features)[0][1:])
    empty = look_loss(features, labels, memory, torch.full_like(memory_labels, -1), k=k)
    assert not empty.any()


@pytest.mark.parametrize("temperature", [0.01, 0.03])
def test_the_smallest_vote_keeps_value_and_gradient(temperature: float) -> None:
    # The first row's own class is on the other side: at 0.01 its share of the vote is less than float32 can hold.
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    memory = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    labels, memory_labels = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1, 1])

    def value_and_gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        inputs = rows.to(dtype).requires_grad_(), memory.to(dtype).requires_grad_()
        values = look_loss(inputs[0], labels, inputs[1], memory_labels, temperature=temperature)
        return values.detach(), *torch.autograd.grad(values.sum(), inputs)

    wide = value_and_gradients(torch.float64)
    assert wide[0][0] > 2 / temperature - 1e-3
    for found, wanted in zip(value_and_gradients(torch.float32), wide):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, None])
def test_gradients_are_those_of_finite_differences(k: int | None) -> None:
    features, labels, memory, memory_labels = data()
    inputs = (features.requires_grad_(), memory.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda rows, keys: look_loss(rows, labels, keys, memory_labels, k=k, temperature=0.5), inputs
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [3, None])
def test_half_precision_at_low_temperature_is_near_float64(dtype: torch.dtype, k: int | None, as_float64: Any) -> None:
    features, labels, memory, memory_labels = data()
    rows = (100 * features / features.abs().max()).to(dtype)
    rows[0] = 0
    memory = memory.to(dtype)
    gradient, _ = as_float64(
        lambda near, keys: look_loss(near, labels, keys, memory_labels, k=k, temperature=0.01), rows, memory
    )
    assert not gradient[0].any()
    # The square of a length overflows float16; a loss of cosines does not see it.
    near, far = (
        look_loss(scale * rows, labels, memory, memory_labels, k=k, temperature=0.01) for scale in (1.0, 256.0)
    )
    torch.testing.assert_close(far, near)


def test_accuracy_is_that_of_scikit_learns_classifier_leaving_one_out() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    features, labels, _, _ = data(size=40)
    rows, targets, right = features.numpy(), labels.numpy(), 0
    for i in range(len(rows)):
        rest = [j for j in range(len(rows)) if j != i]
        model = KNeighborsClassifier(5, metric="cosine", weights=lambda d: torch.tensor(-d / 0.2).exp().numpy())
        right += int(model.fit(rows[rest], targets[rest]).predict(rows[i : i + 1])[0] == targets[i])
    assert look_accuracy(features, labels, k=5, temperature=0.2) == pytest.approx(right / len(rows))


def test_accuracy_does_not_depend_on_chunks_or_the_names_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels, _, _ = data(size=40)
    plain = look_accuracy(features, labels, k=5)
    monkeypatch.setattr(votes, "_HELD", 9)
    assert look_accuracy(features, 1000 * labels - 7, k=5) == plain


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 31}, OptionError, "k=31 is more than the 30"),
        ({"k": 0}, OptionError, "k=0"),
        ({"temperature": 0.0}, OptionError, "temperature=0.0"),
        ({"no_positive": "clamp"}, OptionError, "no_positive='clamp'"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, DataError, r"labels has shape \(5,\)"),
        ({"labels": torch.zeros(EXAMPLES)}, DataError, r"labels has shape .* torch\.float32"),
        ({"memory": torch.zeros(30, 7)}, DataError, r"memory \(30, 7\)"),
        ({"memory_labels": torch.zeros(3, dtype=torch.int64)}, DataError, r"memory_labels has shape \(3,\)"),
        ({"index": torch.arange(EXAMPLES)}, DataError, "only one was given"),
        ({"features": torch.zeros(EXAMPLES)}, DataError, r"features \(12,\)"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    names = ("features", "labels", "memory", "memory_labels")
    with pytest.raises(error, match=message):
        look_loss(**{**dict(zip(names, data())), **change})  # type: ignore[arg-type]


def test_accuracy_refuses_what_it_cannot_search() -> None:
    with pytest.raises(OptionError, match="k=4 is more than the 3"):
        look_accuracy(POINTS, POINT_LABELS, k=4)
    with pytest.raises(DataError, match="not finite"):
        look_accuracy(POINTS.masked_fill(POINTS == 0, math.nan), POINT_LABELS, k=1)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, DIM))


def batches(epochs: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(EXAMPLES, 5, generator=generator)
    targets = torch.arange(EXAMPLES) % CLASSES
    made = []
    for _ in range(epochs):
        for index in torch.randperm(EXAMPLES, generator=generator).split(6):
            made.append({"input": inputs[index], "target": targets[index], "index": index})
    return made


def stepped(methods: list[Method], criterion: nn.Module | None = None, epochs: int = 3, **more: object) -> Step:
    torch.manual_seed(1)
    criterion = criterion or NormalisedSoftmaxLoss(CLASSES, dim=DIM)
    optimizer = lambda groups: torch.optim.SGD(groups, lr=0.3, momentum=0.9)  # noqa: E731
    step = Step(network(), optimizer, criterion, methods, examples=EXAMPLES, classes=CLASSES, **more)
    for batch in batches(epochs):
        step(batch)
    return step


def weights(step: Step) -> list[Tensor]:
    return [p.detach() for p in step.run.model.parameters()]


def test_the_bank_equals_a_plain_loop_that_remembers_each_examples_features() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    bank: dict[int, Tensor] = {}
    for batch in batches(3):
        features = functional.normalize(model(batch["input"]), dim=1)
        losses = []
        for row, label, i in zip(features, batch["target"], batch["index"].tolist()):
            rest = [j for j in bank if j != i]
            if not any(j % CLASSES == int(label) for j in rest):
                losses.append(0 * row.sum())
                continue
            near = torch.stack([row @ bank[j] / 0.1 for j in rest])
            top = near.argsort(descending=True)[:4].tolist()
            right = [n for n in top if rest[n] % CLASSES == int(label)]
            if not right:
                right = [max((n for n, j in enumerate(rest) if j % CLASSES == int(label)), key=lambda n: near[n])]
                top = top + right
            losses.append(near[top].logsumexp(0) - near[right].logsumexp(0))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        bank.update(zip(batch["index"].tolist(), features.detach()))
    found = weights(stepped([LOOK(k=4)]))
    torch.testing.assert_close(found, [p.detach() for p in model.parameters()], rtol=1e-4, atol=1e-6)


def test_the_queue_holds_keys_of_the_copy_and_leaves_out_an_examples_own() -> None:
    method = LOOK(k=4, memory="queue", size=8, momentum=0.5)
    before = network()
    step = stepped([method], epochs=1)
    assert method.keys is not None
    features, labels, index = method.keys.queue.entries()
    assert len(features) == 8
    assert torch.equal(labels, index % CLASSES)
    # The first step's keys are those of the initial weights, of which two rows are left in the queue.
    first = batches(1)[0]
    kept = [(place, row) for place, row in enumerate(first["index"].tolist()) if row in index.tolist()]
    keys = functional.normalize(before(first["input"]), dim=1).detach()
    for place, row in kept:
        torch.testing.assert_close(features[index == row][0], keys[place])
    assert not any(p.requires_grad for p in method.keys.parameters())
    assert step.run.counts.forward == 2 * EXAMPLES


def test_the_copy_follows_the_network_before_each_step() -> None:
    method = LOOK(k=4, memory="queue", momentum=0.75)
    step = stepped([method], epochs=2)
    assert method.keys is not None
    old, model = ([p.detach().clone() for p in owner.parameters()] for owner in (method.keys.encoder, step.run.model))
    step(batches(1)[0])
    for before, now, target in zip(old, method.keys.encoder.parameters(), model):
        torch.testing.assert_close(now.data, 0.75 * before + 0.25 * target)


def test_the_batch_is_nca_with_a_gradient_to_both_sides() -> None:
    model, criterion = network(), NormalisedSoftmaxLoss(CLASSES, dim=DIM)
    method = LOOK(k=6, memory="batch")
    step = Step(model, torch.optim.SGD(model.parameters(), lr=0.0), criterion, [method])
    batch = batches(1)[0]
    step({"input": batch["input"], "target": batch["target"]})
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    features, index = model(batch["input"]), torch.arange(6)
    loss = look_loss(features, batch["target"], features, batch["target"], index=index, memory_index=index)
    expected = torch.autograd.grad(loss.mean(), list(model.parameters()))
    torch.testing.assert_close(found, list(expected))


def test_a_classifier_goes_on_learning_and_the_features_feel_look_alone() -> None:
    step = stepped([LOOK(k=4)], nn.CrossEntropyLoss(), epochs=2)
    model, batch = step.run.model, batches(2)[0]
    step(batch)
    below = [p.grad.clone() for p in model[0].parameters() if p.grad is not None]
    behind = [p.grad.clone() for p in model[2].parameters() if p.grad is not None]
    torch.manual_seed(1)
    other = stepped([LOOK(k=4)], nn.CrossEntropyLoss(), epochs=2)
    plain, method = other.run.model, other.methods[0]
    assert isinstance(method, LOOK)
    assert method.bank is not None
    assert method.bank.rows is not None
    index = torch.arange(EXAMPLES)
    features = plain[:2](batch["input"])
    look = look_loss(
        features, batch["target"], method.bank.rows, index % CLASSES, k=4, index=batch["index"], memory_index=index
    )
    expected = torch.autograd.grad(look.mean(), list(plain[0].parameters()))
    torch.testing.assert_close(below, list(expected))
    entropy = functional.cross_entropy(plain(batch["input"]), batch["target"])
    torch.testing.assert_close(behind, list(torch.autograd.grad(entropy, list(plain[2].parameters()))))


def test_half_a_share_is_half_of_either_gradient() -> None:
    gradients, batch = [], batches(2)[0]
    for share in (0.5, 1.0):
        step = stepped([LOOK(k=4, share=1.0)], epochs=2)
        (method,), model = step.methods, step.run.model
        assert isinstance(method, LOOK)
        method.share = share
        loss = step.run.criterion(model(batch["input"]), batch["target"])
        baseline = torch.autograd.grad(loss, list(model.parameters()))
        step(batch)
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for none, half, whole in zip(baseline, *gradients):
        torch.testing.assert_close(half, (none + whole) / 2)


def test_no_share_is_the_baseline_bit_for_bit() -> None:
    for base, other in zip(weights(stepped([])), weights(stepped([LOOK(share=0.0)]))):
        assert torch.equal(base, other)


def test_half_as_many_neighbours_as_a_class_has_entries_by_default() -> None:
    assert all(torch.equal(a, b) for a, b in zip(weights(stepped([LOOK()])), weights(stepped([LOOK(k=2)]))))


def test_only_the_first_pass_of_a_step_is_remembered() -> None:
    method = LOOK(k=4)
    step, batch = stepped([SAM(rho=0.5), method], epochs=2), batches(2)[0]
    before = functional.normalize(step.run.model(batch["input"]), dim=1).detach()
    step(batch)
    assert method.bank is not None
    torch.testing.assert_close(method.bank.read(batch["index"]), before)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"temperature": 0.0},
        {"share": 1.5},
        {"memory": "disk"},
        {"no_positive": "clamp"},
        {"size": 0},
        {"momentum": 2.0},
        {"features": "first"},
    ],
)
def test_bad_options_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        LOOK(**options)  # type: ignore[arg-type]


def test_asks_only_for_what_it_uses() -> None:
    assert LOOK().needs == {"index", "classes"}
    assert LOOK(k=3).needs == {"index"}
    assert LOOK(memory="batch").needs == {"classes"}
    assert not LOOK(k=3, memory="batch").needs
    model = network()
    with pytest.raises(ConflictError, match="look needs 'classes'"):
        Step(model, torch.optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss(), [LOOK()])
