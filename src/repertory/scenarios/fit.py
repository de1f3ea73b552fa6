"""`fit`: train one recipe on one data set, and save the model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from repertory.core.sharded import whole
from repertory.errors import ConflictError, DivergedError, OptionError, UserError, check_choice, check_number
from repertory.scenarios.choices import Source, check_arm, chosen_recipe, device_of
from repertory.scenarios.methods import Arm, arm
from repertory.scenarios.registry import SCENARIOS, suitable
from repertory.scenarios.registry import scenario as scenario_of
from repertory.training.learner import Learner
from repertory.training.saved import SavedModel, load, save_model

STRATEGIES = ("auto", "ddp", "fsdp")
LOGGERS = ("csv", "tensorboard")
_CHECKPOINTS = "checkpoints"


def fit(
    methods: str | None = None,
    *,
    data: str,
    out: str | Path,
    target: str | None = None,
    model: str | None = None,
    scenario: str | None = None,
    seed: int = 0,
    epochs: int | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    precision: str = "32",
    lr: float | None = None,
    batch_size: int | None = None,
    augment: str | None = None,
    views: str | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    logger: str | None = None,
    resume: bool = False,
    command: str | None = None,
    watch: Callable[[float], None] | None = None,
) -> SavedModel:
    """Train the baseline, edited by methods, and save weights, recipe, classes and preprocessing.

    Args:
        methods: such as "saf+lion"; None trains the baseline.
        data: a built-in name or a path.
        out: folder of the model.
        target: column of the target, for tables.
        model: "timm:NAME", "repertory:NAME" or "package.module:factory".
        scenario: kind of problem; found from the methods when not given.
        seed: decides split, weights and order.
        epochs: passes over the training set (30).
        device: "auto", "cpu", "cuda", ...
        devices: number of devices on each machine.
        nodes: number of machines.
        strategy: "ddp" or "fsdp" over several devices; "auto" takes ddp.
        precision: "32", "bf16" or "fp16".
        lr: learning rate.
        batch_size: examples a step, over all devices.
        augment: "none", "shift" or "flip-shift".
        views: "plain" or "photo": what changed versions of the inputs are made of, for methods that ask for them.
        image_size: side to which images of a folder are brought.
        skip_bad: go on without unreadable images.
        logger: "csv" or "tensorboard": writes losses and metrics to `out/logs`.
        resume: go on from the checkpoint of a fit that was cut off.
        command: the command to note in the model's folder.
        watch: told the share that is done.

    Returns:
        The saved model, loaded.

    Raises:
        UserError: if anything given cannot work.
        DivergedError: if the training loss stops being finite.
    """
    folder = Path(out)
    for name, value in (("devices", devices), ("nodes", nodes)):
        check_number(name, value, minimum=1, integer=True)
    check_number("seed", seed, minimum=0, integer=True)
    check_choice("strategy", strategy, STRATEGIES)
    check_choice("precision", precision, ("32", "bf16", "fp16"))
    if logger is not None:
        check_choice("logger", logger, LOGGERS)
    _check_folder(folder, resume)
    chosen = device_of(device)
    if scenario is not None:
        check_choice("scenario", scenario, SCENARIOS)
    dataset = Source(data, target, image_size, skip_bad).load()
    kind = scenario or suitable([methods] if methods else [], dataset)
    setting = scenario_of(kind)
    dataset = setting.view(dataset)
    recipe, _ = chosen_recipe(
        dataset, scenario=kind, model=model, epochs=epochs, lr=lr, batch_size=batch_size, augment=augment, views=views
    )
    wanted = arm(methods, recipe, dataset.task, kind) if methods else Arm("baseline", (), recipe)
    untrained = check_arm(wanted, dataset)
    several = devices * nodes > 1 or strategy != "auto"
    if several:
        _check_several(wanted, untrained, devices * nodes, strategy)
    decisive = [wanted.recipe.to_dict(), dataset.describe()["fingerprint"], seed, precision]
    if kind != "supervised":
        decisive.append(kind)
    fingerprint = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    if (folder / "model.json").exists():
        return _finished(folder, fingerprint)
    watcher = _logger(logger, folder)
    fresh = not folder.exists()
    begun = _begin(folder, fingerprint) if _first_process() else True
    fabric = _fabric(chosen, devices, nodes, strategy) if several else None
    try:
        outcome = setting.run(
            wanted.recipe,
            dataset,
            seed=seed,
            budget=setting.budget_of("steps", wanted.recipe, dataset, dataset.prepare(seed)),
            device=chosen if fabric is None else str(fabric.device),
            precision=precision,
            fabric=fabric,
            checkpoints=folder / _CHECKPOINTS,
            on_progress=watch,
            on_record=watcher if fabric is None or fabric.is_global_zero else None,
        )
    except (UserError, DivergedError) as error:
        if not begun or (isinstance(error, DivergedError) and _first_process()):
            shutil.rmtree(folder if fresh else folder / _CHECKPOINTS, ignore_errors=True)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; finished epochs are kept in {folder}: repeat the command with --resume to complete it"
        ) from None
    weights = whole(outcome.learner.state_dict())
    if _first_process():
        import pandas as pd

        about = {
            "methods": methods,
            "seed": seed,
            "metrics": outcome.metrics,
            "cost": outcome.cost,
            "command": command,
            "fingerprint": fingerprint,
            **outcome.about,
        }
        save_model(folder, weights, wanted.recipe, dataset, outcome.splits, about, outcome.after)
        for name, columns in outcome.tables.items():
            pd.DataFrame(columns).to_parquet(folder / f"{name}.parquet", index=False)
        shutil.rmtree(folder / _CHECKPOINTS)
    if fabric is not None:
        fabric.barrier()
    return load(folder, trust=True)


def _first_process() -> bool:
    """Whether this is the only process of the training, or the first of several."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def _check_folder(folder: Path, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {str(folder)!r} is a file; name a folder")
    if resume or not _first_process():
        return
    if (folder / "model.json").exists():
        raise UserError(f"--out {str(folder)!r} holds a model already; name another folder, or delete it")
    if (folder / _CHECKPOINTS).exists():
        raise UserError(
            f"--out {str(folder)!r} holds an unfinished fit; add --resume to complete it, or name another folder"
        )


