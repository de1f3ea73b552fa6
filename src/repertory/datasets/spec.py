"""Load data by what the user typed: a name or a path, with options after `?`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from repertory.datasets import asked, bags, columns, corruptions, graphs, motif_graphs, shapes
from repertory.datasets.arrays import from_factory, load_arrays
from repertory.datasets.bag_sources import load_bag_folder, load_bag_table, load_camera_folder
from repertory.datasets.builtin import BUILTIN, OPTIONS, load_builtin
from repertory.datasets.dataset import Dataset
from repertory.datasets.folder import load_folder
from repertory.datasets.images import is_hidden
from repertory.datasets.mask_folder import is_mask_folder, load_mask_folder
from repertory.datasets.pairs import load_pairs
from repertory.datasets.point_folder import is_point_folder, load_point_folder
from repertory.datasets.points import one_kind
from repertory.datasets.table import load_table
from repertory.errors import DataError, OptionError, nearest
from repertory.recipe import locate

_READING = ("drop", "task", *shapes.KEYS, *motif_graphs.KEYS, *graphs.KEYS)
_TASKS = ("classification", "regression", "pairs", "bags")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SUFFIXES = (*columns.SUFFIXES, ".npz", ".jsonl")


def load(spec: str, *, target: str | None = None, image_size: int | None = None, skip_bad: bool = False) -> Dataset:
    """Load data by name or by path.

    Args:
        spec: one of `BUILTIN`; a folder of class folders of images, or of `images` and `masks`, or of graphs (see
            `repertory.datasets.graphs`, also for `.parquet` and `.jsonl` files of graphs); a `.csv`, `.tsv`,
            `.parquet` or `.npz` file; or `package.module:function`, called with no arguments. A built-in name wins over
            a path: write `./digits` for a folder of that name. Options follow a `?`, joined by `&`: the corruptions
            `noise=0.4`, `validation_noise=0.4`, `imbalance=50`, `labels=40` and `shift=rotate30`; for tables
            `drop=a,b`; for tables and arrays `task=classification` or `task=regression`; for tables of texts
            `task=pairs`; for the built-in shapes `examples=900` and `side=48`. Bags: `bag=column` and `truth=column` of
            a table, `task=bags` for a column or array called bag, `bags=folders` for FOLDER/CLASS/BAG/image files,
            `bags=20` to make bags of single examples, `positive`, `ratio` and `pool`; see `repertory.datasets.bags`.
            Cameras of a search: `group=column` of a table, or `group=folders` for FOLDER/CLASS/CAMERA/image files.
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
    bagged = {key: value for key, value in options.items() if key in bags.KEYS}
    if name in BUILTIN:
        own = OPTIONS.get(name, ())
        _refuse(given, f"the built-in {name}", own)
        dataset = load_builtin(name, spec, {key: options[key] for key in own if key in options})
    elif name and graphs.are_graphs(path):
        _refuse({**given, **bagged}, f"the graphs in {name}", ("target", *graphs.KEYS))
        read_here = {key: options.pop(key) for key in (*graphs.KEYS, "shift") if key in options}
        dataset = graphs.load_graphs(path, spec, target, read_here)
    elif name and path.is_dir() and is_point_folder(path):
        _refuse(given, f"the folder of images and points {name}", ("image_size",))
        dataset = load_point_folder(path, spec, image_size, skip_bad)
    elif name and path.is_dir() and is_mask_folder(path):
        _refuse(given, f"the folder of images and masks {name}", ("image_size",))
        dataset = load_mask_folder(path, spec, image_size, skip_bad)
    elif name and path.is_dir():
        _refuse(given, f"the image folder {name}", ("image_size",))
        nested = {options.get("bags"): load_bag_folder, options.get("group"): load_camera_folder}
        read = nested.get("folders", load_folder)
        dataset = read(path, spec, image_size, skip_bad)
    elif path.is_file():
        dataset = _load_file(path, spec, given, skip_bad, bagged, options.get("group"))
    elif _FACTORY.fullmatch(name):
        _refuse(given, f"the function {name}", ("task",))
        factory = locate(name)
        if not callable(factory):
            raise DataError(f"{name} is {type(factory).__name__}, not a function; give one that returns the data")
        dataset = from_factory(factory(), name.partition(":")[2], spec, None if task == "bags" else task)
    else:
        raise _not_found(name, path)
    if bagged or task == "bags":
        dataset = bags.as_bags(dataset, bagged)
    if named := options.get("object"):
        masks, classes = one_kind(dataset.targets, dataset.task, dataset.classes, named)
        dataset = dataclasses.replace(dataset, targets=masks, classes=classes)
    made = [part for part in ("validation", "test") if dataset.fixed and part not in dataset.fixed]
    damage = {key: value for key, value in options.items() if key in corruptions.KEYS}
    return dataclasses.replace(
        dataset,
        spec=spec,
        corruptions={**dataset.corruptions, **damage},
        asked={**dataset.asked, **{key: value for key, value in options.items() if key in asked.KEYS}},
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
    known = tuple(dict.fromkeys((*corruptions.KEYS, *asked.KEYS, *bags.KEYS, *_READING)))
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


def _load_file(
    path: Path, spec: str, given: dict[str, Any], skip_bad: bool, bagged: dict[str, str], group: str | None
) -> Dataset:
    suffix = path.suffix.lower()
    if suffix in columns.SUFFIXES:
        _refuse(given, f"the table {path}", ("target", "drop", "task"))
        drop = given["drop"].split(",") if given["drop"] else ()
        if given["task"] == "pairs":
            return load_pairs(path, spec, given["target"], drop, skip_bad)
        if group is not None:
            return load_bag_table(path, spec, given["target"], drop, {"group": group}, skip_bad, "group")
        if given["task"] == "bags" or "bag" in bagged:
            return load_bag_table(path, spec, given["target"], drop, bagged, skip_bad)
        return load_table(path, spec, given["target"], drop, given["task"], skip_bad)
    if suffix == ".npz":
        _refuse(given, f"the arrays in {path}", ("task",))
        return load_arrays(path, spec, None if given["task"] == "bags" else given["task"])
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
