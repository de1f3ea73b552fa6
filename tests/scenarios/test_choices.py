"""What a user chooses is read and checked before anything is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from repertory.compare.plan import make_plan
from repertory.datasets import Dataset, Encoder
from repertory.errors import UserError
from repertory.models.sources import model_part
from repertory.recipe import Part
from repertory.scenarios.choices import Source, chosen_recipe, device_of


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("timm:resnet18", Part("repertory.models.sources:from_timm", {"name": "resnet18"})),
        (
            "timm:resnet18:pretrained=true,drop_rate=0.1",
            Part("repertory.models.sources:from_timm", {"name": "resnet18", "pretrained": True, "drop_rate": 0.1}),
        ),
        ("repertory:poolformer_tiny", Part("repertory.models:poolformer_tiny", {})),
        ("mypkg.nets:make:width=3", Part("mypkg.nets:make", {"width": 3})),
    ],
)
def test_a_model_is_named_in_three_ways(text: str, part: Part) -> None:
    assert model_part(text) == part


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet18", "--model 'resnet18' is not of the form timm:NAME, torchvision:NAME, hf:NAME, repertory:NAME or"),
        ("timm:", "not of the form"),
        ("repertory:poolformer_tny", "repertory has no model 'poolformer_tny'; it has .*did you mean poolformer_tiny"),
        ("timm:resnet18:pretrained", "'pretrained' in .* is not of the form option=value"),
    ],
)
def test_another_form_is_refused_with_the_allowed_ones(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_part(text)


def test_an_unknown_timm_network_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="timm has no model 'resnet81'; did you mean resnet"):
        model_part("timm:resnet81").build(in_shape=(3, 32, 32), outputs=2)


@pytest.mark.parametrize("name", ["abacus", "gpu", "meta", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    assert device_of("cpu") == "cpu"
    with pytest.raises(UserError, match=f"--device '{name}' is not there; use auto, or what this machine has: cpu"):
        device_of(name)


@pytest.mark.parametrize(
    ("data", "model", "augment"),
    [
        ("iris", "mlp", "none"),
        ("diabetes", "mlp", "none"),
        ("digits", "small_cnn", "none"),
        ("mnist1d", "conv1d", "none"),
    ],
)
def test_the_default_suits_the_data_and_says_why(data: str, model: str, augment: str) -> None:
    recipe, reason = chosen_recipe(Source(data).load())
    assert recipe.model.factory == f"repertory.models.small:{model}"
    assert "since the inputs are" in reason
    assert recipe.augment == augment


def test_choices_reach_the_recipe() -> None:
    chosen: dict[str, Any] = {"epochs": 3, "lr": 0.5, "batch_size": 7, "augment": "shift"}
    recipe, reason = chosen_recipe(Source("digits").load(), model="repertory:poolformer_tiny", **chosen)
    assert (recipe.epochs, recipe.optimizer.options["lr"], recipe.batch_size, recipe.augment) == (3, 0.5, 7, "shift")
    assert (recipe.model.factory, reason) == ("repertory.models:poolformer_tiny", "as given")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("epochs", 0, "epochs=0 is not allowed: epochs must be a whole number, at least 1"),
        ("lr", 0.0, "lr=0.0 is not allowed: lr must be a number, above 0"),
        ("lr", float("nan"), "lr=nan is not allowed"),
        ("batch_size", 0, "batch_size=0 is not allowed"),
        ("augment", "shft", "augment='shft' is not allowed.*did you mean shift"),
        ("augment", "shift", "augment='shift' needs images, but the data are a table; leave it out"),
        ("views", "foto", "views='foto' is not allowed.*did you mean photo"),
        ("views", "photo", "views='photo' needs images, but the data are a table; leave it out"),
    ],
)
def test_a_choice_out_of_range_is_refused(option: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen_recipe(Source("iris").load(), **{option: value})


def photos(spec: str, side: int = 48, channels: int = 3) -> Dataset:
    return dataclasses.replace(
        Source("digits").load(),
        spec=spec,
        inputs=torch.zeros(1797, channels, side, side + 2, dtype=torch.uint8),
        encoder=Encoder("image", (channels, side, side + 2)),
    )


@pytest.mark.parametrize(
    ("dataset", "views"),
    [
        (photos("./photos?labels=40"), "photo"),
        (photos("mypkg:photos"), "photo"),
        (photos("./photos", side=47), "plain"),
        (photos("./photos", channels=1), "plain"),
        (photos("digits?noise=0.2"), "plain"),
    ],
    ids=["folder", "function", "small", "grey", "built-in"],
)
def test_views_are_those_of_photos_for_own_colour_images_that_are_large_enough(dataset: Dataset, views: str) -> None:
    assert chosen_recipe(dataset)[0].views == views
    for asked in ("plain", "photo"):
        assert chosen_recipe(dataset, views=asked)[0].views == asked


def test_views_of_photos_need_grey_or_colour_images() -> None:
    with pytest.raises(UserError, match=r"needs images of 1 or 3 channels, but those of digits have 4; leave it out"):
        chosen_recipe(photos("./photos", channels=4), views="photo")
    with pytest.raises(UserError, match="views='photo' needs images, but the data are a sequence"):
        chosen_recipe(Source("mnist1d").load(), views="photo")


def test_every_row_of_a_comparison_has_the_same_views() -> None:
    plan = make_plan(["simclr", "coke"], Source("digits"), scenario="self_supervised", views="photo")
    assert [arm.recipe.views for arm in plan.arms] == ["photo"] * 3
    assert plan.settings["views"] == "photo"


def test_data_that_changed_on_disk_are_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "\n".join(f"{i},{'pq'[i % 2]}" for i in range(12)))
    before = Source(str(path), "y").load()
    path.write_text("a,y\n" + "\n".join(f"{i},{'pq'[i % 2]}" for i in range(20)))
    assert (len(before.targets), len(Source(str(path), "y").load().targets)) == (12, 20)
