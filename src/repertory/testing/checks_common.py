"""Checks of every kind of method: its signature, card, files, examples, and what it must leave alone."""

from __future__ import annotations

import doctest
import inspect
import io
import json
import math
import random
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch

from repertory.catalogue import FOLDERS
from repertory.core.randomness import seeded
from repertory.recipe import Recipe
from repertory.testing.assembly import build_step, run_steps
from repertory.testing.check import TRAINED, NotApplicable, check, require
from repertory.testing.subject import Subject
from repertory.testing.use import AFTER, outcome, use

SECTIONS = ("Idea", "Use it when", "Do not use it when", "Equations", "Defaults", "Cost", "Claim")
"""What a card's prose has."""
_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


@check()
def builds_from_defaults(subject: Subject) -> None:
    """The entry is built from its defaults and nothing but its required arguments."""
    with seeded(0, "check"):
        made = subject.make()
    require(made is not None, f"{subject.entry.__name__} returned None")


@check()
def card_defaults_equal_signature(subject: Subject) -> None:
    """The defaults on the card are those of the entry's signature."""
    if subject.card is None:
        raise NotApplicable("there is no card")
    parameters = subject.signature
    for name, value in subject.card.defaults.items():
        require(
            name in parameters,
            f"the card has a default for {name!r}, which {subject.entry.__name__} does not take",
        )
        actual = parameters[name].default
        require(
            actual == value and type(actual) is type(value),
            f"{name} is {value!r} on the card and {actual!r} in the signature",
        )
    missing = [name for name, p in parameters.items() if _is_option(p) and name not in subject.card.defaults]
    require(not missing, f"the card has no default for {', '.join(missing)}")


@check()
def bad_options_are_refused(subject: Subject) -> None:
    """Each numeric option refuses a string, NaN and a hugely negative number, and says which option it is."""
    options = {name: _number_like(parameter) for name, parameter in subject.signature.items()}
    if not any(default is not None for default in options.values()):
        raise NotApplicable("there are no numeric options")
    for name, default in options.items():
        if default is None:
            continue
        for bad in _bad_values(default, name in subject.tiny.negative):
            try:
                with seeded(0, "check"):
                    use(subject, subject.make(**{name: bad}))
            except ValueError as error:
                require(
                    name in str(error),
                    f"{name}={bad!r} is refused by a message that does not name it: {error}",
                )
            except Exception as error:
                require(
                    False,
                    f"{name}={bad!r} raises {type(error).__name__} where a ValueError should name {name}",
                )
            else:
                require(False, f"{name}={bad!r} is accepted")


@check()
def global_generator_untouched(subject: Subject) -> None:
    """Nothing is drawn from the global generators of torch, NumPy and Python, and none is reseeded."""
    before = _generators()
    if subject.kind in TRAINED:
        run_steps(build_step(subject), subject, seed_global=False)
    elif subject.kind in (*AFTER, "curation"):
        outcome(subject)
    else:
        use(subject, subject.make())
    for name, state in _generators().items():
        require(state == before[name], f"the global generator of {name} was used; draw from run.generator(slug)")


@check()
def docstring_example_runs(subject: Subject) -> None:
    """The entry's docstring has an example, and it gives what it says."""
    finder, output = doctest.DocTestFinder(), io.StringIO()
    tests = finder.find(
        subject.entry,
        subject.entry.__name__,
        subject.module,
        dict(vars(sys.modules[subject.entry.__module__])),
    )
    runner = doctest.DocTestRunner(verbose=False)
    with seeded(0, "check"):
        for test in tests:
            runner.run(test, out=output.write)
    require(runner.tries > 0, f"the docstring of {subject.entry.__name__} has no example")
    require(
        runner.failures == 0,
        f"{runner.failures} of {runner.tries} examples fail: {' '.join(output.getvalue().split())}",
    )


