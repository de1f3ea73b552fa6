"""The verbs that train and predict: what they print, and one line with status 2 for what cannot work."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import repertory
from repertory import catalogue
from repertory.cli import main
from repertory.compare import api
from repertory.scenarios import fit as fitting

CSV = {
    "good.csv": "a,b,y\n" + "\n".join(f"{i},{i % 5},{'pq'[i % 2]}" for i in range(20)),
    "constant.csv": "a,b,y\n" + "\n".join(f"{i},{i % 5},p" for i in range(20)),
    "flat.csv": "a,b,y\n" + "\n".join(f"{i},{i % 5},1.5" for i in range(20)),
    "few.csv": "a,b,y\n" + "\n".join(f"{i},{i % 5},{'pq'[i == 3]}" for i in range(20)),
    "holes.csv": "a,b,y\n" + "\n".join(f"{i},{'' if i == 4 else i},{'pq'[i % 2]}" for i in range(20)),
    "words.csv": "a,b,y\n" + "\n".join(f"{i},{'abc' if i == 4 else i},{'pq'[i % 2]}" for i in range(20)),
    "nothing.csv": "",
}

SHORT = ["--epochs", "1", "--seeds", "2"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with good and bad data in it."""
    for name, text in CSV.items():
        (tmp_path / name).write_text(text)
    for folder in ("photos/a", "photos/b", "single/a", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("photos/a", "photos/b", "single/a"):
        for number in range(4):
            Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(tmp_path / folder / f"{number}.png")
    (tmp_path / "photos" / "a" / "bad.png").write_text("no picture")
    (tmp_path / "photos" / "b" / "void.png").write_text("")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 4), dtype=np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def refused(capsys: pytest.CaptureFixture[str], place: Path, *words: str) -> str:
    """Run a command that must be refused: status 2, one line, nothing printed, nothing written."""
    before = content(place)
    status = main(words)
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, ""), captured.err
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("repertory: ")
    assert content(place) == before
    return line.removeprefix("repertory: ")


DATA = [
    ("--data irs", "'irs' is not a built-in data set .*did you mean iris"),
    ("--data good.cvs", "'good.cvs' is not a built-in data set .*did you mean good.csv"),
    ("--data good.csv", "target must name the column to predict; its columns are a, b, y"),
    ("--data good.csv --target z", "target=z is not a column of good.csv; its columns are a, b, y"),
    ("--data constant.csv --target y", r"target 'y' has one value only \(p\)"),
    ("--data flat.csv --target y", r"target 'y' has one value only \(1.5\)"),
    ("--data few.csv --target y", "too few examples of a class to split: 'q' has 1; the minimum is 3"),
    ("--data holes.csv --target y", r"missing or infinite cells: 'b' has 1 \(row 5\); fill them in.*--skip-bad"),
    ("--data words.csv --target y", "column 'b' holds numbers, but 1 cells are text: 'abc' in row 5; correct"),
    ("--data nothing.csv --target y", "nothing.csv is empty; expected a header and rows"),
    ("--data empty", "empty has nothing in it; expected FOLDER/CLASS/image files"),
    ("--data single", r"one class folder only \(a\); at least 2 are needed"),
    ("--data photos", r"2 of 10 images cannot be read: .*bad.png .*, .*void.png \(empty file\); .*--skip-bad"),
    ("--data iris?noise=2", "noise=2 is not a share"),
    ("--data iris?noize=0.1", "data option 'noize' .*did you mean noise"),
    ("--data iris --target y", "target=y does not apply to the built-in iris"),
    ("--data iris --model torch.nn:Identity", r"gives \(2, 4\) for 2 inputs, but this data needs \(2, 3\); give"),
    ("--data iris --model timm:resnet18", r"timm:resnet18 takes images \(channels, height, width\)"),
    ("--data iris --model nopkg.nets:net", "there is no module 'nopkg'; install it, or add its folder"),
    ("--data iris --model resnet18", "--model 'resnet18' is not of the form timm:NAME, torchvision:NAME, hf:NAME"),
    ("--data iris --epochs 0", "epochs=0 is not allowed: epochs must be a whole number, at least 1"),
    ("--data iris --epochs few", "Invalid value for '--epochs': .*; see 'repertory .* --help'"),
    ("--data iris --lr=-1", "lr=-1.0 is not allowed: lr must be a number, above 0"),
    ("--data iris --augment shift", "augment='shift' needs images, but the data are a table"),
    ("--data iris --views photo", "views='photo' needs images, but the data are a table; leave it out"),
    ("--data iris --precision half", "precision='half' is not allowed"),
    ("--data iris --device abacus", "--device 'abacus' is not there; use auto, or what this machine has: cpu"),
    ("--data iris --seed=-1", "seed=-1 is not allowed: seed must be a whole number, at least 0"),
    ("--data iris --speed 9", "No such option: --speed.*; see 'repertory .* --help'"),
]


