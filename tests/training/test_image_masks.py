"""Masks of image files have their images' sizes, and are what the network says of the whole image."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from repertory.cli import main
from repertory.datasets.images import decode, decode_whole, size_of
from repertory.errors import DataError
from repertory.scenarios.fit import fit
from repertory.training import image_masks
from repertory.training.dense import predict_masks
from repertory.training.image_masks import ImageMasks, most_likely, starts
from repertory.training.mask_files import MaskPredictions

SIDE, CLASSES = 16, 5
SIZES = [(16, 16), (16, 40), (50, 16), (64, 64), (97, 41), (5, 9), (8, 8), (7, 90)]


class Levels(nn.Module):
    """Logits that depend on each pixel alone: class k for a brightness near 60 k."""

    def forward(self, images: Tensor) -> Tensor:
        levels = 60.0 * torch.arange(CLASSES).view(-1, 1, 1)
        return -(images.float() - levels).square() / 1e3


class Places(nn.Module):
    """Logits that depend on the place in the window, and on the brightness of its corner."""

    def forward(self, images: Tensor) -> Tensor:
        _, _, height, width = images.shape
        plane = torch.arange(height * width).view(height, width) % 7
        corner = images[:, :, :1, :1].float() / 40
        return torch.stack([(plane * k).sin() + k * corner[:, 0] for k in range(CLASSES)], 1)


def photo(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """Coloured blobs of a few pixels, so that neither scaling nor cropping goes unnoticed."""
    draw = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    waves = np.sin(rows / (2 + 3 * draw.random()) + draw.random()) + np.cos(columns / (2 + 3 * draw.random()))
    Image.fromarray(np.uint8(255 * (waves + 2) / 4)).save(path)
    return path


def files(folder: Path) -> list[Path]:
    return [photo(folder / f"{number}.png", *size, seed=number) for number, size in enumerate(SIZES)]


def masks_of(model: nn.Module, paths: list[Path], side: int = SIDE) -> ImageMasks:
    return ImageMasks(model, paths, (1, side, side), CLASSES)


def test_masks_have_the_size_of_their_images(tmp_path: Path) -> None:
    found = masks_of(Places(), files(tmp_path))
    assert [tuple(mask.shape) for mask in found] == SIZES
    assert all(mask.dtype == torch.uint8 for mask in found)


def test_of_pixels_by_themselves_a_mask_is_that_of_the_whole_image(tmp_path: Path) -> None:
    paths = files(tmp_path)
    for path, (height, width), mask in zip(paths, SIZES, masks_of(Levels(), paths)):
        scaled = torch.from_numpy(np.array(decode_whole(path, (1, SIDE, SIDE))))[None]
        logits = functional.interpolate(Levels()(scaled), (height, width), mode="bilinear", align_corners=False)
        assert torch.equal(mask, logits[0].argmax(0).to(torch.uint8))


def test_images_are_scaled_as_in_training_and_not_cropped(tmp_path: Path) -> None:
    for number, (height, width) in enumerate(SIZES):
        path = photo(tmp_path / f"{number}.png", height, width)
        whole = decode_whole(path, (1, SIDE, SIDE))
        assert min(whole.shape[1:]) == SIDE
        assert whole.shape[1] / whole.shape[2] == pytest.approx(height / width, rel=0.04)
        cropped = decode([path], (1, SIDE, SIDE))[0][0].numpy()
        top, left = ((whole.shape[axis] - SIDE) // 2 for axis in (1, 2))
        middle = whole[:, top : top + SIDE, left : left + SIDE]
        # Where what is cropped is no whole number of pixels, the middle lies half a pixel beside it.
        exact = height == width
        assert np.abs(middle.astype(float) - cropped).mean() <= (0 if exact else 30)


def test_square_images_have_the_masks_that_training_judges(tmp_path: Path) -> None:
    paths = [photo(tmp_path / f"{number}.png", SIDE, SIDE, number) for number in range(3)]
    inputs, _ = decode(paths, (1, SIDE, SIDE))
    assert torch.equal(torch.stack(list(masks_of(Places(), paths))), predict_masks(Places(), inputs, CLASSES))


def test_logits_of_windows_are_averaged_where_they_overlap(tmp_path: Path) -> None:
    path = photo(tmp_path / "wide.png", SIDE, 40)
    pixels = torch.from_numpy(np.array(Image.open(path)))[None, None]
    total, times = torch.zeros(CLASSES, SIDE, 40), torch.zeros(40)
    for x in starts(40, SIDE):
        total[:, :, x : x + SIDE] += Places()(pixels[..., x : x + SIDE])[0]
        times[x : x + SIDE] += 1
    assert int(times.min()) >= 1
    assert int(times.max()) >= 2
    assert torch.equal(masks_of(Places(), [path])[0], (total / times).argmax(0).to(torch.uint8))


@pytest.mark.parametrize(("length", "side"), [(16, 16), (17, 16), (26, 16), (27, 16), (160, 16), (5, 3), (9, 1)])
def test_windows_cover_a_length_and_overlap_by_a_third(length: int, side: int) -> None:
    found = starts(length, side)
    assert found[0] == 0
    assert found[-1] == length - side
    assert all(0 < after - before <= max(1, round(2 / 3 * side)) for before, after in itertools.pairwise(found))


@pytest.mark.parametrize("size", [(6, 10), (24, 30), (3, 4), (1, 1)])
def test_classes_taken_one_by_one_are_those_of_all_together(size: tuple[int, int]) -> None:
    logits = torch.randn(CLASSES, 6, 10, generator=torch.Generator().manual_seed(0))
    wanted = functional.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(most_likely(logits, *size).long(), wanted)


def test_images_one_by_one_or_in_small_parts_are_those_of_all_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = files(tmp_path)
    whole = list(masks_of(Places(), paths))
    monkeypatch.setattr(image_masks, "LOGITS", 2 * CLASSES * SIDE * SIDE)
    found = masks_of(Places(), paths)
    assert len(found) == len(paths)
    assert all(torch.equal(*pair) for pair in zip(found, whole))
    assert torch.equal(found[4], whole[4])


def test_a_photo_taken_upright_has_an_upright_mask(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((20, 50), 120, dtype=np.uint8)).save(path, exif=exif)
    assert size_of(path) == (20, 50)
    assert masks_of(Levels(), [path])[0].shape == (50, 20)


def test_a_broken_image_is_named_when_it_is_reached(tmp_path: Path) -> None:
    paths = files(tmp_path)[:2]
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    with pytest.raises(DataError, match=r"1\.png .*replace or remove"):
        list(masks_of(Levels(), paths))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of several sizes, bright on the left, with masks that say so."""
    for kind in ("images", "masks"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
    for number in range(12):
        height, width = 20 + 2 * number, 60 - 3 * number
        left = np.arange(width) < width // 3
        for kind, level in (("images", 200), ("masks", 1)):
            pixels = np.broadcast_to(np.uint8(level * left), (height, width))
            Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "photos" / kind / f"{number}.png")
    return tmp_path / "photos"


def test_predicted_masks_are_written_at_their_images_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = folder.parent / "model", folder.parent / "masks"
    saved = fit(None, data=str(folder), out=model, epochs=1, image_size=16, model="repertory:small_unet:width=4")
    assert main(["predict", str(model), str(folder / "images"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("12 masks")
    predictions = saved.predict(folder / "images")
    assert isinstance(predictions, MaskPredictions)
    shares = {row["input"]: row[f"share({saved.classes[1]})"] for row in predictions.rows()}
    for name, mask in zip(predictions.ids, predictions.masks):
        written = np.array(Image.open(out / name))
        assert written.shape == np.array(Image.open(folder / "images" / name)).shape
        assert np.array_equal(written, mask.numpy())
        assert shares[name] == pytest.approx(written.mean(), abs=1e-5)
