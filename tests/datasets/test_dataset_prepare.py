from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from repertory.datasets import Dataset, Encoder, Examples, Normaliser
from repertory.errors import DataError, OptionError


def make(counts: tuple[int, ...] = (60, 31, 9), **changes: Any) -> Dataset:
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    inputs = torch.arange(2.0 * len(targets)).reshape(-1, 2)
    given: dict[str, Any] = {
        "name": "made",
        "spec": "made",
        "task": "classification",
        "modality": "table",
        "inputs": inputs,
        "targets": targets,
        "classes": tuple("abcdefghijklmnop"[: len(counts)]),
        "encoder": Encoder("table", (2,)),
    }
    return Dataset(**{**given, **changes})


def regression(**changes: Any) -> Dataset:
    return make((100,), task="regression", classes=(), targets=torch.linspace(-1, 3, 100), **changes)


def rows_of(indices: Mapping[str, list[int]]) -> list[int]:
    return sorted(row for rows in indices.values() for row in rows)


@pytest.mark.parametrize("counts", [(60, 31, 9), (3, 3, 3), (100, 4), (7, 7, 7, 7, 7, 7)])
def test_every_part_is_within_one_of_the_classes_proportions(counts: tuple[int, ...]) -> None:
    splits = make(counts).prepare(0)
    for part, share in ((splits.validation, 0.15), (splits.test, 0.15)):
        held = part.targets.bincount(minlength=len(counts))
        assert ((held - share * torch.tensor(counts)).abs() <= 1).all()
        assert held.min() >= 1
    assert splits.train.targets.bincount(minlength=len(counts)).min() >= 1


def test_parts_have_the_asked_sizes() -> None:
    splits = make().prepare(0, validation=0.2, test=0.3)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (50, 20, 30)


@pytest.mark.parametrize("dataset", [make(), regression()], ids=["classification", "regression"])
def test_parts_share_nothing_and_cover_everything(dataset: Dataset) -> None:
    assert rows_of(dataset.prepare(3).indices) == list(range(100))


def test_indices_say_which_rows_each_part_holds() -> None:
    dataset = make()
    splits = dataset.prepare(0)
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(splits, part).inputs, dataset.inputs[splits.indices[part]])
    json.dumps(splits.indices)


def test_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    dataset = make()
    assert dataset.prepare(5).indices == dataset.prepare(5).indices
    assert dataset.prepare(5).indices != dataset.prepare(6).indices


def test_global_generators_are_neither_used_nor_moved() -> None:
    dataset = make(corruptions={"labels": "30", "imbalance": "3", "noise": "0.3", "shift": "noise1"})
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    first = dataset.prepare(0)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])
    torch.rand(3)
    assert torch.equal(dataset.prepare(0).test.inputs, first.test.inputs)


def test_fixed_parts_are_kept_whatever_the_seed() -> None:
    rows = torch.arange(100)
    fixed = {"train": rows[::2], "validation": rows[1::4], "test": rows[3::4]}
    splits = make(fixed=fixed).prepare(7)
    assert splits.indices == {part: rows.tolist() for part, rows in fixed.items()}


def test_missing_part_is_cut_from_the_fixed_training_part() -> None:
    rows = torch.arange(100)
    splits = make(fixed={"train": rows[::2], "test": rows[1::2]}).prepare(0)
    assert splits.indices["test"] == rows[1::2].tolist()
    assert sorted(splits.indices["train"] + splits.indices["validation"]) == rows[::2].tolist()
    assert len(splits.validation) == round(0.15 * 50)


def test_normaliser_uses_training_rows_only() -> None:
    dataset = make()
    splits = dataset.prepare(0)
    held_out = splits.indices["validation"] + splits.indices["test"]
    dataset.inputs[held_out] = 1e6
    assert torch.equal(dataset.prepare(0).normaliser.mean, splits.normaliser.mean)
    scaled = splits.normaliser(splits.train.inputs)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(2))


