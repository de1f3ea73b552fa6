"""What a user chooses: data, model, device and the baseline's settings, read and checked."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from repertory import datasets
from repertory.core.method import Method
from repertory.core.step import Step
from repertory.datasets import Dataset
from repertory.datasets.dataset import CLASSIFIED
from repertory.errors import ConflictError, OptionError, UserError, check_choice, check_number
from repertory.models.sources import model_part
from repertory.recipe import Part, Recipe
from repertory.scenarios.bench import streams_needed
from repertory.scenarios.methods import Arm
from repertory.scenarios.registry import scenario as scenario_of
from repertory.training.augment import VIEWS
from repertory.training.build import build_learner, build_methods, build_part
from repertory.training.learner import Learner

_DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True)
class Source:
    """Where the data are, as a worker needs it to read them again.

    Args:
        spec: name or path, with `?` options.
        target: column of the target, for tables.
        image_size: side of the images, None for the folder's own.
        skip_bad: go on without unreadable images.
    """

    spec: str
    target: str | None = None
    image_size: int | None = None
    skip_bad: bool = False

    def load(self) -> Dataset:
        """Read the data."""
        return datasets.load(self.spec, target=self.target, image_size=self.image_size, skip_bad=self.skip_bad)


def device_of(name: str) -> str:
    """Return the device meant by a name; "auto" takes a GPU where there is one.

    Raises:
        UserError: if there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if name.partition(":")[0] in _DEVICES:
            torch.empty(1, device=name)
            return name
    except (RuntimeError, AssertionError):
        pass
    there = ", ".join(["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
    raise UserError(f"--device {name!r} is not there; use auto, or what this machine has: {there}")


def chosen_recipe(
    dataset: Dataset,
    *,
    scenario: str = "supervised",
    model: str | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    augment: str | None = None,
    views: str | None = None,
) -> tuple[Recipe, str]:
    """Return the baseline recipe with what the user chose, and why it has that model.

    Raises:
        UserError: if a choice is not allowed, or does not fit the data.
    """
    setting = scenario_of(scenario)
    default, reason = setting.default_model(dataset)
    part = default if model is None else model_part(model)
    if epochs is not None:
        check_number("epochs", epochs, minimum=1, integer=True)
    recipe = setting.baseline(dataset, part, epochs=epochs)
    if lr is not None:
        check_number("lr", lr, above=0)
        optimizer = Part(recipe.optimizer.factory, {**recipe.optimizer.options, "lr": lr})
        recipe = recipe.replace(optimizer=optimizer)
    if batch_size is not None:
        check_number("batch_size", batch_size, minimum=1, integer=True)
        recipe = recipe.replace(batch_size=batch_size)
    if augment is not None:
        check_choice("augment", augment, ("none", "shift", "flip-shift"))
        if dataset.modality != "image" and augment != "none":
            raise OptionError(f"augment={augment!r} needs images, but the data are a {dataset.modality}; leave it out")
        recipe = recipe.replace(augment=augment)
    if views is not None:
        check_choice("views", views, VIEWS)
        if views == "photo":
            _check_photos(dataset)
        recipe = recipe.replace(views=views)
    return recipe, "as given" if model is not None else reason


def _check_photos(dataset: Dataset) -> None:
    if dataset.modality != "image":
        raise OptionError(f"views='photo' needs images, but the data are a {dataset.modality}; leave it out")
    if dataset.in_shape[0] not in (1, 3):
        raise OptionError(
            f"views='photo' needs images of 1 or 3 channels, but those of {dataset.name} have {dataset.in_shape[0]}; "
            "leave it out"
        )


def check_arm(each: Arm, dataset: Dataset) -> Learner:
    """Build every part of a recipe once, so that what cannot work fails before any training.

    Returns:
        The untrained network with its criterion.

    Raises:
        UserError: naming the arm and what is wrong with it.
    """
    recipe = each.recipe
    try:
        learner = build_learner(recipe, dataset.in_shape, dataset.outputs, seed=0, dense=dataset.task == "segmentation")
        for part in (*recipe.curation, *recipe.before, *recipe.after):
            build_part(part)
        if recipe.train_share > 0:
            methods = build_methods(recipe)
            if dataset.modality != "image" and (of_images := [m.slug for m in methods if "images" in m.needs]):
                raise ConflictError(
                    f"{of_images[0]} needs images, but the data are a {dataset.modality}; leave it out, or give images"
                )
            if dataset.modality == "graph":
                _refuse_views(methods)
            offered = {"validation"} | ({"unlabelled"} if dataset.some_unlabelled else set())
            Step(
                learner.network,
                recipe.optimizer.build,
                learner.criterion,
                methods,
                streams={name: () for name in streams_needed(methods) if name in offered},
                epochs=recipe.epochs * recipe.train_share,
                examples=len(dataset.targets),
                classes=dataset.outputs if dataset.task in (*CLASSIFIED, "segmentation") else None,
                class_counts=torch.ones(dataset.outputs) if dataset.task in CLASSIFIED else None,
                teacher=None if recipe.teacher is None else copy.deepcopy(learner.network),
                training=(),
                accumulate=recipe.accumulate,
                clip_norm=recipe.clip_norm,
            )
    except UserError as error:
        raise type(error)(f"{each.label}: {error}") from error
    except TypeError as error:
        raise OptionError(f"{each.label}: {error}") from error
    return learner


def _refuse_views(methods: list[Method]) -> None:
    for method in methods:
        if changed := sorted(method.needs & {"views", "strong", "change", "views:weak-strong"}):
            raise ConflictError(
                f"{method.slug} needs changed versions of the inputs ({changed[0]}), and of graphs there are none; "
                "leave it out"
            )
