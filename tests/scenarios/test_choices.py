"""What a user chooses is read and checked before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
    ],
)
def test_a_choice_out_of_range_is_refused(option: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen_recipe(Source("iris").load(), **{option: value})


def test_data_that_changed_on_disk_are_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "\n".join(f"{i},{'pq'[i % 2]}" for i in range(12)))
    before = Source(str(path), "y").load()
    path.write_text("a,y\n" + "\n".join(f"{i},{'pq'[i % 2]}" for i in range(20)))
    assert (len(before.targets), len(Source(str(path), "y").load().targets)) == (12, 20)
