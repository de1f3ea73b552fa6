"""The order of batches depends on seed, name and epoch only, and can be taken up anywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from repertory.errors import DataError, OptionError
from repertory.training import BatchLoader, loaders


def make(examples: int = 10, **options: Any) -> BatchLoader:
    inputs = torch.arange(float(examples))[:, None]
    return BatchLoader(inputs, torch.arange(examples), **{"batch_size": 4, **options})


def order(loader: BatchLoader) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, of: int) -> None:
    monkeypatch.setattr(loaders, "world_size", lambda: of)
    monkeypatch.setattr(loaders, "rank", lambda: rank)


def test_order_is_the_same_for_the_same_seed_name_and_epoch() -> None:
    torch.manual_seed(1)
    first = order(make(seed=3))
    torch.manual_seed(2)
    assert order(make(seed=3)) == first


@pytest.mark.parametrize("changed", [{"seed": 4}, {"name": "other"}])
def test_order_differs_for_another_seed_or_name(changed: dict[str, Any]) -> None:
    assert order(make(50, **{"seed": 3, **changed})) != order(make(50, seed=3))


def test_order_differs_between_epochs_and_every_epoch_has_every_example_once() -> None:
    loader = make(50)
    first, second = order(loader), order(loader)
    assert first != second
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(50))


def test_drawing_an_order_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    order(make())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("examples", "batch_size"), [(9, 4), (10, 4), (65, 64), (3, 8), (64, 64)])
def test_batches_are_at_most_as_large_as_asked_and_differ_by_at_most_one(examples: int, batch_size: int) -> None:
    loader = make(examples, batch_size=batch_size)
    sizes = [len(batch) for batch in order(loader)]
    assert sum(sizes) == examples
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(loader) == len(sizes) == -(-examples // batch_size)


def test_input_target_and_index_belong_together() -> None:
    for batch in make(seed=1):
        assert torch.equal(batch["input"][:, 0], batch["index"].float())
        assert torch.equal(batch["target"], batch["index"])


def test_chosen_rows_keep_their_place_in_the_whole() -> None:
    rows = torch.tensor([7, 2, 5])
    assert sorted(flat(order(make(rows=rows, batch_size=2)))) == [2, 5, 7]
    assert order(make(rows=rows, batch_size=2, shuffle=False)) == [[7, 2], [5]]


@pytest.mark.parametrize("made", [1, 2, 3, 4, 5])
def test_resumes_in_mid_epoch_with_the_batches_that_were_left(made: int) -> None:
    straight = make(seed=5)
    expected = order(straight) + order(straight)
    first = make(seed=5)
    seen, position = [], {}
    for _ in range(2):
        for batch in first:
            seen.append(batch["index"].tolist())
            if len(seen) == made:
                position = first.state_dict()
    second = make(seed=5)
    second.load_state_dict(position)
    rest: list[list[int]] = []
    while len(rest) < len(expected) - made:
        rest += order(second)
    assert rest == expected[made:]


def test_two_processes_share_every_batch_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = order(make(11))
    shares = []
    for rank in range(2):
        as_process(monkeypatch, rank, 2)
        shares.append(order(make(11)))
    assert len(shares[0]) == len(shares[1]) == len(whole)
    for batch, mine, yours in zip(whole, *shares):
        assert sorted(mine + yours) == sorted(batch)
        assert 0 <= len(mine) - len(yours) <= 1


def test_a_batch_too_small_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    as_process(monkeypatch, 0, 4)
    with pytest.raises(OptionError, match=r"batch_size=3 leaves some of 4 processes without an example"):
        make(batch_size=3)


def test_no_examples_at_all_are_refused() -> None:
    with pytest.raises(DataError, match="no examples"):
        make(rows=torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("large", [False, True])
def test_the_normaliser_is_applied_once_to_every_input(monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        monkeypatch.setattr(loaders, "_KEPT", 0)
    loader = make(normaliser=lambda values: values * 2 + 1)
    for batch in loader:
        assert torch.equal(batch["input"][:, 0], batch["index"] * 2.0 + 1)


@pytest.mark.parametrize(
    ("option", "value"), [("batch_size", 0), ("batch_size", 2.5), ("augment", "shft")], ids=lambda v: str(v)
)
def test_a_bad_option_is_named(option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{option}={value!r} is not allowed"):
        make(**{option: value})


def resized(loader: BatchLoader, sizes: dict[int, int], epochs: int = 1) -> list[list[int]]:
    """Return the batches, asking for another size after the given numbers of batches."""
    seen: list[list[int]] = []
    for _ in range(epochs):
        for batch in loader:
            seen.append(batch["index"].tolist())
            if len(seen) in sizes:
                loader.resize(sizes[len(seen)])
    return seen


def test_another_size_cuts_the_rest_of_the_same_order_anew() -> None:
    batches = resized(make(20, seed=3), {2: 6})
    assert [len(batch) for batch in batches] == [4, 4, 6, 6]
    assert flat(batches) == flat(order(make(20, seed=3)))


def test_the_new_size_holds_in_the_next_epochs_with_the_order_of_those() -> None:
    plain = make(20, seed=3)
    first, second = flat(order(plain)), flat(order(plain))
    batches = resized(make(20, seed=3), {2: 6}, epochs=2)
    assert [len(batch) for batch in batches[4:]] == [5, 5, 5, 5]
    assert flat(batches) == first + second


@pytest.mark.parametrize("examples", range(8, 20))
@pytest.mark.parametrize("size", [2, 3, 5, 50])
def test_no_batch_after_a_change_holds_a_single_example(examples: int, size: int) -> None:
    loader = make(examples, batch_size=3)
    sizes = [len(batch) for batch in resized(loader, {1: size}, epochs=2)]
    assert sum(sizes) == 2 * examples
    assert min(sizes) >= 2
    assert max(sizes[1:]) <= max(size, 3)


def test_the_number_of_batches_is_that_of_the_epoch_as_it_is_cut_now() -> None:
    loader = make(20)
    lengths = []
    for batch in loader:
        lengths.append((len(loader), loader.position, len(batch["index"])))
        if loader.position == 2:
            loader.resize(6)
    assert lengths == [(5, 1, 4), (5, 2, 4), (4, 3, 6), (4, 4, 6)]
    assert len(loader) == 4


def test_the_last_size_asked_for_counts_and_asking_for_the_same_changes_nothing() -> None:
    loader = make(20)
    loader.resize(7)
    loader.resize(4)
    assert order(loader) == order(make(20))


@pytest.mark.parametrize("made", [1, 2, 3, 4, 5, 6])
def test_resumes_in_mid_epoch_after_a_change(made: int) -> None:
    changes = {2: 3, 4: 5}
    expected = resized(make(17, seed=5, batch_size=2), changes, epochs=2)
    first = make(17, seed=5, batch_size=2)
    position: dict[str, Any] = {}
    for number, _ in enumerate(first, start=1):
        if number in changes:
            first.resize(changes[number])
        if number == made:
            position = first.state_dict()
    second = make(17, seed=5, batch_size=2)
    second.load_state_dict(position)
    later = {number - made: size for number, size in changes.items() if number > made}
    assert resized(second, later, epochs=3)[: len(expected) - made] == expected[made:]


def test_a_position_of_before_sizes_could_change_is_read() -> None:
    whole = order(make(10, seed=2))
    loader = make(10, seed=2)
    loader.load_state_dict({"epoch": 0, "position": 2})
    assert order(loader) == whole[2:]


def test_processes_agree_on_the_batches_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resized(make(21), {2: 9})
    shares = []
    for rank in range(2):
        as_process(monkeypatch, rank, 2)
        shares.append(resized(make(21), {2: 9}))
    assert [sorted(mine + yours) for mine, yours in zip(*shares)] == [sorted(batch) for batch in whole]


def test_a_size_too_small_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    as_process(monkeypatch, 0, 4)
    with pytest.raises(OptionError, match=r"batch_size=3 leaves some of 4 processes without an example"):
        make(20).resize(3)


@pytest.mark.parametrize("value", [0, 2.5])
def test_a_bad_size_is_named(value: Any) -> None:
    with pytest.raises(OptionError, match=f"batch_size={value!r} is not allowed"):
        make().resize(value)


class Backwards:
    """Takes the rows from the last to the first, each twice."""

    def __call__(self, rows: torch.Tensor, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        assert torch.equal(rows, targets)
        return rows.flip(0).repeat_interleave(2)


def test_a_sampler_decides_the_order_of_each_epoch() -> None:
    loader = make(6, batch_size=4, sampler=Backwards(), rows=torch.tensor([1, 3, 5]))
    assert order(loader) == [[5, 5, 3], [3, 1, 1]]
    loader.sampler = None
    assert sorted(flat(order(loader))) == [1, 3, 5]


def test_a_sampler_set_in_mid_epoch_acts_from_the_next_one_on() -> None:
    loader, plain = make(8), make(8)
    first = []
    for batch in loader:
        first.append(batch["index"].tolist())
        loader.sampler = Backwards()
    assert first == order(plain)
    assert flat(order(loader))[:4] == [7, 7, 6, 6]


def test_the_order_that_a_sampler_chose_is_taken_up_in_mid_epoch() -> None:
    class Once(Backwards):
        calls = 0

        def __call__(self, rows: torch.Tensor, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            Once.calls += 1
            return rows.roll(Once.calls)

    straight, resumed = make(8, sampler=Once()), make(8, sampler=Once())
    batches = iter(straight)
    next(batches)
    resumed.load_state_dict(straight.state_dict())
    assert [b["index"].tolist() for b in batches] == order(resumed)


def test_an_empty_order_is_refused() -> None:
    with pytest.raises(DataError, match="left no example for an epoch"):
        order(make(sampler=lambda rows, targets, generator: rows[:0]))


def test_views_are_the_inputs_changed_by_draws_of_their_own() -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    loader = BatchLoader(images, torch.arange(6), batch_size=3, views=2)
    again = BatchLoader(images, torch.arange(6), batch_size=3, views=2)
    for batch, other in zip(loader, again):
        first, second = batch["views"]
        assert first.shape == batch["input"].shape
        assert not torch.equal(first, second)
        assert torch.equal(first, other["views"][0])
        assert torch.equal(batch["input"], images[batch["index"]])
    assert "views" not in next(iter(make()))


def test_strong_versions_stand_beside_labelled_inputs_as_they_would_be_without() -> None:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, loader, again = (
        BatchLoader(images, torch.arange(6), batch_size=3, augment="shift", strong=strong)
        for strong in (False, True, True)
    )
    for expected, batch, other in zip(plain, loader, again):
        assert torch.equal(batch["input"], expected["input"])
        assert torch.equal(batch["strong"], other["strong"])
        assert batch["strong"].shape == batch["input"].shape
        assert not torch.equal(batch["strong"], batch["input"])
        assert "strong" not in expected


def test_groups_of_a_sampler_set_in_mid_epoch_leave_the_running_epoch_as_it_was() -> None:
    class Fours:
        group = 4

        def __call__(self, rows: torch.Tensor, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return rows[: len(rows) // 4 * 4]

    loader, plain = make(10, batch_size=3), make(10, batch_size=3)
    first = []
    for batch in loader:
        first.append(batch["index"].tolist())
        loader.sampler = Fours()
    assert first == order(plain)
    assert order(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("augment", ["shift", "flip-shift"])
def test_masks_move_as_their_images_do(augment: str) -> None:
    images = torch.randint(200, (6, 1, 16, 20), generator=torch.Generator().manual_seed(0)).float()
    loader = BatchLoader(images, images[:, 0].long(), batch_size=3, augment=augment)
    moved = 0
    for batch in loader:
        assert torch.equal(batch["target"], batch["input"][:, 0].long())
        moved += int((batch["input"] != images[batch["index"]]).any((1, 2, 3)).sum())
    assert moved > 3
