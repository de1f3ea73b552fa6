"""From what the user typed, `esam:rho=0.1+lion`, to a recipe."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from repertory import catalogue
from repertory.card import Card
from repertory.datasets.dataset import CLASSIFIED
from repertory.errors import ConflictError, OptionError, UserError, nearest
from repertory.recipe import Part, Recipe, locate, parse_options

_SLOTS = ("model", "criterion", "optimizer", "sampler", "objective")
"""Slots that hold one part, so that two methods cannot both fill them."""


_AS_SUPERVISED = ("noisy_labels", "long_tail", "noisy_long_tail", "bags", "distillation", "graph_shift")
"""Scenarios that train as supervised learning does, and judge otherwise."""
_GIVEN = {"pairs": "the data are pairs of texts", "segmentation": "each pixel has its own"}
"""What data without a class an example have, by task."""
_TRAINS_AS = {"weak_segmentation": "segmentation"}
"""Scenarios that train as another one does, on other labels."""


@dataclass(frozen=True)
class Arm:
    """One row of a comparison.

    Args:
        label: what the user typed.
        slugs: the methods in it, empty for the baseline.
        recipe: the edited recipe.
    """

    label: str
    slugs: tuple[str, ...]
    recipe: Recipe


def parse(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Split `esam:rho=0.1,beta=0.5+lion` into names and options.

    Raises:
        OptionError: if an option is not of the form name=value.

    >>> parse("esam:rho=0.1,adaptive=true+lion")
    [('esam', {'rho': 0.1, 'adaptive': True}), ('lion', {})]
    >>> parse("my.module:Method:strength=1e-3")
    [('my.module:Method', {'strength': 0.001})]
    """
    # A plus sign inside a number (1e+3) separates nothing.
    return [_parse_one(piece.strip(), text) for piece in re.split(r"(?<![0-9][eE])\+", text)]


def _parse_one(piece: str, text: str) -> tuple[str, dict[str, Any]]:
    if not piece:
        raise UserError(f"{text!r} names no method beside a '+'; write for example esam+lion")
    parts = piece.split(":")
    name, rest = parts[0], parts[1:]
    if rest and "=" not in rest[0] and name not in catalogue.entries():
        name, rest = f"{name}:{rest[0]}", rest[1:]
    return name, parse_options(":".join(rest), piece)


def check_names(methods: Iterable[str]) -> None:
    """See that every method named is in the catalogue, without importing any; those given as `module:name` are not.

    Args:
        methods: as the user typed them.

    Raises:
        UserError: naming the first that is not there, and the nearest names.
    """
    for text in methods:
        for name, _ in parse(text):
            if ":" not in name:
                catalogue.get(name)


def plays(card: Card, scenario: str) -> bool:
    """Whether a method takes part in a scenario: one that its card names, or the same training under another name.

    Optimizers take part wherever the weights of a network are trained, but for learning from a stream.

    Args:
        card: of the method.
        scenario: its name.
    """
    trains_as = "supervised" if scenario in _AS_SUPERVISED else _TRAINS_AS.get(scenario, scenario)
    if card.kind == "optimizer" and "supervised" in card.scenarios:
        return scenario != "online" or "online" in card.scenarios
    return scenario in card.scenarios or trains_as in card.scenarios


def arm(text: str, baseline: Recipe, task: str, scenario: str) -> Arm:
    """Edit the baseline recipe with the methods of one argument.

    Args:
        text: what the user typed.
        baseline: the recipe to edit.
        task: "classification" or "regression".
        scenario: name of the scenario.

    Raises:
        UserError: if a method is unknown, an option is unknown or out of range, or two methods conflict.
    """
    recipe = baseline
    slugs: list[str] = []
    owner: dict[str, str] = {}
    for name, options in parse(text):
        slug, edited, owns = _edit(name, options, recipe, task, scenario)
        taken = {slot for slot in _SLOTS if getattr(edited, slot) != getattr(recipe, slot)} | set(owns)
        if slug in slugs:
            raise ConflictError(f"{text}: {slug} is named twice; name it once, with the options that you want")
        inner = _built_around(edited.criterion, recipe.criterion)
        for slot in sorted(slot for slot in taken & owner.keys() if owner[slot] != inner):
            raise ConflictError(
                f"{owner[slot]} and {slug} both replace the {slot} and cannot be combined; compare them side by side "
                f"instead: {owner[slot]} {slug}"
            )
        owner.update(dict.fromkeys(taken, slug))
        recipe = edited
        slugs.append(slug)
    if recipe.train_share < 0:
        raise ConflictError(
            f"{text}: the shares of the budget that {' and '.join(slugs)} take add up to more than all of it"
        )
    return Arm(text, tuple(slugs), recipe)


