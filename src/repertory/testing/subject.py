"""What is checked: a method of the catalogue, or anyone's class."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from repertory.card import Card
from repertory.catalogue import Entry, get
from repertory.core.method import Method
from repertory.core.objective import Objective
from repertory.errors import UserError
from repertory.recipe import Part, Recipe, locate
from repertory.testing.tiny import CLASSES, TINY, Tiny, baseline_recipe, network


@dataclass(frozen=True)
class Subject:
    """A method under check.

    Args:
        name: its slug, or the name of the class.
        kind: one of `repertory.card.KINDS`.
        entry: the class or function.
        module: where it is defined.
        reference: a slug or `module:name` from which another process finds it, None where it cannot.
        tiny: its smallest arguments.
        card: the card, None for a class that has none.
        listed: the catalogue's entry, None for what is not in the catalogue.
    """

    name: str
    kind: str
    entry: Callable[..., Any]
    module: ModuleType
    reference: str | None
    tiny: Tiny
    card: Card | None = None
    listed: Entry | None = None

    @classmethod
    def of(cls, method: str | Callable[..., Any]) -> Subject:
        """Find what is meant by a slug, an import path `package.module:name`, or a class.

        Raises:
            UserError: if there is no such method, or its kind cannot be told.
        """
        if isinstance(method, str) and ":" not in method:
            listed = get(method)
            module = importlib.import_module(listed.module)
            entry = getattr(module, listed.card.entry)
            tiny = TINY.get(method, Tiny())
            return cls(method, listed.card.kind, entry, module, method, tiny, listed.card, listed)
        entry = locate(method) if isinstance(method, str) else method
        if not callable(entry):
            raise UserError(f"{method!r} is {entry!r}, not a class or function; name the class of the method")
        module = sys.modules[entry.__module__]
        card = getattr(module, "CARD", None)
        card = card if isinstance(card, Card) and card.entry == entry.__name__ else None
        findable = getattr(module, entry.__name__, None) is entry and entry.__module__ != "__main__"
        reference = f"{entry.__module__}:{entry.__name__}" if findable else None
        kind = card.kind if card else _kind(entry)
        tiny = TINY.get(reference or "") or getattr(module, "TINY", {}).get(entry.__name__, Tiny())
        return cls(entry.__name__, kind, entry, module, reference, tiny, card)

    @property
    def edit(self) -> Callable[..., Recipe] | None:
        """How the method changes a recipe; None for a class that has no card."""
        return getattr(self.module, "edit", None) if self.card else None

    @property
    def baseline(self) -> Recipe:
        """The recipe that the method edits in the checks: that of the scenario its card names first."""
        named = self.card.scenarios if self.card is not None else ()
        return baseline_recipe(*named[:1]).replace(model=Part(self.tiny.model))

    @property
    def objective(self) -> bool:
        """Whether it learns without labels, in place of the criterion."""
        return isinstance(self.entry, type) and issubclass(self.entry, Objective)

    @property
    def across_batch(self) -> bool:
        """Whether it compares the examples of a batch: as its card says, or its attribute where it has no card."""
        return self.card.across_batch if self.card else bool(getattr(self.entry, "across_batch", False))

    @property
    def signature(self) -> Mapping[str, inspect.Parameter]:
        """The entry's parameters by name."""
        return inspect.signature(self.entry).parameters

    def make(self, **options: Any) -> Any:
        """Call the entry with the arguments that its kind and `tiny` give, and `options`."""
        given: dict[str, Any] = {**self.tiny.arguments, **options}
        if self.kind == "optimizer" and "params" not in given:
            given["params"] = network((6,), CLASSES).parameters()
        for name, value in {"in_shape": self.tiny.in_shape, "outputs": CLASSES, "classes": CLASSES}.items():
            if name in self.signature and self.signature[name].default is inspect.Parameter.empty:
                given.setdefault(name, value)
        return self.entry(**given)


def _kind(entry: Callable[..., Any]) -> str:
    """Tell the kind of a class without a card from the protocol it follows."""
    if isinstance(entry, type):
        if issubclass(entry, Method):
            return "algorithm"
        if issubclass(entry, torch.optim.Optimizer):
            return "optimizer"
        if issubclass(entry, nn.Module):
            if hasattr(entry, "forward_features"):
                return "model"
            if "reduction" in inspect.signature(entry).parameters or entry.__name__.endswith("Loss"):
                return "loss"
        for kind, words in (
            ("curation", {"choose"}),
            ("transform", {"apply"}),
            ("estimator", {"fit", "get_params"}),
            ("diagnostic", {"measure"}),
        ):
            if all(hasattr(entry, word) for word in words):
                return kind
    raise UserError(
        f"cannot tell what kind of method {getattr(entry, '__name__', entry)!r} is; give a core.Method, a "
        f"torch.optim.Optimizer, a loss or model, or put a CARD in its module"
    )
