"""How much faster the README's comparison is with two worker processes than with one."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time


def seconds(jobs: int) -> float:
    """Return the wall time of one comparison, its start included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "repertory", "compare", "esam", "saf", "ps-kd", "lion", "--data", "digits"]
        start = time.perf_counter()
        subprocess.run([*command, "--jobs", str(jobs), "--out", f"{folder}/run"], check=True, capture_output=True)
        return time.perf_counter() - start


def main() -> None:
    """Print the ratio."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    pairs = [(seconds(1), seconds(2)) for _ in range(rounds)]
    one, two = (statistics.median(values) for values in zip(*pairs))
    print(f"| jobs | seconds |\n|---|---|\n| 1 | {one:.1f} |\n| 2 | {two:.1f} |")
    print(f"\nthroughput with 2 jobs: {statistics.median(a / b for a, b in pairs):.2f}x")


if __name__ == "__main__":
    main()
