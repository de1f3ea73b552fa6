"""A queue keeps the latest rows, whatever the sizes of what is pushed, and survives saving."""

from __future__ import annotations

import torch

from repertory.core.queues import FeatureQueue


def numbered(first: int, last: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    numbers = torch.arange(first, last)
    return numbers[:, None] * torch.ones(2), numbers % 3, numbers


def test_the_latest_rows_stay_with_their_labels_and_places() -> None:
    queue, pushed = FeatureQueue(5, dim=2), 0
    for count in (2, 1, 4, 3, 9, 5):
        queue.push(*numbered(pushed, pushed + count))
        pushed += count
        features, labels, index = queue.entries()
        assert sorted(index.tolist()) == list(range(max(0, pushed - 5), pushed))
        assert torch.equal(features[:, 0].long(), index)
        assert torch.equal(labels, index % 3)


def test_a_new_queue_is_empty() -> None:
    queue = FeatureQueue(4, dim=2)
    assert len(queue) == 0
    assert [len(part) for part in queue.entries()] == [0, 0, 0]


def test_rows_without_labels_say_so() -> None:
    queue = FeatureQueue(4, dim=2)
    queue.push(torch.ones(2, 2))
    assert queue.entries()[1].tolist() == queue.entries()[2].tolist() == [-1, -1]


def test_no_gradient_is_kept() -> None:
    queue = FeatureQueue(4, dim=2)
    queue.push(torch.ones(2, 2, requires_grad=True) * 2)
    assert not queue.entries()[0].requires_grad


def test_state_goes_on_where_it_was() -> None:
    first, second = FeatureQueue(5, dim=2), FeatureQueue(5, dim=2)
    first.push(*numbered(0, 4))
    second.load_state_dict(first.state_dict())
    for queue in (first, second):
        queue.push(*numbered(4, 7))
    assert all(torch.equal(a, b) for a, b in zip(first.entries(), second.entries()))
