"""The documentation's pages: built strictly, from the cards, with equations that need no script."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from repertory.catalogue import entries

pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")

HOOK = Path(__file__).parents[2] / "docs" / "generate.py"
CONFIGURATION = """
site_name: test
hooks: [docs/generate.py]
exclude_docs: "*.py"
markdown_extensions: [tables, {pymdownx.arithmatex: {generic: true}}, pymdownx.superfences]
nav: [index.md, {Methods: methods/index.md}]
"""


def build(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "docs").mkdir()
    shutil.copy(HOOK, folder / "docs")
    (folder / "mkdocs.yml").write_text(CONFIGURATION)
    (folder / "docs" / "index.md").write_text(text)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_equations_are_mathml_and_code_is_left_alone(tmp_path: Path) -> None:
    text = "Where $x_1 * x_2$ and\n$$\ny = \\frac{a}{b}\n$$\nends.\n\n```text\necho $A $B\n$$\n```\n"
    done = build(tmp_path, text)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    assert page.count('display="inline"') == page.count('display="block"') == 1
    assert "<msub><mi>x</mi><mn>1</mn></msub>" in page
    assert "<mfrac>" in page
    assert "echo $A $B\n$$" in page


def test_every_method_has_a_page_and_a_line_in_the_index(tmp_path: Path) -> None:
    done = build(tmp_path, "# Test\n")
    assert done.returncode == 0, done.stderr
    listing = (tmp_path / "site" / "methods" / "index.html").read_text()
    for slug, entry in entries().items():
        page = (tmp_path / "site" / "methods" / slug / "index.html").read_text()
        assert entry.card.link in page
        assert f'href="../methods/{slug}/"' in listing or f'href="{slug}/"' in listing


def test_an_equation_that_cannot_be_converted_fails_the_build(tmp_path: Path) -> None:
    done = build(tmp_path, "Here $\\nosuchcommand x$.\n")
    assert done.returncode != 0
    assert "index.md: equation" in done.stderr
