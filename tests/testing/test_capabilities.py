"""The capability table is written from what the checks found, and only when none failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from repertory.testing import CheckResult, capabilities

RESULTS = {
    "b": [CheckResult("z", "passed"), CheckResult("y", "expected failure", "it rounds")],
    "a": [CheckResult("x", "not applicable", "it has none")],
}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(capabilities, "PATH", tmp_path / "capabilities.json")
    monkeypatch.setattr(capabilities, "entries", lambda: RESULTS)
    monkeypatch.setattr(capabilities, "check_method", lambda slug, raise_on_failure: RESULTS[slug])
    return tmp_path / "capabilities.json"


def test_the_table_has_a_row_a_check_sorted_with_reasons_of_expected_failures(table: Path) -> None:
    assert capabilities.main() == 0
    written = json.loads(table.read_text(encoding="utf-8"))
    assert written == {"a": {"x": "not applicable"}, "b": {"y": "expected failure: it rounds", "z": "passed"}}
    assert list(written) == ["a", "b"]
    assert list(written["b"]) == ["y", "z"]


def test_nothing_is_written_when_a_check_fails(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = {"a": [CheckResult("x", "failed", "it does nothing")]}
    monkeypatch.setattr(capabilities, "entries", lambda: failed)
    monkeypatch.setattr(capabilities, "check_method", lambda slug, raise_on_failure: failed[slug])
    assert capabilities.main() == 1
    assert not table.exists()
    assert "a: x: it does nothing" in capsys.readouterr().err
