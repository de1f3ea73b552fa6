"""Bags: read from a column, folders or arrays, or made; cut whole; and what is refused, with a way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repertory import datasets
from repertory.datasets import Dataset
from repertory.datasets.bags import bag_labels, cut_bags
from repertory.errors import DataError, OptionError

BAGS = 12


def table(path: Path, **columns: list[Any]) -> str:
    """Twelve bags of three rows, the second half positive, the first row of a positive bag truly so."""
    rows = range(3 * BAGS)
    cells: dict[str, list[Any]] = {
        "bag": [f"b{row // 3:02}" for row in rows],
        "width": [0.5 * row for row in rows],
        "label": ["tumour" if row >= 18 else "healthy" for row in rows],
        "known": ["tumour" if row >= 18 and row % 3 == 0 else "" if row % 3 == 1 else "healthy" for row in rows],
    }
    cells |= columns
    lines = [",".join(cells), *(",".join(map(str, values)) for values in zip(*cells.values()))]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def load(path: Path, options: str, **columns: list[Any]) -> Dataset:
    return datasets.load(table(path / "t.csv", **columns) + options, target="label")


def test_a_column_says_which_rows_belong_together_and_is_no_input(tmp_path: Path) -> None:
    dataset = load(tmp_path, "?bag=bag&truth=known")
    assert (dataset.task, dataset.in_shape, dataset.outputs) == ("bags", (1,), 2)
    assert dataset.group_names[:2] == ("b00", "b01")
    assert torch.equal(dataset.groups, torch.arange(3 * BAGS) // 3)
    assert dataset.truth[:3].tolist() == [0, -1, 0]
    assert dataset.truth[18:21].tolist() == [1, -1, 0]


def test_the_column_called_bag_needs_no_name(tmp_path: Path) -> None:
    dataset = load(tmp_path, "?task=bags&drop=known")
    assert dataset.task == "bags"
    assert dataset.truth is None


def test_another_class_can_be_the_positive_one(tmp_path: Path) -> None:
    dataset = load(tmp_path, "?bag=bag&drop=known&positive=healthy")
    assert dataset.classes == ("tumour", "healthy")
    assert bag_labels(dataset.targets, dataset.groups).tolist() == [1] * 6 + [0] * 6


def test_rows_left_out_take_their_bag_with_them(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", width=["" if row == 4 else row for row in range(3 * BAGS)])
    dataset = datasets.load(f"{path}?bag=bag&truth=known", target="label", skip_bad=True)
    assert dataset.groups.bincount().tolist() == [3, 2, *[3] * 10]
    assert len(dataset.truth) == 3 * BAGS - 1


@pytest.mark.parametrize(
    ("options", "columns", "error", "words"),
    [
        ("?bag=bog", {}, OptionError, "bag=bog is not a column.*did you mean bag"),
        ("?bag=label", {}, OptionError, "bag=label is the target"),
        (
            "?bag=bag&drop=known",
            {"bag": ["", *["b"] * 35]},
            DataError,
            "1 cells of the column 'bag' are empty, first in",
        ),
        ("?bag=bag&drop=known", {"bag": ["b"] * 36}, DataError, "bag b has rows of both labels.*truth=NAME"),
        ("?bag=bag&truth=known", {"known": ["no"] * 36}, DataError, "'no' in row 1, which is not one of the classes"),
        ("?bag=bag&truth=known", {"known": ["tumour"] * 36}, DataError, "the label 'healthy', but rows that are truly"),
        ("?bag=bag&positive=tumor&drop=known", {}, OptionError, "positive=tumor is not a class.*did you mean tumour"),
        ("?bag=bag&ratio=0.2&drop=known", {}, OptionError, "ratio=0.2 is for bags that are made"),
        ("?bag=bag&pool=median&drop=known", {}, OptionError, "pool=.?median"),
        ("?bag=bag&noise=0.2&drop=known", {}, OptionError, "noise=0.2 changes single rows"),
        ("?positive=tumour&drop=known", {}, DataError, r"nothing that says which rows belong together.*\?bag=NAME"),
        ("?bag=bag&drop=known", {"label": [f"c{row // 12}" for row in range(36)]}, DataError, "there are 3 classes"),
    ],
)
def test_what_makes_no_bags_is_refused_with_a_way_out(
    tmp_path: Path, options: str, columns: dict[str, list[Any]], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        load(tmp_path, options, **columns)


def pictures(folder: Path, bags: list[str]) -> None:
    from PIL import Image

    for number, bag in enumerate(bags):
        place = folder / bag
        place.mkdir(parents=True)
        for picture in range(2):
            Image.new("L", (8, 8), 20 * number + picture).save(place / f"{picture}.png")


def test_folders_in_the_folders_of_classes_are_bags(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{label}/{bag}" for label in ("no", "yes") for bag in "abc"])
    dataset = datasets.load(f"{tmp_path}?bags=folders")
    assert dataset.group_names == ("no/a", "no/b", "no/c", "yes/a", "yes/b", "yes/c")
    assert dataset.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert bag_labels(dataset.targets, dataset.groups).tolist() == [0, 0, 0, 1, 1, 1]
    assert datasets.load(str(tmp_path)).groups is None


def test_bags_in_folders_of_parts_stay_in_their_part(tmp_path: Path) -> None:
    parts = {"train": "abc", "test": "ad"}
    pictures(tmp_path, [f"{part}/{label}/{bag}" for part, bags in parts.items() for label in "01" for bag in bags])
    splits = datasets.load(f"{tmp_path}?bags=folders").prepare(0)
    assert len(splits.test.groups.unique()) == 4
    assert not set(splits.test.groups.tolist()) & set(splits.train.groups.tolist())


def test_images_in_no_bag_and_bags_without_images_are_named(tmp_path: Path) -> None:
    pictures(tmp_path, ["no/a", "no/b", "no/c", "yes/a", "yes/b", "yes/c"])
    (tmp_path / "no" / "empty").mkdir()
    with pytest.raises(DataError, match="bags without an image: no/empty"):
        datasets.load(f"{tmp_path}?bags=folders")
    (tmp_path / "no" / "a" / "0.png").rename(tmp_path / "no" / "0.png")
    with pytest.raises(DataError, match=r"1 of 12 images are in no bag, such as .*0.png; expected FOLDER/CLASS/BAG"):
        datasets.load(f"{tmp_path}?bags=folders")


def test_arrays_say_so_by_an_array(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    bags = np.arange(24) // 3
    np.savez(tmp_path / "a.npz", x=x, y=bags % 2, bag=bags, truth=(bags % 2) * (np.arange(24) % 3 == 0))
    dataset = datasets.load(f"{tmp_path / 'a.npz'}?task=bags")
    assert dataset.task == "bags"
    assert dataset.truth.sum() == 4
    np.savez(tmp_path / "b.npz", x=x, y=bags % 2, bag=bags[:5])
    with pytest.raises(DataError, match="bag must have one entry a row of x"):
        datasets.load(f"{tmp_path / 'b.npz'}?task=bags")


def test_made_bags_use_each_example_once_and_hold_what_was_asked() -> None:
    dataset = datasets.load("digits?bags=20&positive=3&ratio=0.1")
    assert dataset.classes == ("without 3", "with 3")
    held = torch.zeros(len(dataset.groups.unique()), dtype=torch.int64).index_add_(0, dataset.groups, dataset.truth)
    assert held.tolist() == [0, 2] * (len(held) // 2)
    assert dataset.groups.bincount().unique().tolist() == [20]
    plain = datasets.load("digits")
    known = {image.numpy().tobytes() for image in plain.inputs[plain.targets == 3]}
    assert all((image.numpy().tobytes() in known) == bool(t) for image, t in zip(dataset.inputs, dataset.truth))


def test_bags_are_made_within_the_parts_that_the_data_came_in(tmp_path: Path) -> None:
    x = np.arange(60, dtype=np.float32)[:, None]
    y = np.arange(60) % 3
    np.savez(tmp_path / "a.npz", x_train=x[:36], y_train=y[:36], x_test=x[36:], y_test=y[36:])
    dataset = datasets.load(f"{tmp_path / 'a.npz'}?bags=3&ratio=0.3")
    assert dataset.inputs[dataset.fixed["test"]].min() >= 36 > dataset.inputs[dataset.fixed["train"]].max()
    splits = dataset.prepare(0)
    assert not set(splits.test.groups.tolist()) & set(splits.train.groups.tolist())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digits?bags=1", "bags=1 is not a number of instances a bag from 2 on"),
        ("digits?bags=20&ratio=0", "ratio=0 is not a share"),
        ("digits?bags=20&positive=11", "positive=11 is not a class"),
        ("iris?bags=90", "too few examples for two bags of 90"),
        ("diabetes?bags=20", "makes bags of single examples with classes"),
        ("digits?bags=20&truth=x", "truth=x is for bags that are read"),
    ],
)
def test_bags_that_cannot_be_made_are_refused(spec: str, words: str) -> None:
    with pytest.raises((DataError, OptionError), match=words):
        datasets.load(spec)


def test_a_split_keeps_bags_whole_and_the_shares_of_their_labels() -> None:
    dataset = datasets.load("digits?bags=10")
    for seed in (0, 1):
        splits = dataset.prepare(seed)
        parts = (splits.train, splits.validation, splits.test)
        bags = [set(part.groups.tolist()) for part in parts]
        assert sum(map(len, bags)) == len(set().union(*bags)) == len(dataset.groups.unique())
        for part in parts:
            labels = bag_labels(part.targets, part.groups.unique(return_inverse=True)[1])
            assert abs(labels.double().mean().item() - 0.5) < 0.05
        assert torch.equal(splits.test.groups, dataset.groups[splits.indices["test"]])
        assert torch.equal(splits.test.truth, dataset.truth[splits.indices["test"]])
    assert splits.test.subset([3, 1]).groups.tolist() == splits.test.groups[[3, 1]].tolist()


def test_bags_of_different_sizes_are_cut_by_their_number() -> None:
    groups = torch.arange(20).repeat_interleave(torch.arange(1, 21))
    parts = cut_bags(groups % 2, groups, {"test": 0.2}, torch.Generator().manual_seed(0))
    assert len(groups[parts["test"]].unique()) == 4
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(len(groups)))


def dataset(**changes: Any) -> Dataset:
    made = datasets.load("digits?bags=20")
    given = {name: getattr(made, name) for name in made.__dataclass_fields__}
    return Dataset(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": None}, "task bags needs groups"),
        ({"groups": torch.zeros(5, dtype=torch.int64)}, "one whole number from 0 on for each of 1760 rows"),
        ({"groups": torch.arange(88).repeat_interleave(20) * 2}, "bags 1, 3, 5, 7, 9 and 82 more have no row"),
        ({"truth": torch.full((1760,), 2)}, "truth must be 0, 1 or -1"),
        ({"fixed": {"train": torch.arange(1750), "test": torch.arange(1750, 1760)}}, "bag 87 has rows in several of"),
    ],
)
def test_groups_that_cannot_be_bags_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        dataset(**changes)


def test_groups_may_go_with_classes_and_do_not_change_the_split() -> None:
    plain = datasets.load("iris")
    given = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
    grouped = Dataset(**{**given, "groups": torch.arange(150) % 7})
    assert grouped.prepare(0).indices == plain.prepare(0).indices
    assert torch.equal(grouped.prepare(0).train.groups, torch.tensor(plain.prepare(0).indices["train"]) % 7)
    assert grouped.describe()["fingerprint"] != plain.describe()["fingerprint"]
