"""Batches cut into micro-batches, rows selected, and what a copied state shares."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repertory.core.state import Counts, Run, State, batch_size, split
from repertory.errors import UserError


def run() -> Run:
    return Run(nn.Linear(2, 2), nn.MSELoss(), seed=3)


@pytest.mark.parametrize(("size", "parts"), [(7, 3), (6, 2), (5, 5), (3, 8), (1, 4)])
def test_micro_batches_are_the_batch_in_order_and_nearly_equal(size: int, parts: int) -> None:
    pieces = [piece["input"] for piece in split({"input": torch.arange(size)}, parts)]
    assert torch.equal(torch.cat(pieces), torch.arange(size))
    assert len(pieces) == min(size, parts)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_views_and_modalities_are_split_with_the_examples() -> None:
    image, text = torch.arange(4), torch.arange(4) * 10
    batch = {"input": {"image": image, "text": text}, "views": [image, text], "pair": (image, text)}
    first, second = split(batch, 2)
    assert first["input"]["image"].tolist() == [0, 1]
    assert second["input"]["text"].tolist() == [20, 30]
    assert [view.tolist() for view in second["views"]] == [[2, 3], [20, 30]]
    assert isinstance(second["pair"], tuple)


def test_what_has_no_row_an_example_goes_to_every_micro_batch_whole() -> None:
    batch = {
        "input": torch.zeros(4, 2),
        "names": ["cat", "dog"],
        "temperature": torch.tensor(2.0),
        "tasks": torch.ones(3),
    }
    for piece in split(batch, 2):
        assert piece["names"] == ["cat", "dog"]
        assert piece["temperature"].item() == 2.0
        assert len(piece["tasks"]) == 3


def test_streams_are_split_by_their_own_size() -> None:
    batch = {"input": torch.zeros(4), "unlabelled": {"input": torch.arange(10), "index": torch.arange(10)}}
    assert [piece["unlabelled"]["index"].tolist() for piece in split(batch, 2)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_a_short_stream_reaches_every_micro_batch() -> None:
    batch = {"input": torch.arange(4), "unlabelled": {"input": torch.arange(2)}}
    pieces = list(split(batch, 4))
    assert [len(piece["unlabelled"]["input"]) for piece in pieces] == [1, 1]
    assert [len(piece["input"]) for piece in pieces] == [2, 2]


def test_selection_takes_rows_of_the_batch_and_leaves_streams_whole() -> None:
    batch = {
        "input": (torch.arange(4), torch.arange(4) + 4),
        "target": torch.arange(4),
        "s": {"input": torch.arange(4)},
    }
    chosen = State(run(), batch).select(torch.tensor([3, 1])).batch
    assert chosen["target"].tolist() == [3, 1]
    assert [part.tolist() for part in chosen["input"]] == [[3, 1], [7, 5]]
    assert len(chosen["s"]["input"]) == 4


def test_a_copy_shares_the_memo_and_has_no_output() -> None:
    state = State(run(), {"input": torch.zeros(2)}, output=torch.ones(2))
    copy = state.with_batch(target=torch.zeros(2)).replace(evaluation=1)
    copy.memo["seen"] = True
    assert state.memo == {"seen": True}
    assert (copy.evaluation, copy.output, set(copy.batch)) == (1, None, {"input", "target"})
    assert set(state.batch) == {"input"}


def test_the_size_of_a_batch_is_that_of_its_first_tensor() -> None:
    assert batch_size({"input": [{"image": torch.zeros(5, 1)}]}) == 5


def test_a_generator_is_made_once_a_name() -> None:
    made = run()
    assert made.generator("a") is made.generator("a")
    assert made.generator("a").initial_seed() != made.generator("b").initial_seed()


def test_a_backward_pass_counts_two() -> None:
    assert Counts(forward=3, backward=2).passes == 7.0


def test_losses_are_not_available_outside_a_step() -> None:
    with pytest.raises(RuntimeError, match="during a step"):
        run().losses(State(run(), {}))


def test_the_training_set_comes_as_mappings_however_its_loader_gives_it() -> None:
    inputs, targets, index = torch.ones(2, 3), torch.tensor([0, 1]), torch.arange(2)
    given = [(inputs, targets, index), {"input": inputs, "target": targets, "group": index}]
    run = Run(nn.Linear(3, 2), nn.CrossEntropyLoss(), training=given)
    first, second = run.training_batches()
    assert list(first) == ["input", "target", "index"]
    assert list(second) == ["input", "target", "group"]
    assert first["input"] is inputs
    assert list(Run(nn.Linear(3, 2), nn.CrossEntropyLoss()).training_batches()) == []
    with pytest.raises(UserError, match="a batch is a mapping with 'input' and 'target'"):
        list(Run(nn.Linear(3, 2), nn.CrossEntropyLoss(), training=[inputs]).training_batches())
