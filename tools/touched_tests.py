"""Run the tests of what was touched since the last commit: `python tools/touched_tests.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from repertory.catalogue import FOLDERS, entries

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGE = ("src", "repertory")


def related_tests(touched: Iterable[str], root: Path = _ROOT) -> tuple[list[str], list[str]]:
    """Map touched files to the tests that concern them.

    A module has the tests named after it (or after its package, or the room that it stands in, whichever is found
    first); a test is its own.

    Args:
        touched: paths relative to the repository.
        root: the repository.

    Returns:
        Test files and folders, and the slugs of touched methods, whose contract is to be checked.
    """
    tests: dict[str, None] = {}
    slugs: dict[str, None] = {}
    for path in map(Path, touched):
        if path.parts[:1] == ("tests",) and path.name.startswith("test_") and (root / path).exists():
            tests[str(path)] = None
        if path.parts[:2] != _PACKAGE or len(path.parts) < 4:
            continue
        room, *inner = path.with_suffix("").parts[2:]
        for stem in [part for part in reversed(inner) if part != "__init__"]:
            found = sorted((root / "tests" / room).glob(f"test_*{stem}*.py"))
            if found:
                break
        else:
            found = [root / "tests" / room] if (root / "tests" / room).is_dir() else []
        tests.update((str(each.relative_to(root)), None) for each in found)
        slug = inner[0].replace("_", "-")
        if room in FOLDERS.values() and slug in entries():
            slugs[slug] = None
    return list(tests), list(slugs)


def touched_files(root: Path = _ROOT) -> list[str]:
    """Return the files that differ from the last commit, new ones included."""
    commands = (["git", "diff", "--name-only", "HEAD"], ["git", "ls-files", "--others", "--exclude-standard"])
    lines = (subprocess.run(c, cwd=root, capture_output=True, text=True, check=True).stdout for c in commands)
    return [line for output in lines for line in output.splitlines()]


def main() -> int:
    """Run the tests.

    Returns:
        0 if all of them passed, or there were none.
    """
    tests, slugs = related_tests(touched_files())
    runs = [tests] if tests else []
    if slugs:
        runs.append(["tests/test_contracts.py", "-k", " or ".join(f"{slug}-" for slug in slugs)])
    if not runs:
        print("no test concerns what was touched")
    status = 0
    for arguments in runs:
        print(f"pytest {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "pytest", *arguments]
        status = max(status, subprocess.run(command, cwd=_ROOT, check=False).returncode)
    return status


if __name__ == "__main__":
    sys.exit(main())
