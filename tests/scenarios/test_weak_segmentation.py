"""Extreme points in place of masks: what is made of them, what is hidden, and runs from folders with points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from repertory import datasets
from repertory.core.dense import IGNORED
from repertory.curation.simple_propagation import extreme_points, initial_mask
from repertory.datasets import Dataset, points
from repertory.errors import DataError, OptionError, UserError
from repertory.recipe import Part, Recipe
from repertory.scenarios import segmentation, weak_segmentation
from repertory.scenarios.fit import fit
from repertory.scenarios.methods import arm
from repertory.scenarios.registry import Outcome, suitable
from repertory.training.budget import Budget

TINY = Part("repertory.models.unet:UNet", {"widths": (4, 8)})


def discs(count: int, side: int = 16) -> tuple[Tensor, Tensor]:
    """Images with a bright disc each, and their masks."""
    generator = torch.Generator().manual_seed(0)
    centres = 5 + 6 * torch.rand(count, 2, 1, 1, generator=generator)
    places = torch.arange(side)
    away = (places[:, None] - centres[:, 0]).square() + (places - centres[:, 1]).square()
    masks = (away <= 9).long()
    noise = torch.randn(masks.shape, generator=generator)
    return (90 + 80 * masks + 30 * noise).round().clamp(0, 255).to(torch.uint8)[:, None], masks


def save(path: Path, pixels: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze().numpy().astype(np.uint8)).save(path)


def folder_with_points(folder: Path, parts: bool = False, count: int = 12, judged: int = 4) -> Path:
    """A folder whose first images have points, and whose last have masks."""
    images, masks = discs(count)
    lines = ["image,y,x"]
    for number, (image, mask) in enumerate(zip(images, masks)):
        training = number < count - judged
        place = folder / ("train" if training else "test") if parts else folder
        save(place / "images" / f"{number}.png", image)
        if training:
            lines += [f"{number}{'.png' if number % 2 else ''},{y},{x}" for y, x in extreme_points(mask).tolist()]
        else:
            save(place / "masks" / f"{number}.png", 255 * mask)
    (folder / ("train/points.csv" if parts else "points.csv")).write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def blobs() -> Dataset:
    return datasets.load("shapes?examples=24&side=16&object=blob")


def run(dataset: Dataset, change: str = "", steps: int = 10) -> Outcome:
    recipe: Recipe = weak_segmentation.baseline(dataset, TINY, epochs=1)
    edited = arm(change, recipe, "segmentation", "weak_segmentation").recipe if change else recipe
    return weak_segmentation.run(edited, dataset, seed=0, budget=Budget("steps", steps))


# What is made of points


def test_clicked_points_are_the_ends_of_each_connected_piece() -> None:
    masks = torch.zeros(3, 9, 9, dtype=torch.int64)
    masks[0, 1:4, 1:3] = masks[2, 2, 2] = masks[2, 3, 3] = 1
    masks[0, 6:8, 5:9] = 1
    masks[0, 5, 0] = 2
    found = points.clicked(masks)
    assert found[:, :2].unique(dim=0).tolist() == [[0, 0], [0, 1], [2, 0]]
    second = found[(found[:, 0] == 0) & (found[:, 1] == 1), 2:]
    assert second[:2, 0].tolist() == [6, 7]
    assert second[2:, 1].tolist() == [5, 8]
    assert points.clicked(masks[1:2]).shape == (0, 4)


def test_masks_of_several_objects_are_laid_over_each_other() -> None:
    images, masks = discs(1, 24)
    second = masks[0].roll((9, 9), (0, 1))
    both = (masks[0] | second)[None]
    found = points.clicked(both)
    whole = points.first_masks(images, found, [0])[0]
    one, two = (initial_mask(images[0], found[found[:, 1] == number, 2:]) for number in (0, 1))
    assert torch.equal(whole == 1, (one == 1) | (two == 1))
    assert torch.equal(whole == 0, (one == 0) & (two == 0))


def test_what_one_object_is_sure_of_counts_before_what_another_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [torch.tensor([[0, 0, IGNORED, IGNORED, 1, 1]]), torch.tensor([[0, IGNORED, 1, 0, IGNORED, 0]])]
    monkeypatch.setattr("repertory.curation.simple_propagation.initial_mask", lambda image, own: said[int(own[0, 0])])
    found = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]])
    masks = points.first_masks(torch.zeros(1, 1, 1, 6), found, [0])
    assert masks.tolist() == [[[0, IGNORED, 1, IGNORED, 1, 1]]]


def test_first_masks_are_made_once_and_none_without_points(monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = discs(3)
    found = points.clicked(masks)
    first = points.first_masks(images, found, [2, 0])
    monkeypatch.setattr(points, "_together", lambda image, own: pytest.fail("made again"))
    assert torch.equal(points.first_masks(images, found, [0, 2]), first.flip(0))
    monkeypatch.undo()
    assert not points.first_masks(images, found[found[:, 0] != 1], [1]).any()
    assert points.first_masks(images, found, [1]).any()


def test_points_follow_the_image_to_another_size() -> None:
    """The middle of a pixel of the file lies in the pixel that it is moved to."""
    given = [(0, 0, 0), (0, 9, 39), (1, 5, 20)]
    moved = points.placed_points([(3, (40, 10), given)], (1, 20, 20)).tolist()
    # Doubled to 80 x 20, of which the middle 20 columns are kept.
    assert moved == [[3, 0, 1, 0], [3, 0, 19, 19], [3, 1, 11, 11]]


# The scenario


def test_one_kind_of_object_is_asked_for() -> None:
    shapes = datasets.load("shapes?examples=20&side=16")
    with pytest.raises(UserError, match=r"4 classes.*\?object=blob"):
        weak_segmentation.view(shapes)
    with pytest.raises(OptionError, match="did you mean blob"):
        datasets.load("shapes?examples=20&side=16&object=blub")
    with pytest.raises(UserError, match="finds objects in images"):
        weak_segmentation.view(datasets.load("digits"))
    seen = weak_segmentation.view(datasets.load("shapes?examples=20&side=16&object=line"))
    assert seen.classes == ("background", "line")
    assert torch.equal(seen.targets == 1, shapes.targets == 2)
    assert seen.outputs == 2


def test_training_masks_are_hidden_and_the_others_kept(blobs: Dataset) -> None:
    seen = weak_segmentation.view(blobs)
    true = seen.prepare(0)
    weak = weak_segmentation.weakened(seen, true)
    assert not torch.equal(weak.train.targets, true.train.targets)
    assert torch.equal(weak.test.targets, true.test.targets)
    found = points.clicked(true.train.targets)
    assert torch.equal(weak.train.targets, points.first_masks(true.train.inputs, found, range(len(true.train))))
    known = weak.train.targets != IGNORED
    assert (weak.train.targets == true.train.targets)[known].double().mean() > 0.8


def test_dice_precision_and_recall_of_the_object() -> None:
    generator = torch.Generator().manual_seed(0)
    found, true = (torch.randint(2, (6, 5, 5), generator=generator) for _ in range(2))
    true[torch.rand(true.shape, generator=generator) < 0.2] = IGNORED
    dice, hit, given, real = [], 0, 0, 0
    for one, other in zip(found, true):
        pairs = [(a, b) for a, b in zip(one.flatten().tolist(), other.flatten().tolist()) if b != IGNORED]
        both = sum(a == b == 1 for a, b in pairs)
        sizes = sum(a for a, _ in pairs), sum(b for _, b in pairs)
        dice.append(2 * both / sum(sizes))
        hit, given, real = hit + both, given + sizes[0], real + sizes[1]
    metrics = weak_segmentation.object_metrics(found, true)
    assert metrics["object_dice"] == pytest.approx(sum(dice) / 6)
    assert (metrics["object_precision"], metrics["object_recall"]) == pytest.approx((hit / given, hit / real))


def test_a_run_with_the_method_keeps_to_the_budget(blobs: Dataset) -> None:
    baseline, simple = run(blobs), run(blobs, "simple-propagation:propagation=0.4+lion")
    for outcome in (baseline, simple):
        assert set(outcome.metrics["test"]) == {"object_dice", "object_precision", "object_recall"}
        assert outcome.cost["steps"] == 10
    stages = {record["stage"] for record in simple.curve}
    assert stages == {"simple-propagation-contrast", "simple-propagation-spreading", "train"}
    assert set(simple.splits.train.targets.unique().tolist()) <= {0, 1, IGNORED}


def test_the_scenario_follows_from_method_data_and_options(blobs: Dataset) -> None:
    assert suitable([], blobs) == "weak_segmentation"
    assert suitable(["simple-propagation"]) == "weak_segmentation"
    assert suitable(["pixel-hardness"], datasets.load("shapes?examples=20&side=16")) == "segmentation"
    with pytest.raises(OptionError, match="object=blob has no use in scenario segmentation"):
        segmentation.view(blobs)


def test_without_any_object_there_is_nothing_to_learn(blobs: Dataset) -> None:
    seen = weak_segmentation.view(blobs)
    splits = seen.prepare(0)
    splits.train.targets.zero_()
    with pytest.raises(UserError, match="no training image has a blob"):
        weak_segmentation.weakened(seen, splits)


# Folders with points


@pytest.mark.parametrize("parts", [False, True])
def test_a_folder_with_points_is_read_and_learnt_from(tmp_path: Path, parts: bool) -> None:
    dataset = datasets.load(str(folder_with_points(tmp_path, parts)))
    assert {part: len(rows) for part, rows in dataset.fixed.items()} == {"train": 8, "validation": 2, "test": 2}
    assert dataset.points is not None
    images, masks = discs(12)
    assert torch.equal(dataset.inputs[dataset.fixed["train"]], images[:8])
    assert torch.equal(dataset.points, points.clicked(masks[:8]))
    assert (dataset.targets[dataset.fixed["train"]] == IGNORED).all()
    assert any("dealt to validation and test" in note for note in dataset.notes)
    assert suitable([], dataset) == "weak_segmentation"
    with pytest.raises(OptionError, match="add --scenario weak_segmentation"):
        segmentation.view(dataset)
    weak = weak_segmentation.weakened(dataset, dataset.prepare(0))
    assert torch.equal(weak.train.targets, points.first_masks(images, points.clicked(masks), range(8)))
    assert run(dataset, "simple-propagation").metrics["test"]["object_dice"] >= 0


def test_fit_from_points_and_predict_masks(tmp_path: Path) -> None:
    folder = folder_with_points(tmp_path / "data")
    fit("simple-propagation", data=str(folder), epochs=2, out=tmp_path / "model", device="cpu")
    assert (tmp_path / "model").is_dir()


def test_a_training_image_without_a_point_shows_no_object(tmp_path: Path) -> None:
    folder = folder_with_points(tmp_path, parts=True)
    save(folder / "train/images/extra.png", discs(1)[0])
    dataset = datasets.load(str(folder))
    assert any("1 of 9 training images have no point" in note for note in dataset.notes)
    weak = weak_segmentation.weakened(dataset, dataset.prepare(0))
    assert not weak.train.targets[-1].any()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("99,1,1", "line 34: there is no image '99'"),
        ("1,1,one", "line 34: y='1', x='one'"),
        ("1,16,1", "lies outside of 1.png, which is 16 wide and 16 high"),
    ],
)
def test_a_bad_line_of_points_is_named(tmp_path: Path, line: str, words: str) -> None:
    table = folder_with_points(tmp_path) / "points.csv"
    table.write_text(f"{table.read_text(encoding='utf-8')}\n{line}", encoding="utf-8")
    with pytest.raises(DataError, match=words):
        datasets.load(str(tmp_path))


def test_an_object_with_one_point_and_a_table_without_columns_are_refused(tmp_path: Path) -> None:
    table = folder_with_points(tmp_path) / "points.csv"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("image,y,x", "file,y,x"), encoding="utf-8")
    with pytest.raises(DataError, match="no column image"):
        datasets.load(str(tmp_path))
    rows = [f"{line},0" for line in text.splitlines()[1:]]
    table.write_text("\n".join(["image,y,x,object", *rows, "1,4,4,1"]), encoding="utf-8")
    with pytest.raises(DataError, match=r"object 1 of image 1 has one point"):
        datasets.load(str(tmp_path))


def test_images_need_masks_to_judge_by(tmp_path: Path) -> None:
    folder = folder_with_points(tmp_path, judged=1)
    with pytest.raises(DataError, match="at least 2 images need a mask"):
        datasets.load(str(folder))
