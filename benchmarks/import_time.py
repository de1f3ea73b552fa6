"""How long the first answer takes: importing the package, and the verbs that look things up."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(command: list[str], runs: int = 11) -> float:
    """Return the median wall time of a command, after one run that is not counted."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Print the times."""
    empty = seconds([sys.executable, "-c", "pass"])
    own = seconds([sys.executable, "-c", "import repertory"])
    print(
        f"| | seconds |\n|---|---|\n| python -c pass | {empty:.3f} |\n| import repertory, beyond that | "
        f"{own - empty:.3f} |"
    )
    for words in (["find", "few noisy labels"], ["list"], ["show", "esam"]):
        print(f"| repertory {' '.join(words)} | {seconds([sys.executable, '-m', 'repertory', *words]):.3f} |")


if __name__ == "__main__":
    main()
