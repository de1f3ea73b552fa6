"""The plan of a comparison: everything that is decided before the first run."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from repertory.datasets import Dataset
from repertory.errors import check_choice, check_number
from repertory.recipe import Part, Recipe
from repertory.scenarios.choices import Source, check_arm, chosen_recipe, device_of
from repertory.scenarios.methods import Arm, arm
from repertory.scenarios.registry import SCENARIOS, Scenario, suitable
from repertory.scenarios.registry import scenario as scenario_of
from repertory.training.budget import BUDGETS, Budget

_SECONDS_PROBE_EPOCHS = 2


@dataclass(frozen=True)
class Plan:
    """What will be run.

    Args:
        source: where the data are.
        dataset: the data.
        arms: the baseline first, then one a method.
        seeds: the seeds of all arms.
        budget: what each run may spend.
        settings: plain values for the report.
    """

    source: Source
    dataset: Dataset
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    budget: Budget
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that decide the results, and nothing else."""
        return {
            "data": {**vars(self.source), "fingerprint": self.data_fingerprint},
            "arms": [{"label": a.label, "methods": list(a.slugs), "recipe": a.recipe.to_dict()} for a in self.arms],
            "seeds": list(self.seeds),
            "budget": dict(vars(self.budget)),
            "settings": {k: self.settings[k] for k in ("scenario", "precision", "device", "tune", "split")},
        }

    @functools.cached_property
    def data_fingerprint(self) -> str:
        """A hash of inputs and targets."""
        return str(self.dataset.describe()["fingerprint"])

    def fingerprint(self) -> str:
        """Return a hash of what decides the results; with a budget of seconds its measured length is left out."""
        plain = self.to_dict()
        if self.budget.kind == "seconds":
            plain["budget"]["amount"] = None
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def make_plan(
    methods: Sequence[str],
    source: Source,
    *,
    model: str | None = None,
    seeds: int = 3,
    seed: int = 0,
    budget: str = "compute",
    epochs: int | None = None,
    tune: int = 0,
    scenario: str | None = None,
    device: str = "auto",
    precision: str = "32",
    lr: float | None = None,
    batch_size: int | None = None,
    augment: str | None = None,
    views: str | None = None,
) -> Plan:
    """Decide everything, and check all that can be checked before a run.

    Raises:
        UserError: if anything given cannot work.
    """
    check_number("seeds", seeds, minimum=1, integer=True)
    check_number("seed", seed, minimum=0, integer=True)
    check_number("tune", tune, minimum=0, integer=True)
    check_choice("budget", budget, BUDGETS)
    check_choice("precision", precision, ("32", "bf16", "fp16"))
    if scenario is not None:
        check_choice("scenario", scenario, SCENARIOS)
    chosen = device_of(device)
    dataset = source.load()
    name = scenario or suitable(methods, dataset)
    setting = scenario_of(name)
    dataset = setting.view(dataset)
    recipe, reason = chosen_recipe(
        dataset,
        scenario=name,
        model=model,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        augment=augment,
        views=views,
    )
    arms = [Arm("baseline", (), recipe)]
    for text in dict.fromkeys(methods):
        arms.append(arm(text, recipe, dataset.task, name))
    for each in arms:
        check_arm(each, dataset)
    splits = dataset.prepare(seed)
    per_epoch = _seconds_per_epoch(setting, recipe, dataset, seed, chosen, precision) if budget == "seconds" else 0.0
    split = "the same for all seeds" if tune else "drawn anew for each seed"
    settings = {
        "scenario": name,
        "seeds": seeds,
        "seed": seed,
        "budget": budget,
        "epochs": recipe.epochs,
        "model": _described(recipe.model),
        "model_reason": reason,
        "optimizer": _described(recipe.optimizer),
        "batch_size": recipe.batch_size,
        "augment": recipe.augment,
        "views": recipe.views,
        "device": chosen,
        "precision": precision,
        "tune": tune,
        "split": split,
    }
    return Plan(
        source,
        dataset,
        tuple(arms),
        tuple(range(seed, seed + seeds)),
        setting.budget_of(budget, recipe, dataset, splits, per_epoch),
        settings,
    )


def _described(part: Part) -> str:
    return f"{part.factory} {dict(part.options)}" if part.options else part.factory


def _seconds_per_epoch(
    scenario: Scenario, recipe: Recipe, dataset: Dataset, seed: int, device: str, precision: str
) -> float:
    """Time the baseline for a moment; what comes before the first record warms up and is left out."""
    probe = recipe.replace(epochs=_SECONDS_PROBE_EPOCHS)
    budget = scenario.budget_of("steps", probe, dataset, dataset.prepare(seed))
    curve = scenario.run(probe, dataset, seed=seed, budget=budget, device=device, precision=precision).curve
    first, last = curve[0], curve[-1]
    epoch = scenario.budget_of("compute", recipe.replace(epochs=1), dataset, dataset.prepare(seed)).amount
    return float((last["seconds"] - first["seconds"]) / (last["passes"] - first["passes"]) * epoch)
