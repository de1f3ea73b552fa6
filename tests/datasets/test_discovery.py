"""Classes and rows are dealt as was asked for: no row twice, sets with the share of known examples that was named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from repertory import datasets
from repertory.datasets.discovery import CategoryStream, deal, known_classes, mix_of, step_count
from repertory.errors import DataError, OptionError

TARGETS = torch.arange(10).repeat(40)
NAMES = tuple("abcdefghij")


def dealt(options: dict[str, str] | None = None, targets: Tensor = TARGETS, seed: int = 0) -> CategoryStream:
    return deal(targets, NAMES[: int(targets.max()) + 1], options or {}, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"known": "4", "steps": "2", "mix": "0.5"}, {"known": "9"}, {"mix": "0"}])
def test_rows_come_once_and_classes_when_it_is_their_turn(options: dict[str, str]) -> None:
    stream = dealt(options)
    place = stream.places()[TARGETS]
    rows = torch.cat([stream.labelled, *stream.unlabelled])
    assert len(rows.unique()) == len(rows)
    assert set(place[stream.labelled].tolist()) == set(range(stream.known))
    first = stream.known
    for own, count in zip(stream.unlabelled, stream.new):
        new = place[own]
        assert set(new[new >= stream.known].tolist()) == set(range(first, first + count))
        first += count
    assert first == 10
    assert sorted(stream.order.tolist()) == list(range(10))


@pytest.mark.parametrize("mix", [0.0, 0.25, 0.5, 0.8])
def test_sets_have_the_share_of_known_examples_that_was_asked_for(mix: float) -> None:
    stream = dealt({"mix": str(mix)})
    place = stream.places()[TARGETS]
    for own in stream.unlabelled:
        assert float((place[own] < stream.known).double().mean()) == pytest.approx(mix, abs=0.03)
    assert int(place[stream.labelled].bincount().min()) >= 20


def test_all_examples_are_used_where_the_mix_allows_it() -> None:
    assert sum(map(len, dealt().unlabelled)) + len(dealt().labelled) == len(TARGETS)
    assert len(dealt({"mix": "0"}).labelled) == 200


def test_known_classes_are_mixed_in_alike() -> None:
    stream = dealt({"mix": "0.25"})
    place = stream.places()[TARGETS]
    counts = place[torch.cat(stream.unlabelled)].bincount()[: stream.known]
    assert int(counts.max() - counts.min()) <= 2


def test_the_order_of_a_set_says_nothing() -> None:
    stream = dealt({"mix": "0.5"})
    known = (stream.places()[TARGETS[stream.unlabelled[0]]] < stream.known).double()
    assert 0.3 < float(known[: len(known) // 2].mean()) < 0.7


def test_seeds_deal_other_classes() -> None:
    assert not torch.equal(dealt().order, dealt(seed=1).order)
    assert torch.equal(dealt().order, dealt({"mix": "0.7"}).order)


@pytest.mark.parametrize(("classes", "expected"), [(3, (2, 1)), (4, (2, 2)), (10, (5, 3)), (11, (6, 3))])
def test_half_of_the_classes_are_known_and_others_come_in_three_sets_unless_said(
    classes: int, expected: tuple[int, int]
) -> None:
    assert (known_classes({}, classes), step_count({}, classes)) == expected
    assert mix_of({}) == 0.25


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits?known=1", "known=1 is not from 2 to 9"),
        ("digits?known=10", "known=10 is not from 2 to 9"),
        ("digits?known=few", "known=few is not a whole number"),
        ("digits?known=8&steps=3", "steps=3 is not from 1 to 2, one new class a step"),
        ("digits?steps=0", "steps=0 is not from 1 to 5"),
        ("digits?mix=1", r"mix=1 is not a share in \[0, 1\)"),
        ("digits?mix=-0.1", "mix=-0.1 is not a share"),
        ("digits?mix=nan", "mix=nan is not a share"),
        ("digits?mix=half", "mix=half is not a share"),
        ("breast-cancer?known=2", "known=2 needs 3 classes, 2 known ones and a new one, but there are 2"),
        ("diabetes?known=2", "known=2 needs classes, but the task is regression"),
    ],
)
def test_options_that_cannot_be_are_refused(spec: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        datasets.load(spec)


@pytest.mark.parametrize(
    ("targets", "message"),
    [(torch.arange(2).repeat(5), "2 classes are too few"), (torch.tensor([0, 1, 3, 3]), "class 'c' has no training")],
)
def test_too_few_classes_or_examples_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        dealt(targets=targets)


def test_a_class_with_one_example_is_dealt_all_the_same() -> None:
    given: dict[str, Any] = {"targets": torch.tensor([0, 1, 1, 2, 2, 2, 3])}
    stream = dealt({"mix": "0.9"}, **given)
    place = stream.places()[given["targets"]]
    assert set(place[stream.labelled].tolist()) == {0, 1}
    assert all(bool((place[own] >= 2).any()) for own in stream.unlabelled)
