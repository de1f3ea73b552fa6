"""A class a pixel: how overlaps are counted, what is refused, and a run from images and masks to predicted masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score
from torch import nn

from repertory import datasets
from repertory.core.dense import IGNORED
from repertory.datasets import Dataset
from repertory.datasets.shapes import scenes
from repertory.errors import OptionError, UserError
from repertory.recipe import Part
from repertory.scenarios import segmentation
from repertory.scenarios.choices import chosen_recipe
from repertory.scenarios.fit import fit
from repertory.scenarios.measure import measure
from repertory.scenarios.registry import Outcome, suitable
from repertory.training import dense
from repertory.training.budget import Budget
from repertory.training.mask_files import MaskPredictions

TINY = Part("repertory.models.unet:UNet", {"widths": (4, 8)})


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return datasets.load("shapes?examples=40&side=16")


def learnt(dataset: Dataset, steps: int = 4) -> Outcome:
    recipe = segmentation.baseline(dataset, TINY, epochs=1)
    return segmentation.run(recipe, dataset, seed=0, budget=Budget("steps", steps))


def save_pairs(folder: Path, count: int = 12) -> Path:
    for kind, pixels in zip(("images", "masks"), scenes(count, 16, seed=1)):
        (folder / kind).mkdir(parents=True)
        for number, each in enumerate(pixels):
            Image.fromarray(each.squeeze(0).numpy().astype(np.uint8)).save(folder / kind / f"{number}.png")
    return folder


class Fixed(nn.Module):
    """Gives the logits that its first channel and a table say."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(images[:, 0].long(), 3).permute(0, 3, 1, 2).float()


