"""A step's state: all that the rest of the run depends on, and nothing that cannot be loaded safely."""

from __future__ import annotations

import functools
import io

import pytest
import torch
from torch import Tensor, nn

from repertory import Method, Step
from repertory.errors import UserError
from repertory.training.loaders import BatchLoader


class Wandering(Method):
    """Has state of every sort: a buffer, a parameter, a table's worth of extra state, and a generator."""

    slug = "wandering"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(()))
        self.factor = nn.Parameter(torch.ones(()))

    def loss(self, state, inner):  # type: ignore[no-untyped-def]
        draw = torch.rand((), generator=state.run.generator(self.slug))
        values = inner(state)
        self.average.lerp_(values.detach().mean(), 0.1)
        return values * (1 + draw) * self.factor + self.average


def build(seed: int = 0, **options: object) -> tuple[Step, BatchLoader]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = functools.partial(torch.optim.AdamW, lr=0.01)
    unlabelled = BatchLoader(torch.randn(7, 3), torch.zeros(7), batch_size=2, seed=1)
    step = Step(
        model, optimizer, nn.CrossEntropyLoss(), [Wandering()], streams={"unlabelled": unlabelled}, epochs=3, **options
    )
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(14, 3, generator=generator), torch.arange(14) % 2
    return step, BatchLoader(inputs, targets, batch_size=4, seed=2)


def advance(step: Step, loader: BatchLoader, steps: int) -> None:
    while steps:
        for batch in loader:
            step(batch)
            steps -= 1
            if loader.position == len(loader):
                step.end_epoch()
            if not steps:
                return


def through_a_file(state: object) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def flat(value: object) -> list[object]:
    if isinstance(value, dict):
        return [leaf for key in value for leaf in (key, *flat(value[key]))]
    if isinstance(value, (list, tuple)):
        return [leaf for entry in value for leaf in flat(entry)]
    return [value.tolist() if isinstance(value, Tensor) else value]


@pytest.mark.parametrize("precision", ["32", "fp16"])
@pytest.mark.parametrize("interrupted", [1, 4, 6])
def test_a_run_resumed_in_mid_epoch_ends_with_the_same_state_bit_for_bit(interrupted: int, precision: str) -> None:
    straight, loader = build(precision=precision)
    advance(straight, loader, 10)
    first, first_loader = build(precision=precision)
    advance(first, first_loader, interrupted)
    saved = through_a_file({"step": first.state_dict(), "loader": first_loader.state_dict()})
    second, second_loader = build(seed=1, precision=precision)
    second.load_state_dict(saved["step"])
    second_loader.load_state_dict(saved["loader"])
    advance(second, second_loader, 10 - interrupted)
    assert flat(second.state_dict()) == flat(straight.state_dict())


def test_the_state_counts_epochs_and_passes() -> None:
    step, loader = build()
    advance(step, loader, 5)
    fresh, _ = build()
    fresh.load_state_dict(through_a_file(step.state_dict()))
    run = fresh.run
    assert (run.epoch, run.counts.steps, run.progress) == (1, 5, pytest.approx(1 / 3))
    assert run.counts == step.run.counts


def test_the_state_of_other_methods_is_refused() -> None:
    step, _ = build()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    other = Step(model, torch.optim.AdamW(model.parameters()), nn.CrossEntropyLoss())
    with pytest.raises(UserError, match=r"saved with methods \['wandering'\], this step has \[\]"):
        other.load_state_dict(step.state_dict())


@pytest.mark.parametrize("state", [{}, {"model": {}}, {"format": 99, "methods": {}}, "weights"])
def test_what_is_no_state_of_a_step_is_refused(state: object) -> None:
    step, _ = build()
    with pytest.raises(UserError, match="not the state of a repertory Step"):
        step.load_state_dict(state)  # type: ignore[arg-type]


def test_state_is_kept_by_slug_and_not_by_position() -> None:
    class Other(Wandering):
        slug = "other"

    def made(*methods: Method) -> Step:
        model = nn.Linear(3, 2)
        return Step(model, functools.partial(torch.optim.SGD, lr=0.1), nn.CrossEntropyLoss(), methods)

    saved = made(Wandering(), Other())
    saved.methods[0].average.fill_(1.0)
    saved.methods[1].average.fill_(2.0)
    turned = made(Other(), Wandering())
    turned.load_state_dict(saved.state_dict())
    assert (turned.methods[0].average.item(), turned.methods[1].average.item()) == (2.0, 1.0)
