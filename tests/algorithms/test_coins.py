"""CoIns against hand calculation, the released code, MoCo as its limit, and what must not have a gradient."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Step
from repertory.algorithms import SAM, CoIns
from repertory.algorithms.coins import instance_loss
from repertory.core import Method
from repertory.errors import ConflictError, DataError, OptionError
from repertory.losses import NormalisedSoftmaxLoss

RELEASED = json.loads((Path(__file__).parent / "coins_released.json").read_text(encoding="utf-8"))
CLASSES, DIM, BATCH, WIDTH = 3, 4, 6, 5


def data(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randn(rows, DIM, generator=generator, dtype=torch.float64) for rows in (BATCH, BATCH, 9)
    )


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, DIM))


def batch(number: int, index: bool = True) -> dict[str, object]:
    generator = torch.Generator().manual_seed(number)
    views = [torch.randn(BATCH, WIDTH, generator=generator) for _ in range(2)]
    targets = torch.randint(CLASSES, (BATCH,), generator=generator)
    made = {"input": views[0] + 9.0, "views": views, "target": targets}
    return {**made, "index": torch.arange(BATCH) + BATCH * number} if index else made


def built(methods: list[Method], lr: float = 0.2, criterion: nn.Module | None = None) -> Step:
    torch.manual_seed(1)
    criterion = criterion or NormalisedSoftmaxLoss(CLASSES, dim=DIM)
    optimizer = lambda groups: torch.optim.SGD(groups, lr=lr)  # noqa: E731
    return Step(network(), optimizer, criterion, methods, classes=CLASSES)


def method_of(step: Step) -> CoIns:
    method = step.methods[-1]
    assert isinstance(method, CoIns)
    return method


def test_two_terms_by_hand() -> None:
    query, key, queue = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    instance = instance_loss(query, key, queue, temperature=1.0)
    coarse = NormalisedSoftmaxLoss(2, dim=2, temperature=1.0)
    coarse.weight_of_classes.data = torch.eye(2)
    assert instance.item() == pytest.approx(math.log(1 + math.exp(-1)))
    total = instance + 0.5 * coarse(query, torch.tensor([0]))
    assert total.item() == pytest.approx(0.4699, abs=5e-5)


def test_instance_loss_is_a_cross_entropy_with_the_key_in_the_first_place() -> None:
    queries, keys, queue = data()
    unit = [functional.normalize(rows, dim=1) for rows in (queries, keys, queue)]
    logits = torch.cat([(unit[0] * unit[1]).sum(1, keepdim=True), unit[0] @ unit[2].T], 1) / 0.2
    expected = functional.cross_entropy(logits, torch.zeros(BATCH, dtype=torch.int64), reduction="none")
    torch.testing.assert_close(instance_loss(queries, keys, queue, 0.2), expected)


def test_equals_info_nce_of_pytorch_metric_learning_with_the_queue_as_reference() -> None:
    from pytorch_metric_learning.losses import NTXentLoss

    queries, keys, queue = data()
    labels = torch.arange(BATCH)
    reference = torch.cat([keys, queue])
    # Each query's pairs are itself with its key, and with the queue; other queries' keys are taken out one by one.
    values = []
    for i in range(BATCH):
        rows = torch.cat([reference[i : i + 1], queue])
        names = torch.cat([labels[i : i + 1], 100 + torch.arange(len(queue))])
        values.append(NTXentLoss(0.2)(queries[i : i + 1], labels[i : i + 1], ref_emb=rows, ref_labels=names))
    torch.testing.assert_close(
        instance_loss(queries, keys, queue, 0.2), torch.stack(values).double(), rtol=1e-5, atol=1e-6
    )


def test_negatives_left_out_do_not_count() -> None:
    queries, keys, queue = data()
    left_out = torch.arange(9).expand(BATCH, -1) % 2 == 0
    torch.testing.assert_close(
        instance_loss(queries, keys, queue, 0.2, left_out), instance_loss(queries, keys, queue[1::2])
    )
    assert not instance_loss(queries, keys, queue[:0]).any()


def test_gradient_reaches_the_queries_only_and_is_right() -> None:
    queries, keys, queue = (rows.requires_grad_() for rows in data())
    assert torch.autograd.gradcheck(lambda rows: instance_loss(rows, keys, queue), (queries,))
    instance_loss(queries, keys, queue).sum().backward()
    assert keys.grad is None
    assert queue.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_at_low_temperature_is_near_float64(dtype: torch.dtype, as_float64: Any) -> None:
    queries, keys, queue = ((100 * rows / rows.abs().max()).to(dtype) for rows in data())
    queries[0] = 0
    (gradient,) = as_float64(lambda rows: instance_loss(rows, keys, queue, 0.01), queries)
    assert not gradient[0].any()
    # The square of a length overflows float16; a loss of cosines does not see it.
    far = (256 * queries).requires_grad_()
    torch.testing.assert_close(instance_loss(far, keys, queue, 0.01), instance_loss(queries, keys, queue, 0.01))
    # Nothing is left where no negative counts.
    alone = instance_loss(far, keys, queue, 0.01, torch.ones(BATCH, 9, dtype=torch.bool))
    assert not alone.any()
    assert not torch.autograd.grad(alone.sum(), far)[0].any()


def test_three_steps_are_those_of_the_released_code() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))

    def load(layers: nn.Sequential, values: dict[str, list[float]]) -> None:
        with torch.no_grad():
            for layer, name in ((layers[0], "first"), (layers[2], "fc")):
                layer.weight.copy_(torch.tensor(values[f"{name}.weight"]))
                layer.bias.copy_(torch.tensor(values[f"{name}.bias"]))

    load(model, RELEASED["start"])
    coins = CoIns(size=8, momentum=0.9)
    optimizer = lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)  # noqa: E731
    step = Step(model, optimizer, NormalisedSoftmaxLoss(2, dim=4), [coins], classes=2)
    with torch.no_grad():
        coins.coarse.weight_of_classes.copy_(torch.tensor(RELEASED["centers"]).T)
    coins.keys.queue.push(torch.tensor(RELEASED["queue"]))
    for views, targets, (instance, coarse) in zip(
        torch.tensor(RELEASED["views"]), torch.tensor(RELEASED["targets"]), RELEASED["losses"]
    ):
        behind = step.run.criterion(model(views[0]), targets).item()
        loss = step({"input": views[0], "views": list(views), "target": targets})
        assert loss.item() - behind == pytest.approx(instance + 0.5 * coarse, rel=1e-5)
    end, keys = (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(2))
    load(end, RELEASED["end"])
    load(keys, RELEASED["end_keys"])
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(list(model.parameters()), list(end.parameters()), **close)
    torch.testing.assert_close(
        [p.data for p in coins.keys.encoder.parameters()], [p.data for p in keys.parameters()], **close
    )
    torch.testing.assert_close(coins.coarse.weight_of_classes.data.T, torch.tensor(RELEASED["end_centers"]), **close)
    torch.testing.assert_close(coins.keys.queue.features, torch.tensor(RELEASED["end_queue"]), **close)


def test_the_network_runs_on_the_first_view_and_the_copy_on_the_second() -> None:
    step, made = built([CoIns(size=32)], lr=0.0), batch(0)
    step(made)
    expected = functional.normalize(network()(made["views"][1]), dim=1)  # type: ignore[index]
    torch.testing.assert_close(method_of(step).keys.queue.entries()[0], expected.detach())
    assert step.run.counts.forward == 2 * BATCH
    assert step.run.counts.backward == BATCH


def test_without_the_coarse_term_labels_do_not_matter_and_with_it_they_do() -> None:
    for weight in (0.0, 0.5):
        found = []
        for shifted in (0, 1):
            step = built([CoIns(weight=weight, size=32)])
            for number in range(3):
                made = batch(number)
                step({**made, "target": (made["target"] + shifted) % CLASSES})  # type: ignore[operator]
            found.append([p.detach() for p in step.run.model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found)) == (weight == 0)


def test_an_empty_queue_leaves_the_coarse_term_alone() -> None:
    step, made = built([CoIns(weight=0.7, temperature=0.3, size=32)], lr=0.0), batch(0)
    step(made)
    found = [p.grad.clone() for p in step.run.model.parameters() if p.grad is not None]
    method, model = method_of(step), step.run.model
    logits = (
        functional.normalize(model(made["views"][0]), dim=1)
        @ functional.normalize(  # type: ignore[index]
            method.coarse.weight_of_classes, dim=1
        ).T
    )
    loss = 0.7 * functional.cross_entropy(logits / 0.3, made["target"])  # type: ignore[arg-type]
    torch.testing.assert_close(found, list(torch.autograd.grad(loss, list(model.parameters()))))


def test_the_length_of_the_class_vectors_does_not_matter() -> None:
    losses = []
    for factor in (1.0, 5.0):
        step = built([CoIns(size=32)], lr=0.0)
        method_of(step).coarse.weight_of_classes.data.mul_(factor)
        step(batch(0))
        losses.append(step(batch(1)))
    torch.testing.assert_close(*losses)


def test_an_examples_own_old_keys_are_no_negatives_where_examples_are_known() -> None:
    values = []
    for index in (True, False):
        step = built([CoIns(weight=0.0, size=32)], lr=0.0)
        behind = step.run.criterion(network()(batch(0)["views"][0]), batch(0)["target"]).item()  # type: ignore[index]
        values.append([step(batch(0, index)).item() - behind for _ in range(2)][1])
    first, second = (functional.normalize(network()(view), dim=1) for view in batch(0)["views"])  # type: ignore[union-attr]
    all_of_them = (torch.cat([(first * second).sum(1, keepdim=True), first @ second.T], 1) / 0.2).logsumexp(1)
    others = (first @ second.T / 0.2).logsumexp(1)
    own = (first * second).sum(1) / 0.2
    assert values == pytest.approx([(others - own).mean().item(), (all_of_them - own).mean().item()], rel=1e-4)


def test_the_copy_moves_by_its_share_before_each_step_and_has_no_gradient() -> None:
    step = built([CoIns(size=32, momentum=0.75)])
    step(batch(0))
    method = method_of(step)
    before, model = (
        [p.clone() for p in method.keys.encoder.parameters()],
        [p.clone() for p in step.run.model.parameters()],
    )
    step(batch(1))
    for old, now, target in zip(before, method.keys.encoder.parameters(), model):
        torch.testing.assert_close(now, (0.75 * old + 0.25 * target).detach())
        assert now.grad is None


def test_the_queue_wraps_and_the_newest_keys_take_the_oldest_places() -> None:
    step = built([CoIns(size=8)])
    for number in range(3):
        step(batch(number))
    queue = method_of(step).keys.queue
    assert queue.index.tolist() == [16, 17, 10, 11, 12, 13, 14, 15]


def test_a_classifier_behind_the_features_goes_on_learning_by_itself() -> None:
    step, made = built([CoIns(size=32)], lr=0.0, criterion=nn.CrossEntropyLoss()), batch(0)
    step(made)
    step(made)
    model = step.run.model
    entropy = functional.cross_entropy(model(made["views"][0]), made["target"])  # type: ignore[index, arg-type]
    expected = torch.autograd.grad(entropy, [model[2].weight, model[2].bias, model[0].weight])
    torch.testing.assert_close([model[2].weight.grad, model[2].bias.grad], list(expected[:2]))
    assert not torch.allclose(model[0].weight.grad, expected[2])
    assert method_of(step).keys.queue.features.shape[1] == 8


def test_only_the_keys_of_a_steps_first_pass_are_kept() -> None:
    step = built([SAM(rho=0.5), CoIns(size=32)])
    step(batch(0))
    assert len(method_of(step).keys.queue) == BATCH


@pytest.mark.parametrize(
    "options",
    [{"weight": -1.0}, {"temperature": 0.0}, {"size": 0}, {"momentum": 1.5}, {"features": "last"}],
)
def test_bad_options_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        CoIns(**options)  # type: ignore[arg-type]


def test_what_does_not_fit_is_named() -> None:
    queries, keys, queue = data()
    with pytest.raises(DataError, match=r"keys \(5, 4\)"):
        instance_loss(queries, keys[:5], queue)
    with pytest.raises(OptionError, match=r"temperature=0\.0"):
        instance_loss(queries, keys, queue, 0.0)
    step = built([CoIns(size=32)])
    with pytest.raises(DataError, match=r"target holds 7 to 7, but the run has classes=3"):
        step({**batch(0), "target": torch.full((BATCH,), 7)})
    made = batch(0)
    del made["views"]
    with pytest.raises(ConflictError, match="coins needs 'views'"):
        built([CoIns(size=32)])(made)