def test_metrics_are_those_of_scikit_learn_on_the_labelled_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(3, (5, 4, 6), generator=generator)
    given = torch.randint(3, (5, 1, 4, 6), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = IGNORED
    counts = dense.confusion(Fixed(), given, truth, 3)
    found = dense.mask_metrics(counts)
    known = truth != IGNORED
    a, b = truth[known].numpy(), given[:, 0][known].numpy()
    assert counts.tolist() == confusion_matrix(a, b).tolist()
    assert found["mean_iou"] == pytest.approx(jaccard_score(a, b, average="macro"))
    assert found["mean_dice"] == pytest.approx(f1_score(a, b, average="macro"))
    assert found["pixel_accuracy"] == pytest.approx(accuracy_score(a, b))


def test_classes_that_do_not_occur_are_left_out_of_the_mean() -> None:
    counts = torch.tensor([[4, 0, 0], [0, 2, 0], [0, 0, 0]])
    assert dense.mask_metrics(counts) == {"mean_iou": 1.0, "mean_dice": 1.0, "pixel_accuracy": 1.0}
    assert segmentation.class_table(counts, ("a", "b", "c"))["class"] == ["a", "b"]


def test_chunks_do_not_change_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.arange(30).view(5, 1, 2, 3) % 3
    masks = (inputs[:, 0] + (torch.arange(5) > 2).long()[:, None, None]) % 3
    whole = dense.confusion(Fixed(), inputs, masks, 3)
    monkeypatch.setattr(dense, "LOGITS", 2 * 3 * 6)
    assert torch.equal(dense.confusion(Fixed(), inputs, masks, 3), whole)
    assert torch.equal(dense.predict_masks(Fixed(), inputs, 3), inputs[:, 0].to(torch.uint8))


def test_a_run_gives_the_metrics_and_a_row_a_class(shapes: Dataset) -> None:
    outcome = learnt(shapes)
    assert set(outcome.metrics["test"]) == {"mean_iou", "mean_dice", "pixel_accuracy"}
    table = outcome.tables["classes"]
    assert set(table["class"]) <= set(shapes.classes)
    assert sum(table["pixels"]) == 6 * 16 * 16
    assert outcome.metrics["test"]["mean_iou"] == pytest.approx(sum(table["iou"]) / len(table["iou"]))


def test_a_network_learns_the_masks(shapes: Dataset) -> None:
    recipe = segmentation.baseline(shapes, TINY, epochs=1)
    recipe = recipe.replace(optimizer=Part("torch.optim:Adam", {"lr": 0.03}))
    outcome = segmentation.run(recipe, shapes, seed=0, budget=Budget("steps", 40))
    guess = dense.mask_metrics(torch.tensor([[1, 0], [1, 0]]))["mean_iou"]
    assert outcome.metrics["test"]["mean_iou"] > guess
    assert outcome.tables["classes"]["iou"][1] > 0.5


def test_masks_are_a_task_of_their_own(shapes: Dataset) -> None:
    assert suitable([], shapes) == "segmentation"
    with pytest.raises(UserError, match="give a folder with images and masks"):
        segmentation.view(datasets.load("digits"))
    from repertory.scenarios import supervised

    with pytest.raises(OptionError, match=r"has masks.*--scenario segmentation"):
        supervised.view(shapes)


def test_instruments_refuse_masks() -> None:
    with pytest.raises(UserError, match="has masks, but an instrument measures a network with one output"):
        measure("criticality", data="shapes?examples=20&side=16")


@pytest.mark.parametrize("model", ["repertory:small_cnn", "torch.nn:Identity"])
def test_a_network_must_give_logits_for_every_pixel(shapes: Dataset, model: str) -> None:
    recipe, _ = chosen_recipe(shapes, scenario="segmentation", model=model)
    with pytest.raises(UserError, match=r"masks need logits \(2, 4, 16, 16\).*repertory:small_unet"):
        segmentation.run(recipe, shapes, seed=0, budget=Budget("steps", 1))


def test_networks_of_torchvision_take_part_by_name(shapes: Dataset) -> None:
    recipe, _ = chosen_recipe(shapes, scenario="segmentation", model="torchvision:lraspp_mobilenet_v3_large")
    outcome = segmentation.run(recipe.replace(batch_size=4), shapes, seed=0, budget=Budget("steps", 1))
    assert 0 <= outcome.metrics["test"]["mean_iou"] <= 1


def test_fit_and_predict_from_folders_to_masks(tmp_path: Path) -> None:
    folder = save_pairs(tmp_path / "photos")
    saved = fit(None, data=str(folder), out=tmp_path / "model", epochs=1, model="repertory.models.unet:small_unet")
    predictions = saved.predict(folder / "images")
    assert isinstance(predictions, MaskPredictions)
    assert [mask.shape for mask in predictions.masks] == [(16, 16)] * 12
    assert sum(v for k, v in predictions.rows()[0].items() if k != "input") == pytest.approx(1, abs=1e-5)
    written = predictions.write(tmp_path / "masks")
    assert [path.name for path in written] == [Path(name).with_suffix(".png").name for name in predictions.ids]
    assert torch.equal(torch.from_numpy(np.array(Image.open(written[3]))), predictions.masks[3])


def test_written_masks_can_be_learnt_from(tmp_path: Path) -> None:
    folder = save_pairs(tmp_path / "photos")
    data = datasets.load(str(folder))
    names = [path.name for path in sorted((folder / "images").iterdir())]
    MaskPredictions(names, data.targets.to(torch.uint8), data.classes).write(tmp_path / "again" / "masks")
    (folder / "images").rename(tmp_path / "again" / "images")
    again = datasets.load(str(tmp_path / "again"))
    assert torch.equal(again.targets, data.targets)
    assert torch.equal(again.inputs, data.inputs)


def test_images_that_differ_by_their_ending_get_masks_of_their_own(tmp_path: Path) -> None:
    masks = torch.arange(2, dtype=torch.uint8)[:, None, None].expand(2, 4, 4)
    written = MaskPredictions(["a.jpg", "a.png"], masks, ("x", "y")).write(tmp_path)
    assert [int(np.array(Image.open(path))[0, 0]) for path in written] == [0, 1]
