"""Queries with what each method finds, as pictures in the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from repertory.compare.folder import safe_name
from repertory.datasets import Dataset
from repertory.datasets.condensed import read

_SIDE = 56
"""Pixels, on the page."""
_PICTURES, _CLASSES = 10, 10
"""Condensed examples of a class, and classes, that are shown."""
_TEXT = 160
"""Characters of a text that are shown."""


def sheets(results: Sequence[Mapping[str, Any]], dataset: Dataset) -> list[dict[str, Any]]:
    """Return for each label the queries of its first finished run with neighbours, each with its picture.

    Args:
        results: the runs; those of a scenario that searches have `neighbours`.
        dataset: where the pictures come from.

    Returns:
        Mappings with `label`, `seed` and `queries`, empty where no run has neighbours. A query has `picture`, `class`
        and `found`; each of these `picture`, `class` and `right`.
    """
    shown: dict[str, dict[str, Any]] = {}
    for run in results:
        if run.get("neighbours") and run["label"] not in shown:
            queries = [
                {**_drawn(query, dataset), "found": [_drawn(found, dataset) for found in query["found"]]}
                for query in run["neighbours"]
            ]
            shown[run["label"]] = {"label": run["label"], "seed": run["seed"], "queries": queries}
    return list(shown.values())


def condensed_sheets(results: Sequence[Mapping[str, Any]], folder: Path, dataset: Dataset) -> list[dict[str, Any]]:
    """Return for each label the condensed set of its first finished run as pictures, by class.

    Args:
        results: the runs.
        folder: of the comparison, where their condensed sets are.
        dataset: what was condensed.

    Returns:
        Mappings with `label`, `seed`, `shown` and `classes`, empty where nothing was condensed or there is nothing to
        draw; each class has `class`, its name, and `pictures`.
    """
    shown: dict[str, dict[str, Any]] = {}
    for run in results:
        label, path = run["label"], folder / "synthetic" / f"{safe_name(run['label'])}/seed-{run['seed']}.parquet"
        if label in shown or dataset.modality not in ("image", "sequence") or not path.exists():
            continue
        found = read(path)
        labels = found.targets.argmax(1) if found.targets.ndim > 1 else found.targets
        classes = [
            {
                "class": name,
                "pictures": [
                    picture(_whole(each, dataset.modality), dataset.modality)
                    for each in found.inputs[labels == number][:_PICTURES]
                ],
            }
            for number, name in enumerate(dataset.classes[:_CLASSES])
        ]
        shown[label] = {"label": label, "seed": run["seed"], "shown": _PICTURES, "classes": classes}
    return list(shown.values())


def _whole(values: Tensor, modality: str) -> Tensor:
    """Pixels that were made may lie outside of what can be shown."""
    return values.round().clamp(0, 255) if modality == "image" else values


def _drawn(item: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    values = dataset.inputs[item["row"]]
    # Of pairs of texts, which of the two.
    values = values[item["column"]] if "column" in item else values
    return {**item, "picture": picture(values, dataset.modality)}


def picture(values: Tensor, modality: str) -> Any:
    """Return one input as HTML: an image, a curve, or a text; nothing for a row of a table.

    Args:
        values: as in `Dataset.inputs`.
        modality: "image", "sequence", "text" or "table".
    """
    from markupsafe import Markup, escape

    if modality == "image":
        return Markup(f'<img alt="" width="{_SIDE}" height="{_SIDE}" src="data:image/png;base64,{_png(values)}">')
    if modality == "sequence":
        return Markup(f'<svg class="curve" viewBox="0 0 100 50" aria-hidden="true">{_curve(values)}</svg>')
    if modality == "text":
        raw = bytes(values.reshape(-1, values.shape[-1])[0].tolist()).rstrip(b"\0")
        words = raw.decode("utf-8", errors="ignore")
        return escape(words if len(words) <= _TEXT else f"{words[:_TEXT].rstrip()}…")
    return ""


def _png(values: Tensor) -> str:
    from PIL import Image

    pixels = values.numpy().astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _curve(values: Tensor) -> str:
    lines = []
    for channel in values.double():
        low, high = float(channel.min()), float(channel.max())
        heights = (45 - 40 * (channel - low) / ((high - low) or 1.0)).tolist()
        step = 100 / max(1, len(heights) - 1)
        points = " ".join(f"{step * at:.1f},{height:.1f}" for at, height in enumerate(heights))
        lines.append(f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"/>')
    return "".join(lines)
