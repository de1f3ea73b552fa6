from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repertory.datasets import load
from repertory.datasets.images import decode
from repertory.errors import DataError, OptionError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def paint(path: Path, colour: int | tuple[int, ...] = RED, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def classes(folder: Path, names: str = "ab", each: int = 4, mode: str = "RGB") -> Path:
    for name in names:
        for number in range(each):
            paint(
                folder / name / f"{number}.png",
                (10 * number if mode == "L" else (10 * number, 0, 0)),
                mode=mode,
            )
    return folder


def pixels(path: Path, shape: tuple[int, int, int]) -> torch.Tensor:
    images, bad = decode([path], shape)
    assert not bad
    return images[0]


def quarters(size: int = 8) -> np.ndarray:
    """Top left red, top right green, bottom blue."""
    picture = np.zeros((size, size, 3), dtype=np.uint8)
    picture[: size // 2, : size // 2, 0] = 255
    picture[: size // 2, size // 2 :, 1] = 255
    picture[size // 2 :, :, 2] = 255
    return picture


def test_class_is_the_folder_and_input_the_pixels(tmp_path: Path) -> None:
    data = load(str(classes(tmp_path / "photos")))
    assert (data.name, data.task, data.modality, data.classes) == (
        "photos",
        "classification",
        "image",
        ("a", "b"),
    )
    assert (data.in_shape, data.targets.tolist()) == ((3, 16, 16), [0] * 4 + [1] * 4)
    assert data.inputs[:, 0, 0, 0].tolist() == [0, 10, 20, 30] * 2
    assert data.fixed == {}


def test_images_in_folders_below_a_class_belong_to_it(tmp_path: Path) -> None:
    paint(classes(tmp_path) / "b" / "deep" / "er" / "x.png")
    assert load(str(tmp_path)).targets.bincount().tolist() == [4, 5]


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_parts_above_the_classes_are_kept(tmp_path: Path, validation: str) -> None:
    for part, each in (("train", 5), (validation, 2), ("test", 3)):
        classes(tmp_path / part, each=each)
    data = load(str(tmp_path))
    splits = data.prepare(0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (10, 4, 6)
    assert splits.test.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert not any("made from" in note for note in data.notes)


def test_missing_validation_part_is_made_from_train_and_said(tmp_path: Path) -> None:
    classes(tmp_path / "train", each=10)
    classes(tmp_path / "test", each=3)
    data = load(str(tmp_path))
    splits = data.prepare(0)
    assert "validation made from train" in data.notes
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (20, 6)


def test_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("car", "train"):
        paint(tmp_path / name / "0.png")
        paint(tmp_path / name / "1.png")
        paint(tmp_path / name / "2.png")
    assert load(str(tmp_path)).classes == ("car", "train")


@pytest.mark.parametrize(("side", "expected"), [(3, 8), (19, 16), (21, 24), (40, 40), (300, 64)])
def test_default_size_is_the_median_side_in_steps_of_eight(tmp_path: Path, side: int, expected: int) -> None:
    for name in "ab":
        for number in range(3):
            paint(tmp_path / name / f"{number}.png", size=(side, side + 20))
    data = load(str(tmp_path))
    assert data.in_shape == (3, expected, expected)
    assert any(f"{expected}x{expected} (median shorter side {side};" in note for note in data.notes)


def test_image_size_decides_the_side(tmp_path: Path) -> None:
    assert load(str(classes(tmp_path)), image_size=11).in_shape == (3, 11, 11)
    with pytest.raises(OptionError, match="image_size=0 must be at least 1"):
        load(str(tmp_path), image_size=0)


def test_oblong_image_is_scaled_by_its_shorter_side_and_cropped_in_the_centre(tmp_path: Path) -> None:
    picture = np.zeros((8, 24, 3), dtype=np.uint8)
    picture[:, 8:16] = 200
    Image.fromarray(picture).save(tmp_path / "wide.png")
    assert (pixels(tmp_path / "wide.png", (3, 8, 8)) == 200).all()
    resized = Image.fromarray(picture).resize((12, 4), Image.Resampling.BILINEAR).crop((4, 0, 8, 4))
    assert np.array_equal(pixels(tmp_path / "wide.png", (3, 4, 4)).permute(1, 2, 0).numpy(), np.asarray(resized))


def test_images_of_any_shape_are_read_to_any_size(tmp_path: Path) -> None:
    """For some shapes the crop, computed in floats, would begin a hair outside of the image."""
    paths = [paint(tmp_path / f"{w}x{h}.png", size=(w, h)) for w in range(40, 72, 3) for h in range(41, 71, 3)]
    for side in (48, 56):
        images, bad = decode(paths, (3, side, side))
        assert not bad
        assert bool((images == images[:, :, :1, :1]).all())


def test_image_of_the_asked_size_is_unchanged(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    assert np.array_equal(pixels(tmp_path / "x.png", (3, 9, 7)).numpy(), picture.transpose(2, 0, 1))


def test_large_jpeg_is_scaled_like_any_other_image(tmp_path: Path) -> None:
    Image.fromarray(quarters(800)).save(tmp_path / "x.jpg", quality=95)
    Image.fromarray(quarters(800)).save(tmp_path / "x.png")
    fast, exact = (pixels(tmp_path / name, (3, 32, 32)).float() for name in ("x.jpg", "x.png"))
    # The edges fall between pixels, so only compression separates the two.
    assert (fast - exact).abs().max() < 12


def test_greyscale_is_kept_where_all_images_are(tmp_path: Path) -> None:
    data = load(str(classes(tmp_path, mode="L")))
    assert data.in_shape == (1, 16, 16)
    assert data.inputs[:, 0, 0, 0].tolist() == [0, 10, 20, 30] * 2


def test_greyscale_among_colour_becomes_rgb_and_is_said(tmp_path: Path) -> None:
    classes(tmp_path)
    paint(tmp_path / "a" / "grey.png", 77, mode="L")
    data = load(str(tmp_path))
    assert "1 greyscale image of 9 were converted to RGB" in data.notes
    assert data.inputs[4, :, 3, 3].tolist() == [77, 77, 77]


def test_transparency_is_dropped(tmp_path: Path) -> None:
    paint(tmp_path / "x.png", (10, 20, 30, 0), mode="RGBA")
    assert pixels(tmp_path / "x.png", (3, 16, 16))[:, 0, 0].tolist() == [10, 20, 30]


def test_palette_is_resolved_with_and_without_transparency(tmp_path: Path) -> None:
    indexed = Image.fromarray(quarters()).quantize(4)
    indexed.save(tmp_path / "plain.png")
    indexed.save(tmp_path / "clear.png", transparency=bytes([0, 128, 255, 255]))
    for name in ("plain.png", "clear.png"):
        assert np.array_equal(pixels(tmp_path / name, (3, 8, 8)).numpy(), quarters().transpose(2, 0, 1))


def test_sixteen_bits_keep_their_upper_byte(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100], [65535, 255]], dtype=np.uint16)).save(tmp_path / "x.png")
    assert pixels(tmp_path / "x.png", (1, 2, 2)).tolist() == [[[0, 100], [255, 0]]]


def test_recorded_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.rot90(quarters(64), 1).copy())
    stored.save(tmp_path / "x.jpg", exif=exif, quality=95)
    seen = pixels(tmp_path / "x.jpg", (3, 64, 64))
    assert (seen.float() - torch.from_numpy(quarters(64).transpose(2, 0, 1)).float())[:, 4::8, 4::8].abs().max() < 20


def test_other_files_are_ignored_and_said(tmp_path: Path) -> None:
    classes(tmp_path)
    for name in ("a/notes.txt", "readme.md", "a/.hidden", ".DS_Store"):
        (tmp_path / name).write_text("x")
    (tmp_path / "__MACOSX").mkdir()
    data = load(str(tmp_path))
    assert any(note.startswith("2 files ignored: no image") for note in data.notes)


def spoil(folder: Path) -> list[Path]:
    """Add an empty file, a text file and a truncated image to the class folders."""
    empty, text, cut = folder / "a" / "empty.png", folder / "a" / "text.jpg", folder / "b" / "cut.jpg"
    empty.write_bytes(b"")
    text.write_text("not an image")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    return [empty, text, cut]


def test_every_unreadable_image_is_listed(tmp_path: Path) -> None:
    bad = spoil(classes(tmp_path))
    with pytest.raises(DataError, match=r"3 of 11 images cannot be read.*--skip-bad") as caught:
        load(str(tmp_path))
    assert all(str(path) in str(caught.value) for path in bad)
    assert "(empty file)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_images_can_be_left_out(tmp_path: Path) -> None:
    spoil(classes(tmp_path))
    data = load(str(tmp_path), skip_bad=True)
    assert (data.targets.tolist(), len(data.inputs)) == ([0] * 4 + [1] * 4, 8)
    assert data.inputs[:, 0, 0, 0].tolist() == [0, 10, 20, 30] * 2
    assert "3 images of 11 could not be read, left out" in data.notes


def test_parts_keep_their_rows_when_images_are_left_out(tmp_path: Path) -> None:
    classes(tmp_path / "train", each=6)
    classes(tmp_path / "test", each=3)
    spoil(tmp_path / "train")
    splits = load(str(tmp_path), skip_bad=True).prepare(0)
    assert splits.indices["test"] == list(range(12, 18))
    assert splits.test.inputs[:, 0, 0, 0].tolist() == [0, 10, 20] * 2


def test_folder_of_nothing_but_unreadable_images_is_an_error(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 2 images cannot be read"):
        load(str(tmp_path), skip_bad=True)


def test_floating_point_image_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(classes(tmp_path) / "a" / "f.tiff")
    with pytest.raises(DataError, match=r"f\.tiff \(floating-point pixels"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "has nothing in it; expected FOLDER/CLASS"),
        (["0.png", "1.png"], "has 2 files but no class folders"),
        (["a/0.png"], r"one class folder only \(a\)"),
        (["a/0.png", "b/readme.txt", "c/x.txt"], "class folders without images: b, c;"),
        (["train/0.png"], "train has 1 files but no class folders"),
        (["test/a/0.png", "val/a/0.png"], "has test and validation but no train folder"),
        (
            ["train/a/0.png", "train/b/0.png", "test/a/0.png", "test/c/0.png"],
            "only in train: b; only in test: c",
        ),
        (["a/0.png", "a/1.png", "a/2.png", "b/0.png"], "'b' has 1; the minimum is 3"),
    ],
)
def test_folders_that_are_laid_out_otherwise_are_an_error(tmp_path: Path, files: list[str], said: str) -> None:
    for name in files:
        if name.endswith(".png"):
            paint(tmp_path / name)
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=said) as caught:
        load(str(tmp_path))
    assert re.search(tmp_path.name, str(caught.value))


