"""Views of photos are what torchvision's kernels make of each image with the parameters that are returned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from repertory.errors import OptionError
from repertory.training import photo_views
from repertory.training.photo_views import JITTER, OPERATIONS, photo_view, strong_photo_view

HEIGHT, WIDTH = 36, 42


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(
    count: int = 24, channels: int = 3, bytes_: bool = False, height: int = HEIGHT, width: int = WIDTH
) -> Tensor:
    """Smooth random images with noise, so that crops and blurs of them differ."""
    coarse = torch.rand(count, channels, 5, 5, generator=generator(7))
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    images = (0.8 * images + 0.2 * torch.rand(images.shape, generator=generator(8))).clamp(0, 1)
    return (255 * images).round().to(torch.uint8) if bytes_ else images


def viewed(image: Tensor, drawn: dict[str, Any]) -> Tensor:
    """What torchvision makes of one image `(channels, height, width)` with what was drawn for it."""
    size = list(image.shape[1:])
    view = vision.resized_crop(image, *drawn["crop"].tolist(), size=size, antialias=True)
    view = vision.horizontal_flip(view) if drawn["mirrored"] else view
    view = vision.to_dtype(view, torch.float32, scale=True)
    adjust = (vision.adjust_brightness, vision.adjust_contrast, vision.adjust_saturation, vision.adjust_hue)
    for number in drawn["order"].tolist() if drawn["jittered"] else []:
        view = adjust[number](view, float(drawn[JITTER[number]]))
    view = vision.rgb_to_grayscale(view, num_output_channels=len(view)) if drawn["grey"] else view
    side = min(size) // 10
    side += 1 - side % 2
    view = vision.gaussian_blur(view, [side, side], [float(drawn["blur"])] * 2) if drawn["blur"] else view
    return vision.to_dtype(view, image.dtype, scale=True)


def operated(image: Tensor, name: str, strength: float) -> Tensor:
    """What torchvision makes of one image of floats by one operation; outside of it all is grey."""
    geometry: dict[str, Any] = {"angle": 0.0, "translate": [0.0, 0.0], "scale": 1.0, "shear": [0.0, 0.0]}
    slope = math.degrees(math.atan(strength))
    changes: dict[str, dict[str, Any]] = {
        "rotate": {"angle": strength},
        "shear_x": {"shear": [slope, 0.0], "center": [0.0, 0.0]},
        "shear_y": {"shear": [0.0, slope], "center": [0.0, 0.0]},
        "translate_x": {"translate": [strength, 0.0]},
        "translate_y": {"translate": [0.0, strength]},
    }
    if name in changes:
        options = {**geometry, **changes[name], "interpolation": InterpolationMode.BILINEAR}
        return vision.affine(image - 0.5, **options) + 0.5
    return {
        "identity": lambda: image,
        "autocontrast": lambda: vision.autocontrast(image),
        "equalize": lambda: vision.equalize(image),
        "brightness": lambda: vision.adjust_brightness(image, strength),
        "colour": lambda: vision.adjust_saturation(image, strength),
        "contrast": lambda: vision.adjust_contrast(image, strength),
        "sharpness": lambda: vision.adjust_sharpness(image, strength),
        "posterize": lambda: vision.posterize(image, int(strength)),
        "solarize": lambda: vision.solarize(image, strength),
    }[name]()


def rows(drawn: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{name: value[row] for name, value in drawn.items()} for row in range(len(next(iter(drawn.values()))))]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_is_what_torchvision_makes_of_each_image(channels: int) -> None:
    images = photos(channels=channels)
    view, drawn = photo_view(images, generator())
    for image, made, row in zip(images, view, rows(drawn)):
        torch.testing.assert_close(made, viewed(image, row), atol=2e-6, rtol=0)


def test_a_view_of_bytes_is_rounded_once() -> None:
    images = photos(bytes_=True)
    view, drawn = photo_view(images, generator())
    expected = torch.stack([viewed(image, row) for image, row in zip(images, rows(drawn))])
    assert view.dtype == torch.uint8
    assert int((view.int() - expected.int()).abs().max()) <= 1
    assert float((view != expected).double().mean()) < 1e-3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"jitter": 1.0, "grey": 0.0, "blur": 0.0, "strength": 2.5}, "jittered"),
        ({"jitter": 0.0, "grey": 1.0, "blur": 0.0}, "grey"),
        ({"jitter": 0.0, "grey": 0.0, "blur": 1.0}, "blur"),
    ],
)
def test_each_change_alone_at_its_full_strength(options: dict[str, float], name: str) -> None:
    images = photos()
    view, drawn = photo_view(images, generator(), scale=(1.0, 1.0), mirror=0.0, **options)
    assert bool((drawn[name] != 0).all())
    for image, made, row in zip(images, view, rows(drawn)):
        torch.testing.assert_close(made, viewed(image, row), atol=1e-5, rtol=0)


def test_hues_of_grey_black_and_pure_colours_turn_as_torchvision_turns_them() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3).T.reshape(1, 3, 3, 9)
    for turn in (-0.5, -0.2, 0.0, 0.3, 0.5):
        made = photo_views.kernels.hue_turned(corners, torch.tensor([turn]))
        torch.testing.assert_close(made[0], vision.adjust_hue(corners[0], turn), atol=1e-6, rtol=0)


def test_without_crop_mirror_colour_and_blur_the_view_is_the_image() -> None:
    off = {"mirror": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0}
    for images in (photos(height=40, width=40), photos(height=40, width=40, bytes_=True)):
        view, drawn = photo_view(images, generator(), scale=(1.0, 1.0), **off)
        assert torch.equal(view, images)
        assert drawn["crop"].tolist() == [[0, 0, 40, 40]] * len(images)


def test_a_strength_of_zero_leaves_the_colours() -> None:
    images = photos(height=40, width=40)
    view, drawn = photo_view(
        images, generator(), scale=(1.0, 1.0), mirror=0.0, jitter=1.0, strength=0.0, grey=0, blur=0
    )
    assert bool(drawn["jittered"].all())
    torch.testing.assert_close(view, images, atol=1e-5, rtol=0)


def test_the_crop_and_the_mirror_say_which_pixels_are_seen() -> None:
    places = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")) / 64
    images = torch.cat([places, torch.zeros(1, 40, 40)]).expand(16, -1, -1, -1)
    view, drawn = photo_view(images, generator(), jitter=0, grey=0, blur=0)
    for made, row in zip(64 * view, rows(drawn)):
        top, left, height, width = row["crop"].tolist()
        made = made.flip(2) if row["mirrored"] else made
        assert float(made[0, 0].mean()) == pytest.approx(top, abs=0.5)
        assert float(made[0, -1].mean()) == pytest.approx(top + height - 1, abs=0.5)
        assert float(made[1, :, 0].mean()) == pytest.approx(left, abs=0.5)
        assert float(made[1, :, -1].mean()) == pytest.approx(left + width - 1, abs=0.5)


def test_draws_have_the_shares_and_ranges_of_simclr() -> None:
    _, drawn = photo_view(photos(2000, height=34, width=40, channels=1), generator())
    for name, share in {"mirrored": 0.5, "jittered": 0.8, "grey": 0.2, "blur": 0.5}.items():
        assert float((drawn[name] != 0).double().mean()) == pytest.approx(share, abs=0.04)
    jittered = drawn["jittered"]
    for name, (low, high) in {**dict.fromkeys(JITTER[:3], (0.2, 1.8)), "hue": (-0.2, 0.2)}.items():
        values, still = drawn[name][jittered], drawn[name][~jittered]
        assert float(values.min()) == pytest.approx(low, abs=0.01)
        assert float(values.max()) == pytest.approx(high, abs=0.01)
        assert still.unique().tolist() == [0.0 if name == "hue" else 1.0]
    sigma = drawn["blur"][drawn["blur"] > 0]
    assert (float(sigma.min()), float(sigma.max())) == pytest.approx((0.1, 2.0), abs=0.01)
    area = drawn["crop"][:, 2] * drawn["crop"][:, 3] / (34 * 40)
    assert (float(area.min()), float(area.max())) == pytest.approx((0.2, 1.0), abs=0.03)
    assert drawn["order"].sort(1).values.eq(torch.arange(4)).all()
    assert len(drawn["order"].unique(dim=0)) == 24


def test_small_images_are_not_blurred() -> None:
    _, drawn = photo_view(photos(height=32), generator(), blur=1.0)
    assert not drawn["blur"].any()


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_each_strong_operation_is_torchvisions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, number = photos(8), list(OPERATIONS).index(name)
    drawn_of = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *given, **more: drawn_of(*given, **more) * 0 + number)
    view, drawn = strong_photo_view(images, generator(), operations=1, cut=0.0)
    for image, made, strength in zip(images, view, drawn["strengths"][:, 0].tolist()):
        torch.testing.assert_close(made, operated(image, name, strength), atol=5e-6, rtol=0)


@pytest.mark.parametrize("bytes_", [False, True])
def test_strong_operations_follow_each_other_and_then_a_place_is_cut_out(bytes_: bool) -> None:
    images, names = photos(96, bytes_=bytes_), list(OPERATIONS)
    view, drawn = strong_photo_view(images, generator())
    differ = []
    for image, made, row in zip(images, view, rows(drawn)):
        expected = vision.to_dtype(image, torch.float32, scale=True)
        for operation, strength in zip(row["operations"].tolist(), row["strengths"].tolist()):
            expected = operated(expected, names[operation], strength)
        expected = vision.erase(expected, *row["cut"].tolist(), v=torch.tensor(0.5))
        differ.append(
            (vision.to_dtype(made, torch.float32, scale=True) - expected).abs() > (1 / 255 + 1e-6) * bytes_ + 1e-5
        )
    # A last bit may move a value over a step of what keeps few values.
    assert float(torch.stack(differ).double().mean()) < 1e-3


def test_strengths_are_in_their_units_and_what_is_cut_out_is_at_most_half_a_side() -> None:
    images, names = photos(3000, 1, height=20, width=30), list(OPERATIONS)
    _, drawn = strong_photo_view(images, generator())
    scale = {"translate_x": 30, "translate_y": 20}
    for number, name in enumerate(names):
        chosen = drawn["operations"] == number
        strengths = drawn["strengths"][chosen]
        assert float(chosen.double().mean()) == pytest.approx(1 / 14, abs=0.01)
        low, high = (scale.get(name, 1) * end for end in OPERATIONS[name])
        assert float(strengths.min()) == pytest.approx(low, abs=0.02 * (high - low))
        assert float(strengths.max()) == pytest.approx(8 if name == "posterize" else high, abs=0.02 * (high - low))
    top, left, height, width = drawn["cut"].unbind(1)
    assert (int(height.max()), int(width.max()), int(height.min()), int(width.min())) == (10, 15, 0, 0)
    assert int(top.min()) == int(left.min()) == 0
    assert int((top + height).max()) == 20
    assert int((left + width).max()) == 30


def test_no_operation_and_no_cut_is_the_image_and_a_copy_of_it() -> None:
    for images in (photos(), photos(bytes_=True)):
        before = images.clone()
        view, _ = strong_photo_view(images, generator(), operations=0, cut=0.0)
        assert torch.equal(view, images)
        strong_photo_view(images, generator())
        photo_view(images, generator())
        assert torch.equal(images, before)


@pytest.mark.parametrize("make", [photo_view, strong_photo_view])
def test_each_image_has_its_own_draw_from_the_given_generator_alone(make: Any) -> None:
    one = photos(1).expand(16, -1, -1, -1)
    state = torch.get_rng_state()
    (first, drawn), (again, drawn_again), (other, _) = (
        make(one, generator()),
        make(one, generator()),
        make(one, generator(1)),
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert all(torch.equal(drawn[name], drawn_again[name]) for name in drawn)
    assert not torch.equal(first, other)
    assert len(first.flatten(1).unique(dim=0)) > 14


@pytest.mark.parametrize("make", [photo_view, strong_photo_view])
def test_few_images_at_a_time_give_the_same_views(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = make(photos(), generator())
    monkeypatch.setattr(photo_views, "_CHUNK", 5 * 3 * HEIGHT * WIDTH)
    parts, _ = make(photos(), generator())
    torch.testing.assert_close(parts, whole, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(4, 7), r"inputs of shape \(7,\) have no photo views.*take plain views"),
        (
            torch.rand(4, 2, 8, 8),
            r"inputs of shape \(2, 8, 8\) have no photo views, which are of images \(1 or 3 channels",
        ),
        (torch.rand(4, 3, 8, 8) * 2 - 1, "run from -0.9.* to .*before any normalisation"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int64), "of torch.int64 have no photo views; give uint8"),
    ],
)
@pytest.mark.parametrize("make", [photo_view, strong_photo_view])
def test_what_is_no_image_is_refused(make: Any, images: Tensor, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make(images, generator())


@pytest.mark.parametrize(
    ("make", "option", "value"),
    [
        (photo_view, "jitter", 1.5),
        (photo_view, "strength", 3.0),
        (photo_view, "blur", -0.1),
        (strong_photo_view, "operations", 1.5),
        (strong_photo_view, "cut", 2.0),
    ],
)
def test_an_option_out_of_its_range_is_named(make: Any, option: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"{option}={value} is not allowed"):
        make(photos(2), generator(), **{option: value})
