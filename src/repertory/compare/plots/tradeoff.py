"""The test metric against what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from repertory.compare.plots.frame import (
    FAINT,
    SMALL,
    WIDTH,
    Style,
    blank,
    drawing,
    inches,
    leader_line,
    near,
    short,
    styles,
    svg,
)
from repertory.compare.statistics import BASELINE
from repertory.compare.wording import Name, Scale, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 4.5

_Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in inches from the corner of the axes."""


def tradeoff(
    rows: Sequence[Mapping[str, Any]], called: Mapping[str, Name], scale: Scale, *, higher_is_better: bool
) -> str | None:
    """Draw the test metric (mean and standard deviation) against what a run costs relative to the baseline.

    The cost is passes where these differ between methods, else (at a budget of equal passes) seconds.

    Args:
        rows: rows of `summarise`.
        called: names of the labels.
        scale: how the metric is written.
        higher_is_better: its direction.

    Returns:
        SVG text, or None where fewer than two labels have both.
    """
    ratios = [row["cost"]["passes"] for row in rows if row["cost"]["passes"]]
    equal = all(0.97 < value < 1.03 for value in ratios)
    kind, phrase = ("seconds", "wall-clock time") if equal else ("passes", "forward and backward passes")
    points = {
        row["label"]: (row["cost"][kind], row["mean"] * scale.factor, (row["sd"] or 0.0) * scale.factor)
        for row in rows
        if row["cost"][kind] and row["mean"] is not None
    }
    if len(points) < 2:
        return None
    from matplotlib.markers import CARETDOWN, CARETUP

    look = styles([row["label"] for row in rows])
    with drawing("tradeoff"):
        figure = blank(HEIGHT)
        axes = figure.add_axes((0.085, 0.14, 0.895, 0.82))
        if BASELINE in points:
            axes.axhline(points[BASELINE][1], color=FAINT, lw=1, zorder=1)
            axes.axvline(1, color=FAINT, lw=1, zorder=1)
        for label, (x, y, sd) in points.items():
            style = look[label]
            axes.plot([x, x], [y - sd, y + sd], color=style.colour, lw=1.6, alpha=0.55, zorder=2)
            axes.plot(x, y, style.marker, color=style.colour, ms=8, mec="white", mew=0.8, zorder=3)
        xs, ys = [x for x, _, _ in points.values()], [y for _, y, _ in points.values()]
        # Timings differ by a few per cent by chance: less than this is not drawn large.
        slack = max(0.0, 0.1 - (max(xs) - min(xs))) / 2
        span = max(xs) - min(xs) + 2 * slack
        axes.set_xlim(min(xs) - slack - 0.09 * span, max(xs) + slack + 0.16 * span)
        axes.locator_params(axis="both", nbins=7)
        seen = [point for point, keep in zip(points.values(), near(ys, median(ys)), strict=True) if keep]
        low, high = min(y - sd for _, y, sd in seen), max(y + sd for _, y, sd in seen)
        room = 0.08 * (high - low) or 1.0
        axes.set_ylim(low - room, high + room)
        for label, (x, y, _) in points.items():
            if not low - room <= y <= high + room:
                edge, marker = (low - room, CARETDOWN) if y < low else (high + room, CARETUP)
                axes.plot(x, edge, marker=marker, color=look[label].colour, ms=8, clip_on=False)
                points[label] = (x, edge, 0.0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}×")
        axes.set_xlabel(f"{phrase} relative to the baseline", labelpad=6)
        arrow = "higher" if higher_is_better else "lower"
        axes.set_ylabel(f"test {scale.axis}, {arrow} is better", labelpad=8)
        _point_labels(axes, points, called, look)
        return svg(figure, f"Test {words(scale.metric)} against {phrase}")


def _point_labels(
    axes: Axes,
    points: Mapping[str, tuple[float, float, float]],
    called: Mapping[str, Name],
    look: Mapping[str, Style],
) -> None:
    width, height = axes.get_position().width * WIDTH, axes.get_position().height * HEIGHT
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    across, up = width / (right - left), height / (high - low)
    taken: list[_Box] = []
    if BASELINE in points:
        level = (points[BASELINE][1] - low) * up
        taken.append((0, level - 0.01, width, level + 0.01))
    for x, y, sd in points.values():
        x, y, sd = (x - left) * across, (y - low) * up, sd * up
        taken += [(x - 0.02, y - sd, x + 0.02, y + sd), (x - 0.07, y - 0.07, x + 0.07, y + 0.07)]
    for label, (x, y, _) in points.items():
        text = short(called[label])
        places = _places((x - left) * across, (y - low) * up, inches(text, SMALL + 1) + 0.04)
        distance, box = min(places, key=lambda place: place[0] + _penalty(place[1], taken, (width, height)))
        taken.append(box)
        side: Literal["left", "right"] = "left" if box[0] > (x - left) * across else "right"
        axes.annotate(
            text,
            (x, y),
            (left + box[0 if side == "left" else 2] / across, low + (box[1] + box[3]) / 2 / up),
            ha=side,
            va="center",
            size=SMALL + 1,
            color=look[label].ink,
            weight="bold" if label == BASELINE else "normal",
            arrowprops=leader_line(look[label], side) if distance > 0.3 else None,
        )


def _places(x: float, y: float, wide: float) -> Iterator[tuple[float, _Box]]:
    tall = 0.17
    for reach in (0.12, 0.3, 0.55, 0.85):
        for lift in (0.0, 0.16, -0.16, 0.32, -0.32, 0.55, -0.55, 0.8, -0.8):
            for start in (x + reach, x - reach - wide):
                yield reach + abs(lift), (start, y + lift - tall / 2, start + wide, y + lift + tall / 2)


def _penalty(box: _Box, taken: Sequence[_Box], size: tuple[float, float]) -> float:
    outside = box[0] < 0 or box[2] > size[0] or box[1] < 0 or box[3] > size[1]
    overlaps = ((min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1]))
                for other in taken)  # fmt: skip
    hidden = sum((wide + 0.02) * (tall + 0.02) for wide, tall in overlaps if wide > 0 and tall > 0)
    # In inches and square inches: weights that make both worse than any distance within reach.
    return 10.0 * outside + 40.0 * hidden
