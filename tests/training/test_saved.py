"""A saved model is plain data: it predicts as it did when it was trained, and damage or foreign code is refused."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import timm
import torch
import yaml
from torch import Tensor, nn

from repertory import Recipe, load
from repertory.datasets import Dataset
from repertory.datasets import load as load_data
from repertory.errors import DataError, UserError
from repertory.recipe import Part
from repertory.training.build import build_learner
from repertory.training.evaluate import predict
from repertory.training.learner import Learner
from repertory.training.saved import save_model

MLP = Part("repertory.models.small:mlp")


def recipe(model: Part = MLP, loss: str = "CrossEntropyLoss") -> Recipe:
    return Recipe(model, Part(f"torch.nn:{loss}"), Part("torch.optim:AdamW"))


def save(folder: Path, data: str = "iris", how: Recipe | None = None) -> tuple[Learner, Dataset]:
    dataset = load_data(data)
    how = how or recipe()
    splits = dataset.prepare(0)
    learner = build_learner(
        how, dataset.in_shape, dataset.outputs, 0, offset=splits.target_mean, scale=splits.target_std
    )
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_model(folder, learner.state_dict(), how, dataset, splits, {"seed": 0})
    return learner, dataset


def expected(learner: Learner, dataset: Dataset) -> Tensor:
    return predict(learner, dataset.inputs, dataset.prepare(0).normaliser)


@pytest.mark.parametrize(
    ("data", "model", "loss"),
    [
        ("iris", MLP, "CrossEntropyLoss"),
        ("diabetes", MLP, "MSELoss"),
        ("digits", Part("repertory.models.small:small_cnn"), "CrossEntropyLoss"),
    ],
)
def test_predicts_exactly_what_the_trained_model_predicts(tmp_path: Path, data: str, model: Part, loss: str) -> None:
    learner, dataset = save(tmp_path, data, recipe(model, loss))
    model_again = load(tmp_path)
    found = model_again.predict(dataset.inputs)
    assert torch.equal(found.outputs, expected(learner, dataset))
    assert found.classes == dataset.classes
    with torch.no_grad():
        torch.testing.assert_close(model_again(dataset.inputs[:5]), found.outputs[:5])


def test_the_recipe_and_what_is_known_of_the_data_come_back(tmp_path: Path) -> None:
    save(tmp_path)
    model = load(tmp_path)
    assert model.recipe == recipe()
    assert model.about["data"]["name"] == "iris"
    assert model.about["seed"] == 0
    assert not model.training


def test_predicts_a_table_on_disk_with_or_without_its_target(tmp_path: Path) -> None:
    rows = "\n".join(f"{a},{(a * 7) % 5},{'xy'[a % 2]}" for a in range(12))
    (tmp_path / "all.csv").write_text(f"a,b,kind\n{rows}\n")
    dataset = load_data(str(tmp_path / "all.csv"), target="kind")
    learner = build_learner(recipe(), dataset.in_shape, dataset.outputs, 0)
    save_model(tmp_path / "m", learner.state_dict(), recipe(), dataset, dataset.prepare(0), {})
    (tmp_path / "new.csv").write_text("b,a\n3,1\n4,2\n")
    found = load(tmp_path / "m").predict(tmp_path / "new.csv")
    same = load(tmp_path / "m").predict(torch.tensor([[1.0, 3.0], [2.0, 4.0]]))
    assert found.ids == ["1", "2"]
    assert torch.equal(found.outputs, same.outputs)


def test_rows_name_the_class_and_give_every_probability(tmp_path: Path) -> None:
    _, dataset = save(tmp_path)
    found = load(tmp_path).predict(dataset.inputs[:3])
    for row, output in zip(found.rows(), found.outputs.softmax(1)):
        assert row["prediction"] == dataset.classes[int(output.argmax())]
        assert row["probability"] == pytest.approx(float(output.max()), abs=1e-6)
        assert [row[f"p({name})"] for name in dataset.classes] == pytest.approx(output.tolist(), abs=1e-6)


def test_rows_of_a_regression_give_the_value(tmp_path: Path) -> None:
    _, dataset = save(tmp_path, "diabetes", recipe(loss="MSELoss"))
    found = load(tmp_path).predict(dataset.inputs[:2])
    assert found.rows() == [{"input": str(i), "prediction": float(found.outputs[i])} for i in range(2)]


def test_inputs_of_another_shape_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(DataError, match=r"inputs have shape \(5,\), the model was trained on \(4,\)"):
        load(tmp_path).predict(torch.zeros(2, 5))


@pytest.mark.parametrize("name", ["weights.safetensors", "recipe.yaml", "model.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"is not a saved model: {name} missing; name the folder"):
        load(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a saved model"):
        load(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["weights.safetensors", "recipe.yaml", "model.json"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"[1, 2]", b'{"a": 1}', None], ids=str)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes | None) -> None:
    save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=r"train it again|has no slot|is not of the form") as told:
        load(tmp_path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("key", ["classes", "in_shape", "outputs", "encoder", "normaliser", "format"])
def test_a_description_that_lacks_something_is_refused(tmp_path: Path, key: str) -> None:
    save(tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    del about[key]
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="train it again"):
        load(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    save(tmp_path / "other", how=recipe(Part("repertory.models.small:mlp", {"width": 5})))
    (tmp_path / "other" / "weights.safetensors").replace(tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="the weights do not fit the recipe's network"):
        load(tmp_path)


def rewrite(folder: Path, slot: str, factory: str) -> None:
    plain = yaml.safe_load((folder / "recipe.yaml").read_text())
    part = {"factory": factory, "options": {}}
    plain[slot] = [part] if slot in ("surgery", "after") else part
    (folder / "recipe.yaml").write_text(yaml.safe_dump(plain))


@pytest.fixture
def mypkg(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    called: list[str] = []

    def network(in_shape: tuple[int, ...], outputs: int) -> nn.Module:
        called.append("network")
        return nn.Linear(in_shape[0], outputs)

    module = types.ModuleType("mypkg")
    module.network = network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mypkg", module)
    return called


def test_foreign_code_is_called_only_with_trust(tmp_path: Path, mypkg: list[str]) -> None:
    learner, dataset = save(tmp_path, how=recipe(Part("mypkg:network")))
    mypkg.clear()
    with pytest.raises(UserError, match=r"built by 'mypkg:network', which is not part of repertory.*trust=True"):
        load(tmp_path)
    assert not mypkg
    assert torch.equal(load(tmp_path, trust=True).predict(dataset.inputs).outputs, expected(learner, dataset))


@pytest.mark.parametrize("slot", ["model", "criterion", "surgery", "after"])
@pytest.mark.parametrize(
    "factory",
    ["os:system", "subprocess:run", "builtins:exec", "torch:load", "torch.hub:load", "repertory.recipe:locate",
     "repertory.models.small:nn", "repertory.models.sources:nearest", "repertory.modelsevil:x"],
)  # fmt: skip
def test_no_slot_of_a_recipe_gets_foreign_code_called(tmp_path: Path, slot: str, factory: str) -> None:
    save(tmp_path)
    rewrite(tmp_path, slot, factory)
    with pytest.raises(UserError, match=r"is not part of repertory|there is no module"):
        load(tmp_path)


def test_code_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap_on_import.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    save(tmp_path / "m")
    rewrite(tmp_path / "m", "model", "trap_on_import:network")
    with pytest.raises(UserError, match="is not part of repertory"):
        load(tmp_path / "m")


def test_published_weights_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def create(name: str, num_classes: int, in_chans: int, pretrained: bool, **options: object) -> nn.Module:
        asked.append(pretrained)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    monkeypatch.setattr(timm, "create_model", create)
    how = recipe(Part("repertory.models.sources:from_timm", {"name": "resnet18", "pretrained": True}))
    learner, dataset = save(tmp_path, "digits", how)
    found = load(tmp_path).predict(dataset.inputs).outputs
    assert asked == [True, False]
    assert torch.equal(found, expected(learner, dataset))
