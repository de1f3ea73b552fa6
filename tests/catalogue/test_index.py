"""The index: what it reads, what it skips, and what it says of a card that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from repertory.card import KINDS
from repertory.catalogue import FOLDERS, entries, get, index, select
from repertory.errors import OptionError, UserError

Write = Callable[..., Path]


@pytest.fixture
def small(root: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    write("ps-kd", problems=("calibration",), needs=("index",))
    write("lion", kind="optimizer", scenarios=("supervised", "transfer"))
    write("esam", needs=("index", "per_example_loss"))
    monkeypatch.setattr(index, "_ROOT", root)
    return root


def test_entries_are_sorted_by_slug(small: Path) -> None:
    assert list(entries()) == ["esam", "lion", "ps-kd"]


def test_an_entry_has_its_module_card_summary_and_sections(small: Path) -> None:
    entry = get("ps-kd")
    assert entry.module == "repertory.algorithms.ps_kd"
    assert entry.path == small / "algorithms" / "ps_kd.py"
    assert entry.card.problems == ("calibration",)
    assert entry.summary == "What ps-kd is."
    assert list(entry.sections) == ["Idea", "Use it when", "Equations"]
    assert entry.sections["Equations"] == r"$$ w \leftarrow w_1 * w_2 $$"
    assert entry.import_line == "from repertory.algorithms import PSKD"


def test_a_package_is_read_from_its_init_file(root: Path, write: Write) -> None:
    write("pool-former", kind="model", package=True)
    assert index._read(root)["pool-former"].module == "repertory.models.pool_former"


def test_modules_without_a_card_are_skipped(root: Path, write: Write) -> None:
    write("esam")
    (root / "algorithms" / "helper.py").write_text("x = 1\n")
    (root / "algorithms" / "speaks.py").write_text('"""Write it so:\n\nCARD = Card(\n)\n"""\n')
    assert list(index._read(root)) == ["esam"]


def test_code_after_the_card_is_not_parsed(root: Path, write: Write) -> None:
    write("esam", more="\nthis is not Python\n")
    assert list(index._read(root)) == ["esam"]


def test_a_card_that_is_not_a_literal_is_an_error_that_names_file_and_field(root: Path, write: Write) -> None:
    path = write("esam")
    path.write_text(path.read_text().replace("year=2021", "year=int('2021')"))
    with pytest.raises(UserError, match=r"esam\.py, line \d+: year of CARD is not a literal"):
        index._read(root)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"problems": "label noise"}, "problems='label noise' of CARD is not a tuple"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_card_with_a_wrong_field_is_an_error(root: Path, write: Write, fields: dict[str, str], message: str) -> None:
    write("esam", **fields)
    with pytest.raises(UserError, match=message):
        index._read(root)


def test_a_slug_that_differs_from_the_module_is_an_error(root: Path, write: Write) -> None:
    write("esam").rename(root / "algorithms" / "other.py")
    with pytest.raises(UserError, match="slug 'esam' does not match the module's name 'other'"):
        index._read(root)


def test_two_modules_of_one_slug_are_an_error(root: Path, write: Write) -> None:
    write("esam")
    write("esam", kind="loss")
    with pytest.raises(UserError, match="two modules have slug 'esam'"):
        index._read(root)


def test_an_unknown_slug_names_the_nearest(small: Path) -> None:
    with pytest.raises(UserError, match=r"no method 'esma'; did you mean esam\?"):
        get("esma")


def test_select_combines_its_filters(small: Path) -> None:
    def slugs(**filters: str) -> list[str]:
        return [entry.card.slug for entry in select(**filters)]

    assert slugs() == ["esam", "lion", "ps-kd"]
    assert slugs(kind="optimizer") == ["lion"]
    assert slugs(need="index") == ["esam", "ps-kd"]
    assert slugs(scenario="transfer") == ["lion"]
    assert slugs(kind="optimizer", need="index") == []


@pytest.mark.parametrize(
    ("filters", "allowed"),
    [
        ({"kind": "lss"}, "'loss'"),
        ({"need": "labels"}, "'per_example_loss'"),
        ({"scenario": "superviced"}, "'supervised'"),
    ],
)
def test_a_bad_filter_lists_what_is_allowed(small: Path, filters: dict[str, str], allowed: str) -> None:
    (name,) = filters
    with pytest.raises(OptionError, match=f"^{name}=.*{allowed}"):
        select(**filters)


def test_records_are_read_from_the_repository_and_from_an_installed_package(small: Path) -> None:
    entry = get("esam")
    assert entry.claim_record() is None
    for folder, verdict in ((small.parents[1] / "claims", "upheld"), (small / "claims", "not upheld")):
        folder.mkdir()
        (folder / "esam.json").write_text(json.dumps({"verdict": verdict}))
        assert entry.claim_record() == {"verdict": verdict}
        assert entry.claim_path() == folder / "esam.py"


def test_capabilities_are_those_of_the_slug_and_empty_where_unmeasured(small: Path) -> None:
    assert get("esam").capabilities() == {}
    (small / "catalogue").mkdir()
    (small / "catalogue" / "capabilities.json").write_text(json.dumps({"esam": {"resume": "passed"}}))
    assert get("esam").capabilities() == {"resume": "passed"}
    assert get("lion").capabilities() == {}


def test_every_kind_has_a_folder_of_its_own() -> None:
    assert tuple(FOLDERS) == KINDS
    assert len(set(FOLDERS.values())) == len(KINDS)


def test_every_method_lives_in_the_folder_of_its_kind_and_defines_its_entry() -> None:
    for entry in entries().values():
        assert entry.module.split(".")[1] == FOLDERS[entry.card.kind], entry.card.slug
        sources = [path.read_text(encoding="utf-8") for path in _files(entry.path)]
        assert any(f" {entry.card.entry}" in source for source in sources), entry.card.slug


def test_every_method_has_the_seven_sections() -> None:
    asked = ["Idea", "Use it when", "Do not use it when", "Equations", "Defaults", "Cost", "Claim"]
    for entry in entries().values():
        assert entry.summary, entry.card.slug
        assert [title for title in asked if not entry.sections.get(title)] == [], entry.card.slug


def _files(path: Path) -> list[Path]:
    return list(path.parent.glob("*.py")) if path.name == "__init__.py" else [path]
