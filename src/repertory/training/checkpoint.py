"""Checkpoints of a training: everything the rest of the run depends on, written so that none is ever half there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from repertory.core.step import Step
from repertory.errors import UserError
from repertory.training.loaders import BatchLoader


def save_checkpoint(path: Path, step: Step, loader: BatchLoader, seconds: float) -> None:
    """Write the state of a step, its loader and torch's generator (dropout) to one file.

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
        "seconds": seconds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, partial)
    partial.replace(path)


def load_checkpoint(path: Path, step: Step, loader: BatchLoader) -> float:
    """Put a step and its loader back to where a checkpoint was saved.

    Returns:
        The training time before it, in seconds.

    Raises:
        UserError: if the file is damaged, or was saved by something else.
    """
    state = read_tensors(path)
    if not {"step", "loader", "rng", "seconds"} <= set(state):
        raise UserError(f"{path} is not a checkpoint of a repertory training; delete it to start afresh")
    step.load_state_dict(state["step"])
    loader.load_state_dict(state["loader"])
    torch.set_rng_state(state["rng"])
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
