"""Augmentations move whole images, each by a draw of its own that a resumed run repeats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from repertory.errors import UserError
from repertory.training import BatchLoader, augment, loaders
from repertory.training.augment import AUGMENTATIONS, flip_shift, shift, strong_view


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


def test_strong_views_are_changed_images_of_the_same_kind() -> None:
    given = images() - 0.5
    found, drawn = strong_view(given, generator())
    assert found.shape == given.shape
    assert found.isfinite().all()
    assert found.abs().max() <= 0.5 + 1e-6
    changed = (found != given).flatten(1).any(1)
    assert changed.float().mean() > 0.9
    assert torch.equal(found, strong_view(given, generator())[0])
    assert not torch.equal(found, strong_view(given, generator(1))[0])
    assert {name: tuple(values.shape) for name, values in drawn.items()} == {
        "operations": (len(given), 2),
        "strengths": (len(given), 2),
        "cut": (len(given), 3),
    }


def test_each_image_has_one_square_cut_out_and_else_what_its_operations_make() -> None:
    """On constant images only brightness and edges moved in change anything, so the square can be seen."""
    found, drawn = strong_view(torch.ones(200, 3, 16, 16), generator())
    whole = (found > 0.99).all(1)
    zero = (found == 0).all(1)
    share = zero.flatten(1).float().mean(1)
    assert ((share > 0) & (share <= 0.26)).float().mean() > 0.3
    # Where nothing was moved in, what is cut out is what the parameters say.
    still = ~torch.isin(drawn["operations"], torch.arange(1, 6)).any(1)
    places = (torch.arange(16) + 0.5) / 16
    down, across = ((places - drawn["cut"][:, place, None]).abs() <= drawn["cut"][:, 2, None] / 2 for place in (0, 1))
    assert still.sum() > 20
    assert torch.equal(zero[still], (down[:, :, None] & across[:, None, :])[still])
    assert (whole | zero | (found > 0).all(1)).all()


@pytest.mark.parametrize("operation", [1, 2, 3, 4, 5])
def test_moves_of_the_grid_turn_shear_and_shift_as_drawn(operation: int) -> None:
    """The centre of mass of a dot right of and below the centre lands where the inverse map says."""
    picture = torch.zeros(1, 1, 41, 81)
    picture[0, 0, 24:29, 50:55] = 1.0  # centre 6 below and 12 right of the middle
    found = augment._two_operations(picture, torch.tensor([[operation, 0]]), torch.ones(1, 2))[0, 0]
    found = found / found.sum()
    down = float((found.sum(1) * (torch.arange(41) - 20)).sum())
    right = float((found.sum(0) * (torch.arange(81) - 40)).sum())
    y, x = 6 / 20.5, 12 / 40.5
    expected = {
        1: (12 * 0.8660254 + 6 * 0.5, -12 * 0.5 + 6 * 0.8660254),
        2: ((x - 0.3 * y) * 40.5, 6),
        3: (12, (y - 0.3 * x) * 20.5),
        4: (12 - 0.6 * 40.5, 6),
        5: (12, 6 - 0.6 * 20.5),
    }[operation]
    assert (right, down) == pytest.approx(expected, abs=0.15)


def test_a_turn_and_a_shear_together_keep_areas() -> None:
    picture = torch.zeros(2, 1, 41, 81)
    picture[:, 0, 15:26, 35:46] = 1.0
    found = augment._two_operations(picture, torch.tensor([[1, 3], [1, 2]]), torch.ones(2, 2))
    torch.testing.assert_close(found.sum((1, 2, 3)), picture.sum((1, 2, 3)), rtol=0.02, atol=0)


def test_strong_views_of_tables_are_noisy_with_columns_left_out() -> None:
    found, drawn = strong_view(torch.full((400, 50), 3.0), generator())
    assert drawn == {}
    assert (found == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    kept = found[found != 0]
    assert (kept.mean().item(), kept.std().item()) == pytest.approx((3.0, 0.3), abs=0.01)


def test_strong_views_of_sequences_lose_one_stretch_of_at_most_a_quarter() -> None:
    gone = (strong_view(torch.full((300, 2, 40), 9.0), generator())[0] == 0).all(1)
    assert (gone.sum(1) <= 11).all()
    assert (gone.sum(1) > 0).float().mean() > 0.8
    edges = (gone[:, 1:] != gone[:, :-1]).sum(1)
    assert (edges <= 2).all()


def test_texts_have_no_strong_views() -> None:
    with pytest.raises(UserError, match="no strong views"):
        strong_view(torch.zeros(2, 3, dtype=torch.uint8), generator())


def test_weak_and_strong_views_are_resumed_in_mid_epoch() -> None:
    def loader() -> BatchLoader:
        given = images(20)
        return BatchLoader(given, torch.zeros(20), batch_size=5, augment="shift", views="weak-strong")

    straight = [batch["views"] for batch in loader()]
    first, second = loader(), loader()
    iterator = iter(first)
    next(iterator), next(iterator)
    second.load_state_dict(first.state_dict())
    for views, expected in zip((batch["views"] for batch in second), straight[2:], strict=True):
        assert all(map(torch.equal, views, expected))


def test_other_views_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="views='strong'"):
        BatchLoader(images(4), torch.zeros(4), batch_size=2, views="strong")  # type: ignore[arg-type]
