"""Where the teacher of a distillation comes from: a saved model, or one that is trained once for each seed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repertory.datasets import Dataset, Normaliser, Splits
from repertory.errors import DataError, OptionError, UserError
from repertory.recipe import Part, Recipe, locate
from repertory.scenarios import supervised
from repertory.scenarios.bench import Bench
from repertory.training.build import build_learner
from repertory.training.checkpoint import read_tensors
from repertory.training.evaluate import metrics, predict
from repertory.training.saved import SavedModel, load

WIDER = 4
"""A teacher that is trained first has so many times the student's width."""

_kept_in: ContextVar[Path | None] = ContextVar("folder of trained teachers", default=None)


@dataclass
class Taught:
    """A teacher, and what is known of it.

    Args:
        network: from normalised inputs of the student's to logits.
        accuracy: on the parts "validation" and "test".
        passes: what training it has cost, 0 for one that was given.
        seconds: the same in time.
    """

    network: nn.Module
    accuracy: Mapping[str, float]
    passes: float = 0.0
    seconds: float = 0.0


class SavedTeacher:
    """A teacher that `repertory fit` saved.

    Args:
        folder: what `fit --out` named.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def split_seed(self, dataset: Dataset) -> int | None:
        """Return the seed of the teacher's split, where it was trained on these very data, else None.

        What it has learnt from must not end up among the examples that students are tested on.
        """
        about = self._loaded(dataset).about
        same = about["data"]["fingerprint"] == dataset.describe()["fingerprint"]
        return int(about["seed"]) if same and "seed" in about else None

    def obtain(self, dataset: Dataset, splits: Splits, **_: Any) -> Taught:
        """Return the teacher.

        Args:
            dataset: what the students learn.
            splits: its parts.

        Raises:
            UserError: if there is no such model, or it was trained on other classes or other inputs.
        """
        saved = self._loaded(dataset)
        network = OnItsOwnScale(saved.learner, splits.normaliser, saved.normaliser).eval()
        return Taught(network, _accuracy(network, splits))

    def _loaded(self, dataset: Dataset) -> SavedModel:
        saved = load(self.folder)
        theirs, ours = saved.classes, dataset.classes
        if theirs != ours:
            raise DataError(
                f"teacher={self.folder} knows the {len(theirs)} classes {_listed(theirs)}, but {dataset.name} has the "
                f"{len(ours)} classes {_listed(ours)}; give a teacher of the same classes in the same order, or leave "
                "it out to have one trained"
            )
        shape = tuple(saved.about["in_shape"])
        if shape != dataset.in_shape:
            raise DataError(
                f"teacher={self.folder} takes inputs of shape {shape}, but those of {dataset.name} are "
                f"{dataset.in_shape}; train it on inputs of this shape (for images, with the same --image-size)"
            )
        return saved


class TrainedTeacher:
    """A teacher that is trained first, as the baseline of the scenario supervised is.

    Args:
        model: its network, as plain values of a `Part`.
        epochs: passes over the training set.
    """

    def __init__(self, model: Mapping[str, Any], epochs: int) -> None:
        self.model = Part.from_dict(model)
        self.epochs = epochs

    def split_seed(self, dataset: Dataset) -> int | None:
        """Return None: it learns from whatever the students learn from."""
        return None

    def obtain(
        self, dataset: Dataset, splits: Splits, *, seed: int, split_seed: int, device: str, precision: str
    ) -> Taught:
        """Train the teacher, or read the one that an earlier run with this seed has trained.

        Args:
            dataset: what the students learn.
            splits: its parts.
            seed: of initial weights and batches.
            split_seed: of the split.
            device: where it is trained.
            precision: "32", "bf16" or "fp16".

        Raises:
            DivergedError: if its training diverges.
        """
        recipe = supervised.baseline(dataset, self.model, epochs=self.epochs)
        decisive = [recipe.to_dict(), dataset.describe(), seed, split_seed, device, precision]
        key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
        folder = _kept_in.get()
        path = None if folder is None else folder / "teachers" / f"{key}.pt"
        if path is not None and path.exists():
            kept = read_tensors(path)
            learner = build_learner(recipe, dataset.in_shape, dataset.outputs, seed)
            learner.load_state_dict(kept["weights"])
            network = learner.to(device).eval()
            return Taught(network, _accuracy(network, splits), kept["passes"], kept["seconds"])
        bench = Bench.of(
            recipe,
            dataset,
            splits,
            seed=seed,
            budget=supervised.budget_of("steps", recipe, dataset, splits),
            device=device,
            precision=precision,
        )
        learner, _ = supervised.trained(bench)
        if path is not None:
            _keep(path, {"weights": learner.state_dict(), "passes": bench.counts.passes, "seconds": bench.seconds})
        network = learner.eval()
        return Taught(network, _accuracy(network, splits), bench.counts.passes, bench.seconds)


class OnItsOwnScale(nn.Module):
    """A network that was trained on inputs of another mean and deviation than those that it now gets.

    Args:
        network: the network.
        given: how the inputs that it gets were normalised.
        wanted: how those that it was trained on were.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, given: Normaliser, wanted: Normaliser) -> None:
        super().__init__()
        self.network = network
        for name, value in (("scale", given.std / wanted.std), ("shift", (given.mean - wanted.mean) / wanted.std)):
            self.register_buffer(name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the network's output for inputs `(batch, ...)`."""
        output: Tensor = self.network(inputs * self.scale + self.shift)
        return output


def teacher_for(dataset: Dataset, student: Part, epochs: int) -> Part:
    """Return where the teacher of a comparison comes from, as a part of its recipes.

    Args:
        dataset: its option `teacher` names a saved model.
        student: the network that is to be taught; a teacher that is trained first has 4 times its width.
        epochs: passes of such a teacher over the training set.

    Raises:
        OptionError: if no saved model is named, and the student's network has no width to widen.
    """
    if "teacher" in dataset.asked:
        return Part(f"{__name__}:SavedTeacher", {"folder": dataset.asked["teacher"]})
    return Part(f"{__name__}:TrainedTeacher", {"model": _wider(student).to_dict(), "epochs": epochs})


def teacher_part(recipe: Recipe) -> Any:
    """Return what gives the teacher of a recipe.

    Raises:
        UserError: if the recipe has none.
    """
    if recipe.teacher is None:
        raise UserError("the recipe has no teacher; make it with repertory.scenarios.distillation.baseline")
    return recipe.teacher.build()


@contextlib.contextmanager
def teachers_kept_in(folder: str | Path | None) -> Iterator[None]:
    """Keep teachers that are trained inside the block in a folder, and take those that lie there.

    Args:
        folder: of a comparison; None keeps them where they were kept.
    """
    token = _kept_in.set(_kept_in.get() if folder is None else Path(folder))
    try:
        yield
    finally:
        _kept_in.reset(token)


def costs_apart(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence on what the teachers of a comparison's runs have cost, none where nothing was trained.

    Args:
        results: of the runs.
    """
    found = {r["seed"]: r["cost"] for r in results if r["cost"].get("teacher_passes")}
    if not found:
        return []
    passes, seconds = (sum(cost[f"teacher_{name}"] for cost in found.values()) / len(found) for name in _COUNTED)
    return [
        f"each seed's teacher was trained once for all methods: {passes:,.0f} passes and {seconds:.3g} seconds, which "
        "are in no method's budget"
    ]


_COUNTED = ("passes", "seconds")


def _wider(student: Part) -> Part:
    width = inspect.signature(locate(student.factory)).parameters.get("width")
    now = student.options.get("width", None if width is None else width.default)
    if not isinstance(now, int):
        raise OptionError(
            f"model {student.factory!r} has no width, so no wider one can be trained to teach it; train a teacher with "
            "'repertory fit --model ... --out PATH', and name it as the data's option ?teacher=PATH"
        )
    return dataclasses.replace(student, options={**student.options, "width": WIDER * now})


def _accuracy(network: nn.Module, splits: Splits) -> dict[str, float]:
    found = {}
    for part in ("validation", "test"):
        examples = getattr(splits, part)
        outputs = predict(network, examples.inputs, splits.normaliser)
        found[part] = metrics(outputs, examples.targets, "classification")["accuracy"]
    return found


def _keep(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(content, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
