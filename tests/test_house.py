"""The house keeps its own rules: four files a method, commands that can be copied, nothing heavy before it is used."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import readme_commands

import repertory
from repertory.catalogue import FOLDERS, Entry, entries
from repertory.compare.claim import load_claim

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
METHODS = {slug for slug, entry in entries().items() if not entry.card.baseline}
"""Reference methods are here for the claims of others and need none of their own."""
LONGEST = 400
WRITTEN = ("claim", "paper", "experiment", "verdict")


def stems(folder: str, pattern: str) -> set[str]:
    return {path.stem for path in (ROOT / folder).glob(pattern)}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_method_has_a_claim_and_no_claim_is_without_a_method() -> None:
    claims = stems("claims", "*.py")
    assert METHODS - claims == set()
    assert claims - set(entries()) == set()


def test_every_claim_has_its_record() -> None:
    assert stems("claims", "*.json") == stems("claims", "*.py")


@pytest.mark.parametrize("slug", sorted(METHODS))
def test_every_method_has_a_test_where_it_is_looked_for(slug: str) -> None:
    folder = FOLDERS[entries()[slug].card.kind]
    assert (ROOT / "tests" / folder / f"test_{slug.replace('-', '_')}.py").is_file()


@pytest.mark.parametrize("entry", entries().values(), ids=list(entries()))
def test_every_method_is_imported_from_the_folder_of_its_kind(entry: Entry) -> None:
    tree = ast.parse(read(ROOT / "src" / "repertory" / FOLDERS[entry.card.kind] / "__init__.py"))
    exported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert entry.card.entry in exported


def test_readme_has_the_two_set_up_commands() -> None:
    assert readme_commands.commands(read(ROOT / "README.md")) == [
        "pip install -e . && repertory compare esam saf ps-kd lion --data digits",
        'pip install -e ".[test]" && pytest',
    ]


@pytest.mark.parametrize("text", ["", "```bash\npip install -e .\n```\n", 3 * "```bash\npip install -e .\n```\n\n"])
def test_readme_without_exactly_two_commands_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="there must be 2"):
        readme_commands.commands(text)


@pytest.mark.parametrize("statement", ["import repertory", "from repertory import catalogue; catalogue.entries()"])
def test_nothing_heavy_is_imported_before_it_is_used(statement: str) -> None:
    heavy = "{'torch', 'numpy', 'pandas', 'sklearn', 'matplotlib', 'rich', 'typer'}"
    program = f"import sys; {statement}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_of_the_package_can_be_imported() -> None:
    assert [name for name in repertory.__all__ if not hasattr(repertory, name)] == []
    with pytest.raises(AttributeError, match="no_such_name"):
        repertory.no_such_name  # noqa: B018


def test_every_public_module_has_a_docstring() -> None:
    public = [path for path in SOURCES if not re.match(r"_[a-z]", path.name)]
    assert [relative(path) for path in public if not ast.get_docstring(ast.parse(read(path)))] == []


def test_no_source_file_is_too_long() -> None:
    lengths = {relative(path): len(read(path).splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_no_place_of_a_template_was_left_unwritten() -> None:
    written = [*SOURCES, *(ROOT / "claims").glob("*.py"), *(ROOT / "tests").glob("*/test_*.py")]
    assert [relative(path) for path in written if path.parent.name != "tools" and "WRITE:" in read(path)] == []


def test_version_is_written_once() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/repertory/__init__.py"
    assert importlib.metadata.version("repertory") == repertory.__version__


def test_changelog_has_this_version_first() -> None:
    versions = re.findall(r"^## (\S+)", read(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == repertory.__version__


def test_every_dependency_is_justified() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *(line for lines in extras.values() for line in lines)]
    names = {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0] for line in wanted} - {"repertory"}
    justified = re.findall(r"^\| `([^`]+)` \|", read(ROOT / "docs" / "dependencies.md"), re.MULTILINE)
    assert set(justified) == names


@pytest.mark.parametrize("slug", sorted(stems("claims", "*.py")))
def test_a_claims_record_is_of_the_claim_as_it_stands(slug: str) -> None:
    """Prose, seeds and statements are those the record was made with, and its verdicts follow from its values."""
    claim = load_claim(ROOT / "claims" / f"{slug}.py")
    record = json.loads(read(ROOT / "claims" / f"{slug}.json"))
    made = claim.judge(record["values"])
    assert record["seeds"] == claim.seeds
    assert {name: record[name] for name in WRITTEN} == {name: made[name] for name in WRITTEN}
    for now, then in zip(made["statements"], record["statements"], strict=True):
        assert now == {name: pytest.approx(v, rel=1e-6) if isinstance(v, float) else v for name, v in then.items()}
