"""Predictions of bags: those of the run, whatever the order of the rows, and what is refused with a way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import repertory
from repertory.cli import main
from repertory.datasets.new_bags import bags_of, column_of
from repertory.errors import DataError, UserError
from repertory.scenarios.fit import fit
from repertory.training.bag_predictions import BagPredictions
from repertory.training.saved import Predictions, SavedModel


def slides(path: Path) -> None:
    """Forty slides of one to four tiles, of which every second is bad; their names are numbers with leading zeros."""
    draw = np.random.default_rng(0)
    rows = [
        (f"{bag:03}", draw.normal() + 2 * (bag % 2), draw.normal(), ["good", "bad"][bag % 2])
        for bag in range(40)
        for _ in range(1 + bag % 4)
    ]
    pd.DataFrame(rows, columns=["slide", "a", "b", "label"]).to_csv(path / "tiles.csv", index=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    slides(folder)
    for name, methods, options in (("plain", None, "&pool=max"), ("attention", "attention-mil:width=4", "")):
        spec = f"{folder / 'tiles.csv'}?bag=slide&positive=bad{options}"
        fit(methods, data=spec, target="label", out=folder / name, epochs=2)
    return folder


@pytest.fixture(params=["plain", "attention"])
def model(request: pytest.FixtureRequest, place: Path) -> SavedModel:
    return repertory.load(place / request.param)


def predicted(model: SavedModel, data: Any, **more: Any) -> BagPredictions:
    found = model.predict(data, **more)
    assert isinstance(found, BagPredictions)
    return found


def test_bags_and_instances_of_the_test_part_score_as_in_the_run(
    place: Path, model: SavedModel, request: pytest.FixtureRequest
) -> None:
    folder = place / request.node.callspec.params["model"]
    found = predicted(model, place / "tiles.csv")
    scores = dict(zip(found.ids, found.scores.tolist()))
    table = pd.read_parquet(folder / "bags.parquet")
    assert len(found.ids) == 40
    # The run read the names of the slides as numbers.
    names = [f"{int(name):03}" for name in table["bag"]]
    assert [scores[name] for name in names] == pytest.approx(table["score"].tolist(), abs=1e-5)
    labels = {row["bag"]: row["prediction"] for row in found.rows()}
    right = np.mean([labels[name] == label for name, label in zip(names, table["label"])])
    assert right == pytest.approx(model.about["metrics"]["test"]["bag_accuracy"])
    single = pd.read_parquet(folder / "instances.parquet")
    own = found.instances.outputs.softmax(1)[:, 1].tolist()
    assert [own[row] for row in single["row"]] == pytest.approx(single["probability"].tolist(), abs=1e-5)


def test_a_bag_is_scored_by_how_it_was_in_training(place: Path) -> None:
    found = predicted(repertory.load(place / "plain"), place / "tiles.csv")
    own = pd.DataFrame({"bag": found.instances.columns["bag"], "p": found.instances.outputs.softmax(1)[:, 1].tolist()})
    assert found.scores.tolist() == pytest.approx(own.groupby("bag", sort=False)["p"].max().tolist())
    assert "weight" not in found.instances.columns


def test_attention_tells_how_much_each_instance_counted(place: Path) -> None:
    found = predicted(repertory.load(place / "attention"), place / "tiles.csv")
    weight = torch.tensor(found.instances.columns["weight"])
    for name, score in zip(found.ids, found.scores):
        own = torch.tensor([bag == name for bag in found.instances.columns["bag"]])
        assert float(weight[own].sum()) == pytest.approx(1, abs=1e-5)
        logits = (weight[own, None] * found.instances.outputs[own]).sum(0)
        assert float(score) == pytest.approx(float(logits.softmax(0)[1]), abs=1e-5)


def test_the_order_of_rows_does_not_matter_and_bags_come_as_they_are_first_named(
    place: Path, tmp_path: Path, model: SavedModel
) -> None:
    plain = {row["bag"]: row for row in predicted(model, place / "tiles.csv").rows()}
    mixed = pd.read_csv(place / "tiles.csv", dtype={"slide": str}).sample(frac=1, random_state=0)
    mixed.drop(columns="label").to_csv(tmp_path / "new.csv", index=False)
    rows = predicted(model, tmp_path / "new.csv").rows()
    assert [row["bag"] for row in rows] == list(dict.fromkeys(mixed["slide"]))
    for row in rows:
        assert row["score"] == pytest.approx(plain[row["bag"]]["score"], abs=1e-5)
        assert row["instances"] == 1 + int(row["bag"]) % 4


def test_raw_inputs_come_with_the_names_of_their_bags(model: SavedModel) -> None:
    inputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    found = predicted(model, inputs, bags=["x", 7, "x", 7])
    assert (found.ids, found.sizes) == (["x", "7"], [2, 2])
    alone = predicted(model, inputs[[0, 2]], bags=["x", "x"])
    torch.testing.assert_close(found.scores[:1], alone.scores)
    with pytest.raises(DataError, match=r"give bags=, or ask for instances=True"):
        model.predict(inputs)
    with pytest.raises(DataError, match="bags=3 names do not fit 4 instances"):
        model.predict(inputs, bags=["x", "y", "z"])


def test_instances_alone_need_no_bags_and_name_them_where_there_are_any(place: Path, model: SavedModel) -> None:
    inputs = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    alone = model.predict(inputs, instances=True)
    assert isinstance(alone, Predictions)
    assert list(alone.rows()[0]) == ["input", "prediction", "probability", "p(good)", "p(bad)"]
    torch.testing.assert_close(alone.outputs, model(inputs).detach())
    rows = model.predict(place / "tiles.csv", instances=True).rows()
    assert len(rows) == 100
    assert list(rows[0])[:2] == ["input", "bag"]
    assert rows[2]["bag"] == "001"


def test_a_model_of_single_inputs_has_no_bags(tmp_path: Path) -> None:
    single = fit(None, data="iris", out=tmp_path / "model", epochs=1)
    with pytest.raises(UserError, match=r"models of the scenario bags.*trained for classification"):
        single.predict(torch.zeros(2, 4), bags=[0, 0])


def test_a_model_that_was_saved_without_its_bags_takes_the_usual_ones(place: Path, tmp_path: Path) -> None:
    model = repertory.load(place / "plain")
    del model.about["bags"]
    rows = pd.read_csv(place / "tiles.csv").rename(columns={"slide": "bag"}).iloc[:3]
    rows.to_csv(tmp_path / "new.csv", index=False)
    found = predicted(model, tmp_path / "new.csv")
    assert found.threshold == 0.5
    own = found.instances.outputs.softmax(1)[:, 1]
    assert found.scores.tolist() == pytest.approx([float(own[0]), float(own[1:].mean())])


def test_the_command_prints_one_row_a_bag_or_one_an_instance(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(place / "attention"), str(place / "tiles.csv")
    assert main(["predict", model, data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == repertory.load(model).predict(data).rows()
    assert main(["predict", model, data]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["bag", "prediction", "score", "instances"]
    assert main(["predict", model, data, "--instances", "--out", str(tmp_path / "tiles.csv")]) == 0
    table = pd.read_csv(tmp_path / "tiles.csv", dtype={"bag": str})
    assert list(table) == ["input", "bag", "weight", "prediction", "probability", "p(good)", "p(bad)"]
    assert len(table) == 100


def test_which_column_names_the_bags_stands_in_the_specification() -> None:
    assert column_of("t.csv?bag=slide&pool=max") == "slide"
    assert column_of("t.csv?group=camera") == "camera"
    assert column_of("t.csv?task=bags") == column_of("photos?bags=folders") == column_of("digits?bags=20") == "bag"


def test_a_table_must_name_the_bag_of_every_row(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("slide,a\n01,1\n,2\n")
    assert bags_of(str(path), ["1", "2"], "table", "bag", required=False) is None
    with pytest.raises(DataError, match=r"lacks the column 'bag'.*--instances \(instances=True\)"):
        bags_of(str(path), ["1", "2"], "table", "bag")
    with pytest.raises(DataError, match="1 cells of the column 'slide' are empty, the first in row 2"):
        bags_of(str(path), ["1", "2"], "table", "slide")


def test_arrays_hold_the_bag_of_every_row(tmp_path: Path) -> None:
    for name, arrays in {"good": {"bag": [3, 3, 1]}, "short": {"bag": [3]}, "none": {}}.items():
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((3, 2), np.float32), **arrays)
    ids = ["1", "2", "3"]
    assert bags_of(str(tmp_path / "good.npz"), ids, "table", "slide") == ["3", "3", "1"]
    with pytest.raises(DataError, match="bag has 1 entries for 3 rows of x"):
        bags_of(str(tmp_path / "short.npz"), ids, "table", "slide")
    with pytest.raises(DataError, match=r"lacks the array bag.*--instances"):
        bags_of(str(tmp_path / "none.npz"), ids, "table", "slide")
    assert bags_of(str(tmp_path / "none.npz"), ids, "table", "slide", required=False) is None


def test_the_folder_that_an_image_is_in_is_its_bag(tmp_path: Path) -> None:
    (tmp_path / "s1").mkdir()
    assert bags_of(str(tmp_path), ["s1/a.png", "x/s1/b.png"], "image", "bag") == ["s1", "x/s1"]
    assert bags_of(str(tmp_path / "s1"), ["a.png", "b.png"], "image", "bag") == ["s1", "s1"]
    with pytest.raises(DataError, match=r"1 of 2 images are in no bag, such as b\.png; put each"):
        bags_of(str(tmp_path), ["s1/a.png", "b.png"], "image", "bag")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="is one image; give a folder with a folder for each bag"):
        bags_of(str(tmp_path / "a.png"), ["a.png"], "image", "bag")
    assert bags_of(str(tmp_path / "a.png"), ["a.png"], "image", "bag", required=False) is None


def test_bags_of_images_are_fitted_and_predicted_from_folders(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for bag in range(12):
        folder = tmp_path / "photos" / "ab"[bag % 2] / f"s{bag}"
        folder.mkdir(parents=True)
        for number in range(2):
            pixels = draw.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    model = fit(None, data=f"{tmp_path / 'photos'}?bags=folders", out=tmp_path / "model", epochs=1)
    rows = predicted(model, tmp_path / "photos" / "a").rows()
    assert sorted(row["bag"] for row in rows) == sorted(f"s{bag}" for bag in range(0, 12, 2))
    assert {row["instances"] for row in rows} == {2}
