"""Claims: a paper's headline as a small experiment with a verdict that can go either way."""

from __future__ import annotations

import datetime
import importlib.util
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repertory.compare.statistics import paired
from repertory.compare.workers import worker_pool
from repertory.errors import UserError, check_number


@dataclass(frozen=True)
class Statement:
    """One testable sentence: the paired difference `left - right` over seeds lies above (or below) a bound.

    Args:
        text: the sentence.
        left: name of a value that the claim's `run` returns.
        right: name of the value it is compared with.
        above: upheld if the whole 95 % interval of the mean difference is above this.
        below: upheld if the whole interval is below this; give one of the two.
    """

    text: str
    left: str
    right: str
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"statement {self.text!r} needs exactly one of above and below")

    def judge(self, values: list[Mapping[str, float]]) -> dict[str, Any]:
        """Return text, figures and verdict for the values of all seeds, in the order of the seeds."""
        left, right = [v[self.left] for v in values], [v[self.right] for v in values]
        found = paired(left, right)
        bound = self.above if self.above is not None else self.below
        assert bound is not None
        verdict = "cannot tell"
        if found.low is not None and found.high is not None:
            over, under = found.low > bound, found.high < bound
            if self.above is not None:
                verdict = "upheld" if over else ("not upheld" if found.high <= bound else verdict)
            else:
                verdict = "upheld" if under else ("not upheld" if found.low >= bound else verdict)
        return {
            "text": self.text,
            "left": self.left,
            "right": self.right,
            "above": self.above,
            "below": self.below,
            "left_mean": sum(left) / len(left),
            "right_mean": sum(right) / len(right),
            "difference": found.mean,
            "low": found.low,
            "high": found.high,
            "verdict": verdict,
        }


@dataclass(frozen=True)
class Claim:
    """A paper's headline claim at small scale. All settings are fixed before the first run.

    Args:
        slug: the method.
        claim: the claim in one sentence of our own.
        paper: the paper's figures.
        experiment: data, baseline, budget, seeds: what is run here.
        statements: what has to hold for the claim to be upheld.
        run: called with a seed; trains every arm and returns named values.
        seeds: how many seeds.
    """

    slug: str
    claim: str
    paper: str
    experiment: str
    statements: tuple[Statement, ...]
    run: Callable[[int], dict[str, float]]
    seeds: int = 5

    def judge(self, values: list[dict[str, float]]) -> dict[str, Any]:
        """Return the record of the values of all seeds: statements with intervals, and the verdict over all of them.

        The claim is upheld if every statement is, not upheld if one is not, else it cannot be told.
        """
        statements = [statement.judge(list(values)) for statement in self.statements]
        verdicts = {statement["verdict"] for statement in statements}
        verdict = "upheld" if verdicts == {"upheld"} else "not upheld" if "not upheld" in verdicts else "cannot tell"
        return {
            "slug": self.slug,
            "claim": self.claim,
            "paper": self.paper,
            "experiment": self.experiment,
            "verdict": verdict,
            "statements": statements,
            "seeds": len(values),
            "values": values,
        }


def load_claim(path: Path) -> Claim:
    """Read `CLAIM` from a claim's file.

    Raises:
        UserError: if the file is missing or has no `CLAIM`.
    """
    if not path.is_file():
        raise UserError(f"{path.stem} has no claim: {path} does not exist; write one (docs/contributing/new-method.md)")
    specification = importlib.util.spec_from_file_location(f"repertory_claim_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    claim = getattr(module, "CLAIM", None)
    if not isinstance(claim, Claim):
        raise UserError(f"{path} has no CLAIM = Claim(...); see docs/contributing/new-method.md")
    return claim


def run_claim(
    path: Path, *, seeds: int | None = None, processes: int = 2, on_seed: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Run a claim's experiment in parallel processes and judge it.

    Args:
        path: the claim's file.
        seeds: number of seeds, None for the claim's own.
        processes: worker processes, one thread each.
        on_seed: called with the number of finished seeds and of all seeds.

    Returns:
        The record, as `Claim.judge` makes it, with `date`, `versions`, `commit`, `minutes` and `processor_minutes`:
        what the seeds took of one core, which a busy machine hardly changes.
    """
    claim = load_claim(path)
    count = claim.seeds if seeds is None else seeds
    check_number("seeds", count, minimum=2, integer=True)
    start = time.perf_counter()
    with worker_pool(min(processes, count)) as pool:
        futures = [pool.submit(_run_seed, str(path), seed) for seed in range(count)]
        values, seconds = [], 0.0
        for number, future in enumerate(futures, start=1):
            found, taken = future.result()
            values.append(found)
            seconds += taken
            if on_seed is not None:
                on_seed(number, count)
    return {
        **claim.judge(values),
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "processor_minutes": round(seconds / 60, 2),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "commit": _commit(path.parent),
    }


def _run_seed(path: str, seed: int) -> tuple[dict[str, float], float]:
    start = time.process_time()
    values = {name: float(value) for name, value in load_claim(Path(path)).run(seed).items()}
    return values, time.process_time() - start


def versions() -> dict[str, str]:
    """Return the versions that numbers depend on."""
    from importlib.metadata import version

    import repertory

    return {
        "repertory": repertory.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "scikit-learn")},
    }


def _commit(folder: Path) -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
