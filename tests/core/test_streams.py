"""Streams run for ever, and go on from where they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from repertory import Method, Step
from repertory.core.streams import Stream
from repertory.errors import DataError
from repertory.training.loaders import BatchLoader


def loader() -> BatchLoader:
    return BatchLoader(torch.arange(10.0)[:, None], torch.zeros(10), batch_size=3, seed=1)


def take(stream: Stream, count: int) -> list[list[int]]:
    return [next(stream)["index"].tolist() for _ in range(count)]


def test_a_stream_starts_again_when_its_loader_is_exhausted() -> None:
    stream = Stream("numbers", [1, 2])
    assert [next(stream) for _ in range(5)] == [1, 2, 1, 2, 1]


def test_an_empty_loader_is_an_error() -> None:
    with pytest.raises(DataError, match="stream 'numbers' has no batch"):
        next(Stream("numbers", []))


@pytest.mark.parametrize("taken", [0, 1, 2, 4, 6])
def test_a_stream_goes_on_where_it_was_saved(taken: int) -> None:
    straight, fresh = Stream("s", loader()), Stream("s", loader())
    take(straight, taken)
    fresh.load_state_dict(straight.state_dict())
    assert take(fresh, 5) == take(straight, 5)


def test_going_back_to_a_saved_position_drops_what_was_under_way() -> None:
    stream = Stream("s", loader())
    take(stream, 1)
    saved, expected = stream.state_dict(), take(stream, 3)
    stream.load_state_dict(saved)
    assert take(stream, 3) == expected


class Recorder(Method):
    """Keeps the positions of the unlabelled examples it was given."""

    slug = "recorder"
    needs = frozenset({"stream:unlabelled"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def loss(self, state, inner):  # type: ignore[no-untyped-def]
        self.seen += state.batch["unlabelled"]["index"].tolist()
        return inner(state)


def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield torch.zeros(4, 1), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_step_brings_one_batch_of_every_stream_split_with_the_main_one(accumulate: int) -> None:
    model, recorder, batches = nn.Linear(1, 2), Recorder(), pairs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = Step(
        model,
        optimizer,
        nn.CrossEntropyLoss(),
        [recorder],
        streams={"unlabelled": loader()},
        accumulate=accumulate,
    )
    for _ in range(2):
        step(next(batches))
    expected = loader()
    first, second = (entries["index"].tolist() for entries, _ in zip(expected, range(2)))
    assert recorder.seen == first + second
