"""`compare`: train the baseline and methods on one data set at equal budget, and say which ones help."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from repertory import catalogue
from repertory.compare.claim import versions
from repertory.compare.execute import Execute, Job, executor
from repertory.compare.files import write_json
from repertory.compare.folder import RunFolder, safe_name
from repertory.compare.plan import Plan, make_plan
from repertory.compare.report import write_report
from repertory.compare.sheet import condensed_sheets, sheets
from repertory.compare.statistics import BASELINE, summarise
from repertory.compare.tuning import tune as tune_arms
from repertory.errors import UserError
from repertory.recipe import Recipe
from repertory.scenarios.choices import Source, device_of
from repertory.scenarios.condensation import condensing_costs
from repertory.scenarios.methods import Arm
from repertory.scenarios.registry import scenario as scenario_of
from repertory.scenarios.teachers import costs_apart
from repertory.training.budget import Budget
from repertory.training.evaluate import higher_is_better

Watch = Callable[[str, float, int], None]
"""Called with a run's key, the share of it that is done, and the number of runs."""


def compare(
    *methods: str,
    data: str,
    target: str | None = None,
    model: str | None = None,
    seeds: int = 3,
    seed: int = 0,
    budget: str = "compute",
    epochs: int | None = None,
    tune: int = 0,
    jobs: int | None = None,
    on: str = "local",
    scenario: str | None = None,
    device: str = "auto",
    precision: str = "32",
    lr: float | None = None,
    batch_size: int | None = None,
    augment: str | None = None,
    views: str | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    command: str | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train the baseline and each method over several seeds, and compare them pairwise.

    Args:
        methods: such as "esam", "esam+lion", "esam:rho=0.1", "package.module:MyMethod".
        data: a built-in name or a path; see `repertory.datasets.load`.
        target: column of the target, for tables.
        model: "timm:NAME", "repertory:NAME" or "package.module:factory"; None takes a small one that suits the data.
        seeds: number of seeds, at least 2 for an interval.
        seed: the first of them.
        budget: "compute" (passes), "steps" or "seconds": what every run gets as much of as the baseline spends.
        epochs: passes over the training set that the baseline makes; 30 when not given.
        tune: trials of hyper-parameter search for every arm, baseline included; 0 for none.
        jobs: runs at a time; None for one a core.
        on: "local" or "ray".
        scenario: kind of problem; found from the data when not given.
        device: "auto", "cpu", "cuda", ...
        precision: "32", "bf16" or "fp16".
        lr: the baseline's learning rate.
        batch_size: examples a step.
        augment: "none", "shift" or "flip-shift".
        views: "plain" or "photo": what changed versions of the inputs are made of, for methods that ask for them.
        image_size: side to which images of a folder are brought.
        skip_bad: go on without unreadable images.
        out: folder of the results; None makes one under `runs/`.
        resume: go on with a comparison that was cut off.
        command: the command to print in the report; None writes the Python call.
        watch: told of every run's progress.

    Returns:
        The comparison, as in `run.json`: rows, results, settings, and `folder`.

    Raises:
        UserError: if anything given cannot work.
    """
    if not methods:
        raise UserError("name at least one method to compare with the baseline; 'repertory list' shows them")
    chosen = device_of(device)
    processes = jobs if jobs is not None else (1 if chosen != "cpu" else os.cpu_count() or 1)
    if processes < 1:
        raise UserError(f"jobs={jobs} must be at least 1")
    # The workers import while the plan is made.
    with executor(on, processes) as run:
        plan = make_plan(
            methods,
            Source(data, target, image_size, skip_bad),
            model=model,
            seeds=seeds,
            seed=seed,
            budget=budget,
            epochs=epochs,
            tune=tune,
            scenario=scenario,
            device=chosen,
            precision=precision,
            lr=lr,
            batch_size=batch_size,
            augment=augment,
            views=views,
        )
        folder = RunFolder.find(plan, out, resume)
        if budget == "seconds" and folder.saved_fingerprint() is not None:
            # Measured anew it would differ a little; all runs must get what the first ones got.
            plan = dataclasses.replace(plan, budget=Budget(**folder.budget()))
        with _resumable(folder):
            folder.begin(plan)
            return _run(plan, folder, run, tune, command or _call(methods, data), watch)


@contextlib.contextmanager
def _resumable(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; finished runs are kept in {folder.path}: repeat the command with --resume to complete it"
        ) from None


def _run(plan: Plan, folder: RunFolder, run: Execute, tune: int, command: str, watch: Watch | None) -> dict[str, Any]:
    arms, seed = list(plan.arms), plan.settings["seed"]
    total = len(arms) * (tune + len(plan.seeds))
    told = watch or (lambda key, share, runs: None)

    def finish(wanted: list[Job]) -> list[dict[str, Any]]:
        found = {job["key"]: folder.result(job["key"]) for job in wanted}
        for job in wanted:
            if found[job["key"]] is not None:
                told(job["key"], 1.0, total)
        missing = [{**job, "folder": str(folder.path.resolve())} for job in wanted if found[job["key"]] is None]
        with contextlib.closing(run(missing, lambda key, share: told(key, min(share, 0.99), total))) as ended:
            for job, result in ended:
                found[job["key"]] = folder.save_result(job["key"], {**result, "split_seed": job["split_seed"]})
                told(job["key"], 1.0, total)
        return [result for result in (found[job["key"]] for job in wanted) if result is not None]

    metric = scenario_of(plan.settings["scenario"]).main_metric(plan.dataset.task)
    chosen: dict[str, dict[str, Any]] = {}
    if tune:

        def evaluate(trials: list[tuple[Arm, int, Recipe]]) -> list[float | None]:
            wanted = [
                _job(plan, arm.label, arm.slugs, recipe, seed, f"tune/{safe_name(arm.label)}/trial-{number}")
                for arm, number, recipe in trials
            ]
            return [result["metrics"].get("validation", {}).get(metric) for result in finish(wanted)]

        tuned = tune_arms(arms, tune, seed=seed, higher_is_better=higher_is_better[metric], evaluate=evaluate)
        arms = [arm for arm, _ in tuned]
        chosen = {arm.label: values for arm, values in tuned}
    for arm in arms:
        folder.save_recipe(arm.label, arm.recipe.to_dict())
    results = finish(
        [
            _job(plan, arm.label, arm.slugs, arm.recipe, each, f"{safe_name(arm.label)}/seed-{each}")
            for arm in arms
            for each in plan.seeds
        ]
    )
    comparison = _comparison(plan, arms, results, chosen, command)
    comparison["folder"] = str(folder.path)
    folder.save_table(results)
    write_json(folder.path / "run.json", comparison)
    made = condensed_sheets(results, folder.path, plan.dataset)
    write_report(folder.path / "report.html", comparison, sheets(results, plan.dataset), made)
    _raise_if_nothing_ran(results, folder)
    return comparison


def _job(plan: Plan, label: str, slugs: tuple[str, ...], recipe: Recipe, seed: int, key: str) -> Job:
    return {
        "key": key,
        "label": label,
        "method": "+".join(slugs) or BASELINE,
        "scenario": plan.settings["scenario"],
        "recipe": recipe.to_dict(),
        "seed": seed,
        "split_seed": plan.settings["seed"] if plan.settings["tune"] else seed,
        "data": dict(vars(plan.source)),
        "fingerprint": plan.data_fingerprint,
        "budget": dict(vars(plan.budget)),
        "device": plan.settings["device"],
        "precision": plan.settings["precision"],
    }


def _comparison(
    plan: Plan, arms: list[Arm], results: list[dict[str, Any]], chosen: dict[str, dict[str, Any]], command: str
) -> dict[str, Any]:
    metric = scenario_of(plan.settings["scenario"]).main_metric(plan.dataset.task)
    known = catalogue.entries()
    entries = [known[slug] for slug in dict.fromkeys(s for arm in arms for s in arm.slugs) if slug in known]
    sizes = plan.dataset.prepare(plan.settings["seed"])
    data = {
        **plan.dataset.describe(),
        "training": len(sizes.train),
        "validation": len(sizes.validation),
        "test": len(sizes.test),
    }
    data["notes"] = [
        *data["notes"],
        *(
            f"{e.card.name} trains on the validation part too, which the others only choose with; only its test metric "
            "counts"
            for e in entries
            if "stream:validation" in e.card.needs
        ),
        *costs_apart(results),
        *condensing_costs(results),
    ]
    settings = dict(plan.settings)
    amount = f"{plan.budget.amount:.3g}" if plan.budget.kind == "seconds" else f"{plan.budget.amount:,.0f}"
    settings["budget"] = f"{plan.budget.kind}: {amount} {_units(plan.budget.kind)} a run"
    settings["tune"] = f"{plan.settings['tune']} trials for every arm" if plan.settings["tune"] else "none"
    if chosen:
        settings["tuned"] = {
            label: {name: round(v, 5) for name, v in values.items()} for label, values in chosen.items()
        }
    return {
        "title": f"{plan.dataset.name}: {', '.join(arm.label for arm in arms[1:])}",
        "command": command,
        "data": data,
        "settings": settings,
        "metric": metric,
        "higher_is_better": higher_is_better[metric],
        "rows": summarise(results, metric=metric, higher_is_better=higher_is_better[metric]),
        "results": results,
        "cards": [
            {
                "slug": e.card.slug,
                "name": e.card.name,
                "title": e.card.title,
                "authors": e.card.authors,
                "year": e.card.year,
                "link": e.card.link,
                "one_line": e.summary,
            }
            for e in entries
        ],
        "versions": versions(),
        "created": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "incomplete": False,
    }


def _units(kind: str) -> str:
    return {"compute": "passes of one example", "steps": "steps", "seconds": "seconds"}[kind]


def _call(methods: tuple[str, ...], data: str) -> str:
    return shlex.join(["repertory", "compare", *methods, "--data", data])


def _raise_if_nothing_ran(results: list[dict[str, Any]], folder: RunFolder) -> None:
    baseline = [result for result in results if result["label"] == BASELINE]
    if all(result["status"] != "finished" for result in baseline):
        reason = next((result["error"] for result in baseline if result["error"]), "no result")
        raise UserError(
            f"no run of the baseline finished, so nothing can be compared ({reason}); see {folder.path}/results"
        )