def _built_around(new: Part, old: Part) -> str | None:
    """The method whose criterion is an option of the new one, which then goes with it; None where there is none."""
    return old.slug if old.to_dict() in new.options.values() else None


def _edit(
    name: str, options: Mapping[str, Any], recipe: Recipe, task: str, scenario: str
) -> tuple[str, Recipe, tuple[str, ...]]:
    if ":" in name:
        return _foreign(name, options, recipe)
    entry = catalogue.get(name)
    card = entry.card
    if card.kind == "diagnostic" and not card.scenarios:
        raise UserError(f"{name} is an instrument, which trains nothing to compare; run: repertory measure {name}")
    if not plays(card, scenario):
        raise UserError(f"{name} plays in the scenario {' or '.join(card.scenarios)}, not in {scenario}; leave it out")
    if "classes" in card.needs and task not in CLASSIFIED:
        given = _GIVEN.get(task, f"the target is a number ({task})")
        raise ConflictError(f"{name} needs classes, but {given}; leave it out, or read the target as classes")
    edit = importlib.import_module(entry.module).edit
    own = {
        key for key, p in inspect.signature(edit).parameters.items() if p.kind is not p.VAR_KEYWORD and key != "recipe"
    }
    try:
        edited: Recipe = edit(recipe, **options)
    except (TypeError, OptionError) as error:
        raise OptionError(f"{name}: {error}") from error
    _check_options(name, options, own, recipe, edited)
    return name, edited, card.owns


def _foreign(path: str, options: Mapping[str, Any], recipe: Recipe) -> tuple[str, Recipe, tuple[str, ...]]:
    """Put a method that is not in the catalogue in the slot that its class belongs to."""
    import torch
    from torch import nn

    from repertory.core.method import Method
    from repertory.curation.condensing import condensed_by

    found = locate(path)
    if not inspect.isclass(found):
        raise UserError(f"{path!r} is not a class; name a core.Method, an optimizer or a loss module")
    if issubclass(found, Method):
        part = Part(path, dict(options), found.slug or path)
        # What decides what is learnt takes the place of an objective; other methods go around it.
        learns = recipe.objective is not None and "target" in found.owns
        edited = recipe.replace(objective=part) if learns else recipe.add("methods", part)
    elif issubclass(found, torch.optim.Optimizer):
        takes = inspect.signature(found).parameters
        kept = {name: value for name, value in recipe.optimizer.options.items() if name in takes}
        part = Part(path, {**kept, **options}, path)
        edited = recipe.replace(optimizer=part)
    elif issubclass(found, nn.Module):
        part = Part(path, dict(options), path)
        edited = recipe.replace(criterion=part)
    elif hasattr(found, "condense"):
        part = Part(path, dict(options), path)
        edited = condensed_by(recipe, part)
    else:
        raise UserError(f"{path!r} is a {found.__name__}; name a core.Method, an optimizer or a loss module")
    _check_options(path, options, set(), recipe, edited)
    return part.slug or path, edited, ()


def parts_of(recipe: Recipe) -> list[Part]:
    """Return every part of a recipe."""
    return [
        recipe.model, recipe.criterion, recipe.optimizer,
        *recipe.surgery, *recipe.methods, *recipe.curation, *recipe.before, *recipe.after,
        *(part for part in (recipe.sampler, recipe.objective) if part is not None),
    ]  # fmt: skip


def _check_options(name: str, options: Mapping[str, Any], own: set[str], before: Recipe, after: Recipe) -> None:
    old = parts_of(before)
    known = set(own)
    for part in parts_of(after):
        if part in old:
            continue
        parameters = inspect.signature(locate(part.factory)).parameters
        free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        names = {key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        names -= {"self", "params", "in_shape", "outputs", "model"}
        known |= names
        if free:
            known |= set(options)
    for key in options:
        if key not in known:
            hint = nearest(key, known)
            listed = ", ".join(sorted(known)) or "none"
            raise OptionError(f"{name} has no option {key!r}; it has {listed}; {hint}".rstrip("; "))
