"""A checkpoint is whole or not there, and a run that goes on from one ends like one that was never cut off."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms import SAM
from repertory.core.randomness import seeded
from repertory.errors import UserError
from repertory.training import BatchLoader, Budget, train
from repertory.training.checkpoint import load_checkpoint, save_checkpoint


def task(width: int = 8, methods: tuple[SAM, ...] = ()) -> tuple[Step, BatchLoader]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.5), nn.Linear(width, 2))
    step = Step(model, functools.partial(torch.optim.AdamW, lr=0.01), nn.CrossEntropyLoss(), methods, epochs=4)
    inputs = torch.randn(20, 4)
    return step, BatchLoader(inputs, (inputs[:, 0] > 0).long(), batch_size=6, seed=1)


def weights(step: Step) -> Tensor:
    return torch.cat([p.detach().flatten() for p in step.run.parameters])


class Cut(Exception):
    """The run is cut off."""


def test_a_run_with_dropout_goes_on_bit_for_bit(tmp_path: Path) -> None:
    budget = Budget("steps", 14)
    straight, loader = task()
    with seeded(3, "train"):
        train(straight, loader, budget)

    first, first_loader = task()

    def cut(share: float, record: dict[str, float]) -> None:
        save_checkpoint(tmp_path / "train.pt", first, first_loader, record["seconds"])
        if share > 0.5:
            raise Cut

    with pytest.raises(Cut), seeded(3, "train"):
        train(first, first_loader, budget, on_epoch=cut)
    second, second_loader = task()
    with seeded(3, "train"):
        seconds = load_checkpoint(tmp_path / "train.pt", second, second_loader)
        cost = train(second, second_loader, budget, seconds=seconds)
    assert torch.equal(weights(second), weights(straight))
    assert second.run.counts == straight.run.counts
    assert cost["seconds"] > seconds > 0


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "train.pt"
    save_checkpoint(path, *task(), seconds=1.0)
    return path


def test_nothing_but_the_checkpoint_is_left_in_the_folder(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == ["train.pt"]


def test_an_old_checkpoint_survives_a_write_that_fails(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, *task(), seconds=2.0)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["train.pt"]


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None], ids=["empty", "text", "half"])
def test_a_damaged_file_is_named_with_the_fix(saved: Path, content: bytes | None) -> None:
    saved.write_bytes(saved.read_bytes()[:1000] if content is None else content)
    with pytest.raises(
        UserError, match=r"train\.pt cannot be read as a checkpoint .*; delete it to start afresh"
    ) as told:
        load_checkpoint(saved, *task())
    assert "\n" not in str(told.value)


class Trap:
    """Pickled code must never run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_code_in_a_file_is_not_run(saved: Path) -> None:
    torch.save({"step": Trap()}, saved)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_checkpoint(saved, *task())


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2]], ids=["mapping", "list"])
def test_a_file_of_something_else_is_refused(saved: Path, content: object) -> None:
    torch.save(content, saved)
    with pytest.raises(UserError, match=r"not a checkpoint.*delete it to start afresh"):
        load_checkpoint(saved, *task())


def test_a_checkpoint_of_another_network_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match=r"is of another training \(.*size mismatch.*\); delete it") as told:
        load_checkpoint(saved, *task(width=9))
    assert "\n" not in str(told.value)


def test_a_checkpoint_of_other_methods_is_refused(saved: Path) -> None:
    with pytest.raises(UserError, match=r"saved with methods \[\], this step has \['sam'\]"):
        load_checkpoint(saved, *task(methods=(SAM(),)))
