"""Generated graphs in which one motif decides the class and another one only tends to go with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from repertory.core.graphs import undirected
from repertory.datasets.columns import Column
from repertory.datasets.graphs import from_raw
from repertory.datasets.raw_graphs import DEGREE, RawGraphs
from repertory.datasets.stratify import generator_for
from repertory.errors import OptionError, check_choice

if TYPE_CHECKING:
    from repertory.datasets.dataset import Dataset

KEYS = ("examples", "bias", "test", "extra")
"""Options of the data, as in `motif-graphs?bias=0.9&test=reversed`."""

_SMALLEST, _LARGEST = 15, 25
"""Nodes of the random tree."""
_SHARE = 0.4
"""Share of the graphs that are shifted."""
_DEGREES = 12
"""Numbers of neighbours that are told apart."""

_RIM = [(n, n % 5 + 1) for n in range(1, 6)]
WHEEL = (6, [(0, n) for n in range(1, 6)] + _RIM)
CYCLE = (6, [(n, (n + 1) % 6) for n in range(6)])
HOUSE = (5, [(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (1, 4)])
STAR = (7, [(0, n) for n in range(1, 7)])
"""Motifs: how many nodes, and their edges."""


def load_motif_graphs(
    name: str, spec: str, examples: str = "1200", bias: str = "0.9", test: str = "unbiased", extra: str = "0.6"
) -> Dataset:
    """Return the generated data set.

    Class 1 has a wheel, class 0 a ring of six or a house, each beside a random tree. A star is there too: in training
    in a share `bias` of class 1 and in a share `1 - bias` of class 0.

    Args:
        name: of the data.
        spec: what the user typed.
        examples: number of graphs, of which 40 % are shifted.
        bias: the share, from 0 to 1; at 0.5 the star says nothing.
        test: "unbiased" has a star in half of the graphs of either class, "reversed" exchanges the shares.
        extra: further edges between any two nodes, for each node; without them motifs stand out so much that a network
            finds the wheel whatever the star does.

    Raises:
        OptionError: if an option is outside its range.
    """
    if not examples.isdecimal() or int(examples) < 40:
        raise OptionError(f"examples={examples} must be a whole number, at least 40, as in examples=1200")
    share = _number("bias", bias, 1.0, "a share of graphs from 0 to 1, as in bias=0.9")
    further = _number("extra", extra, 2.0, "a number of edges a node from 0 to 2, as in extra=0.6")
    check_choice("test", test, ("unbiased", "reversed"))
    outside = round(_SHARE * int(examples))
    inside = int(examples) - outside
    shares = torch.tensor([share] * inside + [0.5 if test == "unbiased" else 1 - share] * outside)
    raw = motif_graphs(shares, further)
    environments = ["training"] * inside + [test] * outside
    raw = RawGraphs(**{**vars(raw), "source": name, "environments": environments})
    column = Column(DEGREE, tuple(map(str, range(_DEGREES))))
    return from_raw(raw, name, spec, {"held": test}, (column,))


def motif_graphs(shares: Tensor, extra: float = 0.0, seed: int = 0) -> RawGraphs:
    """Draw graphs: random trees of 15 to 25 nodes with the motif of their class, and with a star or not.

    Classes alternate. A new node of the tree joins any earlier one; motifs are tied to a node of the tree by one edge.

    Args:
        shares: for each graph, the probability of a star if it is of class 1, and of none if it is of class 0.
        extra: further edges for each node, between any two of its graph.
        seed: of everything that is drawn.

    >>> raw = motif_graphs(torch.full((4,), 0.9))
    >>> raw.count, raw.labels.tolist()
    (4, ['0', '1', '0', '1'])
    """
    count, generator = len(shares), generator_for(seed, "motif graphs")
    labels = torch.arange(count) % 2
    sizes = torch.randint(_SMALLEST, _LARGEST + 1, (count,), generator=generator)
    draws = torch.rand(count, _LARGEST, generator=generator)
    parents = (draws * torch.arange(_LARGEST)).long()
    stars = (torch.rand(count, generator=generator) < shares) == (labels == 1)
    houses = torch.rand(count, generator=generator) < 0.5
    ties = torch.rand(count, 4, generator=generator)
    edges, owner, start = [], [], 0
    for row in range(count):
        size = int(sizes[row])
        own = torch.stack([torch.arange(1, size), parents[row, 1:size]])
        motifs = [WHEEL if labels[row] else HOUSE if houses[row] else CYCLE] + [STAR] * bool(stars[row])
        nodes = size
        for number, (more, inner) in enumerate(motifs):
            here, there = ties[row, 2 * number : 2 * number + 2].tolist()
            bridge = torch.tensor([[int(here * size)], [nodes + int(there * more)]])
            own = torch.cat([own, torch.tensor(inner).T + nodes, bridge], 1)
            nodes += more
        further = (torch.rand(2, round(extra * nodes), generator=generator) * nodes).long()
        edges.append(undirected(torch.cat([own, further], 1), nodes) + start)
        owner.append(torch.full((nodes,), row))
        start += nodes
    return RawGraphs(
        source="motif graphs",
        edges=torch.cat(edges, 1),
        graph=torch.cat(owner),
        count=count,
        labels=np.array([str(label) for label in labels.tolist()]),
    )


def _number(option: str, text: str, most: float, allowed: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise OptionError(f"{option}={text} must be {allowed}")
    return value
