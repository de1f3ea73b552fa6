"""`repertory check`: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from repertory.cli import main
from repertory.testing import checks_for

_OWN = '''
"""Somebody's method."""

from repertory import Method


class Doubling(Method):
    """Double the loss.

    >>> Doubling().factor
    2.0
    """

    slug = "doubling"
    factor = FACTOR

    def loss(self, state, inner):
        """Evaluate and double."""
        return inner(state) * self.factor
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write(folder: Path, name: str, factor: str) -> str:
    (folder / f"{name}.py").write_text(_OWN.replace("FACTOR", factor), encoding="utf-8")
    return f"{name}:Doubling"


def test_a_sound_method_of_one_s_own_gets_a_line_a_check_and_status_zero(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = write(own, "sound_method", "2.0")
    assert main(["check", method]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(checks_for(method))
    assert any(line.split() == ["resume", "mid", "epoch", "is", "exact", "passed"] for line in lines)


def test_a_faulty_one_gets_the_reason_and_status_one(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = write(own, "faulty_method", "1.0")
    assert main(["check", method, "--json"]) == 1
    results = {result["name"]: result for result in json.loads(capsys.readouterr().out)}
    assert results["differs_from_baseline"]["status"] == "failed"
    assert "does nothing" in results["differs_from_baseline"]["reason"]
    assert "1 of 1 examples fail" in results["docstring_example_runs"]["reason"]
    assert results["same_seed_same_numbers"]["status"] == "passed"


@pytest.mark.parametrize("method", ["esma", "no_such_package:Method", "math:pi"])
def test_what_is_no_method_ends_with_status_two_and_one_line(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", method]) == 2
    error = capsys.readouterr().err
    assert error.startswith("repertory: ")
    assert error.count("\n") == 1