@check()
def public_docstrings(subject: Subject) -> None:
    """The module and everything public in it have docstrings, and the entry's says what each parameter is."""
    bare = [name for name, thing in _public(subject) if not inspect.getdoc(thing)]
    require(not bare, f"no docstring: {', '.join(bare)}")
    if subject.card is not None:
        require(subject.module.__doc__, f"{subject.module.__name__} has no docstring")
    document = inspect.getdoc(subject.entry) or ""
    unsaid = [
        name
        for name, parameter in subject.signature.items()
        if parameter.kind not in _VARIADIC and not re.search(rf"^\s+{name}\b.*:", document, re.MULTILINE)
    ]
    require(not unsaid, f"the docstring of {subject.entry.__name__} does not say what {', '.join(unsaid)} is")


@check()
def four_files(subject: Subject) -> None:
    """Module, claim, recorded claim and test exist."""
    listed = subject.listed
    if listed is None:
        raise NotApplicable("it is not in the catalogue")
    claim = listed.claim_path()
    wanted = [claim, claim.with_suffix(".json")]
    tests = listed.root.parents[1] / "tests"
    if tests.is_dir():
        stem = listed.card.slug.replace("-", "_")
        wanted.append(tests / FOLDERS[listed.card.kind] / f"test_{stem}.py")
    missing = [f"{path.parent.name}/{path.name}" for path in wanted if not path.is_file()]
    require(not missing, f"missing: {', '.join(missing)}")


@check()
def card_prose(subject: Subject) -> None:
    """The module's docstring starts with a sentence and has the seven sections of a card, each with text."""
    if subject.listed is None:
        raise NotApplicable("it is not in the catalogue")
    require(subject.listed.summary, "the docstring does not start with a sentence")
    empty = [title for title in SECTIONS if not subject.listed.sections.get(title, "").strip()]
    require(not empty, f"no text under: {', '.join(empty)}")


@check()
def edit_returns_a_recipe_that_differs(subject: Subject) -> None:
    """`edit` changes the baseline recipe, leaves the original alone, and the result survives saving."""
    if subject.edit is None:
        raise NotApplicable("it has no name that edits a recipe")
    original = subject.baseline
    edited = subject.edit(original, **subject.tiny.options)
    require(isinstance(edited, Recipe), f"edit returned a {type(edited).__name__}")
    require(original == subject.baseline, "edit changed the recipe it was given")
    require(edited != original, "edit returned the recipe as it was")
    read = Recipe.from_dict(json.loads(json.dumps(edited.to_dict())))
    require(
        read == edited,
        "the edited recipe is another one after saving and reading; use lists in options, not tuples",
    )


def _is_option(parameter: inspect.Parameter) -> bool:
    return parameter.kind not in _VARIADIC and parameter.default is not parameter.empty


def _number_like(parameter: inspect.Parameter) -> Any:
    """Return the default of a numeric option, a number of the annotated type where it is None; else None."""
    if parameter.default is None:
        words = re.findall(r"\b(?:int|float)\b", str(parameter.annotation))
        return (0 if words[0] == "int" else 0.0) if words else None
    return parameter.default if _is_number(parameter.default) else None


def _is_number(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return bool(value) and all(map(_is_number, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bad_values(default: Any, negative: bool) -> Iterator[Any]:
    for bad in ("much", math.nan, *([] if negative else [-(10**30) if isinstance(default, int) else -1e30])):
        yield type(default)([bad, *default[1:]]) if isinstance(default, (tuple, list)) else bad


def _generators() -> dict[str, Any]:
    states: dict[str, Callable[[], Any]] = {
        "torch": lambda: torch.get_rng_state().tolist(),
        "NumPy": lambda: [str(part) for part in np.random.get_state()],
        "Python": random.getstate,
    }
    return {name: state() for name, state in states.items()}


def _inside(thing: Any, module: ModuleType) -> bool:
    return f"{thing.__module__}.".startswith(f"{module.__name__}.")


def _public(subject: Subject) -> Iterator[tuple[str, Any]]:
    things = {subject.entry.__name__: subject.entry}
    if subject.card is not None:
        things |= {name: thing for name, thing in vars(subject.module).items() if not name.startswith("_")}
    for name, thing in things.items():
        if not (inspect.isclass(thing) or inspect.isfunction(thing)) or not _inside(thing, subject.module):
            continue
        yield name, thing
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                    yield f"{name}.{member}", value
