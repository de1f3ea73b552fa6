"""Augmentations move whole images, each by a draw of its own that a resumed run repeats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from repertory.training import BatchLoader, loaders
from repertory.training.augment import AUGMENTATIONS, flip_shift, shift


def images(count: int = 64, side: int = 16) -> Tensor:
    return torch.rand(count, 2, side, side, generator=torch.Generator().manual_seed(0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """The image seen through a window moved by (down, right), pixels outside being the nearest inside."""
    height, width = image.shape[1:]
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(width) + right).clamp(0, width - 1)
    return image[:, rows][:, :, columns]


def explanation(image: Tensor, result: Tensor, reach: int) -> tuple[int, int] | None:
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if torch.equal(moved(image, down, right), result):
                return down, right
    return None


def test_every_image_is_shifted_by_at_most_an_eighth_of_its_side() -> None:
    given = images()
    found = [explanation(image, result, 2) for image, result in zip(given, shift(given, generator()))]
    assert None not in found
    assert len(set(found)) > 10


def test_about_half_of_the_images_are_mirrored_each_by_its_own_draw() -> None:
    given = images()
    results = flip_shift(given, generator())
    mirrored = 0
    for image, result in zip(given, results):
        straight = explanation(image, result, 2) is not None
        assert straight or explanation(image.flip(2), result, 2) is not None
        mirrored += not straight
    assert 16 < mirrored < 48


@pytest.mark.parametrize("name", ["shift", "flip-shift"])
def test_same_generator_same_images(name: str) -> None:
    augment = AUGMENTATIONS[name]
    assert augment is not None
    assert torch.equal(augment(images(), generator(1)), augment(images(), generator(1)))
    assert not torch.equal(augment(images(), generator(1)), augment(images(), generator(2)))


def batches(position: dict[str, int] | None = None) -> list[Tensor]:
    given = images(12, 8)
    loader = BatchLoader(given, torch.zeros(12), batch_size=4, seed=1, augment="flip-shift")
    if position is not None:
        loader.load_state_dict(position)
    return [batch["input"] for batch in loader] + [batch["input"] for batch in loader]


def test_a_resumed_loader_draws_the_same_augmentation() -> None:
    straight = batches()
    for later, expected in zip(batches({"epoch": 0, "position": 2}), straight[2:]):
        assert torch.equal(later, expected)


def test_the_same_image_is_augmented_anew_in_the_next_epoch() -> None:
    loader = BatchLoader(images(4, 8), torch.zeros(4), batch_size=4, augment="shift", shuffle=False)
    (first,), (second,) = [[batch["input"] for batch in loader] for _ in range(2)]
    assert not torch.equal(first, second)


def test_processes_draw_their_own_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in range(2):
        monkeypatch.setattr(loaders, "world_size", lambda: 2)
        monkeypatch.setattr(loaders, "rank", lambda rank=rank: rank)
        same = images(1, 16).expand(32, -1, -1, -1).contiguous()
        seen.append(next(iter(BatchLoader(same, torch.zeros(32), batch_size=32, augment="shift")))["input"])
    assert not torch.equal(*seen)