def test_normaliser_of_images_agrees_with_a_float_computation() -> None:
    images = torch.randint(0, 256, (20, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normaliser = Normaliser.fit(images)
    assert normaliser.mean.shape == (1, 3, 1, 1)
    torch.testing.assert_close(normaliser.mean.flatten(), images.float().mean((0, 2, 3)))
    torch.testing.assert_close(normaliser.std.flatten(), images.float().std((0, 2, 3), correction=0))
    assert normaliser(images).dtype == torch.float32


def test_normaliser_of_sequences_works_by_channel() -> None:
    sequences = torch.randn(6, 2, 7, generator=torch.Generator().manual_seed(0)) * 3
    assert Normaliser.fit(sequences).std.shape == (1, 2, 1)


def test_normaliser_only_shifts_a_constant_column() -> None:
    constant = torch.full((7, 1), 0.1)
    for inputs in (constant, torch.full((7, 1, 2, 2), 9, dtype=torch.uint8)):
        normaliser = Normaliser.fit(inputs)
        assert normaliser.std.item() == 1
        assert normaliser(inputs).abs().max() < 1e-6


def test_normaliser_survives_json() -> None:
    normaliser = Normaliser.fit(torch.rand(9, 3, 4, generator=torch.Generator().manual_seed(1)))
    again = Normaliser.from_dict(json.loads(json.dumps(normaliser.to_dict())))
    assert torch.equal(again.mean, normaliser.mean)
    assert torch.equal(again.std, normaliser.std)


def test_regression_offers_the_scale_of_the_training_targets() -> None:
    splits = regression().prepare(0)
    assert splits.target_mean == pytest.approx(float(splits.train.targets.mean()))
    assert splits.target_std == pytest.approx(float(splits.train.targets.std(correction=0)))
    plain = make().prepare(0)
    assert (plain.target_mean, plain.target_std) == (0.0, 1.0)


def test_shapes_and_outputs_are_those_of_the_data() -> None:
    assert (make().in_shape, make().outputs, regression().outputs) == ((2,), 3, 1)


def test_description_is_plain_and_its_fingerprint_follows_the_data() -> None:
    described = make().describe()
    assert json.loads(json.dumps(described)) == described
    assert described["examples"] == 100
    assert make().describe()["fingerprint"] == described["fingerprint"]
    assert make(inputs=make().inputs + 1).describe()["fingerprint"] != described["fingerprint"]
    assert make(targets=make().targets.flip(0)).describe()["fingerprint"] != described["fingerprint"]


def test_subset_keeps_the_given_order() -> None:
    some = Examples(torch.arange(5.0), torch.arange(5)).subset([3, 1])
    assert (some.targets.tolist(), len(some)) == ([3, 1], 2)


def test_class_with_too_few_examples_is_named_with_its_count_and_the_minimum() -> None:
    with pytest.raises(DataError, match=r"made: too few examples .*'b' has 2; the minimum is 3"):
        make((9, 2))


def test_fewer_examples_do_where_parts_came_with_the_data() -> None:
    rows = torch.arange(12)
    fixed = {"train": rows[:6], "validation": rows[6:9], "test": rows[9:]}
    assert len(make((11, 1), targets=torch.tensor([0, 1] * 6), fixed=fixed).prepare(0).train) == 6
    with pytest.raises(DataError, match="training examples of a class to split: 'b' has 0; the minimum is 1"):
        make((9, 3), fixed=fixed)


def test_one_class_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"one class only \(a\)"):
        make((9,))


def test_constant_regression_target_is_an_error() -> None:
    with pytest.raises(DataError, match="all targets are 2"):
        make((9,), task="regression", classes=(), targets=torch.full((9,), 2.0))


def test_regression_needs_an_example_for_each_part() -> None:
    with pytest.raises(DataError, match="2 examples to split; the minimum is 3"):
        make((2,), task="regression", classes=(), targets=torch.rand(2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": torch.zeros(3, dtype=torch.long)}, "100 inputs do not match 3 targets"),
        ({"targets": torch.arange(100) % 4}, "from 0 to 2"),
        ({"fixed": {"test": torch.arange(5)}}, "fixed parts test"),
        ({"fixed": {"train": torch.arange(60), "test": torch.arange(59, 100)}}, "share examples"),
        ({"fixed": {"train": torch.arange(100), "test": torch.arange(0)}}, "the test part has no examples"),
    ],
)
def test_data_that_does_not_fit_together_is_an_error(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        make(**changes)


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.2), (0.2, -0.1), (0.5, 0.5), (float("nan"), 0.1)])
def test_shares_that_leave_a_part_empty_are_an_error(validation: float, test: float) -> None:
    with pytest.raises(OptionError, match=r"(validation|test)=.* must be above 0"):
        make().prepare(0, validation, test)
