"""`fit`: trains, saves, goes on where it was cut off, and leaves nothing behind when it cannot work."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import repertory
from repertory.errors import DivergedError, UserError
from repertory.scenarios.fit import fit
from repertory.scenarios.registry import Outcome
from repertory.training.saved import SavedModel

FILES = {"model.json", "recipe.yaml", "weights.safetensors"}


def weights(model: SavedModel) -> Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


class Dropping(nn.Module):
    """A network that draws from the global generator."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.layers(inputs)
        return output


@pytest.fixture(autouse=True)
def mypkg(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("mypkg")
    module.dropping = lambda in_shape, outputs: Dropping(in_shape[0], outputs)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mypkg", module)


class Killed(BaseException):
    """The process is gone."""


def stop_at(share: float, error: type[BaseException] = Killed) -> Any:
    def watch(done: float) -> None:
        if done >= share:
            raise error

    return watch


SETTINGS: dict[str, Any] = {"data": "iris", "epochs": 4, "model": "mypkg:dropping", "device": "cpu"}


@pytest.mark.parametrize("methods", ["esam+lion", "saf:start=1,lag=1+ps-kd", "model-soups", "data-diet+gda-clip"])
def test_a_fit_that_was_cut_off_ends_with_the_same_weights_bit_for_bit(tmp_path: Path, methods: str) -> None:
    straight = fit(methods, out=tmp_path / "a", **SETTINGS)
    with pytest.raises(Killed):
        fit(methods, out=tmp_path / "b", watch=stop_at(0.3), **SETTINGS)
    assert not (tmp_path / "b" / "model.json").exists()
    resumed = fit(methods, out=tmp_path / "b", resume=True, **SETTINGS)
    assert torch.equal(weights(resumed), weights(straight))
    assert resumed.about["metrics"] == straight.about["metrics"]
    assert resumed.about["cost"]["passes"] == straight.about["cost"]["passes"]


@pytest.mark.parametrize(
    ("data", "methods"),
    [("iris", None), ("diabetes", "lion"), ("iris", "ebv"), ("iris", "softtriple"), ("iris", "gda-clip"),
     ("iris", "model-soups+gda-clip"), ("iris", "data-diet")],
)  # fmt: skip
def test_what_was_saved_predicts_what_the_trained_model_predicted(
    tmp_path: Path, data: str, methods: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from repertory.scenarios import supervised

    outcomes = []

    def run(*args: Any, **options: Any) -> Outcome:
        outcomes.append(original(*args, **options))
        return outcomes[-1]

    original = supervised.run
    monkeypatch.setattr(supervised, "run", run)
    fit(methods, data=data, out=tmp_path / "m", epochs=2, device="cpu")
    model = repertory.load(tmp_path / "m")
    splits, learner = outcomes[0].splits, outcomes[0].learner.eval()
    with torch.no_grad():
        expected = learner(splits.normaliser(splits.test.inputs))
    assert torch.equal(model.predict(splits.test.inputs).outputs, expected)
    assert {path.name for path in (tmp_path / "m").iterdir()} == FILES


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    a, b = (fit(out=tmp_path / name, **SETTINGS) for name in "ab")
    c = fit(out=tmp_path / "c", seed=1, **SETTINGS)
    assert torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), weights(c))


def test_a_model_of_ones_own_comes_back_from_fit_but_needs_trust_from_disk(tmp_path: Path) -> None:
    model = fit(out=tmp_path / "m", **SETTINGS)
    assert isinstance(model.learner.network, Dropping)
    with pytest.raises(UserError, match="which is not part of repertory"):
        repertory.load(tmp_path / "m")


def test_a_finished_fit_is_loaded_by_resume_and_not_trained_again(tmp_path: Path) -> None:
    first = fit(out=tmp_path / "m", **SETTINGS)
    before = (tmp_path / "m" / "weights.safetensors").stat().st_mtime_ns
    again = fit(out=tmp_path / "m", resume=True, **SETTINGS)
    assert torch.equal(weights(first), weights(again))
    assert (tmp_path / "m" / "weights.safetensors").stat().st_mtime_ns == before


def test_a_finished_model_is_never_overwritten(tmp_path: Path) -> None:
    fit(out=tmp_path / "m", **SETTINGS)
    before = (tmp_path / "m" / "model.json").read_bytes()
    with pytest.raises(UserError, match="holds a model already; name another folder, or delete it"):
        fit(out=tmp_path / "m", **SETTINGS)
    with pytest.raises(UserError, match="holds another model"):
        fit("esam", out=tmp_path / "m", resume=True, **SETTINGS)
    assert (tmp_path / "m" / "model.json").read_bytes() == before