@pytest.mark.parametrize(("words", "message"), DATA, ids=[words for words, _ in DATA])
@pytest.mark.parametrize("verb", ["compare lion", "fit --with lion"])
def test_bad_data_and_choices_are_refused_by_both_verbs_alike(
    capsys: pytest.CaptureFixture[str], place: Path, verb: str, words: str, message: str
) -> None:
    line = refused(capsys, place, *verb.split(), *words.split(), "--out", "new")
    assert re.search(message, line), line


METHODS = [
    ("esma", "there is no method 'esma'; did you mean esam"),
    ("lion:lrr=1", "lion has no option 'lrr'; it has .*; did you mean lr"),
    ("lion:lr", "'lr' in 'lion:lr' is not of the form option=value"),
    ("esam:rho=-1", "esam:rho=-1: rho=-1 is not allowed: rho must be a number, at least 0"),
    ("sam+esam", "sam and esam both own the slot 'ascent' of a step .*use one of the two"),
    ("softtriple+ebv", "softtriple and ebv both replace the head .*side by side instead: softtriple ebv"),
    ("nopkg.part:Mine", "there is no module 'nopkg'"),
    ("poolformer", "takes images"),
]


@pytest.mark.parametrize(("method", "message"), METHODS)
@pytest.mark.parametrize("verb", ["compare", "fit --with"])
def test_bad_methods_are_refused_by_both_verbs_alike(
    capsys: pytest.CaptureFixture[str], place: Path, verb: str, method: str, message: str
) -> None:
    line = refused(capsys, place, *verb.split(), method, "--data", "iris", "--out", "new")
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare --data iris", "Missing argument 'methods'; see 'repertory compare --help'"),
        ("compare lion", "Missing option '--data'; see 'repertory compare --help'"),
        ("compare lion --data iris --out good.csv", "--out 'good.csv' is a file; name a folder"),
        ("compare lion --data iris --out single", "--out 'single' holds other files; name a new or empty folder"),
        ("compare lion --data iris --out new --seeds 0", "seeds=0 is not allowed"),
        ("compare lion --data iris --out new --jobs 0", "jobs=0 must be at least 1"),
        ("compare lion --data iris --out new --budget time", "budget='time' is not allowed: budget must be one of"),
        ("compare lion --data iris --out new --tune=-1", "tune=-1 is not allowed"),
        ("compare lion --data iris --out new --on moon", "on='moon' is not allowed: on must be one of 'local', 'ray'"),
        ("compare lion --data iris --out new --scenario few_shot", "scenario='few_shot' is not allowed"),
        ("compare ps-kd --data diabetes --out new", "ps-kd needs classes, but the target is a number"),
        ("fit --data iris", "Missing option '--out'; see 'repertory fit --help'"),
        ("fit --data iris --out good.csv", "--out 'good.csv' is a file; name a folder"),
        ("fit --data iris --out new --devices 0", "devices=0 is not allowed"),
        ("fit --data iris --out new --strategy dpp", "strategy='dpp' is not allowed: .*did you mean ddp"),
        ("fit --data iris --out new --logger wandb", "logger='wandb' is not allowed: .*'csv', 'tensorboard'"),
        (
            "fit --data diabetes --with torch.optim:SGD --lr 1e9 --epochs 2 --out new",
            "training diverged: the training loss is (nan|inf) in epoch 1 .*; try --lr 3e+08",
        ),
        ("predict nothing good.csv", "nothing is not a saved model: weights.safetensors, .*; name the folder"),
        ("predict empty good.csv", "empty is not a saved model"),
        ("predict empty good.csv --out p.txt", "--out 'p.txt' must end in .csv, .parquet or .json"),
        ("predict empty good.csv --out no/p.csv", "--out 'no/p.csv' lies in a folder that does not exist"),
        ("claim esma", "there is no method 'esma'; did you mean esam"),
        ("claim esam --seeds 1", "seeds=1 is not allowed: seeds must be a whole number, at least 2"),
    ],
)
def test_what_only_one_verb_takes_is_refused_there(
    capsys: pytest.CaptureFixture[str], place: Path, words: str, message: str
) -> None:
    line = refused(capsys, place, *words.split())
    assert re.search(message.replace("+", r"\+"), line), line


