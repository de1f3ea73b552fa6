"""Load data by what the user typed: a name or a path, with options after `?`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from repertory.datasets import columns, corruptions, held_out, sequence
from repertory.datasets.arrays import from_factory, load_arrays
from repertory.datasets.builtin import BUILTIN, load_builtin
from repertory.datasets.dataset import Dataset
from repertory.datasets.folder import load_folder
from repertory.datasets.images import is_hidden
from repertory.datasets.pairs import load_pairs
from repertory.datasets.table import load_table
from repertory.errors import DataError, OptionError, nearest
from repertory.recipe import locate

_READING = ("drop", "task")
_TASKS = ("classification", "regression", "pairs")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SUFFIXES = (*columns.SUFFIXES, ".npz")


def load(spec: str, *, target: str | None = None, image_size: int | None = None, skip_bad: bool = False) -> Dataset:
    """Load data by name or by path.

    Args:
        spec: one of `BUILTIN`; a folder of class folders of images; a `.csv`, `.tsv`, `.parquet` or `.npz`
            file; or `package.module:function`, called with no arguments. A built-in name wins over a path:
            write `./digits` for a folder of that name. Options follow a `?`, joined by `&`: the corruptions
            `noise=0.4`, `imbalance=50`, `labels=40` and `shift=rotate30`; for tables `drop=a,b`; for tables
            and arrays `task=classification` or `task=regression`; for tables of texts `task=pairs`.
        target: column to predict, or for pairs that of the passages (tables only, required there).
        image_size: side of the images in pixels (image folders only).
        skip_bad: go on without images that cannot be read, or table rows with missing cells.

    Raises:
        DataError: if the data cannot be found, read or learnt from.
        OptionError: if an option is unknown, out of range, or does not fit the data.

    >>> data = load("iris?noise=0.2")
    >>> data.task, data.in_shape, data.outputs
    ('classification', (4,), 3)
    """
    name, options = parse(spec)
    task = options.get("task")
    if task is not None and task not in _TASKS:
        raise OptionError(f"task={task} is not {' or '.join(_TASKS)}; {nearest(task, _TASKS)}".rstrip("; "))
    given = {**{key: options.get(key) for key in _READING}, "target": target, "image_size": image_size}
    path = Path(name).expanduser()
    if name in BUILTIN:
        _refuse(given, f"the built-in {name}", ())
        dataset = load_builtin(name, spec)
    elif name and path.is_dir():
        _refuse(given, f"the image folder {name}", ("image_size",))
        dataset = load_folder(path, spec, image_size, skip_bad)
    elif path.is_file():
        dataset = _load_file(path, spec, given, skip_bad)
    elif _FACTORY.fullmatch(name):
        _refuse(given, f"the function {name}", ("task",))
        factory = locate(name)
        if not callable(factory):
            raise DataError(f"{name} is {type(factory).__name__}, not a function; give one that returns the data")
        dataset = from_factory(factory(), name.partition(":")[2], spec, task)
    else:
        raise _not_found(name, path)
    made = [part for part in ("validation", "test") if dataset.fixed and part not in dataset.fixed]
    asked = {key: value for key, value in options.items() if key in corruptions.KEYS}
    return dataclasses.replace(
        dataset,
        spec=spec,
        corruptions={**dataset.corruptions, **asked},
        search={key: value for key, value in options.items() if key in held_out.KEYS},
        sequence={key: value for key, value in options.items() if key in sequence.KEYS},
        notes=(*dataset.notes, *([f"{' and '.join(made)} made from train"] if made else [])),
    )


def parse(spec: str) -> tuple[str, dict[str, str]]:
    """Split a spec into the name or path and its options.

    Raises:
        OptionError: if an option is unknown, repeated, or has no value.

    >>> parse("photos?noise=0.4&labels=40")
    ('photos', {'noise': '0.4', 'labels': '40'})
    """
    name, mark, rest = spec.rpartition("?")
    if not mark:
        return spec, {}
    known = (*corruptions.KEYS, *held_out.KEYS, *sequence.KEYS, *_READING)
    options: dict[str, str] = {}
    for item in rest.split("&"):
        key, _, value = item.partition("=")
        if key not in known:
            hint = nearest(key, known)
            raise OptionError(
                f"data option {key!r} in {spec!r} is not one of {', '.join(known)}{'; ' + hint if hint else ''}"
            )
        if not value or key in options:
            raise OptionError(f"data option {key!r} in {spec!r} needs one value, written {key}=VALUE and once only")
        options[key] = value
    return name, options


def _load_file(path: Path, spec: str, given: dict[str, Any], skip_bad: bool) -> Dataset:
    suffix = path.suffix.lower()
    if suffix in columns.SUFFIXES:
        _refuse(given, f"the table {path}", ("target", "drop", "task"))
        drop = given["drop"].split(",") if given["drop"] else ()
        if given["task"] == "pairs":
            return load_pairs(path, spec, given["target"], drop, skip_bad)
        return load_table(path, spec, given["target"], drop, given["task"], skip_bad)
    if suffix == ".npz":
        _refuse(given, f"the arrays in {path}", ("task",))
        return load_arrays(path, spec, given["task"])
    raise DataError(
        f"{path}: files ending in {suffix or 'nothing'} are not read as data; "
        f"give a folder of images or one of {', '.join(_SUFFIXES)}"
    )


def _refuse(given: dict[str, Any], source: str, allowed: tuple[str, ...]) -> None:
    for option, value in given.items():
        if value is not None and option not in allowed:
            raise OptionError(f"{option}={value} does not apply to {source}; leave it out")


def _not_found(name: str, path: Path) -> DataError:
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    hint = nearest(path.name, [*(entry.name for entry in beside if not is_hidden(entry.name)), *BUILTIN])
    return DataError(
        f"{name!r} is not a built-in data set ({', '.join(BUILTIN)}), nor an existing file or folder"
        f"{'; ' + hint if hint else '; check the path'}"
    )
