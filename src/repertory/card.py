"""The card: what is known of a method without running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KINDS: tuple[str, ...] = (
    "optimizer",
    "loss",
    "layer",
    "model",
    "algorithm",
    "adapter",
    "transform",
    "estimator",
    "curation",
    "search",
    "diagnostic",
    "explainer",
    "study",
)
"""The kinds of method, each with the protocol of the ecosystem it belongs to (see docs/architecture.md)."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One literal at the top of a method's module; the module's docstring is its prose.

    The catalogue reads this call with `ast`, so every value must be a literal.

    Args:
        slug: the method's name on the command line; the module is the slug with `_` for `-`.
        name: the paper's own name for the method.
        title: title of the paper.
        authors: authors, shortened to the first and "et al." where long.
        year: year of publication.
        venue: where it was published.
        link: address of the paper.
        kind: one of `KINDS`.
        entry: the public class or function in the module; its signature holds the published defaults.
        problems: what a user would say they have ("label noise", "flat minima"), most typical first.
        defaults: the published defaults; a test compares them with the signature of `entry`.
        scenarios: names of the scenarios the method plays in.
        needs: what it asks of the data or the run: "index", "epochs", "classes", "per_example_loss", "views",
            "strong", "stream:NAME", "views:weak-strong", "class_counts", "teacher", "training", "images"; of an
            instrument "data", where it cannot do without.
        neutral: options at which the method equals the baseline exactly, or None where no such setting exists.
        owns: slots of the recipe of which there is one ("head"), beside those that `edit` visibly replaces.
        search: range of an option for tuning, `{"rho": (0.01, 0.5)}`; drawn evenly on a logarithmic scale.
        across_batch: True where the loss of an example depends on the others of its batch, so that micro-batches are no
            substitute for a batch.
        tags: further words to find it by.
        baseline: True for a reference method that is here because claims are measured against it.
    """

    slug: str
    name: str
    title: str
    authors: str
    year: int
    venue: str
    link: str
    kind: str
    entry: str
    problems: tuple[str, ...]
    defaults: Mapping[str, Any]
    scenarios: tuple[str, ...] = ("supervised",)
    needs: tuple[str, ...] = ()
    neutral: Mapping[str, Any] | None = None
    owns: tuple[str, ...] = ()
    search: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    across_batch: bool = False
    tags: tuple[str, ...] = ()
    baseline: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} of card {self.slug!r} is not one of {', '.join(KINDS)}")
