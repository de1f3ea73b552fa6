"""Lists of methods that cannot work are refused before anything runs, with the way out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
import torch
from torch import nn

from repertory import Method, Step
from repertory.core.conflicts import check_methods
from repertory.errors import ConflictError


def method(slug: str, **attributes: object) -> Method:
    return type(slug.title(), (Method,), {"slug": slug, **attributes})()


def check(methods: Sequence[Method], criterion: object = None, offers: Collection[str] = ()) -> None:
    check_methods(methods, criterion or nn.CrossEntropyLoss(), offers, {"target": "hard"})


SOFTENING = {"takes": {"target": "hard"}, "gives": {"target": "soft"}}


def test_methods_that_share_nothing_pass() -> None:
    check([method("a", owns=frozenset({"ascent"})), method("b", owns=frozenset({"target"}))])


def test_two_owners_of_a_slot_are_refused() -> None:
    owners = [method(slug, owns=frozenset({"ascent"})) for slug in ("a", "b")]
    with pytest.raises(ConflictError, match=r"a and b both own the slot 'ascent'.*use one of the two"):
        check(owners)


def test_a_method_is_taken_once() -> None:
    with pytest.raises(ConflictError, match="a is listed 2 times"):
        check([method("a"), method("a")])


def test_a_method_without_a_slug_is_refused() -> None:
    with pytest.raises(ConflictError, match="has no slug"):
        check([method("")])


def test_the_order_that_works_is_suggested_and_works() -> None:
    mixing, mining = method("mixing", gives={"target": "soft"}), method("mining", takes={"target": "hard"})
    with pytest.raises(ConflictError, match="mining takes a hard target, but mixing gives a soft one") as raised:
        check([mixing, mining])
    assert "this order works: mining + mixing" in str(raised.value)
    check([mining, mixing])


def test_it_is_said_when_no_order_works() -> None:
    with pytest.raises(ConflictError, match="no order of these methods works; leave one out"):
        check([method("a", **SOFTENING), method("b", **SOFTENING)])


def test_a_criterion_that_takes_hard_targets_stands_at_the_end_of_the_list() -> None:
    class Hard(nn.Module):
        takes = {"target": "hard"}

    with pytest.raises(ConflictError, match="Hard takes a hard target, but a gives a soft one"):
        check([method("a", gives={"target": "soft"})], Hard())


@pytest.mark.parametrize(
    ("need", "fix"),
    [
        ("stream:unlabelled", r"pass streams=\{'unlabelled': loader\} to Step"),
        ("epochs", "pass epochs="),
        ("classes", "pass classes="),
        ("teacher", "pass teacher="),
        ("training", "pass training="),
        ("graph", "choose a method that does not need graph"),
    ],
)
def test_an_unmet_need_is_refused_with_the_call_that_meets_it(need: str, fix: str) -> None:
    needy = method("a", needs=frozenset({need}))
    with pytest.raises(ConflictError, match=f"a needs '{need}'; this run offers 'view'; {fix}"):
        check([needy], offers={"view"})
    check([needy], offers={need})


def test_a_batch_without_index_is_refused_at_the_first_step() -> None:
    model = nn.Linear(2, 2)
    indexed = method("a", needs=frozenset({"index"}))
    step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), [indexed])
    with pytest.raises(ConflictError, match=r"a needs 'index'.*the batch has input, target"):
        step((torch.zeros(2, 2), torch.tensor([0, 1])))


def test_a_batch_without_strong_versions_is_refused_with_what_to_yield() -> None:
    model = nn.Linear(2, 2)
    needy = method("a", needs=frozenset({"strong"}))
    step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), [needy])
    with pytest.raises(ConflictError, match=r"a needs 'strong'.*the batch has input, target.*strong=True"):
        step((torch.zeros(2, 2), torch.tensor([0, 1])))