def test_a_folder_of_another_comparison_is_left_as_it_is(
    capsys: pytest.CaptureFixture[str], place: Path, inline: list[str]
) -> None:
    words = ["compare", "lion", "--data", "iris", "--epochs", "1", "--seeds", "1", "--out", "new"]
    assert main(words) == 0
    capsys.readouterr()
    assert "add --resume to complete it" in refused(capsys, place, *words)
    assert "holds another comparison" in refused(capsys, place, *words, "--lr", "0.1")
    assert "holds another comparison" in refused(capsys, place, *words, "--lr", "0.1", "--resume")
    assert main([*words, "--resume"]) == 0
    assert len(inline) == 2


def test_compare_prints_a_row_a_method_with_verdict_and_cost(
    capsys: pytest.CaptureFixture[str], place: Path, inline: list[str]
) -> None:
    status = main(
        ["compare", "lion", "esam:rho=0.1", "--data", "iris", "--epochs", "1", "--seeds", "2", "--out", "new"]
    )
    out = capsys.readouterr().out
    assert status == 0
    for text in ("baseline", "Lion", "ESAM (rho=0.1)", "verdict", "passes", "report: new/report.html"):
        assert text in out
    assert (place / "new" / "run.json").exists()


def test_compare_goes_on_when_an_arm_diverges_and_says_so(
    capsys: pytest.CaptureFixture[str], place: Path, inline: list[str]
) -> None:
    assert (
        main(
            ["compare", "torch.optim:SGD:lr=1e9", "--data", "diabetes", "--epochs", "1", "--seeds", "2", "--out", "new"]
        )
        == 0
    )
    assert "2 of 2 diverged" in " ".join(capsys.readouterr().out.split())


def test_skip_bad_goes_on_without_unreadable_images(
    capsys: pytest.CaptureFixture[str], place: Path, inline: list[str]
) -> None:
    words = ["compare", "lion", "--data", "photos", "--skip-bad", "--epochs", "1", "--seeds", "1", "--out", "new"]
    assert main(words) == 0
    assert "note: 2 images of 10 could not be read, left out" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "name", "words"), [
    (api, "compare", "compare lion --data iris"),
    (fitting, "fit", "fit --data iris --out new"),
])  # fmt: skip
def test_ctrl_c_is_status_130_with_the_way_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: Any, name: str, words: str
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt("interrupted; repeat the command with --resume")

    monkeypatch.setattr(module, name, interrupted)
    assert main(words.split()) == 130
    assert capsys.readouterr().err.strip() == "repertory: interrupted; repeat the command with --resume"


