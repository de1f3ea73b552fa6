"""Batches of photos have the field's views, made before normalisation, and say what was drawn for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from repertory import Step
from repertory.algorithms import SimCLR
from repertory.core.state import split
from repertory.datasets import Normaliser
from repertory.errors import OptionError
from repertory.training import BatchLoader, loaders
from repertory.training.augment import moved
from repertory.training.photo_views import photo_view, strong_photo_view

SIDE = 34


def photos(count: int = 10) -> Tensor:
    made = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return (255 * made).to(torch.uint8)


def make(images: Tensor | None = None, **options: Any) -> BatchLoader:
    images = photos() if images is None else images
    given: dict[str, Any] = {"batch_size": 4, "seed": 3, "normaliser": Normaliser.fit(photos()), "views": 2}
    return BatchLoader(images, torch.arange(len(images)), **{**given, "kind_of_views": "photo", **options})


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    return len(first) == len(second) and all(map(equal, first, second))


@pytest.mark.parametrize("large", [False, True])
def test_views_are_made_of_the_raw_images_and_normalised_once(monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        monkeypatch.setattr(loaders, "_KEPT", 0)
    loader, normalise = make(augment="flip-shift"), Normaliser.fit(photos())
    for position, batch in enumerate(loader, start=1):
        for number in range(2):
            generator = loaders.generator_for(3, f"batches/view {number}/0/{position}/0")
            view, drawn = photo_view(photos()[batch["index"]], generator)
            assert torch.equal(batch["views"][number], normalise(view))
            assert equal(batch["view_parameters"][number], drawn)
        assert not torch.equal(batch["views"][0], batch["views"][1])


def test_a_weak_and_a_strong_view_say_how_they_were_moved() -> None:
    normalise = Normaliser.fit(photos())
    for batch in make(views="weak-strong", strong=True, augment="flip-shift"):
        raw = photos()[batch["index"]]
        (weak, strong), (moves, drawn) = batch["views"], batch["view_parameters"]
        assert torch.equal(weak, batch["input"])
        assert torch.equal(weak, moved(normalise(raw), moves))
        assert drawn.keys() == {"mirrored", "shift", "operations", "strengths", "cut"}
        assert torch.equal(batch["strong"], strong)
        assert equal(batch["strong_parameters"], drawn)


def test_a_strong_view_is_one_of_the_image_moved_as_its_parameters_say() -> None:
    batch = next(iter(make(views=0, strong=True, augment="shift")))
    generator = loaders.generator_for(3, "batches/strong view/0/1/0")
    for _ in range(2):
        torch.randint(2 * (SIDE // 8) + 1, (len(batch["index"]),), generator=generator)
    again, _ = strong_photo_view(moved(photos()[batch["index"]], batch["strong_parameters"]), generator)
    assert torch.equal(batch["strong"], Normaliser.fit(photos())(again))
    assert "views" not in batch


def test_inputs_targets_masks_and_groups_are_those_of_a_loader_without_photo_views() -> None:
    masks = (torch.arange(10 * SIDE * SIDE) % 3).view(10, SIDE, SIDE)
    for kind in ("plain", "photo"):
        loader = BatchLoader(
            photos(),
            masks,
            batch_size=4,
            augment="flip-shift",
            views=2,
            normaliser=Normaliser.fit(photos()),
            groups=torch.arange(10) // 2,
            kind_of_views=kind,
        )
        batches = [{name: batch[name] for name in ("input", "target", "index", "group")} for batch in loader]
        if kind == "plain":
            expected = batches
    assert equal(batches, expected)


def test_plain_views_of_images_say_how_they_were_moved() -> None:
    images = photos().float()
    loader = BatchLoader(images, torch.zeros(len(images)), batch_size=5, views=2, augment="flip-shift", seed=4)
    for batch in loader:
        for view, drawn in zip(batch["views"], batch["view_parameters"]):
            once = moved(images[batch["index"]], drawn)
            twice = moved(once, {"mirrored": torch.zeros(5, dtype=torch.bool), "shift": drawn["moved"]})
            # What is left is the noise.
            assert 0.05 < (view - twice).std() < 0.15
            assert (view - once).std() > 1


def test_plain_weak_and_strong_views_say_how_they_were_made() -> None:
    images = photos().float()
    loader = BatchLoader(
        images, torch.zeros(len(images)), batch_size=5, views="weak-strong", strong=True, augment="shift"
    )
    for batch in loader:
        moves, drawn = batch["view_parameters"]
        assert torch.equal(batch["views"][0], moved(images[batch["index"]], moves))
        assert drawn.keys() == {"mirrored", "shift", "operations", "strengths", "cut"}
        assert equal(drawn, batch["strong_parameters"])


def test_numbers_have_no_parameters_and_nothing_is_made_that_nobody_asked_for() -> None:
    rows = BatchLoader(torch.randn(6, 4), torch.zeros(6), batch_size=3, views=2, strong=True)
    assert set(next(iter(rows))) == {"input", "target", "index", "views", "strong"}
    assert set(next(iter(make(views=0)))) == {"input", "target", "index"}
    assert set(next(iter(make(views="turned")))) == {"input", "target", "index", "views", "angle", "change"}


def test_bytes_are_kept_as_bytes_and_not_copied() -> None:
    images = photos()
    assert make(images)._raw.data_ptr() == images.data_ptr()


@pytest.mark.parametrize("views", [2, "weak-strong"])
def test_resumes_in_mid_epoch_with_the_same_views(views: Any) -> None:
    first = make(views=views, augment="flip-shift")
    batches = iter(first)
    next(batches)
    second = make(views=views, augment="flip-shift")
    second.load_state_dict(first.state_dict())
    assert equal(list(batches), list(second))
    assert equal(next(iter(first)), next(iter(second)))


def test_two_processes_draw_differently(monkeypatch: pytest.MonkeyPatch) -> None:
    images = photos(1).expand(8, -1, -1, -1)
    crops = []
    for rank in range(2):
        monkeypatch.setattr(loaders, "world_size", lambda: 2)
        monkeypatch.setattr(loaders, "rank", lambda rank=rank: rank)
        crops.append(next(iter(make(images, batch_size=8)))["view_parameters"][0]["crop"])
    assert crops[0].shape == crops[1].shape == (4, 4)
    assert not torch.equal(*crops)


def test_micro_batches_split_the_parameters_with_the_views() -> None:
    batch = next(iter(make()))
    parts = list(split(batch, 2))
    for name in ("crop", "hue"):
        joined = torch.cat([part["view_parameters"][1][name] for part in parts])
        assert torch.equal(joined, batch["view_parameters"][1][name])


def test_a_method_that_needs_views_learns_from_these_and_not_from_how_they_were_made() -> None:
    def learnt(batch: dict[str, Any]) -> Tensor:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE**2, 4), torch.nn.Linear(4, 2))
        Step(model, torch.optim.SGD(model.parameters(), 0.1), torch.nn.CrossEntropyLoss(), methods=[SimCLR()])(batch)
        return model[1].weight.detach()

    batch = next(iter(make()))
    assert torch.equal(learnt(batch), learnt({name: batch[name] for name in ("input", "views")}))
    assert not torch.equal(learnt(batch), learnt({**batch, "views": [batch["input"], batch["views"][1]]}))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.rand(10, 5), r"inputs of shape \(5,\) have no photo views"),
        (torch.rand(10, 2, 30), r"inputs of shape \(2, 30\) have no photo views"),
        (torch.zeros(10, 2, 30, dtype=torch.uint8), r"inputs of shape \(2, 30\) have no photo views"),
        (300 * torch.rand(10, 3, 8, 8), "photo views are made of uint8, or of floats from 0 to 1"),
    ],
)
def test_numbers_texts_and_normalised_images_are_refused(inputs: Tensor, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make(inputs)


def test_a_misspelt_kind_is_named() -> None:
    with pytest.raises(OptionError, match=r"kind_of_views='foto' is not allowed.*did you mean photo"):
        make(kind_of_views="foto")
