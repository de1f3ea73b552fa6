"""Write the capability table, which the catalogue shows: `python -m repertory.testing.capabilities`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from repertory.catalogue import entries
from repertory.testing.contract import check_method

PATH = Path(__file__).resolve().parents[1] / "catalogue" / "capabilities.json"


def measure() -> tuple[dict[str, dict[str, str]], list[str]]:
    """Run every check on every method of the catalogue.

    Returns:
        By slug, what each check found; and one line a failure. A failed check is left out of the table.
    """
    table: dict[str, dict[str, str]] = {}
    failures: list[str] = []
    for slug in entries():
        results = check_method(slug, raise_on_failure=False)
        table[slug] = {result.name: result.text for result in results if result.status != "failed"}
        failures += [f"{slug}: {result.name}: {result.reason}" for result in results if result.status == "failed"]
    return table, failures


def main() -> int:
    """Measure and write the table.

    Returns:
        0, or 1 if a check failed; then nothing is written.
    """
    table, failures = measure()
    if failures:
        print(*failures, f"nothing was written: {len(failures)} checks failed", sep="\n", file=sys.stderr)
        return 1
    PATH.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{PATH}: {sum(map(len, table.values()))} results of {len(table)} methods")
    return 0


if __name__ == "__main__":
    sys.exit(main())
