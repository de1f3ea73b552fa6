"""Tuning: the same number of trials for every arm, chosen on validation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

from repertory import catalogue
from repertory.card import Card
from repertory.core.randomness import derived_seed
from repertory.recipe import Part, Recipe
from repertory.scenarios.methods import Arm, parts_of

_LR_RANGE = (0.1, 10.0)
"""Factor on the recipe's own learning rate that is searched for every arm."""

Evaluate = Callable[[list[tuple[Arm, int, Recipe]]], list[float | None]]
"""Runs one trial of each arm: arm, trial number and recipe in; validation metric out, None where the run failed."""


def search_space(arm: Arm) -> dict[str, tuple[float, float]]:
    """Return what is tuned of an arm: the learning rate's factor, and the ranges on its methods' cards."""
    known = catalogue.entries()
    cards: Iterable[Card] = (known[slug].card for slug in arm.slugs if slug in known)
    space = {"lr": _LR_RANGE}
    for card in cards:
        space.update({f"{card.slug}.{option}": limits for option, limits in card.search.items() if option != "lr"})
    return space


def with_values(recipe: Recipe, values: dict[str, float]) -> Recipe:
    """Return the recipe with tuned values put in."""
    plain = dict(recipe.optimizer.options)
    if "lr" in values and "lr" in plain:
        recipe = recipe.replace(
            optimizer=dataclasses.replace(recipe.optimizer, options={**plain, "lr": plain["lr"] * values["lr"]})
        )
    for name, value in values.items():
        slug, dot, option = name.partition(".")
        if not dot:
            continue

        def put(part: Part, slug: str = slug, option: str = option, value: float = value) -> Part:
            return dataclasses.replace(part, options={**part.options, option: value}) if part.slug == slug else part

        recipe = recipe.replace(
            model=put(recipe.model), criterion=put(recipe.criterion), optimizer=put(recipe.optimizer),
            **{slot: tuple(map(put, getattr(recipe, slot))) for slot in ("surgery", "methods", "curation", "after")},
        )  # fmt: skip
    return recipe


def tune(
    arms: list[Arm], trials: int, *, seed: int, higher_is_better: bool, evaluate: Evaluate
) -> list[tuple[Arm, dict[str, Any]]]:
    """Search every arm with the same number of trials; the first trial is the arm as it stands.

    Args:
        arms: what to tune.
        trials: how many trials each.
        seed: seed of the search.
        higher_is_better: direction of the validation metric.
        evaluate: runs one trial of every arm.

    Returns:
        Each arm with its best recipe, and the chosen values.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction: Literal["maximize", "minimize"] = "maximize" if higher_is_better else "minimize"
    studies: list[optuna.Study] = []
    spaces: list[dict[str, optuna.distributions.BaseDistribution]] = []
    for arm in arms:
        # One seed for all, so that arms that tune the same options try the same first values of them.
        sampler = optuna.samplers.TPESampler(seed=derived_seed(seed, "tune") % 2**32)
        study = optuna.create_study(direction=direction, sampler=sampler)
        space = search_space(arm)
        study.enqueue_trial(_as_given(arm, space))
        studies.append(study)
        spaces.append(
            {name: optuna.distributions.FloatDistribution(*limits, log=True) for name, limits in space.items()}
        )
    for number in range(trials):
        asked = [study.ask(space) for study, space in zip(studies, spaces)]
        wanted = [(arm, number, with_values(arm.recipe, trial.params)) for arm, trial in zip(arms, asked)]
        for study, trial, value in zip(studies, asked, evaluate(wanted)):
            if value is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, value)
    chosen = []
    for arm, study in zip(arms, studies):
        finished = [trial for trial in study.trials if trial.value is not None]
        values = study.best_params if finished else {}
        chosen.append((dataclasses.replace(arm, recipe=with_values(arm.recipe, values)), values))
    return chosen


def _as_given(arm: Arm, space: dict[str, tuple[float, float]]) -> dict[str, float]:
    known = catalogue.entries()
    given = {"lr": 1.0}
    for name, (low, high) in space.items():
        slug, dot, option = name.partition(".")
        if dot:
            parts = [part for part in parts_of(arm.recipe) if part.slug == slug]
            values = [part.options[option] for part in parts if option in part.options]
            value = values[0] if values else known[slug].card.defaults.get(option, low)
            # An option that the method sets by itself starts in the middle.
            given[name] = math.sqrt(low * high) if value is None else min(max(float(value), low), high)
    return given
