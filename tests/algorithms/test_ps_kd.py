"""PS-KD against closed forms, plain loops, and label smoothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from repertory import Step
from repertory.algorithms import PSKD, SAF, SAM
from repertory.algorithms.ps_kd import refined_targets
from repertory.errors import ConflictError, OptionError

EXAMPLES = 12
EPOCHS = 4


def network(norm: bool = False) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.ReLU(), nn.Linear(8, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return model


def epoch_batches(epoch: int, keep: int = EXAMPLES) -> list[dict[str, torch.Tensor]]:
    """Two batches of one pass in an order of its own; `keep` below 12 leaves other examples out each time."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(EXAMPLES, 6, generator=generator)
    targets = torch.randint(3, (EXAMPLES,), generator=generator)
    order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(epoch))[:keep]
    return [{"input": inputs[i], "target": targets[i], "index": i} for i in order.split(6)]


def stepper(model: nn.Module, *methods: object, lr: float = 0.2, **options: object) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    settings = {"epochs": EPOCHS, "classes": 3, **options}
    return Step(model, optimizer, nn.CrossEntropyLoss(), methods=list(methods), **settings)


def trained(*methods: object, epochs: int = EPOCHS, keep: int = EXAMPLES, norm: bool = False) -> Step:
    step = stepper(network(norm), *methods)
    for epoch in range(epochs):
        for batch in epoch_batches(epoch, keep):
            step(batch)
        step.end_epoch()
    return step


def weights(step: Step) -> list[torch.Tensor]:
    return [p.detach() for p in step.run.model.parameters()]


def test_targets_by_hand() -> None:
    soft = refined_targets(torch.tensor([0, 2]), torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.5, 0.0]]), 0.5)
    torch.testing.assert_close(soft, torch.tensor([[0.8, 0.15, 0.05], [0.25, 0.25, 0.5]]))


def test_targets_are_the_label_where_there_is_no_past() -> None:
    soft = refined_targets(torch.tensor([1]), torch.zeros(1, 3), 0.8)
    assert soft.tolist() == [[0.0, 1.0, 0.0]]


def test_a_uniform_past_is_label_smoothing() -> None:
    logits, targets = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    soft = refined_targets(targets, torch.full((5, 4), 0.25), 0.3)
    smoothed = nn.functional.cross_entropy(logits, targets, label_smoothing=0.3)
    torch.testing.assert_close(nn.functional.cross_entropy(logits, soft), smoothed)


def test_the_gradient_shrinks_by_the_share_of_the_past_where_nothing_changed() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 0])
    probabilities = logits.detach().softmax(1)
    loss = nn.functional.cross_entropy(logits, refined_targets(targets, probabilities, 0.7), reduction="sum")
    loss.backward()
    torch.testing.assert_close(logits.grad, 0.3 * (probabilities - nn.functional.one_hot(targets, 3)))


@pytest.mark.parametrize("keep", [EXAMPLES, 8])
def test_equals_a_plain_loop_over_a_table_of_predictions(keep: int) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    table: dict[int, torch.Tensor] = {}
    for epoch in range(EPOCHS):
        alpha = 0.8 * (epoch + 1) / EPOCHS
        for batch in epoch_batches(epoch, keep):
            labels = nn.functional.one_hot(batch["target"], 3).float()
            past = torch.stack([table.get(i, label) for i, label in zip(batch["index"].tolist(), labels)])
            logits = model(batch["input"])
            loss = -(((1 - alpha) * labels + alpha * past) * logits.log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            table.update(zip(batch["index"].tolist(), logits.detach().softmax(1)))
    step = trained(PSKD(), keep=keep)
    torch.testing.assert_close(weights(step), [p.detach() for p in model.parameters()], rtol=1e-4, atol=1e-6)


def test_equals_a_plain_loop_with_last_epochs_network_as_the_teacher() -> None:
    model = network(norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    teacher = copy.deepcopy(model)
    for epoch in range(EPOCHS):
        alpha = 0.5 * (epoch + 1) / EPOCHS
        for batch in epoch_batches(epoch):
            soft = nn.functional.one_hot(batch["target"], 3).float()
            if epoch > 0:
                with torch.no_grad():
                    soft = (1 - alpha) * soft + alpha * teacher(batch["input"]).softmax(1)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch["input"]), soft).backward()
            optimizer.step()
        teacher = copy.deepcopy(model).eval()
    step = trained(PSKD(alpha=0.5, teacher="previous_epoch_model"), norm=True)
    torch.testing.assert_close(weights(step), [p.detach() for p in model.parameters()], rtol=1e-4, atol=1e-6)
    assert step.run.counts.forward == EPOCHS * EXAMPLES + (EPOCHS - 1) * EXAMPLES


