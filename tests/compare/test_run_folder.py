"""What a folder may be used for, and what counts as a finished run in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from repertory.compare.folder import RunFolder, safe_name
from repertory.compare.plan import Plan, make_plan
from repertory.errors import UserError
from repertory.scenarios.choices import Source


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(["lion"], Source("iris"), device="cpu", epochs=1)


@pytest.fixture(scope="module")
def other() -> Plan:
    return make_plan(["lion"], Source("iris"), device="cpu", epochs=2)


def begun(folder: Path, plan: Plan, resume: bool = False) -> RunFolder:
    found = RunFolder.find(plan, folder, resume)
    found.begin(plan)
    return found


def test_a_new_or_empty_folder_is_taken(tmp_path: Path, plan: Plan) -> None:
    assert begun(tmp_path, plan).path == tmp_path
    assert begun(tmp_path / "a" / "b", plan).saved_fingerprint() == plan.fingerprint()


def test_looking_for_the_folder_writes_nothing(tmp_path: Path, plan: Plan) -> None:
    RunFolder.find(plan, tmp_path / "new", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_files_is_refused(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds other files; name a new or empty folder"):
        begun(tmp_path, plan)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_another_comparison_is_refused(tmp_path: Path, plan: Plan, other: Plan, resume: bool) -> None:
    begun(tmp_path, other)
    before = (tmp_path / "plan.json").read_bytes()
    with pytest.raises(UserError, match=r"holds another comparison \(other data, methods or settings\); name a new"):
        begun(tmp_path, plan, resume)
    assert (tmp_path / "plan.json").read_bytes() == before


def test_the_same_comparison_needs_resume(tmp_path: Path, plan: Plan) -> None:
    begun(tmp_path, plan)
    with pytest.raises(UserError, match="holds this comparison already; add --resume to complete it"):
        begun(tmp_path, plan)
    assert begun(tmp_path, plan, resume=True).path == tmp_path


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null"])
def test_a_damaged_plan_counts_as_another_comparison(tmp_path: Path, plan: Plan, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match="holds another comparison"):
        begun(tmp_path, plan, resume=True)


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path, plan: Plan, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file; name a folder"):
        begun(tmp_path / "file" / below, plan)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot write to .*: Permission denied; choose another folder with --out"):
        begun(tmp_path / "new", plan)


def test_a_full_disk_is_said_the_same_way(tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"cannot write to .*: No space left on device; choose another folder"):
        begun(tmp_path, plan)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_ones_own_is_numbered_and_found_again(
    tmp_path: Path, plan: Plan, other: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for each, resume in ((plan, False), (other, False), (plan, False), (plan, True), (other, True)):
        folder = RunFolder.find(each, None, resume)
        folder.begin(each)
        names.append(folder.path.as_posix())
    assert names == ["runs/iris-lion", "runs/iris-lion-2", "runs/iris-lion-3", "runs/iris-lion", "runs/iris-lion-2"]


def result(status: str = "finished", **more: Any) -> dict[str, Any]:
    return {
        "label": "lion", "method": "lion", "seed": 0, "status": status, "error": None, "split_seed": 0,
        "metrics": {"test": {"accuracy": 0.5}}, "cost": {"steps": 3}, "curve": [], **more,
    }  # fmt: skip


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_a_run_that_ended_is_kept(tmp_path: Path, status: str) -> None:
    folder = RunFolder(tmp_path)
    folder.save_result("lion/seed-0", result(status))
    assert folder.result("lion/seed-0") == result(status)


def test_a_run_that_failed_or_never_was_is_run_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_result("lion/seed-0", result("failed"))
    assert folder.result("lion/seed-0") is None
    assert folder.result("lion/seed-1") is None


@pytest.mark.parametrize("content", [b"", b'{"status": "finish', b"[]", b"null", b"{}", b"\xff\xfe"])
def test_a_damaged_result_counts_as_not_run(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.save_result("lion/seed-0", result())
    (tmp_path / "results" / "lion" / "seed-0.json").write_bytes(content)
    assert folder.result("lion/seed-0") is None


def test_the_half_of_a_write_that_was_cut_off_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "results" / "lion").mkdir(parents=True)
    (tmp_path / "results" / "lion" / ".seed-0.json.123").write_text(json.dumps(result()))
    assert RunFolder(tmp_path).result("lion/seed-0") is None


def test_a_split_is_written_once_and_apart(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    saved = folder.save_result("lion/seed-0", result(indices={"train": [1, 2]}))
    folder.save_result("esam/seed-0", result(indices={"train": [3]}))
    assert "indices" not in saved
    assert json.loads((tmp_path / "splits" / "seed-0.json").read_text()) == {"train": [1, 2]}


def test_the_table_has_a_row_a_run_with_metrics_and_cost(tmp_path: Path) -> None:
    RunFolder(tmp_path).save_table([result(), result("diverged", metrics={}, cost={}, error="nan")])
    table = pd.read_parquet(tmp_path / "results.parquet")
    assert table["status"].tolist() == ["finished", "diverged"]
    assert table["test_accuracy"].tolist()[0] == 0.5
    assert table["steps"].tolist()[0] == 3


def test_names_of_files_are_safe_and_different_for_different_labels() -> None:
    labels = ["esam", "esam:rho=0.1", "esam:rho=0,1", "esam/rho", "../esam", "..", "", "a" * 9, "é"]
    names = [safe_name(label) for label in labels]
    assert len(set(names)) == len(labels)
    assert all(name not in {"", ".", ".."} and "/" not in name and name.isascii() for name in names)
