"""`measure`: run an instrument on a model and data."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repertory import catalogue
from repertory.datasets import Dataset, Examples, Splits
from repertory.datasets.dataset import CLASSIFIED
from repertory.errors import OptionError, UserError, check_number, nearest
from repertory.recipe import Recipe, locate
from repertory.record import Instrument, Record
from repertory.scenarios.choices import Source, chosen_recipe, device_of
from repertory.scenarios.methods import parse
from repertory.scenarios.supervised import budget_of, run
from repertory.training.build import build_learner
from repertory.training.saved import load

_FURTHER = 0.5
"""Share of the watch's progress that training takes, where there is training."""


@dataclass(frozen=True)
class Measured:
    """A record, and what it was measured on.

    Args:
        record: what the instrument found.
        subject: the model and the data, in words.
    """

    record: Record
    subject: str


def measure(
    instrument: str,
    *,
    data: str | None = None,
    model: str | None = None,
    target: str | None = None,
    epochs: int = 0,
    seed: int = 0,
    device: str = "auto",
    lr: float | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    trust: bool = False,
    out: str | Path | None = None,
    watch: Callable[[float], None] | None = None,
) -> Measured:
    """Run an instrument on a model and data, and keep what it found.

    Args:
        instrument: its slug with options, such as "batch-size-lr:steps=40"; or `package.module:Class`.
        data: a built-in name or a path; see `repertory.datasets.load`.
        model: a folder that `fit` wrote, "timm:NAME", "repertory:NAME" or "package.module:factory"; None takes a small
            network that suits the data.
        target: column of the target, for tables.
        epochs: train this many passes over the training part first, as the baseline of a comparison is trained.
        seed: decides split, weights and draws.
        device: "auto", "cpu", "cuda", ...
        lr: learning rate of that training.
        batch_size: examples a step of that training.
        image_size: side to which images of a folder are brought.
        skip_bad: go on without unreadable images.
        trust: load a model folder that names code outside this package.
        out: folder to write `record.json` and `plot.png` to.
        watch: told the share that is done.

    Returns:
        The record, and what was measured in words.

    Raises:
        UserError: if anything given cannot work.
    """
    check_number("epochs", epochs, minimum=0, integer=True)
    check_number("seed", seed, minimum=0, integer=True)
    built = _built(instrument)
    asked = inspect.signature(built.measure).parameters
    told = watch or (lambda share: None)
    given: dict[str, Any] = {}
    subject = "no model and no data"
    if data is None and model is not None:
        raise UserError(f"model={model!r} needs data to fit; give --data too")
    if data is None:
        unmet = [name for name in ("model", "data") if asked[name].default is inspect.Parameter.empty]
        if unmet:
            raise UserError(f"{instrument} measures a {' and '.join(unmet)}; give --data, as in --data digits")
    else:
        dataset = Source(data, target, image_size, skip_bad).load()
        if dataset.task == "segmentation":
            raise UserError(
                f"{dataset.name} has masks, but an instrument measures a network with one output an input; give data "
                "with a class or a number for each input"
            )
        chosen = device_of(device)
        splits = dataset.prepare(seed)
        share = _FURTHER if epochs else 0.0
        network, words = _network(
            dataset, splits, model, epochs, seed, chosen, lr, batch_size, trust, lambda s: told(share * s)
        )
        given = {
            "model": network.to(chosen),
            "data": _pair(splits.train, splits, dataset, chosen),
            "held_out": _pair(splits.validation, splits, dataset, chosen),
        }
        subject = f"{words} on {dataset.name} ({len(splits.train)} examples)"
        told = _scaled(told, share)
    record = built.measure(**given, seed=seed, watch=told)
    if out is not None:
        record.save(out)
    return Measured(record, subject)


def _built(text: str) -> Instrument:
    wanted = parse(text)
    if len(wanted) != 1:
        raise UserError(f"{text!r} names several instruments; run one at a time")
    (name, options) = wanted[0]
    if ":" in name:
        entry = locate(name)
    else:
        card = catalogue.get(name).card
        if card.kind != "diagnostic":
            verb = "compare" if card.scenarios else "show"
            raise UserError(f"{name} is not an instrument ({card.kind}); run: repertory {verb} {name}")
        entry = getattr(importlib.import_module(catalogue.get(name).module), card.entry)
    if not callable(getattr(entry, "measure", None)):
        raise UserError(f"{name!r} has no method measure(model, data); name an instrument")
    known = inspect.signature(entry).parameters
    for key in options:
        if key not in known:
            hint = nearest(key, known)
            raise OptionError(f"{name} has no option {key!r}; it has {', '.join(known) or 'none'}; {hint}".rstrip("; "))
    built: Instrument = entry(**options)
    return built


def _network(
    dataset: Dataset,
    splits: Splits,
    model: str | None,
    epochs: int,
    seed: int,
    device: str,
    lr: float | None,
    batch_size: int | None,
    trust: bool,
    watch: Callable[[float], None],
) -> tuple[nn.Module, str]:
    if model is not None and Path(model).is_dir():
        if epochs:
            raise OptionError(f"epochs={epochs} is not allowed: the model in {model} is trained already; leave it out")
        saved = load(model, trust=trust)
        _check_fits(saved.about, dataset, model)
        return saved.learner.network, f"the model in {model}"
    recipe, _ = chosen_recipe(dataset, model=model, epochs=epochs or None, lr=lr, batch_size=batch_size)
    name = _called(recipe)
    if not epochs:
        learner = build_learner(recipe, dataset.in_shape, dataset.outputs, seed)
        return learner.network, f"{name} at initialisation"
    budget = budget_of("steps", recipe, dataset, splits)
    outcome = run(recipe, dataset, seed=seed, budget=budget, device=device, on_progress=watch)
    return outcome.learner.network, f"{name} after {epochs} epochs"


def _called(recipe: Recipe) -> str:
    name = recipe.model.options.get("name")
    return str(name) if name else recipe.model.factory.partition(":")[2]


def _check_fits(about: Mapping[str, Any], dataset: Dataset, folder: str) -> None:
    found = (tuple(about["in_shape"]), int(about["outputs"]))
    if found != (dataset.in_shape, dataset.outputs):
        raise UserError(
            f"the model in {folder} takes inputs {found[0]} and gives {found[1]} outputs, the data have "
            f"{dataset.in_shape} and {dataset.outputs}; give the data it was trained on"
        )


def _pair(examples: Examples, splits: Splits, dataset: Dataset, device: str) -> tuple[Tensor, Tensor]:
    targets = examples.targets
    if dataset.task not in CLASSIFIED:
        targets = ((targets - splits.target_mean) / splits.target_std)[:, None]
    return splits.normaliser(examples.inputs).to(device), targets.to(device)


def _scaled(told: Callable[[float], None], start: float) -> Callable[[float], None]:
    return lambda share: told(start + (1.0 - start) * share)