def test_a_folder_unlabelled_beside_the_classes_holds_examples_without_a_label(tmp_path: Path) -> None:
    folder = classes(tmp_path / "photos", each=8)
    for number in range(5):
        paint(folder / "unlabelled" / "deeper" / f"{number}.png", (200 + number, 0, 0))
    data = load(str(folder))
    assert (data.classes, len(data.targets), any("have no label" in note for note in data.notes)) == (
        ("a", "b"),
        16,
        True,
    )
    splits = data.prepare(0)
    assert splits.unlabelled is not None
    assert splits.unlabelled.inputs[:, 0, 0, 0].tolist() == [200, 201, 202, 203, 204]
    assert splits.unlabelled.targets.tolist() == [-1] * 5
    hidden = load(f"{folder}?labels=4").prepare(0).unlabelled
    assert hidden is not None
    assert len(hidden) == len(splits.train) - 4 + 5
    other = paint(folder / "unlabelled" / "0.png", (9, 9, 9))
    assert data.describe()["fingerprint"] != load(str(other.parents[1])).describe()["fingerprint"]


def test_a_folder_unlabelled_stands_beside_train_too(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for part, each in (("train", 6), ("val", 2), ("test", 3)):
        classes(folder / part, each=each)
    paint(folder / "unlabelled" / "new.png", BLUE)
    data = load(str(folder))
    assert data.unlabelled is not None
    assert (len(data.targets), len(data.unlabelled)) == (22, 1)
    assert not any("ignored" in note for note in data.notes)


def test_an_empty_folder_unlabelled_is_refused(tmp_path: Path) -> None:
    folder = classes(tmp_path / "photos")
    (folder / "unlabelled").mkdir()
    with pytest.raises(DataError, match="unlabelled has no images; add some, or remove the folder"):
        load(str(folder))


def test_labelled_files_among_the_unlabelled_are_refused(tmp_path: Path) -> None:
    folder = classes(tmp_path / "photos")
    paint(folder / "unlabelled" / "new.png", BLUE)
    (folder / "unlabelled" / "copy.png").write_bytes((folder / "a" / "3.png").read_bytes())
    with pytest.raises(DataError, match=r"1 of 2 images in .*unlabelled are labelled ones too, such as copy.png"):
        load(str(folder))


def test_an_unlabelled_image_that_cannot_be_read_is_named_or_left_out(tmp_path: Path) -> None:
    folder = classes(tmp_path / "photos")
    for number in range(2):
        paint(folder / "unlabelled" / f"{number}.png", (0, 0, 50 + number))
    (folder / "unlabelled" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        load(str(folder))
    data = load(str(folder), skip_bad=True)
    assert data.unlabelled is not None
    assert (len(data.targets), data.unlabelled[:, 2, 0, 0].tolist()) == (8, [50, 51])
