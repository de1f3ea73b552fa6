"""Images with masks beside them: what a mask may be, where files may lie, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repertory.core.dense import IGNORED
from repertory.datasets import Dataset, load
from repertory.errors import DataError, OptionError

RGB = np.zeros((8, 8, 3), dtype=np.uint8)


def mask_of(number: int, side: int = 8) -> np.ndarray:
    """The upper left quarter is of class 1, row 7 of the class `number` modulo 3, the rest of class 0."""
    mask = np.zeros((side, side), dtype=np.uint8)
    mask[: side // 2, : side // 2] = 1
    mask[side - 1] = number % 3
    return mask


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(path)
    return path


def pairs(folder: Path, count: int = 6, mode: str | None = None, side: int = 8) -> Path:
    for number in range(count):
        save(folder / "images" / f"{number}.png", np.full((side, side, 3), 20 * number, dtype=np.uint8))
        save(folder / "masks" / f"{number}.png", mask_of(number, side), mode)
    return folder


def read(folder: Path, **options: object) -> Dataset:
    return load(str(folder), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [None, "P"])
def test_target_is_the_number_of_each_pixel(tmp_path: Path, mode: str | None) -> None:
    data = read(pairs(tmp_path / "photos", mode=mode))
    assert (data.task, data.modality, data.classes, data.outputs) == ("segmentation", "image", ("0", "1", "2"), 3)
    assert data.targets.dtype == torch.int64
    assert torch.equal(data.targets, torch.stack([torch.from_numpy(mask_of(n)).long() for n in range(6)]))
    assert data.inputs[:, 0, 0, 0].tolist() == [0, 20, 40, 60, 80, 100]


def test_a_list_names_the_classes_and_255_is_ignored(tmp_path: Path) -> None:
    folder = pairs(tmp_path)
    (folder / "classes.txt").write_text("sky\nroad\ncar\nbird\n", encoding="utf-8")
    mask = mask_of(2)
    mask[0] = IGNORED
    save(folder / "masks" / "2.png", mask)
    data = read(folder)
    assert data.classes == ("sky", "road", "car", "bird")
    assert data.targets[2, 0].tolist() == [IGNORED] * 8


def test_black_and_white_masks_are_background_and_object(tmp_path: Path) -> None:
    folder = pairs(tmp_path)
    for number in range(6):
        save(folder / "masks" / f"{number}.png", (mask_of(number) == 1).astype(np.uint8) * 255)
    data = read(folder)
    assert data.classes == ("background", "object")
    assert data.targets.unique().tolist() == [0, 1]
    assert any("black and white" in note for note in data.notes)


@pytest.mark.parametrize("place", ["{part}/{kind}", "{kind}/{part}"])
def test_parts_lie_above_or_below(tmp_path: Path, place: str) -> None:
    whole = pairs(tmp_path / "whole")
    for part, numbers in {"train": (0, 1, 2), "val": (3,), "test": (4, 5)}.items():
        for kind in ("images", "masks"):
            folder = tmp_path / "cut" / place.format(part=part, kind=kind)
            folder.mkdir(parents=True)
            for number in numbers:
                (whole / kind / f"{number}.png").rename(folder / f"{number}.png")
    data = read(tmp_path / "cut")
    assert {part: rows.tolist() for part, rows in data.fixed.items()} == {
        "train": [0, 1, 2],
        "validation": [3],
        "test": [4, 5],
    }


def test_masks_are_scaled_and_cropped_as_their_images(tmp_path: Path) -> None:
    mask = np.zeros((16, 32), dtype=np.uint8)
    mask[:8, 8:24] = 1
    mask[8:, :16] = 2
    for number in range(4):
        save(tmp_path / "images" / f"{number}.png", mask * 100)
        save(tmp_path / "masks" / f"{number}.png", mask)
    data = read(tmp_path, image_size=8)
    assert data.targets[0, 0].tolist() == [1] * 8
    assert data.targets[0, 7].tolist() == [2] * 4 + [0] * 4
    # Images are smoothed across the borders of objects, masks are not.
    inside = torch.tensor([1, 2, 5, 6])
    assert torch.equal(data.inputs[:, 0, inside][:, :, inside].long(), 100 * data.targets[:, inside][:, :, inside])
    assert read(tmp_path).in_shape == (1, 16, 32), "images of one size keep it"


def test_scaling_makes_no_new_numbers(tmp_path: Path) -> None:
    folder = pairs(tmp_path, side=24)
    (folder / "classes.txt").write_text("\n".join(f"c{k}" for k in range(101)), encoding="utf-8")
    save(folder / "masks" / "0.png", np.kron(np.eye(12, dtype=np.uint8), np.ones((2, 2), dtype=np.uint8)) * 100)
    assert read(folder, image_size=9).targets[0].unique().tolist() == [0, 100]


def test_unreadable_files_are_named_or_left_out_in_pairs(tmp_path: Path) -> None:
    folder = pairs(tmp_path, count=8)
    (folder / "images" / "1.png").write_bytes(b"no image")
    (folder / "masks" / "4.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 16 images cannot be read.*1\.png.*4\.png \(empty file\).*--skip-bad"):
        read(folder)
    data = read(folder, skip_bad=True)
    assert data.inputs[:, 0, 0, 0].tolist() == [0, 40, 60, 100, 120, 140]
    assert torch.equal(data.targets[2], torch.from_numpy(mask_of(3)).long())


@pytest.mark.parametrize(
    ("file", "pixels", "words"),
    [
        ("masks/3.png", mask_of(0, 6), r"masks/3\.png \(it is 6x6 and its image 8x8; save it at the size"),
        (
            "masks/3.png",
            RGB + np.arange(3, dtype=np.uint8),
            r"masks/3\.png \(it is in colour; save it as a greyscale or palette",
        ),
        ("masks/3.png", mask_of(0) + np.uint8(7), r"masks/3\.png holds 8, but no mask holds 3, 4, .*classes\.txt"),
        ("masks/3.png", mask_of(0).astype(np.uint16) + 300, r"3\.png \(it holds 301; numbers of classes are below 255"),
        ("images/9.png", RGB, r"1 files have no mask of the same name in .*masks: .*images/9\.png; add the masks"),
        ("masks/9.png", mask_of(0), r"1 files have no image of the same name in .*images: .*masks/9\.png; add the im"),
        ("images/3.jpg", RGB, r"3\.png and 3\.jpg have the same name but for the ending; remove one"),
    ],
)
def test_what_does_not_fit_is_named_with_the_fix(tmp_path: Path, file: str, pixels: np.ndarray, words: str) -> None:
    folder = pairs(tmp_path)
    save(folder / file, pixels)
    with pytest.raises(DataError, match=words):
        read(folder)


def test_a_number_beyond_the_named_classes_is_refused(tmp_path: Path) -> None:
    folder = pairs(tmp_path)
    (folder / "classes.txt").write_text("sky\nroad\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"2 of 6 masks.*2\.png \(it holds 2\).*names the classes 0 to 1: add a line"):
        read(folder)


def test_lossy_masks_and_missing_folders_are_refused(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "a")
    (folder / "masks" / "0.png").rename(folder / "masks" / "0.jpg")
    with pytest.raises(DataError, match=r"0\.jpg is a mask in a lossy format.*PNG"):
        read(folder)
    pairs(tmp_path / "b" / "train")
    (tmp_path / "b" / "test" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"there is no folder .*masks; expected FOLDER/images"):
        read(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "words"),
    [("labels=40", "the data have masks"), ("shift=rotate30", "away from their masks"), ("noise=0.1", "have masks")],
)
def test_damage_to_labels_is_refused(tmp_path: Path, options: str, words: str) -> None:
    folder = pairs(tmp_path)
    with pytest.raises(OptionError, match=words):
        load(f"{folder}?{options}")


def test_masks_must_be_of_the_images_and_the_classes() -> None:
    data = load("shapes?examples=20&side=16")
    for change, words in (
        ({"targets": data.targets[:, 1:]}, "do not belong together"),
        ({"targets": data.targets + 1}, "holds 4, but there are the classes 0 to 3"),
        ({"targets": data.targets * 0}, "fewer than 2 classes"),
        ({"inputs": data.inputs[:2], "targets": data.targets[:2]}, "2 images to split; the minimum is 3"),
    ):
        fields = {name: getattr(data, name) for name in Dataset.__dataclass_fields__}
        with pytest.raises(DataError, match=words):
            Dataset(**{**fields, **change})


def test_unlabelled_images_have_masks_of_ignored_pixels() -> None:
    data = load("shapes?examples=20&side=16")
    fields = {name: getattr(data, name) for name in Dataset.__dataclass_fields__}
    hidden = Dataset(**{**fields, "unlabelled": data.inputs[:3]}).prepare(0).unlabelled
    assert hidden is not None
    assert hidden.targets.shape == (3, 16, 16)
    assert hidden.targets.unique().tolist() == [IGNORED]
