"""Classes are held out for a search, or examples of coarse classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repertory.datasets import Dataset, load
from repertory.datasets.held_out import coarse_labels, train_classes
from repertory.errors import DataError, OptionError, UserError
from repertory.scenarios.registry import scenario, suitable


def searched(spec: str) -> Dataset:
    return dataclasses.replace(load(spec), searched=True)


def test_parts_have_other_classes_and_all_examples() -> None:
    data = searched("digits")
    splits = data.prepare(0)
    parts = {name: set(data.targets[rows].tolist()) for name, rows in splits.indices.items()}
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [5, 2, 3]
    assert len(set.union(*parts.values())) == 10
    assert sum(map(len, splits.indices.values())) == len(data.targets)


def test_training_classes_are_numbered_from_zero_and_the_others_keep_their_names() -> None:
    data = searched("digits")
    splits = data.prepare(1)
    assert data.outputs == 5
    assert splits.train.targets.unique().tolist() == list(range(5))
    assert torch.equal(splits.test.targets, data.targets[splits.indices["test"]])
    own = data.targets[splits.indices["train"]]
    assert all(len(splits.train.targets[own == label].unique()) == 1 for label in own.unique())


def test_the_deal_depends_on_the_seed() -> None:
    data = searched("digits")
    assert data.prepare(0).indices == data.prepare(0).indices
    assert data.prepare(0).indices["test"] != data.prepare(1).indices["test"]


def test_split_by_examples_is_that_of_the_other_scenarios() -> None:
    assert searched("digits?split=examples").prepare(3).indices == load("digits").prepare(3).indices


def test_coarse_labels_train_on_groups_and_are_judged_by_the_classes() -> None:
    data = searched("digits?coarse=3")
    splits = data.prepare(0)
    assert data.outputs == 3
    assert torch.equal(splits.train.targets, coarse_labels(data.targets[splits.indices["train"]], 10, 3))
    assert torch.equal(splits.test.targets, data.targets[splits.indices["test"]])
    assert len(splits.test.targets.unique()) == 10


def test_corruptions_touch_the_training_part_as_it_is_named_there() -> None:
    data = searched("digits?noise=0.3&labels=40")
    splits = data.prepare(0)
    assert len(splits.train) == 40
    assert splits.train.targets.max() < 5
    changed = (splits.train.targets != splits.clean_targets).sum()
    assert changed == 12
    assert searched("digits?imbalance=5").prepare(0).train.targets.bincount().tolist()[0] > 100


def test_coarse_groups_are_neighbours_of_nearly_equal_number() -> None:
    groups = coarse_labels(torch.arange(10), 10, 4)
    assert groups.bincount().tolist() == [3, 2, 3, 2]
    assert torch.equal(groups, groups.sort().values)


@pytest.mark.parametrize(("classes", "trained"), [(6, 2), (10, 5), (100, 50)])
def test_half_of_the_classes_are_trained_on(classes: int, trained: int) -> None:
    assert train_classes(classes) == trained


def test_what_cannot_be_held_out_is_refused() -> None:
    with pytest.raises(DataError, match=r"3 classes are too few .* minimum is 6.*\?split=examples"):
        searched("iris").prepare(0)
    with pytest.raises(OptionError, match="coarse=10 is not a number of groups from 2 to 9"):
        load("digits?coarse=10")
    with pytest.raises(OptionError, match="coarse=2 needs classes, but the task is regression"):
        load("diabetes?coarse=2")
    with pytest.raises(OptionError, match="split='rows' is not allowed"):
        load("digits?split=rows")
    with pytest.raises(OptionError, match="split=classes does not go with coarse"):
        load("digits?split=classes&coarse=2")


def test_a_test_part_with_classes_of_its_own_is_kept_and_only_a_search_has_use_for_it(tmp_path: Path) -> None:
    for part, names in {"train": "abcde", "test": "xyz"}.items():
        for place, name in enumerate(names):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.full((8, 8), 20 * place + number, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    data = searched(str(tmp_path))
    assert data.apart
    assert data.outputs == 3
    splits = data.prepare(0)
    parts = {name: {data.classes[k] for k in data.targets[rows]} for name, rows in splits.indices.items()}
    assert parts["test"] == set("xyz")
    assert len(parts["validation"]) == 2
    assert parts["train"] | parts["validation"] == set("abcde")
    assert set(splits.classes) == parts["train"]
    with pytest.raises(
        OptionError, match=r"the test part has other classes than the training part.*--scenario retrieval"
    ):
        scenario("supervised").view(load(str(tmp_path)))
    assert suitable(["softtriple"], load(str(tmp_path))) == "retrieval"
    with pytest.raises(UserError, match="has classes of its own, so coarse=2 does not apply"):
        scenario("retrieval").view(load(f"{tmp_path}?coarse=2"))
