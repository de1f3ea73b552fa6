"""The scenarios there are, what each must offer, and which one suits a comparison."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Required, TypedDict, Unpack, cast

from repertory import catalogue
from repertory.card import Card
from repertory.datasets import Dataset, Splits
from repertory.datasets.asked import READERS
from repertory.errors import OptionError, UserError, check_choice
from repertory.recipe import Part, Recipe
from repertory.scenarios.methods import parse, plays
from repertory.training.budget import Budget
from repertory.training.learner import Learner

SCENARIOS: tuple[str, ...] = (
    "supervised",
    "online",
    "retrieval",
    "continual",
    "semi_supervised",
    "noisy_labels",
    "long_tail",
    "noisy_long_tail",
    "self_supervised",
    "condensation",
    "segmentation",
    "weak_segmentation",
    "distillation",
    "bags",
    "graph_shift",
    "category_discovery",
)
"""Names of the scenarios, each a module of this folder; the first that suits is taken."""

_OF_MASKS = ("segmentation", "weak_segmentation")


@dataclass
class Outcome:
    """What one run gave.

    Args:
        learner: the trained model.
        metrics: by part ("validation", "test"), by name.
        curve: records in the order of training, each with `passes` and the metrics it was judged by.
        cost: steps, forward and backward (examples), passes, seconds, peak_bytes.
        splits: the data it was trained on.
        tables: further results as columns of plain values, by name, to be kept as Parquet files.
        neighbours: queries with what they found, as `repertory.retrieval.sheet` makes them.
        after: the parts of the recipe's slot `after`, as they were built and applied.
        about: what predictions need to know beside the model, plain values, to be kept with it.
    """

    learner: Learner
    metrics: dict[str, dict[str, float]]
    curve: list[dict[str, Any]]
    cost: dict[str, float]
    splits: Splits = field(repr=False)
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict, repr=False)
    neighbours: list[dict[str, Any]] = field(default_factory=list, repr=False)
    after: list[Any] = field(default_factory=list, repr=False)
    about: dict[str, Any] = field(default_factory=dict, repr=False)


class Settings(TypedDict, total=False):
    """What a run is given beside recipe and data.

    Args:
        seed: decides split, initial weights, order of batches, and every method's draws.
        budget: what the run may spend on training.
        split_seed: another seed for the split alone.
        device: "cpu", "cuda", "cuda:1", ...
        precision: "32", "bf16" or "fp16".
        fabric: a launched Fabric, for several devices.
        checkpoints: folder to write checkpoints to and to go on from.
        on_progress: called with the share that is spent.
        on_record: called with each epoch's record.
    """

    seed: Required[int]
    budget: Required[Budget]
    split_seed: int | None
    device: str
    precision: str
    fabric: Any
    checkpoints: Path | None
    on_progress: Callable[[float], None] | None
    on_record: Callable[[dict[str, Any]], None] | None


def split_seed(settings: Settings) -> int:
    """Return the seed that decides the split."""
    asked = settings.get("split_seed")
    return settings["seed"] if asked is None else asked


class Scenario(Protocol):
    """What a module of this folder offers, so that a comparison can run in it."""

    def main_metric(self, task: str) -> str:
        """Return the metric that a comparison is judged by for "classification" or "regression"."""
        ...

    def view(self, dataset: Dataset) -> Dataset:
        """Return the data as this scenario cuts them, or raise a UserError where they do not suit it."""
        ...

    def default_model(self, dataset: Dataset) -> tuple[Part, str]:
        """Return the network that suits the data when the user names none, and why."""
        ...

    def baseline(self, dataset: Dataset, model: Part, *, epochs: int | None = None) -> Recipe:
        """Return the recipe that every method is compared with."""
        ...

    def budget_of(
        self, kind: str, recipe: Recipe, dataset: Dataset, splits: Splits, seconds_per_epoch: float = 0.0
    ) -> Budget:
        """Return the budget that the baseline recipe spends."""
        ...

    def run(self, recipe: Recipe, dataset: Dataset, **settings: Unpack[Settings]) -> Outcome:
        """Run a recipe once."""
        ...


def scenario(name: str) -> Scenario:
    """Return the scenario of that name.

    Raises:
        OptionError: if there is none.
    """
    check_choice("scenario", name, SCENARIOS)
    return cast(Scenario, importlib.import_module(f"repertory.scenarios.{name}"))


def refuse_options(dataset: Dataset, name: str) -> None:
    """Refuse pairs of texts, and options of the data, that only another scenario reads.

    Args:
        dataset: the data.
        name: of the scenario.

    Raises:
        OptionError: if there are any.
    """
    if dataset.task == "pairs" and name != "retrieval":
        raise OptionError(
            f"{dataset.name} has pairs of texts, which scenario {name} has no use for; add --scenario retrieval"
        )
    if dataset.task == "bags" and name != "bags":
        raise OptionError(f"{dataset.name} has bags, which scenario {name} has no use for; add --scenario bags")
    if dataset.task == "segmentation" and name not in _OF_MASKS:
        raise OptionError(
            f"{dataset.name} has masks, which scenario {name} has no use for; add --scenario {' or '.join(_OF_MASKS)}"
        )
    if dataset.modality == "graph" and name != "graph_shift":
        raise OptionError(f"{dataset.name} has graphs, which scenario {name} does not take; add --scenario graph_shift")
    if dataset.points is not None and name != "weak_segmentation":
        raise OptionError(
            f"{dataset.name} has extreme points in place of training masks, which scenario {name} has no use for; add "
            "--scenario weak_segmentation"
        )
    if dataset.apart and name != "retrieval":
        raise OptionError(
            f"{dataset.name}: the test part has other classes than the training part, which only a search has use for; "
            "add --scenario retrieval, or give both the same classes"
        )
    for reader in READERS:
        options = dataset.asked_by(reader)
        for key, value in options.items() if reader != name else ():
            raise OptionError(f"{key}={value} has no use in scenario {name}; add --scenario {reader}, or leave it out")


def needs_classes(dataset: Dataset, name: str) -> None:
    """Refuse data without classes.

    Args:
        dataset: the data.
        name: of the scenario.

    Raises:
        UserError: if the task is another than telling classes apart.
    """
    if dataset.task != "classification":
        raise UserError(
            f"{dataset.name}: scenario {name} learns classes, but the task is {dataset.task}; give data with classes, "
            "or leave the scenario out"
        )


def asked_for(dataset: Dataset) -> tuple[str, ...]:
    """Return the scenarios that the data are made for: one that reads their options, or all."""
    if dataset.points is not None:
        return ("weak_segmentation",)
    if dataset.modality == "graph":
        return ("graph_shift",)
    for reader in READERS:
        if dataset.asked_by(reader):
            return (reader,)
    if dataset.task == "segmentation":
        return _OF_MASKS
    if dataset.task == "bags":
        return ("bags",)
    return ("retrieval",) if dataset.task == "pairs" or dataset.apart else SCENARIOS


def suitable(methods: Iterable[str], dataset: Dataset | None = None) -> str:
    """Return the scenario in which all methods play, of those that the data have options or a task for.

    Of several it is the one that the methods' cards name first, all taken together.

    Args:
        methods: as the user typed them; methods outside the catalogue, and instruments, do not count.
        dataset: the data, None for data that leave it to the methods.

    Raises:
        UserError: if there is none.

    >>> suitable(["esam+lion", "saf:start=2"])
    'supervised'
    """
    known = catalogue.entries()
    named = dict.fromkeys(name for text in methods for name, _ in parse(text))
    names = [name for name in named if name in known and known[name].card.scenarios]
    possible = SCENARIOS if dataset is None else asked_for(dataset)
    common = [each for each in possible if all(plays(known[name].card, each) for name in names)]
    if common:
        return min(common, key=lambda each: sum(_rank(known[name].card, each) for name in names))
    listed = "; ".join(f"{name}: {' or '.join(known[name].card.scenarios)}" for name in names)
    data = "" if dataset is None or possible == SCENARIOS else f" and {dataset.spec}"
    raise UserError(f"no scenario suits all of these methods ({listed}){data}; compare those of one scenario at a time")


def _rank(card: Card, name: str) -> int:
    """The place of a scenario among those that a card names, after them where it only follows from one."""
    return card.scenarios.index(name) if name in card.scenarios else len(card.scenarios)
