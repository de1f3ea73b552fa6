"""Real processes: killed, interrupted, in parallel, on Ray. Few and small, since each has to import what it runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from repertory import compare
from repertory.compare import execute
from repertory.compare.workers import worker_pool
from repertory.errors import UserError

PATIENCE = 300.0
"""Seconds to wait for a process on a busy machine; on a quiet one a few are enough."""

METHODS = ["esam", "lion"]
SETTINGS = ["--data", "iris", "--epochs", "2", "--seeds", "2", "--device", "cpu"]


def until(holds: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"waited {PATIENCE} s for {what}"
        time.sleep(0.02)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "repertory", *words]


@contextlib.contextmanager
def started(*words: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group(leader: int) -> list[int]:
    """Living processes of the group that `leader` started, itself included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state, _, place = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(place) == leader and state != "Z":
                    found.append(int(entry.name))
    return found


def results(folder: Path) -> list[Path]:
    return [path for path in (folder / "results").rglob("*.json") if not path.name.startswith(".")]


def judged(folder: Path) -> list[Any]:
    """All that must not depend on when and where a run happened."""
    found = []
    for result in json.loads((folder / "run.json").read_text())["results"]:
        cost = {key: value for key, value in result["cost"].items() if key != "seconds"}
        curve = [(record["train_loss"], record["validation"]) for record in result["curve"]]
        found.append((result["label"], result["seed"], result["status"], result["metrics"], cost, curve))
    return found


@pytest.fixture
def undisturbed(tmp_path: Path, inline: list[str]) -> Path:
    """The same comparison, run in this process without a break."""
    compare(*METHODS, data="iris", epochs=2, seeds=2, device="cpu", out=tmp_path / "undisturbed")
    return tmp_path / "undisturbed"


def test_a_killed_comparison_is_completed_by_resume_with_identical_results(tmp_path: Path, undisturbed: Path) -> None:
    words = ["compare", *METHODS, *SETTINGS, "--jobs", "2", "--out", str(tmp_path / "m")]
    with started(*words) as process:
        until(lambda: results(tmp_path / "m"), "the first result")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
        until(lambda: not group(process.pid), "the workers to leave with their parent")
    kept = {path: path.read_bytes() for path in results(tmp_path / "m")}
    assert all(json.loads(content)["status"] == "finished" for content in kept.values())
    assert not (tmp_path / "m" / "run.json").exists()
    rest = [*words, "--resume", "--jobs", "1"]
    done = subprocess.run(command(*rest), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in kept} == kept
    assert judged(tmp_path / "m") == judged(undisturbed)


def test_ctrl_c_keeps_what_is_finished_says_how_to_go_on_and_leaves_no_process(tmp_path: Path) -> None:
    words = ["compare", *METHODS, *SETTINGS, "--epochs", "60", "--jobs", "2", "--out", str(tmp_path / "m")]
    with started(*words) as process:
        until(lambda: results(tmp_path / "m"), "the first result")
        # As a terminal does it: to every process of the group.
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=PATIENCE)
        until(lambda: not group(process.pid), "the workers to end")
    assert process.returncode == 130
    assert "Traceback" not in error
    assert error.splitlines()[-1] == (
        f"repertory: interrupted; finished runs are kept in {tmp_path / 'm'}: repeat the command with --resume to "
        "complete it"
    )
    assert all(json.loads(path.read_text())["status"] == "finished" for path in results(tmp_path / "m"))


def test_ray_gives_the_results_of_this_machine(tmp_path: Path, undisturbed: Path) -> None:
    program = (
        "import ray, sys; ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False); "
        "from repertory.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "compare", *METHODS, *SETTINGS, "--on", "ray", "--out", str(tmp_path / "m")],
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert judged(tmp_path / "m") == judged(undisturbed)


def die(job: dict[str, Any]) -> dict[str, Any]:
    if job["key"] == "bad":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}


def test_a_worker_that_is_killed_loses_no_finished_run_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "run_job", die)
    with execute.executor("local", 1) as run:
        runs = run([{"key": "good"}, {"key": "bad"}], lambda key, share: None)
        job, result = next(runs)
        assert (job["key"], result["threads"]) == ("good", "1")
        with pytest.raises(execute.WorkerDiedError, match=r"finished runs are kept: go on with --resume.*--jobs 1"):
            next(runs)


def test_workers_stay_from_one_round_of_jobs_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "run_job", die)
    with execute.executor("local", 1) as run:
        pids = {result["pid"] for _ in range(2) for _, result in run([{"key": "good"}], lambda key, share: None)}
    assert len(pids) == 1


def test_a_pool_puts_the_environment_back_and_ends_its_workers_on_an_error() -> None:
    before, seen = os.environ.get("MKL_NUM_THREADS"), []

    def use() -> None:
        with worker_pool(1) as pool:
            seen.extend([pool.submit(os.getpid).result(PATIENCE), os.environ["MKL_NUM_THREADS"]])
            raise UserError("stop")

    with pytest.raises(UserError, match="stop"):
        use()
    until(lambda: not Path(f"/proc/{seen[0]}").exists(), "the worker to end")
    assert seen[1] == "1"
    assert os.environ.get("MKL_NUM_THREADS") == before


def test_no_jobs_start_no_process() -> None:
    with execute.executor("local", 2) as run:
        assert list(run([], lambda key, share: None)) == []