@pytest.mark.parametrize("teacher", ["table", "previous_epoch_model"])
def test_the_first_epoch_is_cross_entropy_and_the_second_is_not(teacher: str) -> None:
    method = PSKD(alpha=1.0, teacher=teacher)
    torch.testing.assert_close(weights(trained(method, epochs=1)), weights(trained(epochs=1)))
    method = PSKD(alpha=1.0, teacher=teacher)
    assert not torch.allclose(weights(trained(method, epochs=2))[0], weights(trained(epochs=2))[0])


def test_the_first_epoch_keeps_the_labels_of_examples_that_come_twice() -> None:
    model = network()
    step = stepper(model, PSKD(alpha=1.0), lr=0.0, epochs=1)
    batch = epoch_batches(0)[0]
    torch.testing.assert_close(step(batch), step(batch))


def test_the_later_of_two_presentations_is_remembered() -> None:
    method, model = PSKD(), network()
    batch = epoch_batches(0)[0]
    stepper(model, method, lr=0.0)({**batch, "index": torch.tensor([0, 1, 2, 0, 1, 2])})
    with torch.no_grad():
        torch.testing.assert_close(method.past.read(torch.arange(3)), model(batch["input"]).softmax(1)[3:])


def test_all_passes_of_a_step_have_the_same_targets() -> None:
    targets: list[torch.Tensor] = []

    def spy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        targets.append(target.clone())
        return nn.functional.cross_entropy(output, target, reduction="none")

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    methods = [SAM(rho=1.0), PSKD(alpha=1.0)]
    step = Step(model, optimizer, spy, methods=methods, epochs=2, classes=3)
    for _ in range(2):
        step(epoch_batches(0)[0])
        step.end_epoch()
    assert torch.equal(targets[2], targets[3])
    assert not torch.equal(targets[2], targets[0])


def test_predictions_of_perturbed_weights_are_not_remembered() -> None:
    method, model = PSKD(), network()
    batch = epoch_batches(0)[0]
    stepper(model, SAM(rho=1.0), method, lr=0.0)(batch)
    with torch.no_grad():
        torch.testing.assert_close(method.past.read(batch["index"]), model(batch["input"]).softmax(1))


def test_methods_around_it_see_the_networks_output() -> None:
    saf, model = SAF(start=0, lag=1), network()
    batch = epoch_batches(0)[0]
    stepper(model, saf, PSKD(), lr=0.0)(batch)
    with torch.no_grad():
        torch.testing.assert_close(saf.past[0].read(batch["index"]), model(batch["input"]))


def test_a_teaching_network_needs_no_index() -> None:
    inputs, targets, _ = epoch_batches(0)[0].values()
    stepper(network(), PSKD(teacher="previous_epoch_model"))((inputs, targets))
    with pytest.raises(ConflictError, match="ps-kd needs 'index'"):
        stepper(network(), PSKD())((inputs, targets))


@pytest.mark.parametrize("missing", ["epochs", "classes"])
def test_asks_for_what_its_schedule_and_targets_need(missing: str) -> None:
    with pytest.raises(ConflictError, match=f"ps-kd needs '{missing}'"):
        stepper(network(), PSKD(), **{missing: None})


@pytest.mark.parametrize(("name", "value"), [("alpha", -0.1), ("alpha", 1.1), ("teacher", "model")])
def test_refuses_bad_options_by_name(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"{name}={value!r}"):
        PSKD(**{name: value})
