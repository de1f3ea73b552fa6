"""The recipe: what fills each slot of a training run, as plain data that prints, compares and saves."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from repertory.errors import OptionError, UserError, nearest


def locate(path: str) -> Any:
    """Import `package.module:attribute` and return the attribute.

    Raises:
        UserError: if the module or the attribute does not exist.
    """
    module_name, colon, attribute = path.partition(":")
    if not colon or not attribute:
        raise UserError(f"{path!r} is not of the form package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise UserError(
            f"{path!r}: there is no module {error.name!r}; install it, or add its folder to PYTHONPATH"
        ) from None
    try:
        return getattr(module, attribute)
    except AttributeError:
        hint = nearest(attribute, dir(module))
        raise UserError(f"{path!r}: module {module_name!r} has no {attribute!r}; {hint}".rstrip("; ")) from None


def parse_options(text: str, where: str) -> dict[str, Any]:
    """Read `a=1,b=true` into a mapping of plain values; quotes keep a text as it is, but for commas.

    Raises:
        OptionError: if a piece is not of the form name=value.
    """
    options: dict[str, Any] = {}
    # A comma inside brackets belongs to a list: betas=[0.9,0.99].
    for item in re.split(r",(?![^\[\(]*[\]\)])", text) if text else []:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise OptionError(f"{item!r} in {where!r} is not of the form option=value, as in esam:rho=0.1,beta=0.5")
        if key.strip() in options:
            raise OptionError(f"{key.strip()} is given twice in {where!r}; give each option once")
        options[key.strip()] = _plain_value(value.strip())
    return options


def _plain_value(text: str) -> Any:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if text[:1] in "[(" and text[-1:] in "])":
        return [_plain_value(item.strip()) for item in text[1:-1].split(",") if item.strip()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True)
class Part:
    """One thing to build: where it is, and with which options.

    Args:
        factory: `package.module:name` of a class or function.
        options: keyword arguments for it: numbers, strings, booleans, None, and lists of these.
        slug: the method it came from, None for what the baseline itself has.

    >>> Part("torch.nn:Linear", {"in_features": 2, "out_features": 1}).build()
    Linear(in_features=2, out_features=1, bias=True)
    """

    factory: str
    options: Mapping[str, Any] = field(default_factory=dict)
    slug: str | None = None

    def build(self, *args: Any, **more: Any) -> Any:
        """Import the factory and call it with `args`, the options, and `more`."""
        return locate(self.factory)(*args, **{**self.options, **more})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` turns back into an equal part."""
        plain: dict[str, Any] = {"factory": self.factory, "options": dict(self.options)}
        return plain if self.slug is None else {**plain, "slug": self.slug}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Part:
        """Rebuild a part from `to_dict`'s result."""
        return cls(plain["factory"], dict(plain.get("options") or {}), plain.get("slug"))


@dataclass(frozen=True)
class Recipe:
    """What fills each slot of a training run.

    A method's module edits it: `edit(recipe, **options) -> Recipe`, with `replace` and `add`.

    Args:
        model: builds the network: called with `in_shape` (shape of one input) and `outputs` (classes, or 1).
        criterion: builds the loss module.
        optimizer: builds the optimizer: called with the parameters (or parameter groups).
        surgery: changes to the model before training: each called with the model, `outputs`, and `in_shape` where it
            asks for it.
        methods: `core.Method`s, outermost first.
        objective: a `core.Method` that learns without labels in place of the criterion, innermost; None learns labels.
        curation: choose training examples before training.
        before: sets what the network holds before training, from the training inputs (codebooks, statistics), and
            leaves its layers as they are.
        sampler: decides the order of the examples in an epoch; None for a random one.
        after: what is done to the trained model: transforms, closed-form heads on its features.
        schedule: learning-rate schedule over the budget: "cosine" or "constant".
        warmup: share of the budget over which the learning rate rises linearly.
        epochs: passes over the training set that define the baseline's budget.
        batch_size: examples a step.
        accumulate: micro-batches that a batch is split into.
        clip_norm: largest gradient norm, or None.
        augment: "none", "shift" or "flip-shift" (images only).
        views: what changed versions of the inputs are made of, for methods that ask for them: "plain" moves and noise,
            or "photo" (crops, colours, blur; grey and colour images only).
        teacher: gives a trained network to methods that learn from one, in the scenario distillation; None where there
            is none. The same for all methods of a comparison.
        train_share: share of the budget spent on ordinary training; the rest is for `curation` and `after`. What
            `curation` and `before` cost is taken off it.
    """

    model: Part
    criterion: Part
    optimizer: Part
    surgery: tuple[Part, ...] = ()
    methods: tuple[Part, ...] = ()
    curation: tuple[Part, ...] = ()
    before: tuple[Part, ...] = ()
    after: tuple[Part, ...] = ()
    schedule: str = "cosine"
    warmup: float = 0.05
    epochs: int = 30
    batch_size: int = 64
    accumulate: int = 1
    clip_norm: float | None = None
    augment: str = "none"
    views: str = "plain"
    sampler: Part | None = None
    objective: Part | None = None
    teacher: Part | None = None
    train_share: float = 1.0

    def replace(self, **slots: Any) -> Recipe:
        """Return a copy with the given slots changed."""
        return dataclasses.replace(self, **slots)

    def add(self, slot: str, part: Part) -> Recipe:
        """Return a copy with `part` appended to one of the list slots (surgery, methods, curation, before, after)."""
        return self.replace(**{slot: (*getattr(self, slot), part)})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (ready for YAML) that `from_dict` turns back into an equal recipe."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Recipe:
        """Rebuild a recipe from `to_dict`'s result.

        Raises:
            UserError: if a slot is unknown.
        """
        slots: dict[str, Any] = {}
        for name, value in plain.items():
            if name not in cls.__dataclass_fields__:
                raise UserError(f"a recipe has no slot {name!r}; {nearest(name, cls.__dataclass_fields__)}")
            if isinstance(value, list):
                slots[name] = tuple(Part.from_dict(item) for item in value)
            else:
                slots[name] = Part.from_dict(value) if isinstance(value, Mapping) else value
        return cls(**slots)


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_dict()
    return [part.to_dict() for part in value] if isinstance(value, tuple) else value
