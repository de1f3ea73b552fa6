"""Stated damage to a data set: noisy, long-tailed or few labels, noisy ones to choose by, shifted inputs in testing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from repertory.datasets.noise import parse_noise
from repertory.datasets.stratify import allot, random_ranks
from repertory.errors import OptionError

KEYS = ("noise", "validation_noise", "imbalance", "labels", "shift")
"""The corruptions, each written `key=value` after the `?` of a data spec."""

_SHIFTS = {"image": ("rotate", "noise", "blur"), "table": ("noise",), "sequence": ("noise",), "graph": ()}
_EXAMPLES = {
    "rotate": "rotate30 (degrees)",
    "noise": "noise0.3 (standard deviations)",
    "blur": "blur2 (pixels)",
}


def check(corruptions: Mapping[str, str], task: str, modality: str, classes: int) -> None:
    """Refuse corruptions that the data cannot carry.

    Raises:
        OptionError: if a value is malformed or out of range, or does not fit the task or the modality.
    """
    if task == "pairs":
        for key, value in corruptions.items():
            raise OptionError(f"{key}={value} damages labels or numbers, but the data are pairs of texts; leave it out")
    for key in ("noise", "validation_noise", "imbalance"):
        if key in corruptions and task != "classification":
            raise OptionError(f"{key}={corruptions[key]} needs classes, but the task is regression; leave it out")
    for key in ("noise", "validation_noise"):
        if key in corruptions:
            parse_noise(corruptions[key], key)
    if "imbalance" in corruptions:
        imbalance_ratio(corruptions)
    if "labels" in corruptions and (count := label_count(corruptions)) < max(classes, 1):
        raise OptionError(f"labels={count} is fewer than the {max(classes, 1)} classes; each needs at least one label")
    if "shift" in corruptions:
        shift_of(corruptions, modality)


def imbalance_ratio(corruptions: Mapping[str, str]) -> float:
    """Return the ratio of the largest to the smallest class, 1 when none was asked for."""
    return _number("imbalance", corruptions.get("imbalance", "1"), "a finite ratio of at least 1", 1.0, math.inf)


def label_count(corruptions: Mapping[str, str]) -> int:
    """Return the number of training labels to keep."""
    text = corruptions["labels"]
    if not text.isdecimal():
        raise OptionError(f"labels={text} is not a whole number of training labels, as in labels=40")
    return int(text)


def shift_of(corruptions: Mapping[str, str], modality: str) -> tuple[str, float]:
    """Return the kind of test-time shift and its strength."""
    text, kinds = corruptions["shift"], _SHIFTS[modality]
    match = re.fullmatch(r"([a-z]+)(-?\d+(?:\.\d+)?)", text)
    if match is None or match[1] not in kinds or (match[1] != "rotate" and float(match[2]) <= 0):
        allowed = ", ".join(_EXAMPLES[kind] for kind in kinds)
        fix = f"use a strength above 0 in: {allowed}" if kinds else "leave it out"
        raise OptionError(f"shift={text} cannot be applied to {modality} inputs; {fix}")
    return match[1], float(match[2])


def labelled(targets: Tensor, count: int, stratified: bool, generator: torch.Generator) -> Tensor:
    """Choose which training examples keep their label.

    Args:
        targets: training targets `(examples,)`.
        count: labels to keep, at least one a class.
        stratified: keep the proportions of the classes.
        generator: source of the choice.

    Returns:
        bool `(examples,)`, true at exactly `count` places.

    Raises:
        OptionError: if there are fewer examples than `count`.
    """
    if count > len(targets):
        raise OptionError(f"labels={count} is more than the {len(targets)} training examples; ask for fewer")
    labels = targets if stratified else torch.zeros(len(targets), dtype=torch.long)
    counts = torch.bincount(labels)
    places = allot(count, counts)
    quota = counts.double() * count / counts.sum()
    while places.sum() > count:
        # One label for each small class came out of the share of the large ones.
        places[torch.where(places > 1, places - quota, -math.inf).argmax()] -= 1
    return random_ranks(labels, generator) < places[labels]


def long_tail(targets: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """Choose training examples so that class counts decay exponentially from the first class to the last.

    The last class gets as many examples as the data allow, and the first `ratio` times as many.

    Args:
        targets: training classes, int64 `(examples,)`.
        ratio: count of the first class over that of the last.
        generator: source of the choice.

    Returns:
        bool `(examples,)`.

    Raises:
        OptionError: if some class is too small for that ratio.
    """
    counts = torch.bincount(targets)
    decay = ratio ** (-torch.arange(len(counts), dtype=torch.float64) / (len(counts) - 1))
    first = (counts / decay).min()
    last = int(first / ratio + 1e-9)
    if last < 1:
        raise OptionError(
            f"imbalance={ratio:g} needs more training examples: at these class counts ({counts.tolist()}) "
            f"the ratio can be at most {math.floor(float(first))}"
        )
    places = (last * ratio * decay).round().long().clamp(min=1)
    return random_ranks(targets, generator) < places[targets]


def shift_inputs(inputs: Tensor, kind: str, strength: float, std: Tensor, generator: torch.Generator) -> Tensor:
    """Shift test inputs.

    Args:
        inputs: `(examples, ...)`; images are uint8 `(examples, channels, height, width)`.
        kind: "rotate" (degrees, counter-clockwise, corners filled with 0), "blur" (standard deviation in
            pixels) or "noise" (standard deviation as a share of 255 for images, in units of `std` otherwise).
        strength: how much of it.
        std: training standard deviation, broadcastable to `inputs`.
        generator: source of the noise.

    Returns:
        Inputs of the same shape and dtype.
    """
    if kind == "noise" and inputs.dtype != torch.uint8:
        return inputs + strength * std * torch.randn(inputs.shape, generator=generator)
    chunks = []
    for chunk in inputs.split(256):
        images = chunk.float()
        if kind == "rotate":
            images = _rotate(images, strength)
        elif kind == "blur":
            images = _blur(images, strength)
        else:
            images = images + 255 * strength * torch.randn(images.shape, generator=generator)
        chunks.append(images.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(chunks)


def _rotate(images: Tensor, degrees: float) -> Tensor:
    height, width = images.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # The grid has both sides from -1 to 1, so the sine terms carry the aspect ratio.
    matrix = torch.tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = functional.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _blur(images: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    rows = functional.pad(images.flatten(0, 1).unsqueeze(1), (reach, reach, 0, 0), mode="replicate")
    rows = functional.conv2d(rows, weights)
    columns = functional.pad(rows, (0, 0, reach, reach), mode="replicate")
    return functional.conv2d(columns, weights.transpose(2, 3)).view_as(images)


def _number(key: str, text: str, allowed: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value < high:
        raise OptionError(f"{key}={text} is not {allowed}")
    return value