@pytest.mark.parametrize("changed", [{"methods": "esam"}, {"seed": 1}, {"lr": 0.5}, {"epochs": 9}, {"data": "wine"}])
def test_another_unfinished_fit_is_left_alone(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(Killed):
        fit(out=tmp_path / "m", watch=stop_at(0.3), **SETTINGS)
    kept = (tmp_path / "m" / "checkpoints" / "train.pt").read_bytes()
    with pytest.raises(UserError, match="holds an unfinished fit; add --resume to complete it"):
        fit(out=tmp_path / "m", **SETTINGS)
    with pytest.raises(UserError, match=r"holds another unfinished fit \(other data, methods or settings\)"):
        fit(**{**SETTINGS, **changed}, out=tmp_path / "m", resume=True)
    assert (tmp_path / "m" / "checkpoints" / "train.pt").read_bytes() == kept


def test_a_damaged_checkpoint_is_named_and_kept(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(out=tmp_path / "m", watch=stop_at(0.3), **SETTINGS)
    (tmp_path / "m" / "checkpoints" / "train.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"train\.pt cannot be read as a checkpoint.*delete it to start afresh"):
        fit(out=tmp_path / "m", resume=True, **SETTINGS)
    assert (tmp_path / "m" / "checkpoints" / "train.pt").exists()


def test_ctrl_c_keeps_the_epochs_and_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match=r"finished epochs are kept in .*m: repeat the command with --resume"):
        fit(out=tmp_path / "m", watch=stop_at(0.3, KeyboardInterrupt), **SETTINGS)
    assert fit(out=tmp_path / "m", resume=True, **SETTINGS).about["metrics"]


def test_a_diverged_fit_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        fit("torch.optim:SGD", data="diabetes", out=tmp_path / "m", epochs=4, lr=1e9, device="cpu")
    assert not (tmp_path / "m").exists()


def test_a_diverged_fit_leaves_what_was_there_before(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(DivergedError):
        fit("torch.optim:SGD", data="diabetes", out=tmp_path, epochs=4, lr=1e9, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 0}, "devices=0 is not allowed: devices must be a whole number, at least 1"),
        ({"strategy": "fdsp"}, "strategy='fdsp' is not allowed.*did you mean fsdp"),
        ({"precision": "fp8"}, "precision='fp8' is not allowed"),
        ({"logger": "tensorbord"}, "logger='tensorbord' is not allowed.*did you mean tensorboard"),
        ({"seed": -1}, "seed=-1 is not allowed"),
        ({"devices": 2, "methods": "model-soups"}, "model-soups chooses data or changes the model .*use --devices 1"),
        ({"devices": 2, "batch_size": 1}, "batch_size=1 is less than one example for each of 2 devices"),
        (
            {"strategy": "fsdp", "methods": "softtriple"},
            r"softtriple predicts with parameters of its loss \(SoftTriple",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_option_is_named_and_nothing_is_written(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(**{**SETTINGS, **options}, out=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_logger_that_is_not_installed_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_fabric import loggers

    def missing(**_: Any) -> None:
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr(loggers, "TensorBoardLogger", missing)
    with pytest.raises(UserError, match=r'install it with: pip install "repertory\[log\]"'):
        fit(out=tmp_path / "m", logger="tensorboard", **SETTINGS)
    assert not (tmp_path / "m").exists()


def read(log: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(log.read_text().splitlines()))


def test_the_csv_logger_writes_a_row_an_epoch(tmp_path: Path) -> None:
    fit(out=tmp_path / "m", logger="csv", **SETTINGS)
    (log,) = (tmp_path / "m" / "logs").rglob("metrics.csv")
    rows = read(log)
    assert len(rows) == 4
    assert {"step", "train_loss", "passes", "seconds", "validation_accuracy"} <= set(rows[0])
    assert [float(row["progress"]) for row in rows] == [0.25, 0.5, 0.75, 1.0]


def test_a_resumed_fit_does_not_overwrite_the_log_before(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(out=tmp_path / "m", logger="csv", watch=stop_at(0.5), **SETTINGS)
    fit(out=tmp_path / "m", logger="csv", resume=True, **SETTINGS)
    logs = sorted((tmp_path / "m" / "logs").rglob("metrics.csv"))
    assert [len(read(log)) for log in logs] == [2, 2]


def test_the_tensorboard_logger_writes_every_curve(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(out=tmp_path / "m", logger="tensorboard", **SETTINGS)
    (log,) = (tmp_path / "m" / "logs").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(log)).Reload()
    assert {"train_loss", "validation_accuracy", "validation_nll"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train_loss")) == 4


@pytest.mark.parametrize(
    "method",
    ["graph-reranking:k1=5", "relative-representations:anchors=20", "b-attention:k=4,share=0.2", "softtriple"],
)
def test_a_saved_model_refines_embeddings_as_the_fitted_one_did(method: str, tmp_path: Path) -> None:
    import pandas as pd

    fit(method, data="digits", epochs=1, out=tmp_path / "m", scenario="retrieval", device="cpu")
    saved = repertory.load(tmp_path / "m")
    table = pd.read_parquet(tmp_path / "m" / "embeddings.parquet")
    rows = torch.tensor(table["row"].tolist())
    plain, _ = saved.embed(repertory.datasets.load("digits").inputs[rows])
    searched = torch.tensor([row.tolist() for row in table["embedding"]])
    torch.testing.assert_close(saved.refine(plain), searched, rtol=1e-4, atol=1e-5)
    assert torch.equal(saved.refine(plain), plain) == (method == "softtriple")
