"""Checks of a list of methods before anything runs: who owns what, what flows into whom, what is missing."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from repertory.core.method import Method
from repertory.errors import ConflictError, UserError

_SEARCHED = 6
"""Orders are searched for lists up to this length (720 orders); longer lists only get the message."""


def check_methods(
    methods: Sequence[Method], criterion: object, offers: Collection[str], given: Mapping[str, str]
) -> None:
    """Raise if the methods cannot work together, or ask for something that is not there.

    Args:
        methods: outermost first.
        criterion: the loss; it may have `takes` like a method.
        offers: what the run has ("epochs", "classes", "stream:unlabelled", ...).
        given: what the batches hold as they come from the data, such as `{"target": "hard"}`.

    Raises:
        ConflictError: naming the methods involved and an order or choice that works.
    """
    slugs = [method.slug for method in methods]
    for slug in slugs:
        if not slug:
            raise ConflictError(
                f"{type(methods[slugs.index(slug)]).__name__} has no slug; set the class attribute slug"
            )
        if slugs.count(slug) > 1:
            raise ConflictError(f"{slug} is listed {slugs.count(slug)} times; a step takes each method once")
    owners: dict[str, str] = {}
    for method in methods:
        for slot in sorted(method.owns):
            if slot in owners:
                raise ConflictError(
                    f"{owners[slot]} and {method.slug} both own the slot {slot!r} of a step and cannot work together; "
                    f"use one of the two, or compare them side by side"
                )
            owners[slot] = method.slug
    problem = _flow(methods, criterion, given)
    if problem:
        order = _working_order(methods, criterion, given)
        fix = f"this order works: {' + '.join(order)}" if order else "no order of these methods works; leave one out"
        raise ConflictError(f"{problem}; {fix}")
    for method in methods:
        missing = sorted(need for need in method.needs if need not in offers and not need_of_batch(need))
        if missing:
            raise ConflictError(
                f"{method.slug} needs {_words(missing)}; this run offers {_words(sorted(offers)) or 'nothing'}; "
                f"{_fix(missing[0])}"
            )


def check_batch(methods: Sequence[Method], batch: Mapping[str, Any]) -> None:
    """Raise if the first batch lacks what every batch must have.

    Args:
        methods: outermost first.
        batch: with the batches of all streams in it.

    Raises:
        UserError: if it has no input.
        ConflictError: naming the method that needs something else, and how to give it.
    """
    there = ", ".join(sorted(batch))
    if "input" not in batch:
        raise UserError(f"the batch has {there or 'nothing'} but no 'input'")
    for method in methods:
        if "index" in method.needs and "index" not in batch:
            raise ConflictError(
                f"{method.slug} needs 'index', the position of each example in the training set; the batch has "
                f"{there}; yield (input, target, index), or use repertory.training.BatchLoader"
            )
        if "group" in method.needs and "group" not in batch:
            raise ConflictError(
                f"{method.slug} needs 'group', the number of the bag of each example; the batch has {there}; yield a "
                "mapping with 'group', or use data whose rows belong together (scenario bags)"
            )
        if "images" in method.needs and getattr(batch["input"], "ndim", 0) != 4:
            shape = tuple(getattr(batch["input"], "shape", ()))
            raise ConflictError(
                f"{method.slug} needs images (batch, channels, height, width), but the inputs are {shape}; "
                "give images, or leave the method out"
            )
        if "views" in method.needs and "views" not in batch:
            raise ConflictError(
                f"{method.slug} needs 'views', two randomly changed versions of the inputs; the batch has "
                f"{there}; yield a mapping with 'views': [first, second], or use "
                "repertory.training.BatchLoader(..., views=2)"
            )
        if "change" in method.needs and "change" not in batch:
            raise ConflictError(
                f"{method.slug} needs 'change', numbers that say how the second of the views comes from the first; the "
                f"batch has {there}; yield a mapping with 'change' (batch, parameters), or use "
                "repertory.training.BatchLoader(..., views='turned')"
            )
        if "strong" in method.needs and "strong" not in batch:
            raise ConflictError(
                f"{method.slug} needs 'strong', a strongly changed version of each input; the batch has {there}; yield "
                "a mapping with 'strong', or use repertory.training.BatchLoader(..., strong=True)"
            )
        if "views:weak-strong" in method.needs and len(batch["unlabelled"].get("views", ())) != 2:
            raise ConflictError(
                f"{method.slug} needs a weakly and a strongly changed version of each unlabelled input; yield batches "
                "of the stream 'unlabelled' as mappings with 'input' and 'views': [weak, strong], or use "
                "repertory.training.BatchLoader(..., views='weak-strong')"
            )


def need_of_batch(need: str) -> bool:
    """Whether a need can only be seen in the first batch."""
    return need in ("index", "group", "views", "change", "strong", "views:weak-strong", "per_example_loss", "images")


def _words(needs: Sequence[str]) -> str:
    return ", ".join(repr(need) for need in needs)


def _fix(need: str) -> str:
    if need.startswith("stream:"):
        name = need.partition(":")[2]
        return f"pass streams={{{name!r}: loader}} to Step, or data that has {name} examples"
    fixes = {
        "epochs": "pass epochs=... (the number of passes you plan) to Step",
        "classes": "pass classes=... to Step; for regression data choose another method",
        "class_counts": "pass class_counts=targets.bincount(minlength=classes) to Step",
        "teacher": "pass teacher=module, a trained network of the same classes, to Step; on the command line add "
        "--scenario distillation",
        "training": "pass training=loader, batches of (input, target, index) of the whole training set without "
        "augmentation, to Step",
    }
    return fixes.get(need, f"choose a method that does not need {need}, or data that has it")


def _flow(methods: Sequence[Method], criterion: object, given: Mapping[str, str]) -> str:
    now, source = dict(given), dict.fromkeys(given, "the data")
    for part, name in [*((m, m.slug) for m in methods), (criterion, type(criterion).__name__)]:
        for key, wanted in getattr(part, "takes", {}).items():
            if now.get(key, wanted) != wanted:
                return f"{name} takes a {wanted} {key}, but {source[key]} gives a {now[key]} one"
        for key, value in getattr(part, "gives", {}).items():
            now[key], source[key] = value, name
    return ""


def _working_order(methods: Sequence[Method], criterion: object, given: Mapping[str, str]) -> list[str]:
    if len(methods) > _SEARCHED:
        return []
    for order in itertools.permutations(methods):
        if not _flow(order, criterion, given):
            return [method.slug for method in order]
    return []
