"""What all plots share: a style for each method, fonts, and figures that become SVG text."""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from repertory.compare.statistics import BASELINE
from repertory.compare.wording import Name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY, FAINT, LINE = "#1b1f24", "#656c73", "#d9dde1", "#eceef0"
WIDTH = 10.0
"""Width of every plot, in inches."""
TEXT, SMALL = 10.5, 8.8
"""Font sizes, in points."""

# Okabe and Ito's colours without black and yellow, then Paul Tol's "muted" ones and a brown: they tell apart
# with any colour vision, the more so as each goes with a marker of its own.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
            "#882255", "#332288", "#999933", "#44AA99", "#AA4499", "#7A4B1E")  # fmt: skip
_MARKERS = "oD^vPX<>phd*"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    # The first comes with matplotlib and is the widest: with the browser's own font, text only shrinks.
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": TEXT,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
}


@dataclass(frozen=True)
class Style:
    """How one method is drawn in every plot."""

    colour: str
    marker: str
    dashed: bool = False

    @property
    def ink(self) -> str:
        """A darker shade of the colour that is legible as text on white."""
        channels = (int(self.colour[at : at + 2], 16) for at in (1, 3, 5))
        return "#" + "".join(f"{round(channel * 0.72):02x}" for channel in channels)


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """Give each label its style: dark grey squares for the baseline, colours in order for the others."""
    methods = [label for label in labels if label != BASELINE]
    chosen = {
        label: Style(_COLOURS[at % len(_COLOURS)], _MARKERS[at % len(_MARKERS)], at >= len(_COLOURS))
        for at, label in enumerate(methods)
    }
    return {BASELINE: Style("#3a3f45", "s"), **chosen}


@contextlib.contextmanager
def drawing(name: str) -> Iterator[None]:
    """Set what all plots share while one is drawn; `name` keeps its ids apart from the others' in a page."""
    import matplotlib

    with warnings.catch_warnings(), matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": f"repertory-{name}"}):
        # The reader's browser, not matplotlib, draws the letters, and has fonts for what DejaVu Sans lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def blank(height: float) -> Figure:
    """Return an empty figure of the common width, `height` inches high."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height))


def svg(figure: Figure, title: str) -> str:
    """Return the figure as SVG text that scales with the page and is the same for the same figure."""
    buffer = io.StringIO()
    undated = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=undated, transparent=True)
    head, end, body = buffer.getvalue().partition(">\n <defs>")
    head = re.sub(r' (width|height)="[^"]*"', "", head[head.index("<svg") :])
    head = head.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
    # Names such as figure_1 would occur once a plot in the page; nothing refers to them.
    return head + end + re.sub(r' id="(?!C\d)[A-Za-z][\w.]*_\d+"', "", body)


def inches(text: str, size: float) -> float:
    """Return how wide a text is in the widest font it may be shown in."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    font = FontProperties(family="DejaVu Sans")
    return float(TextPath((0, 0), text.replace("$", "S"), size=size, prop=font).get_extents().x1) / 72


def cut(text: str, longest: int) -> str:
    """Shorten a text to at most `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest - 1].rstrip()}…"


def short(name: Name) -> str:
    """Return a name as one line that fits beside a curve or a point."""
    return cut(str(name), 28)


def near(values: Sequence[float], centre: float) -> list[bool]:
    """Say which values belong in view: one collapsed method must not press all the others into a line."""
    distances = [abs(value - centre) for value in values]
    typical = median([distance for distance in distances if distance] or [0.0])
    return [distance <= 8 * typical or len(values) < 4 for distance in distances]


def leader_line(style: Style, side: Literal["left", "right"]) -> dict[str, Any]:
    """Return `annotate`'s arrow from one side of a text to what it names."""
    return {
        "arrowstyle": "-",
        "color": style.colour,
        "lw": 0.7,
        "alpha": 0.6,
        "shrinkA": 2,
        "shrinkB": 5,
        "relpos": (0 if side == "left" else 1, 0.5),
    }
