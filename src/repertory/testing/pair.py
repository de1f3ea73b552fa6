"""Two processes that train together through Lightning Fabric: started once, then asked as often as needed."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import importlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from repertory.core.state import split
from repertory.testing.assembly import build_step, run_steps, weights
from repertory.testing.check import CheckFailure, NotApplicable
from repertory.testing.subject import Subject

_PATIENCE = 120.0
"""Seconds to wait for a reply; the first one includes starting two processes on a busy machine."""
_LITTLE_PATIENCE = 2.0
"""Seconds that the second reply may take after the first one was an error."""
_PROGRAM = "from repertory.testing.pair import serve; serve()"


class Pair:
    """Handle of the two processes."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="repertory-pair-")
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def trained(self, reference: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Train the subject on both processes, each with half of every batch, and return the weights of both.

        Args:
            reference: a slug, or `module:name` of a class.

        Raises:
            CheckFailure: if one of them failed or gave no answer.
        """
        process = self._process if self._process is not None and self._process.poll() is None else self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps(reference).encode() + b"\n")
        process.stdin.flush()
        first_error = json.loads(self._line(process, _PATIENCE))
        second_error = json.loads(self._line(process, _LITTLE_PATIENCE if first_error else _PATIENCE))
        if first_error or second_error:
            if first_error != second_error:
                # One of them may still wait for the other inside a collective call.
                self.stop()
            raise CheckFailure(f"with two processes: {first_error or second_error}")
        first, second = (torch.load(Path(self._folder.name) / f"{rank}.pt", weights_only=True) for rank in (0, 1))
        return first, second

    def stop(self) -> None:
        """End both processes; the next request starts new ones."""
        process, self._process, self._buffer = self._process, None, b""
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if not hasattr(os, "fork"):
            raise NotApplicable("this system cannot fork a process")
        self.stop()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], patience: float) -> bytes:
        assert process.stdout is not None
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([process.stdout], [], [], patience)
            received = os.read(process.stdout.fileno(), 65536) if ready else b""
            if not received:
                self.stop()
                raise CheckFailure(f"two processes {'ended without an answer' if ready else 'wait for each other'}")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


@functools.cache
def pair() -> Pair:
    """Return this session's pair; its processes start with the first request and end with the session."""
    made = Pair()
    atexit.register(made.stop)
    return made


def _half(rank: int, entries: dict[str, Any]) -> dict[str, Any]:
    halves = split({**entries}, 2)
    return next(itertools.islice(halves, rank, None))


def _serve(folder: Path, rank: int, requests: Any, replies: int) -> None:
    from lightning_fabric import Fabric

    # Fabric starts no processes of its own when it is told its rank.
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / f'meeting-{os.getpgrp()}'}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=30),
    )
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    for line in requests:
        error = ""
        try:
            subject = Subject.of(json.loads(line))
            step = build_step(subject, fabric=fabric)
            run_steps(step, subject, change=functools.partial(_half, rank))
            torch.save(weights(step), folder / f"{rank}.pt")
        except Exception as raised:
            error = f"{type(raised).__name__}: {str(raised).splitlines()[0] if str(raised) else ''}"
        os.write(replies, json.dumps(error).encode() + b"\n")


def serve() -> None:
    """Be the pair: import once, fork, and let both halves work through the requests on standard input."""
    # Imported before the fork, so that it is done once; the second is what the first optimizer step would import.
    for heavy in ("lightning_fabric", "torch._dynamo"):
        importlib.import_module(heavy)
    folder = Path(sys.argv[1])
    # What methods print must not end up among the replies.
    replies = os.dup(1)
    os.dup2(2, 1)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        with os.fdopen(reader) as requests:
            _serve(folder, 1, requests, replies)
        return
    os.close(reader)
    with os.fdopen(writer, "w") as forward:
        _serve(folder, 0, _forwarded(forward), replies)


def _forwarded(other: Any) -> Any:
    for line in sys.stdin:
        other.write(line)
        other.flush()
        yield line
