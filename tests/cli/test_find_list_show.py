"""The verbs that read the catalogue, and what the command line does with errors."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import repertory.cli
from repertory.catalogue import index
from repertory.cli import VERBS, main
from repertory.cli.show import _math_as_code

METHOD = '''r"""What {slug} is.

## Idea
A step of $\\rho_1 * \\rho_2$ costs $5.

## Equations
$$ w_1 \\leftarrow w_2 $$
"""

CARD = Card(
    slug="{slug}", name="{name}", title="On {slug}", authors="A. Author", year=2021, venue="ICLR",
    link="https://example.org/paper", kind="{kind}", entry="{name}", problems=("{problem}",),
    defaults={{"rho": 0.05}}, needs=("index",),
)
'''


@pytest.fixture(autouse=True)
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "src" / "repertory"
    for folder, slug, kind, problem in (
        ("algorithms", "esam", "algorithm", "flat minima"),
        ("algorithms", "dash", "algorithm", "few labels"),
        ("optim", "lion", "optimizer", "low memory"),
        ("losses", "robust", "loss", "label noise"),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        text = METHOD.format(slug=slug, name=slug.upper(), kind=kind, problem=problem)
        (root / folder / f"{slug}.py").write_text(text)
    monkeypatch.setattr(index, "_ROOT", root)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_find_prints_slug_kind_summary_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "find", "mislabelled data")
    header, row = out.splitlines()
    assert status == 0
    assert header.split("  ")[0] == "method"
    assert row.split("  ") == ["robust", "loss", "What robust is.", "solves: label noise"]


def test_find_takes_a_query_of_several_words_without_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "find", "few", "labels") == run(capsys, "find", "few labels")


def test_find_without_a_hit_says_what_problems_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "find", "minina")
    assert (status, out) == (0, "No method speaks of 'minina'. Problems that methods solve: flat minima\n")


def test_find_in_json_is_a_list_also_when_empty(capsys: pytest.CaptureFixture[str]) -> None:
    (hit,) = json.loads(run(capsys, "find", "flat minima", "--json")[1])
    assert (hit["slug"], hit["kind"], hit["why"]) == ("esam", "algorithm", "solves: flat minima")
    assert json.loads(run(capsys, "find", "zebra", "--json")[1]) == []


def test_list_prints_one_line_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "list")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["method", "dash", "esam", "lion", "robust"]


def test_list_keeps_the_kind_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(run(capsys, "list", "--kind", "algorithm", "--need", "index", "--json")[1])
    assert [method["slug"] for method in listed] == ["dash", "esam"]


def test_show_renders_card_equations_and_use_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = run(capsys, "show", "esam")
    assert status == 0
    for text in (
        "ESAM: On esam",
        "A. Author, ICLR, 2021. https://example.org/paper",
        r"A step of \rho_1 * \rho_2 costs $5.",
        r"w_1 \leftarrow w_2",
        "from repertory.algorithms import ESAM",
    ):
        assert text in re.sub(r"\x1b\[[0-9;]*m", "", out)


def test_show_prints_markdown_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "show", "esam")
    assert status == 0
    assert out.startswith("# ESAM: On esam\n")
    assert "```python\nfrom repertory import Step\nfrom repertory.algorithms import ESAM\n" in out


def test_show_in_json_has_card_sections_and_record(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(run(capsys, "show", "lion", "--json")[1])
    assert shown["slug"] == "lion"
    assert shown["module"] == "repertory.optim.lion"
    assert shown["defaults"] == {"rho": 0.05}
    assert list(shown["sections"]) == ["Idea", "Equations"]
    assert shown["claim"] is None


def test_equations_become_code_and_code_stays() -> None:
    assert _math_as_code("a $x_1$ b `$HOME` c\n```bash\necho $A $B\n```") == (
        "a `x_1` b `$HOME` c\n```bash\necho $A $B\n```"
    )
    assert _math_as_code("$$x\n=y$$").strip() == "```\nx\n=y\n```"
    assert _math_as_code("from $5 to $ 6") == "from $5 to $ 6"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "esma"), "repertory: there is no method 'esma'; did you mean esam?"),
        (("list", "--kind", "lss"), "repertory: kind='lss' is not allowed"),
        (("find", "labels", "--limit", "0"), "repertory: limit=0 is not allowed"),
        (("find",), "repertory: Missing argument"),
        (("show", "esam", "--colour"), "repertory: No such option"),
        (("fnd", "x"), "repertory: No such command 'fnd'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    status, out, error = run(capsys, *words)
    assert (status, out) == (2, "")
    assert error.startswith(message)
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [("--debug", "show", "esma"), ("show", "esma", "--debug")])
def test_debug_adds_the_traceback_before_or_after_the_verb(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    status, _, error = run(capsys, *words)
    assert status == 2
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("repertory: there is no method 'esma'")


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "[Errno 13] Permission denied: 'x'"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "[Errno 28] No space left on device"),
        (KeyError("rho"), 1, "KeyError: 'rho'; run again with --debug for the traceback"),
        (RuntimeError("two\nlines"), 1, "RuntimeError: two lines; run again with --debug for the traceback"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_error_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    status: int,
    message: str,
) -> None:
    def fail(place: str) -> None:
        raise raised

    monkeypatch.setattr(repertory.cli, "_function", fail)
    assert run(capsys, "list") == (status, "", f"repertory: {message}\n")


def test_no_words_print_the_help_with_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys)
    assert status == 0
    assert all(f" {verb} " in out for verb in VERBS)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"repertory {repertory.__version__}\n", "")


def test_every_file_of_the_folder_is_a_verb_or_a_known_helper() -> None:
    files = {path.stem for path in Path(repertory.cli.__file__).parent.glob("*.py")} - {"__init__"}
    verbs = {place.partition(":")[0] for place, _ in VERBS.values()}
    assert files - verbs <= {"output"}


@pytest.mark.parametrize("words", [["find", "label noise"], ["list"], ["show", "esam"], ["--help"], ["--version"]])
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    code = (
        "import sys; from repertory.cli import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'numpy', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "import sys; from repertory.cli import main; sys.exit(main(['list', '--json']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as out, process.stderr as error:
        out.close()
        assert error.read() == b""
    process.wait()
