"""Checkpoints of a training: everything the rest of the run depends on, written so that none is ever half there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from repertory.core.distributed import rank
from repertory.core.step import Step
from repertory.errors import UserError
from repertory.training.loaders import BatchLoader


def save_checkpoint(path: Path, step: Step, loader: BatchLoader, seconds: float) -> None:
    """Write the state of a step, its loader and torch's generators (dropout) to one file.

    With sharded parameters all processes must call it together; only the first one writes.

    Args:
        path: where to; replaced in one move.
        step: the step.
        loader: the loader it is fed from.
        seconds: training time so far.
    """
    state = {
        "step": step.state_dict(),
        "loader": loader.state_dict(),
        "rng": torch.get_rng_state(),
        "device_rng": torch.cuda.get_rng_state(step.run.device) if step.run.device.type == "cuda" else None,
        "seconds": seconds,
    }
    if rank() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(state, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path, step: Step, loader: BatchLoader) -> float:
    """Put a step, its loader and torch's generators back to where a checkpoint was saved.

    Returns:
        The training time before it, in seconds.

    Raises:
        UserError: if the file is damaged, or was saved by something else.
    """
    state = read_tensors(path)
    if not {"step", "loader", "rng", "device_rng", "seconds"} <= set(state):
        raise UserError(f"{path} is not a checkpoint of a repertory training; delete it to start afresh")
    try:
        step.load_state_dict(state["step"])
    except UserError:
        raise
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[-1].strip()[:160]
        raise UserError(f"{path} is of another training ({reason}); delete it to start afresh") from error
    loader.load_state_dict(state["loader"])
    torch.set_rng_state(state["rng"])
    if state["device_rng"] is not None and step.run.device.type == "cuda":
        torch.cuda.set_rng_state(state["device_rng"], step.run.device)
    return float(state["seconds"])


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a file of tensors and plain values; nothing in it is ever executed.

    Raises:
        UserError: if it cannot be read as such.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as a checkpoint ({reason[:120]}); delete it to start afresh") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not a checkpoint; delete it to start afresh")
    return state
