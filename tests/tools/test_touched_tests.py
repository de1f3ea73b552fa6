"""What was touched leads to its tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from touched_tests import related_tests


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in (
        "algorithms/test_esam.py",
        "datasets/test_dataset_folder.py",
        "core/test_step.py",
        "core/test_state.py",
    ):
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("touched", "tests", "slugs"),
    [
        ("src/repertory/algorithms/esam.py", ["tests/algorithms/test_esam.py"], ["esam"]),
        ("src/repertory/algorithms/esam/parts.py", ["tests/algorithms/test_esam.py"], ["esam"]),
        ("src/repertory/algorithms/no_method.py", ["tests/algorithms"], []),
        ("src/repertory/algorithms/__init__.py", ["tests/algorithms"], []),
        ("src/repertory/datasets/folder.py", ["tests/datasets/test_dataset_folder.py"], []),
        ("src/repertory/core/tables.py", ["tests/core"], []),
        ("tests/core/test_step.py", ["tests/core/test_step.py"], []),
        ("tests/core/test_deleted.py", [], []),
        ("README.md", [], []),
    ],
)
def test_touched_file_leads_to_its_tests(repository: Path, touched: str, tests: list[str], slugs: list[str]) -> None:
    assert related_tests([touched], repository) == (tests, slugs)