@pytest.fixture
def model(place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert (
        main(["fit", "--data", "good.csv", "--target", "y", "--epochs", "2", "--with", "esam", "--out", "model"]) == 0
    )
    capsys.readouterr()
    return "model"


def test_fit_prints_the_metrics_and_the_folder(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert main(["fit", "--data", "iris", "--epochs", "1", "--out", "model"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"test: accuracy \S+, nll \S+, ece \S+", first)
    assert second == "model: model"


def test_predict_prints_and_writes_the_same_rows_in_every_form(
    capsys: pytest.CaptureFixture[str], place: Path, model: str
) -> None:
    expected = repertory.load(model).predict("good.csv").rows()
    assert main(["predict", model, "good.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert main(["predict", model, "good.csv"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["input", "prediction", "probability"]
    assert [line.split()[:2] for line in lines] == [[row["input"], row["prediction"]] for row in expected]
    readers = {"p.csv": pd.read_csv, "p.parquet": pd.read_parquet, "p.json": pd.read_json}
    for name, reader in readers.items():
        assert main(["predict", model, "good.csv", "--out", name]) == 0
        assert capsys.readouterr().out == f"20 predictions: {name}\n"
        found = reader(name).to_dict("records")
        assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]
        assert [row["p(p)"] for row in found] == pytest.approx([row["p(p)"] for row in expected])
    assert not list(place.glob(".p.*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere.csv", "'nowhere.csv' does not exist; give the path of new input"),
        ("photos", "is not read as table input"),
        ("x.npz", r"inputs of shape \(4,\), but the model takes table inputs of shape \(2,\)"),
        ("nothing.csv", "nothing.csv is empty"),
        ("words.csv", "'abc'"),
    ],
)
def test_input_that_does_not_fit_the_model_is_refused(
    capsys: pytest.CaptureFixture[str], place: Path, model: str, words: str, message: str
) -> None:
    line = refused(capsys, place, "predict", model, words, "--out", "p.csv")
    assert re.search(message, line), line


def test_a_damaged_model_is_refused(capsys: pytest.CaptureFixture[str], place: Path, model: str) -> None:
    weights = place / model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "damaged or foreign model" in refused(capsys, place, "predict", model, "good.csv")


def test_a_full_disk_leaves_no_half_of_the_predictions(
    capsys: pytest.CaptureFixture[str], place: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: pd.DataFrame, path: Path, **_: Any) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    line = refused(capsys, place, "predict", model, "good.csv", "--out", "p.csv")
    assert line == "--out 'p.csv' cannot be written: No space left on device; name another file"


CLAIM = """
from repertory.compare.claim import Claim, Statement

CLAIM = Claim(
    slug="toy", claim="Three is more than one.", paper="3 > 1", experiment="counting",
    statements=(Statement("three is more", "three", "one", above=0.0),),
    run=lambda seed: {"three": 3 + 0.1 * seed, "one": 1.0},
)
"""


def test_claim_prints_the_paper_beside_ours_with_interval_and_verdict(
    capsys: pytest.CaptureFixture[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "toy.py").write_text(CLAIM)
    monkeypatch.setattr(catalogue, "get", lambda slug: SimpleNamespace(claim_path=lambda: place / "toy.py"))
    assert main(["claim", "toy", "--seeds", "3", "--jobs", "1", "--record"]) == 0
    out = capsys.readouterr().out
    for text in ("Three is more than one.", "paper: 3 > 1", "here:  counting (3 seeds)", "verdict: upheld", "+2.1 ["):
        assert text in out
    record = json.loads((place / "toy.json").read_text())
    assert record["verdict"] == "upheld"
    assert record["processor_minutes"] <= record["minutes"] + 0.01


@pytest.mark.parametrize(("text", "message"), [(None, "toy has no claim: .* does not exist"), ("x = 1", "no CLAIM")])
def test_a_claim_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], place: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, message: str
) -> None:
    if text is not None:
        (place / "toy.py").write_text(text)
    monkeypatch.setattr(catalogue, "get", lambda slug: SimpleNamespace(claim_path=lambda: place / "toy.py"))
    line = refused(capsys, place, "claim", "toy")
    assert re.search(message, line), line