def _check_several(wanted: Arm, untrained: Learner, processes: int, strategy: str) -> None:
    recipe = wanted.recipe
    if recipe.curation or recipe.before or recipe.after:
        raise UserError(
            f"{wanted.label} chooses data or changes the model outside of training, which runs on one "
            "device; use --devices 1"
        )
    if recipe.batch_size < processes:
        raise OptionError(
            f"batch_size={recipe.batch_size} is less than one example for each of {processes} devices; "
            "raise --batch-size"
        )
    criterion = untrained.criterion
    own = list(criterion.parameters()) if isinstance(criterion, nn.Module) else []
    if strategy == "fsdp" and hasattr(criterion, "logits") and own:
        raise ConflictError(
            f"{wanted.label} predicts with parameters of its loss ({type(criterion).__name__}), which --strategy fsdp "
            "spreads over processes; use --strategy ddp"
        )


def _finished(folder: Path, fingerprint: str) -> SavedModel:
    saved = load(folder, trust=True)
    if saved.about.get("fingerprint") != fingerprint:
        raise UserError(
            f"--out {str(folder)!r} holds another model (other data, methods or settings); name another folder"
        )
    return saved


def _begin(folder: Path, fingerprint: str) -> bool:
    """Make the folder for checkpoints, and return whether this very fit was begun there before."""
    plan = folder / _CHECKPOINTS / "fit.txt"
    if plan.exists():
        if plan.read_text(encoding="utf-8") != fingerprint:
            raise UserError(
                f"--out {str(folder)!r} holds another unfinished fit (other data, methods or settings); repeat its own "
                "command with --resume, or name another folder"
            )
        return True
    try:
        plan.parent.mkdir(parents=True, exist_ok=True)
        plan.write_text(fingerprint, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write to {str(folder)!r}: {error.strerror}; choose another folder with --out"
        ) from error
    return False


def _fabric(device: str, devices: int, nodes: int, strategy: str) -> Any:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import ModelParallelStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    sharded = ModelParallelStrategy(_shard, data_parallel_size=devices * nodes, tensor_parallel_size=1)
    try:
        fabric = Fabric(
            accelerator=device.partition(":")[0],
            devices=devices,
            num_nodes=nodes,
            strategy=sharded if strategy == "fsdp" else "ddp",
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"--devices {devices} --strategy {strategy} cannot be had on {device}: {error}") from error
    fabric.launch()
    return fabric


def _shard(evaluation: Any, mesh: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    # The network is a unit of its own, so that it can also be called by itself, for evaluation.
    fully_shard(evaluation.model, mesh=mesh["data_parallel"])
    return fully_shard(evaluation, mesh=mesh["data_parallel"])


def _logger(name: str | None, folder: Path) -> Callable[[dict[str, Any]], None] | None:
    if name is None:
        return None
    from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

    try:
        kind = CSVLogger if name == "csv" else TensorBoardLogger
        logger = kind(root_dir=folder, name="logs")
    except ModuleNotFoundError as error:
        raise UserError(
            'logger="tensorboard" needs tensorboard; install it with: pip install "repertory[log]"'
        ) from error

    def record(values: dict[str, Any]) -> None:
        flat: dict[str, Any] = {k: v for k, v in values.items() if isinstance(v, float)}
        flat.update({f"validation_{k}": v for k, v in values["validation"].items()})
        logger.log_metrics(flat, step=int(values["steps"]))
        logger.save()

    return record
