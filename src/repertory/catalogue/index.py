"""Read the cards of all methods with `ast`, so that nothing heavy is imported to list them."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repertory.card import KINDS, Card
from repertory.catalogue.entry import Entry
from repertory.errors import UserError, check_choice, nearest

FOLDERS: dict[str, str] = {
    "optimizer": "optim",
    "loss": "losses",
    "layer": "layers",
    "model": "models",
    "algorithm": "algorithms",
    "adapter": "adapters",
    "transform": "transforms",
    "estimator": "estimators",
    "curation": "curation",
    "search": "search",
    "diagnostic": "diagnostics",
    "explainer": "explainers",
    "study": "studies",
}
"""The folder of each kind; methods of a kind are imported from it: `repertory.losses`."""

_ROOT = Path(__file__).resolve().parents[1]
_CARD = re.compile(r"^CARD(?:\s*:\s*Card)?\s*=\s*Card\(", re.MULTILINE)
_CLOSING = re.compile(r"^\)", re.MULTILINE)
_SECTION = re.compile(r"^## +(.+?) *$", re.MULTILINE)
_TUPLES = ("problems", "scenarios", "needs", "owns", "tags")


def entries() -> dict[str, Entry]:
    """Return every method by slug, sorted by slug.

    >>> all(slug == entry.card.slug for slug, entry in entries().items())
    True
    """
    return dict(_read(_ROOT))


def get(slug: str) -> Entry:
    """Return the method called `slug`.

    Raises:
        UserError: if there is none; the message names the nearest slugs.
    """
    known = _read(_ROOT)
    if slug not in known:
        hint = nearest(slug, known) or "'repertory list' shows them all"
        raise UserError(f"there is no method {slug!r}; {hint}")
    return known[slug]


def select(kind: str | None = None, need: str | None = None, scenario: str | None = None) -> list[Entry]:
    """Return the methods that are of a kind, ask for something, and play in a scenario; None means any.

    Args:
        kind: one of `repertory.card.KINDS`.
        need: something that methods ask of the data or the run, such as "index" or "stream:unlabelled".
        scenario: name of a scenario, such as "supervised".

    Raises:
        OptionError: if no method could have that value; the message lists the allowed ones.
    """
    found = list(_read(_ROOT).values())
    if kind is not None:
        check_choice("kind", kind, KINDS)
    if need is not None:
        check_choice("need", need, sorted({need for entry in found for need in entry.card.needs}))
    if scenario is not None:
        check_choice("scenario", scenario, sorted({name for entry in found for name in entry.card.scenarios}))
    return [
        entry
        for entry in found
        if (kind is None or entry.card.kind == kind)
        and (need is None or need in entry.card.needs)
        and (scenario is None or scenario in entry.card.scenarios)
    ]


@functools.cache
def _read(root: Path) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for path in _modules(root):
        entry = _entry(root, path)
        if entry is None:
            continue
        if entry.card.slug in found:
            raise UserError(f"two modules have slug {entry.card.slug!r}: {found[entry.card.slug].path} and {path}")
        found[entry.card.slug] = entry
    return dict(sorted(found.items()))


def _modules(root: Path) -> Iterator[Path]:
    for folder in FOLDERS.values():
        yield from (path for path in (root / folder).glob("*.py") if path.name != "__init__.py")
        yield from (root / folder).glob("*/__init__.py")


def _entry(root: Path, path: Path) -> Entry | None:
    source = path.read_text(encoding="utf-8")
    start = _CARD.search(source)
    if start is None:
        return None
    tree = _parse_head(source, start.start(), path)
    call = _card_call(tree)
    if call is None:
        return None
    parts = (path.parent if path.name == "__init__.py" else path.with_suffix("")).relative_to(root).parts
    card = _card(call, path)
    if card.slug.replace("-", "_") != parts[-1]:
        raise UserError(f"{path}: slug {card.slug!r} does not match the module's name {parts[-1]!r}; make them agree")
    introduction, *sections = _SECTION.split(ast.get_docstring(tree) or "")
    return Entry(
        card=card,
        module=".".join(("repertory", *parts)),
        path=path,
        summary=introduction.strip().partition("\n")[0],
        sections={title: text.strip() for title, text in zip(sections[::2], sections[1::2])},
        root=root,
    )


def _parse_head(source: str, start: int, path: Path) -> ast.Module:
    # The docstring and the card are at the top; parsing no further makes the index several times faster.
    closing = _CLOSING.search(source, start)
    try:
        return ast.parse(source[: closing.end() if closing else None])
    except SyntaxError:
        try:
            return ast.parse(source)
        except SyntaxError as error:
            raise UserError(f"{path}, line {error.lineno}: {error.msg}; the catalogue cannot read the card") from None


def _card(call: ast.Call, path: Path) -> Card:
    fields: dict[str, Any] = {}
    for keyword in call.keywords:
        try:
            fields[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except ValueError:
            raise UserError(
                f"{path}, line {keyword.lineno}: {keyword.arg} of CARD is not a literal; write its value out"
            ) from None
    for name in _TUPLES:
        if not isinstance(fields.get(name, ()), tuple):
            raise UserError(f"{path}: {name}={fields[name]!r} of CARD is not a tuple; write ({fields[name]!r},)")
    try:
        return Card(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: CARD is not valid: {error}") from None


def _card_call(tree: ast.Module) -> ast.Call | None:
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Card":
            return value
    return None
