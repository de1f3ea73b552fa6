"""Features propagated over graphs of nearest neighbours: one round after another, on sparse links."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from repertory.core.neighbours import nearest_neighbours, neighbour_graph
from repertory.errors import OptionError, check_choice, check_number
from repertory.estimators.rows import read_groups

MODES = ("nonsym", "sym", "no-norm", "fixA", "localk", "localk-inplace")
_HELD = 2**24
"""Numbers of local graphs that are held at once."""


class Graph(NamedTuple):
    """One graph of a round.

    Args:
        k: links of a row, that to itself among them.
        beta: temperature of the weights.
        share: of the new features that come from this graph.
        across: link different groups only.
    """

    k: int
    beta: float
    share: float
    across: bool


class Links(NamedTuple):
    """Sparse rows of a matrix whose columns are the rows of a gallery, with the diagonal apart.

    Args:
        places: columns `(rows, k)`, int64.
        weights: `(rows, k)`; 0 where there is no link.
        own: of each row's link to itself `(rows,)`.
    """

    places: Tensor
    weights: Tensor
    own: Tensor


class Stage(NamedTuple):
    """What a round leaves behind for rows that come later.

    Args:
        features: of the gallery before the round `(gallery, dim)`.
        columns: sums of the columns of each graph `(gallery,)`; empty for local graphs, which have none.
    """

    features: Tensor
    columns: list[Tensor]


def check_options(k1: int, k2: int, beta1: float, beta2: float, scale: float, rounds: int, mode: str) -> None:
    """Check the options of `graph_rerank`.

    Raises:
        OptionError: naming the one that is outside its range.
    """
    check_number("k1", k1, minimum=1, integer=True)
    check_number("k2", k2, minimum=1, integer=True)
    check_number("beta1", beta1, above=0)
    check_number("beta2", beta2, above=0)
    check_number("scale", scale, minimum=0, maximum=1)
    check_number("rounds", rounds, minimum=0, integer=True)
    check_choice("mode", mode, MODES)


def graphs_of(k1: int, k2: int, beta1: float, beta2: float, scale: float, *, rows: int, grouped: bool) -> list[Graph]:
    """Return the graphs that take part: all links, and where groups are known those between different ones.

    Raises:
        OptionError: if a graph asks for more links than there are rows.
    """
    both = [Graph(k1, beta1, 1 - scale if grouped else 1.0, False), Graph(k2, beta2, scale if grouped else 0.0, True)]
    for graph, name in zip(both, ("k1", "k2")):
        if graph.share > 0 and graph.k > rows:
            raise OptionError(f"{name}={graph.k} is more than the rows there are (n_samples={rows}); lower {name}")
    return [graph for graph in both if graph.share > 0]


def graph_rerank(
    features: Tensor,
    groups: Any = None,
    *,
    k1: int = 15,
    k2: int = 3,
    beta1: float = 0.2,
    beta2: float = 0.2,
    scale: float = 0.3,
    rounds: int = 3,
    mode: str = "nonsym",
) -> Tensor:
    """Return features in which each row is a mean of its neighbours' and its own, to be searched as before.

    Args:
        features: of queries and gallery together `(rows, dim)`; only directions count. A zero row has none: it links to
            no other and none to it, and it stays zero.
        groups: the camera (or domain) of each row `(rows,)`; None leaves the graph between cameras out.
        k1: links of a row in the graph of all rows, the one to itself among them.
        k2: links of a row in the graph between cameras.
        beta1: temperature of the weights in the first graph.
        beta2: temperature of the weights in the second graph.
        scale: share of the second graph.
        rounds: how many times; 0 returns the features as they are.
        mode: see `GCR`.

    Returns:
        `(rows, dim)`, in the type of `features` but float32 at least; of length 1, but for the mode "no-norm".

    Raises:
        OptionError: if an option is outside its range, or a row cannot have as many links.
        DataError: if there is not one group a row.

    >>> rows = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> graph_rerank(rows, k1=3, beta1=1e6, rounds=1)
    tensor([[0.7474, 0.6644],
            [0.7474, 0.6644],
            [0.7474, 0.6644]])
    """
    check_options(k1, k2, beta1, beta2, scale, rounds, mode)
    graphs = graphs_of(k1, k2, beta1, beta2, scale, rows=len(features), grouped=groups is not None)
    if rounds == 0:
        return features
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    codes = None if groups is None else group_codes(groups, len(features)).to(features.device)
    return run_rounds(normalize(wide, dim=1), codes, graphs, rounds, mode)[0]


def group_codes(groups: Any, count: int) -> Tensor:
    """Return whole numbers, equal where the groups are, `(count,)` int64."""
    return torch.from_numpy(np.unique(read_groups(groups, count), return_inverse=True)[1].reshape(-1))


def run_rounds(
    features: Tensor, codes: Tensor | None, graphs: list[Graph], rounds: int, mode: str
) -> tuple[Tensor, list[Stage]]:
    """Propagate unit features `(rows, dim)` for some rounds, and return them with what each round left behind.

    Args:
        features: the rows, which are their own gallery.
        codes: the group of each `(rows,)` int64, or None.
        graphs: from `graphs_of`.
        rounds: how many.
        mode: one of `MODES`.
    """
    stages, found = [], None
    own = torch.arange(len(features), device=features.device)
    pair = None if codes is None else (codes, codes)
    for _ in range(rounds):
        if found is None or mode != "fixA":
            found = [find_links(features, features, graph, mode, own=own, codes=pair) for graph in graphs]
        columns = [] if mode.startswith("localk") else [_columns(links) for links in found]
        if mode == "sym":
            columns = [(_rows(links) + sums) / 2 for links, sums in zip(found, columns)]
        mixed = []
        for number, links in enumerate(found):
            if columns:
                rows = columns[number] if mode == "sym" else _rows(links)
                links = _normalised(links, rows, columns[number], columns[number])
            mixed.append(links)
        stages.append(Stage(features, columns))
        features = _mix(mixed, graphs, features, features, mode)
    return features, stages


def follow(
    rows: Tensor, codes: tuple[Tensor, Tensor] | None, stages: list[Stage], graphs: list[Graph], mode: str
) -> Tensor:
    """Propagate unit rows that come one by one, over a gallery that has had its rounds.

    A row sees the gallery and itself, as the gallery was before each round. It is taken to be linked to as it links:
    the sum of its column is that of its row.

    Args:
        rows: `(rows, dim)`.
        codes: the groups of the rows and of the gallery, int64, or None.
        stages: from `run_rounds` on the gallery.
        graphs: those of the gallery.
        mode: that of the gallery.
    """
    found = None
    for stage in stages:
        if found is None or mode != "fixA":
            found = [find_links(rows, stage.features, graph, mode, codes=codes) for graph in graphs]
        mixed = found
        if stage.columns:
            sums = [_rows(links) for links in found]
            mixed = [_normalised(links, r, c, r) for links, r, c in zip(found, sums, stage.columns)]
        # Nothing links back, so the symmetric mean of the links is the links, and nothing is updated in place.
        plain = {"sym": "nonsym", "localk-inplace": "localk"}.get(mode, mode)
        rows = _mix(mixed, graphs, rows, stage.features, plain)
    return rows


def find_links(
    rows: Tensor,
    gallery: Tensor,
    graph: Graph,
    mode: str,
    *,
    own: Tensor | None = None,
    codes: tuple[Tensor, Tensor] | None = None,
) -> Links:
    """Return the links of a graph: weights $S$, or in local graphs the coefficients of the new features.

    Args:
        rows: `(rows, dim)`.
        gallery: `(gallery, dim)`.
        graph: how many links, and how sharp.
        mode: one of `MODES`.
        own: positions of the rows in the gallery `(rows,)`, None where they are not of it.
        codes: the groups of the rows and of the gallery.
    """
    local = mode.startswith("localk")
    count = min(graph.k, len(gallery) - (own is not None))
    itself = rows.square().sum(1)
    if count == 0:
        places = torch.zeros(len(rows), 0, dtype=torch.int64, device=rows.device)
        return Links(places, rows.new_zeros(len(rows), 0), torch.ones_like(itself))
    groups = codes if graph.across else None
    near, places = nearest_neighbours(rows, gallery, count, metric="dot", own=own, groups=groups)
    if local:
        return _local_coefficients(rows, gallery, places, near > 0, graph.beta)
    if count == graph.k:
        # A row is one of its own nearest, and then takes the place of the last.
        near[:, -1].masked_fill_(near[:, -1] <= itself, -torch.inf)
    squares = gallery.square().sum(1)[places]
    near.masked_fill_((itself[:, None] == 0) | (squares == 0), -torch.inf)
    if mode == "no-norm":
        distances = (itself[:, None] + squares - 2 * near).clamp(min=0)
        return Links(places, (-distances / graph.beta).exp(), torch.ones_like(itself))
    # Rows have length 1. A factor on all weights cancels; this one makes the largest of them 1.
    return Links(places, ((near - 1) / graph.beta).exp(), torch.ones_like(itself))


def _local_coefficients(rows: Tensor, gallery: Tensor, places: Tensor, kept: Tensor, beta: float) -> Links:
    """The last row of the normalised matrix of each row's own graph: its neighbours, and itself at the end."""
    nodes = places.shape[1] + 1
    found = []
    for part in torch.arange(len(rows), device=rows.device).split(max(1, _HELD // (nodes * max(nodes, rows.shape[1])))):
        points = torch.cat([gallery[places[part]], rows[part, None]], 1)
        there = torch.cat([kept[part], kept.new_ones(len(part), 1)], 1)
        weights = ((torch.bmm(points, points.transpose(1, 2)) - 1) / beta).exp()
        weights = weights * (there[:, :, None] & there[:, None, :])
        sums = weights.sum(2)
        # Rows that are not there have sum 0 and weight 0.
        found.append(weights[:, -1] / (sums[:, -1:] * torch.where(there, sums, 1)).sqrt())
    coefficients = torch.cat(found)
    return Links(places, coefficients[:, :-1], coefficients[:, -1])


def _rows(links: Links) -> Tensor:
    return links.weights.sum(1) + links.own


def _columns(links: Links) -> Tensor:
    return links.own.index_add(0, links.places.flatten(), links.weights.flatten())


def _normalised(links: Links, rows: Tensor, columns: Tensor, own_columns: Tensor) -> Links:
    weights = links.weights / (rows[:, None] * columns[links.places]).sqrt()
    return Links(links.places, weights, links.own / (rows * own_columns).sqrt())


def _mix(mixed: list[Links], graphs: list[Graph], rows: Tensor, gallery: Tensor, mode: str) -> Tensor:
    """The new features: products with each graph's matrix, by their shares, at length 1."""
    own = sum((graph.share * links.own for links, graph in zip(mixed, graphs)), torch.zeros_like(rows[:, 0]))
    weights = torch.cat([graph.share * links.weights for links, graph in zip(mixed, graphs)], 1)
    places = torch.cat([links.places for links in mixed], 1)
    if places.shape[1] == 0:
        return rows
    matrix = neighbour_graph(weights, places, len(gallery))
    if mode == "localk-inplace":
        new = _in_place(matrix, own, rows)
    else:
        new = matrix @ gallery
        if mode == "sym":
            new = (new + matrix.T @ gallery) / 2
        new = new + own[:, None] * rows
    return new if mode == "no-norm" else normalize(new, dim=1)


def _in_place(matrix: Tensor, own: Tensor, rows: Tensor) -> Tensor:
    """Each row reads the new features of the rows before it: a triangular system of equations."""
    from scipy.sparse import csr_matrix, identity
    from scipy.sparse import tril as lower_of
    from scipy.sparse.linalg import spsolve_triangular

    places = matrix.indices().cpu().numpy()
    whole = csr_matrix((matrix.values().cpu().numpy(), places), shape=matrix.shape)
    lower = lower_of(whole, -1)
    known = (whole - lower) @ rows.cpu().numpy() + own[:, None].cpu().numpy() * rows.cpu().numpy()
    solved = spsolve_triangular((identity(len(rows)) - lower).tocsr(), known, lower=True, unit_diagonal=True)
    return torch.from_numpy(solved).to(rows)
