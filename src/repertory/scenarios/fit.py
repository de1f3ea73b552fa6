"""`fit`: train one recipe on one data set, and save the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repertory.errors import UserError, check_choice, check_number
from repertory.scenarios import supervised
from repertory.scenarios.choices import Source, check_arm, chosen_recipe, device_of
from repertory.scenarios.methods import Arm, arm
from repertory.training.saved import SavedModel, load, save_model

STRATEGIES = ("auto", "ddp", "fsdp")
LOGGERS = ("csv", "tensorboard")


def fit(
    methods: str | None = None,
    *,
    data: str,
    out: str | Path,
    target: str | None = None,
    model: str | None = None,
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
    checkpoints = folder / "checkpoints"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {str(folder)!r} is a file; name a folder")
    if (folder / "model.json").exists() and not resume:
        raise UserError(f"--out {str(folder)!r} holds a model already; name another folder, or delete it")
    if checkpoints.exists() and not resume:
        raise UserError(
            f"--out {str(folder)!r} holds an unfinished fit; add --resume to complete it, or name another folder"
        )
    chosen = device_of(device)
    dataset = Source(data, target, image_size, skip_bad).load()
    recipe, _ = chosen_recipe(dataset, model=model, epochs=epochs, lr=lr, batch_size=batch_size, augment=augment)
    wanted = arm(methods, recipe, dataset.task, supervised.NAME) if methods else Arm("baseline", (), recipe)
    check_arm(wanted, dataset)
    several = devices * nodes > 1 or strategy != "auto"
    if several and (wanted.recipe.curation or wanted.recipe.after):
        raise UserError(
            f"{methods} chooses data or changes the model outside of training, which runs on one device; "
            "use --devices 1"
        )
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to {str(folder)!r}: {error.strerror}; choose another folder with --out"
        ) from error
    fabric = _fabric(chosen, devices, nodes, strategy) if several else None
    watcher = _logger(logger, folder) if fabric is None or fabric.is_global_zero else None
    outcome = supervised.run(
        wanted.recipe,
        dataset,
        seed=seed,
        budget=supervised.budget_of("steps", wanted.recipe, dataset, dataset.prepare(seed)),
        device=chosen,
        precision=precision,
        fabric=fabric,
        checkpoints=checkpoints,
        on_progress=watch,
        on_record=watcher,
    )
    if fabric is None or fabric.is_global_zero:
        about = {"methods": methods, "seed": seed, "metrics": outcome.metrics, "cost": outcome.cost, "command": command}
        save_model(folder, outcome.learner, wanted.recipe, dataset, outcome.splits, about)
        shutil.rmtree(checkpoints)
    if fabric is not None:
        fabric.barrier()
    return load(folder)


def _fabric(device: str, devices: int, nodes: int, strategy: str) -> Any:
    from lightning_fabric import Fabric

    accelerator = device.partition(":")[0]
    name = "ddp" if strategy == "auto" else strategy
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=name)
    fabric.launch()
    return fabric


def _logger(name: str | None, folder: Path) -> Callable[[dict[str, Any]], None] | None:
    if name is None:
        return None
    from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

    try:
        kind = CSVLogger if name == "csv" else TensorBoardLogger
        logger = kind(root_dir=folder, name="logs", version="")
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
