"""SAF and MESA against closed forms, plain loops, and what they must leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from repertory import Step
from repertory.algorithms import MESA, SAF, SAM
from repertory.algorithms.saf import edit, trajectory_loss
from repertory.errors import OptionError
from repertory.recipe import Part, Recipe

LN3 = 1.0986122886681098
EXAMPLES = 12


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


def trained(method: object | None, epochs: int, keep: int = EXAMPLES, norm: bool = False, **options: object) -> Step:
    model = network(norm)
    step = Step(
        model,
        torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9),
        nn.CrossEntropyLoss(),
        methods=[method] if method else [],
        classes=3,
        **options,
    )
    for epoch in range(epochs):
        for batch in epoch_batches(epoch, keep):
            step(batch)
        step.end_epoch()
    return step


def weights(step: Step) -> list[torch.Tensor]:
    return [p.detach() for p in step.run.model.parameters()]


def divergence(past: torch.Tensor, now: torch.Tensor, temperature: float) -> torch.Tensor:
    distributions = [torch.distributions.Categorical(logits=z / temperature) for z in (past, now)]
    return torch.distributions.kl_divergence(*distributions)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_trajectory_loss_and_gradient_by_hand(temperature: float) -> None:
    now = torch.tensor([[temperature * LN3, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = trajectory_loss(now, torch.zeros(1, 2, dtype=torch.float64), temperature)
    loss.sum().backward()
    # Softened, the present is (3/4, 1/4) and the past (1/2, 1/2).
    assert loss.item() == pytest.approx(temperature**2 * 0.14384103622589042)
    assert now.grad.tolist()[0] == pytest.approx([temperature * 0.25, -temperature * 0.25])


def test_trajectory_loss_is_zero_and_flat_where_nothing_moved() -> None:
    now = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    loss = trajectory_loss(now, now.detach() + 3.0)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(now.grad, torch.zeros_like(now), atol=1e-12, rtol=0)


def test_trajectory_loss_goes_from_the_past_to_the_present() -> None:
    past, now = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(trajectory_loss(now, past, 2.0), 4 * divergence(past, now, 2.0))


def test_trajectory_loss_has_its_gradient_in_the_present_only() -> None:
    past, now = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda z: trajectory_loss(z, past, 2.0), (now,))
    trajectory_loss(now, past).sum().backward()
    assert past.grad is None


@pytest.mark.parametrize("keep", [EXAMPLES, 8])
@pytest.mark.parametrize("examples", [EXAMPLES, None])
def test_saf_equals_a_plain_loop_that_remembers_every_output(keep: int, examples: int | None) -> None:
    start, lag, stop, epochs = 2, 2, 7, 8
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for epoch in range(epochs):
        for batch in epoch_batches(epoch, keep):
            logits = model(batch["input"])
            loss = nn.functional.cross_entropy(logits, batch["target"])
            for row, i in enumerate(batch["index"].tolist()):
                seen[epoch % (lag + 1), i] = logits[row].detach()
                past = seen.get(((epoch - lag) % (lag + 1), i))
                if past is not None and start < epoch < stop:
                    loss = loss + 0.7 * 9 * divergence(past, logits[row], 3.0) / len(logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    saf = SAF(weight=0.7, temperature=3.0, start=start, lag=lag, stop=stop)
    step = trained(saf, epochs, keep, examples=examples)
    torch.testing.assert_close(weights(step), [p.detach() for p in model.parameters()], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [SAF(start=2, lag=1), MESA(start=2, decay=0.9)])
def test_acts_after_the_start_epoch_and_not_before(method: SAF | MESA) -> None:
    base, other = weights(trained(None, 3)), weights(trained(method, 3))
    assert all(torch.equal(a, b) for a, b in zip(base, other))
    method = type(method)(start=2)
    assert not torch.allclose(weights(trained(None, 6))[0], weights(trained(method, 6))[0])


def test_examples_without_a_record_keep_their_ordinary_loss() -> None:
    model = network()
    saf = SAF(weight=5.0, start=0, lag=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[saf], classes=3)
    first, second = epoch_batches(0)
    step(first)
    step.end_epoch()
    with torch.no_grad():
        model[3].weight.mul_(3.0)
        logits = model(second["input"])
    expected = nn.functional.cross_entropy(logits, second["target"])
    torch.testing.assert_close(step(second), expected)
    assert step(first) > nn.functional.cross_entropy(model(first["input"]), first["target"]) + 0.01


def test_the_record_is_of_the_unperturbed_weights() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    saf = SAF(start=0, lag=1)
    step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[SAM(rho=1.0), saf], classes=3)
    batch = epoch_batches(0)[0]
    step(batch)
    with torch.no_grad():
        torch.testing.assert_close(saf.past[0].read(batch["index"]), model(batch["input"]))


def test_works_with_a_criterion_that_gives_one_number_for_the_batch() -> None:
    def whole(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target).mean()

    losses = []
    for criterion in (whole, nn.CrossEntropyLoss()):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        step = Step(model, optimizer, criterion, methods=[SAF(start=0, lag=1)], classes=3)
        losses.append([])
        for epoch in range(3):
            losses[-1] += [step(batch) for batch in epoch_batches(epoch)]
            step.end_epoch()
    torch.testing.assert_close(losses[0], losses[1])


def test_mesa_equals_a_plain_loop_around_a_moving_average() -> None:
    model = network(norm=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True).eval()
    average.update_parameters(model)  # torch's average starts at the first weights it is given
    for epoch in range(4):
        for batch in epoch_batches(epoch):
            logits = model(batch["input"])
            loss = nn.functional.cross_entropy(logits, batch["target"])
            if epoch > 1:
                with torch.no_grad():
                    past = average(batch["input"])
                loss = loss + 0.8 * 25 * divergence(past, logits, 5.0).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
    mesa = MESA(start=1, decay=0.8)
    step = trained(mesa, 4, norm=True)
    torch.testing.assert_close(weights(step), [p.detach() for p in model.parameters()], rtol=1e-4, atol=1e-6)
    ours, theirs = mesa.average.model.state_dict(), average.module.state_dict()
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_mesa_without_memory_adds_nothing() -> None:
    base, mesa = trained(None, 3), trained(MESA(start=0, decay=0.0, weight=5.0), 3)
    torch.testing.assert_close(weights(base), weights(mesa), rtol=1e-5, atol=1e-6)


def test_mesa_counts_its_forward_pass_from_the_epoch_it_acts_in() -> None:
    counts = trained(MESA(start=1), 3).run.counts
    assert (counts.forward, counts.backward) == (3 * EXAMPLES + EXAMPLES, 3 * EXAMPLES)
    assert trained(SAF(start=0, lag=1), 3).run.counts.forward == 3 * EXAMPLES


def test_mesa_keeps_its_average_from_the_optimizer_and_in_evaluation_mode() -> None:
    mesa = MESA(start=0)
    step = trained(mesa, 1, norm=True)
    mesa.train()
    assert not any(module.training for module in mesa.average.modules())
    assert len(step.optimizer.param_groups[0]["params"]) == len(list(step.run.model.parameters()))
    assert len(step.optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", -1.0), ("temperature", 0.0), ("start", -1), ("start", 1.5), ("lag", 0), ("stop", 5)],
)
def test_saf_refuses_bad_options_by_name(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"{name}={value}"):
        SAF(**{name: value})


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_mesa_refuses_a_decay_that_never_follows(decay: float) -> None:
    with pytest.raises(OptionError, match=f"decay={decay}"):
        MESA(decay=decay)


@pytest.mark.parametrize("method", [SAF(), SAF(start=0, lag=6), MESA()])
def test_refuses_a_run_that_ends_before_it_would_act(method: SAF | MESA) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(OptionError, match="leaves nothing of 6 epochs"):
        Step(model, optimizer, nn.CrossEntropyLoss(), methods=[method], classes=3, epochs=6)


def test_edit_adds_the_variant_that_was_asked_for() -> None:
    recipe = Recipe(Part("torch.nn:Identity"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD"))
    assert isinstance(edit(recipe, weight=0.1).methods[0].build(), SAF)
    assert isinstance(edit(recipe, variant="mesa").methods[0].build(), MESA)
    with pytest.raises(OptionError, match="variant='sam'"):
        edit(recipe, variant="sam")
