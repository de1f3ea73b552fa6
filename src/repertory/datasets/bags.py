"""Rows that belong together, as the instances of bags of which only the whole has a label."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from repertory.datasets.stratify import cut, generator_for
from repertory.errors import DataError, OptionError, check_choice, nearest

if TYPE_CHECKING:
    from repertory.datasets.dataset import Dataset

KEYS = ("bags", "bag", "truth", "positive", "ratio", "pool")
"""Options after the `?` of a data spec that only the scenario bags reads."""

JUDGED = ("pool",)
"""Those that say how a model of bags is judged."""

POOLS = ("mean", "max", "log-mean-exp")
"""How the score of a bag is made of the probabilities of its instances."""

_RATIO = 0.2


def as_bags(dataset: Dataset, options: Mapping[str, str]) -> Dataset:
    """Return data whose rows are instances of bags.

    Args:
        dataset: data of classes; with `groups`, or to make bags of.
        options: those of `KEYS` that were given.

    Raises:
        DataError: if there is nothing that says which rows belong together, or they make no bags.
        OptionError: if an option is malformed or does not fit the data.
    """
    size = options.get("bags", "folders")
    if size != "folders":
        dataset = _made(dataset, size, options)
    elif "ratio" in options:
        raise OptionError(f"ratio={options['ratio']} is for bags that are made (bags=20); leave it out")
    elif dataset.groups is None:
        raise DataError(
            f"{dataset.name} has nothing that says which rows belong together: name the column of a table that does "
            "(?bag=NAME), the subfolders of an image folder's classes (?bags=folders), or make bags of single labelled "
            "examples (?bags=20)"
        )
    elif "positive" in options:
        dataset = _turned(dataset, options["positive"])
    judged = {key: options[key] for key in JUDGED if key in options}
    return dataclasses.replace(dataset, task="bags", asked={**dataset.asked, **judged})


def check(dataset: Dataset, missing: Sequence[str]) -> None:
    """Refuse groups, and bags, that cannot be used.

    Args:
        dataset: its `groups` are given.
        missing: parts that are yet to be cut from the training part.

    Raises:
        DataError: naming the groups and what is wrong with them.
        OptionError: if an option of the data does not fit bags.
    """
    groups, name = dataset.groups, dataset.name
    if groups is None:
        if dataset.task == "bags":
            raise DataError(f"{name}: task bags needs groups, which say for each row in which bag it is; give them")
        return
    rows = len(dataset.targets)
    if groups.dtype != torch.int64 or groups.shape != (rows,) or int(groups.min()) < 0:
        raise DataError(
            f"{name}: groups must be one whole number from 0 on for each of {rows} rows (int64), not {groups.dtype} of "
            f"shape {tuple(groups.shape)}"
        )
    if dataset.task != "bags":
        return
    counts = groups.bincount()
    if len(empty := (counts == 0).nonzero().flatten()):
        raise DataError(
            f"{name}: {_named(dataset, empty)} no row; number the bags from 0 on without a gap, or leave empty ones out"
        )
    if len(dataset.classes) != 2:
        raise DataError(
            f"{name}: bags are negative or positive, but there are {len(dataset.classes)} classes "
            f"({', '.join(dataset.classes[:8])}); keep two, the positive one second"
        )
    lowest, highest = (_over_bags(dataset.targets, groups, how) for how in ("amin", "amax"))
    if len(torn := (lowest != highest).nonzero().flatten()):
        raise DataError(
            f"{name}: {_named(dataset, torn)} rows of both labels; all rows of a bag carry the label of the bag, and "
            "what is known of single ones goes into a column of its own (?truth=NAME)"
        )
    _check_truth(dataset, highest)
    _check_parts(dataset, highest, missing)
    for key, value in dataset.corruptions.items():
        if key != "shift":
            raise OptionError(f"{key}={value} changes single rows, but the labels are those of bags; leave it out")


def check_judged(options: Mapping[str, str], task: str) -> None:
    """Refuse options of how bags are judged that the data cannot carry.

    Raises:
        OptionError: if there are no bags, or no such score.
    """
    for key, value in options.items():
        if task != "bags":
            raise OptionError(f"{key}={value} is for bags, but the task is {task}; leave it out")
        check_choice(key, value, POOLS)


def bag_labels(targets: Tensor, groups: Tensor) -> Tensor:
    """Return the label of every bag `(bags,)`, of rows that carry it.

    >>> bag_labels(torch.tensor([1, 0, 1]), torch.tensor([0, 1, 0])).tolist()
    [1, 0]
    """
    return _over_bags(targets, groups, "amax")


def cut_bags(
    targets: Tensor, groups: Tensor, shares: Mapping[str, float], generator: torch.Generator
) -> dict[str, Tensor]:
    """Cut rows into parts of the given shares of the bags, each with the proportions of their labels.

    Args:
        targets: label of each row's bag `(rows,)`.
        groups: bag of each row `(rows,)`.
        shares: share of the bags for each part; "train" gets what is left.
        generator: source of the choice.

    Returns:
        Sorted positions of each part; no bag is in two of them.
    """
    place = groups.unique(return_inverse=True)[1]
    chosen = cut(bag_labels(targets, place), shares, generator)
    return {part: torch.isin(place, some).nonzero().flatten() for part, some in chosen.items()}


def _over_bags(values: Tensor, groups: Tensor, how: str) -> Tensor:
    made = torch.zeros(int(groups.max()) + 1, dtype=values.dtype)
    return made.scatter_reduce(0, groups, values, how, include_self=False)


def _named(dataset: Dataset, bags: Tensor) -> str:
    """Some bags by name, with the verb."""
    names = [dataset.group_names[bag] if dataset.group_names else str(bag) for bag in bags[:5].tolist()]
    listed = ", ".join(names) + (f" and {len(bags) - 5} more" if len(bags) > 5 else "")
    return f"bag {listed} has" if len(bags) == 1 else f"bags {listed} have"


def _check_truth(dataset: Dataset, labels: Tensor) -> None:
    truth, groups = dataset.truth, dataset.groups
    if truth is None or groups is None:
        return
    if truth.dtype != torch.int64 or truth.shape != groups.shape or not bool(torch.isin(truth, _KNOWN).all()):
        raise DataError(f"{dataset.name}: truth must be 0, 1 or -1 (unknown) for each row, int64")
    wrong = groups[(truth == 1) & (labels[groups] == 0)].unique()
    if len(wrong):
        raise DataError(
            f"{dataset.name}: {_named(dataset, wrong)} the label {dataset.classes[0]!r}, but rows that are truly "
            f"{dataset.classes[1]!r}; correct the labels or the truth, or name the positive class with ?positive=NAME"
        )


_KNOWN = torch.tensor([-1, 0, 1])


def _check_parts(dataset: Dataset, labels: Tensor, missing: Sequence[str]) -> None:
    groups = dataset.groups
    assert groups is not None
    held = [groups[rows].unique() for rows in dataset.fixed.values()]
    if held:
        bags, times = torch.cat(held).unique(return_counts=True)
        if len(shared := bags[times > 1]):
            raise DataError(
                f"{dataset.name}: {_named(dataset, shared)} rows in several of {', '.join(dataset.fixed)}; keep each "
                "bag in one part"
            )
    pool = groups[dataset.fixed["train"]].unique() if held else torch.arange(len(labels))
    counts = labels[pool].bincount(minlength=2)
    least = 1 + len(missing)
    if int(counts.min()) < least:
        raise DataError(
            f"{dataset.name}: {int(counts[0])} negative and {int(counts[1])} positive bags to split; the minimum is "
            f"{least} of each, one for each of {', '.join(['train', *missing])}; add bags"
        )
    for part, rows in dataset.fixed.items():
        if len(labels[groups[rows]].unique()) < 2:
            raise DataError(f"{dataset.name}: all bags of the {part} part have one label; both are needed to judge")


def _turned(dataset: Dataset, positive: str) -> Dataset:
    """Let the class named `positive` be the second one."""
    place = _class_of(dataset, positive)
    if len(dataset.classes) != 2 or place == 1:
        return dataset
    truth = dataset.truth
    return dataclasses.replace(
        dataset,
        targets=1 - dataset.targets,
        classes=dataset.classes[::-1],
        truth=None if truth is None else torch.where(truth < 0, truth, 1 - truth),
    )


def _class_of(dataset: Dataset, name: str) -> int:
    if name not in dataset.classes:
        hint = nearest(name, dataset.classes)
        raise OptionError(
            f"positive={name} is not a class of {dataset.name}{'; ' + hint if hint else ''}; they are "
            f"{', '.join(dataset.classes[:20])}"
        )
    return dataset.classes.index(name)


def _made(dataset: Dataset, size: str, options: Mapping[str, str]) -> Dataset:
    """Deal single labelled examples to bags, each to one: half of the bags hold some of the positive class."""
    if not size.isdecimal() or int(size) < 2:
        raise OptionError(f"bags={size} is not a number of instances a bag from 2 on, nor 'folders', as in bags=20")
    if dataset.task != "classification" or dataset.groups is not None:
        raise OptionError(f"bags={size} makes bags of single examples with classes, which {dataset.name} has not")
    if "truth" in options:
        raise OptionError(f"truth={options['truth']} is for bags that are read; the truth of made ones is known")
    positive = _class_of(dataset, options.get("positive", dataset.classes[-1]))
    held = _held(int(size), options.get("ratio"))
    parts = dataset.fixed or {"all": torch.arange(len(dataset.targets))}
    rows, sizes, pairs = [], [], []
    for part, pool in parts.items():
        dealt = _dealt(pool, dataset.targets[pool] == positive, int(size), held, part)
        if not len(dealt):
            raise DataError(
                f"{dataset.name}: {'' if part == 'all' else f'the {part} part has '}too few examples for two bags of "
                f"{size} with {held} of class {dataset.classes[positive]!r} in one of them; ask for smaller bags, or "
                "another ratio"
            )
        rows.append(dealt)
        sizes.append(len(dealt))
        pairs.append(len(dealt) // (2 * int(size)))
    chosen = torch.cat(rows)
    targets = torch.arange(2).repeat_interleave(int(size)).repeat(sum(pairs))
    name = dataset.classes[positive]
    places = torch.arange(len(chosen)).split(sizes)
    return dataclasses.replace(
        dataset,
        task="bags",
        inputs=dataset.inputs[chosen],
        targets=targets,
        truth=(dataset.targets[chosen] == positive).long(),
        groups=torch.arange(2 * sum(pairs)).repeat_interleave(int(size)),
        classes=(f"without {name}", f"with {name}"),
        fixed=dict(zip(parts, places)) if dataset.fixed else {},
        unlabelled=None,
        notes=(*dataset.notes, f"{2 * sum(pairs)} bags of {size}, half of them with {held} of class {name!r}"),
    )


def _held(size: int, ratio: str | None) -> int:
    """How many of the positive class a positive bag holds."""
    try:
        share = _RATIO if ratio is None else float(ratio)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise OptionError(f"ratio={ratio} is not a share of a positive bag above 0 and up to 1, as in ratio=0.2")
    return max(1, round(share * size))


def _dealt(pool: Tensor, positive: Tensor, size: int, held: int, part: str) -> Tensor:
    """Rows of as many pairs of bags as there can be, each example once: a negative bag, then a positive one, and on."""
    generator = generator_for(0, f"bags/{part}")
    shuffled = torch.randperm(len(pool), generator=generator)
    inside, outside = pool[shuffled[positive[shuffled]]], pool[shuffled[~positive[shuffled]]]
    pairs = min(len(inside) // held, len(outside) // (2 * size - held))
    others = outside[: pairs * (2 * size - held)].view(pairs, 2 * size - held)
    some = inside[: pairs * held].view(pairs, held)
    return torch.cat([others, some], 1).flatten()
