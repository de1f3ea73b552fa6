"""Graphs as rows of numbers, so that loaders, splits and batches treat them as they treat any other input."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.errors import DataError

_HEAD = 2
"""Numbers before the edges: how many nodes and how many edges."""


def pack(features: Tensor, edges: Tensor, graph: Tensor, graphs: int, lines: int | None = None) -> Tensor:
    """Write graphs into one block of numbers each.

    A block reads, line after line: number of nodes, number of edges, both ends of each edge, the features of each node,
    and zeros. It has as many columns as a node has features. Nodes are numbered anew in each graph, in their order.

    Args:
        features: of all nodes, those of a graph next to each other `(nodes, width)`.
        edges: both ends of each edge, numbers of nodes `(2, edges)`, int64; in any order.
        graph: number of each node's graph `(nodes,)`, int64, ascending from 0.
        graphs: how many there are.
        lines: of a block; None takes what the largest graph needs.

    Returns:
        `(graphs, lines, width)` float32; `unpack` gives back what was packed, with the edges in the order of graphs.

    Raises:
        DataError: if the shapes do not belong to graphs, an edge runs between two of them or to a node that is not
            there, or a graph needs more lines.

    >>> rows = pack(torch.ones(3, 2), torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 0, 1]), graphs=2)
    >>> rows[0].flatten().tolist()
    [2.0, 2.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    """
    _check(features, edges, graph, graphs)
    width = features.shape[1]
    nodes, owner = graph.bincount(minlength=graphs), graph[edges[0]]
    order = owner.argsort(stable=True)
    owner, ends = owner[order], edges[:, order]
    links = owner.bincount(minlength=graphs)
    needed = _HEAD + 2 * links + width * nodes
    longest = -(-int(needed.max()) // width) if graphs else 0
    size = longest if lines is None else lines
    if longest > size:
        first = int((needed > size * width).nonzero()[0])
        raise DataError(
            f"graph {first} has {int(nodes[first])} nodes and {int(links[first])} edges, which need {longest} lines of "
            f"{width} numbers, but lines={size}; raise lines, or leave large graphs out"
        )
    flat = torch.zeros(graphs, size * width, dtype=torch.float32)
    if not graphs:
        return flat.view(0, size, width)
    flat[:, 0], flat[:, 1] = nodes.float(), links.float()
    place = _HEAD + 2 * _within(owner, links)
    first_node = nodes.cumsum(0) - nodes
    for shift, end in enumerate(ends):
        flat[owner, place + shift] = (end - first_node[owner]).float()
    start = _HEAD + 2 * links[graph] + width * _within(graph, nodes)
    flat[graph[:, None], start[:, None] + torch.arange(width)] = features.float()
    return flat.view(graphs, size, width)


def unpack(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the graphs of a batch as one large graph, in the form of torch-geometric.

    Args:
        rows: from `pack`, `(batch, lines, width)`; a row of zeros is a graph without nodes.

    Returns:
        Features `(nodes, width)`, edges `(2, edges)` int64, and the number of each node's graph `(nodes,)` int64.

    Raises:
        DataError: if a row is not a packed graph.

    >>> features, edges, graph = unpack(torch.tensor([[[1.0], [0.0], [5.0]], [[1.0], [0.0], [7.0]]]))
    >>> features.flatten().tolist(), edges.shape, graph.tolist()
    ([5.0, 7.0], torch.Size([2, 0]), [0, 1])
    """
    if rows.ndim != 3 or rows.shape[1] * rows.shape[2] < _HEAD:
        raise DataError(
            f"inputs of shape {tuple(rows.shape)} are no packed graphs (batch, lines, width); use data of graphs, or "
            "repertory.core.graphs.pack"
        )
    width, flat = rows.shape[2], rows.flatten(1)
    counts = flat[:, :_HEAD].long()
    nodes, links = counts.unbind(1)
    end = _HEAD + 2 * links
    place = torch.arange(flat.shape[1], device=rows.device)
    wrong = (counts < 0).any(1) | (counts != flat[:, :_HEAD]).any(1) | (end + width * nodes > flat.shape[1])
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise DataError(
            f"row {first} of the batch is no packed graph: it begins with {flat[first, :_HEAD].tolist()}, which are no "
            f"numbers of nodes and edges that fit into {flat.shape[1]} numbers; pack graphs, and change nothing of them"
        )
    at_edges = (place >= _HEAD) & (place < end[:, None])
    at_nodes = (place >= end[:, None]) & (place < (end + width * nodes)[:, None])
    number = torch.arange(len(rows), device=rows.device)
    shift = (nodes.cumsum(0) - nodes)[number.repeat_interleave(links)]
    edges = flat[at_edges].view(-1, 2).long() + shift[:, None]
    return flat[at_nodes].view(-1, width), edges.T, number.repeat_interleave(nodes)


def undirected(edges: Tensor, nodes: int) -> Tensor:
    """Return edges in both directions, each once, sorted, without those from a node to itself.

    Args:
        edges: `(2, edges)`, int64.
        nodes: how many there are.

    >>> undirected(torch.tensor([[1, 1, 2], [0, 0, 2]]), nodes=3).tolist()
    [[0, 1], [1, 0]]
    """
    return distinct(torch.cat([edges, edges.flip(0)], 1), nodes)


def distinct(edges: Tensor, nodes: int) -> Tensor:
    """Return each edge once, sorted, without those from a node to itself.

    Args:
        edges: `(2, edges)`, int64.
        nodes: how many there are.
    """
    kept = edges[:, edges[0] != edges[1]]
    keys = (kept[0] * max(1, nodes) + kept[1]).unique()
    return torch.stack([keys // max(1, nodes), keys % max(1, nodes)])


def sizes(rows: Tensor) -> Tensor:
    """Return the number of nodes of packed graphs `(batch,)`, int64."""
    return rows.flatten(1)[:, 0].long()


def _within(owner: Tensor, counts: Tensor) -> Tensor:
    """The place of each entry among those of its owner, of entries that are sorted by owner."""
    return torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]


def _check(features: Tensor, edges: Tensor, graph: Tensor, graphs: int) -> None:
    nodes = len(features)
    if features.ndim != 2 or not features.shape[1]:
        raise DataError(f"features of nodes have shape {tuple(features.shape)}; they must be (nodes, width)")
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype != torch.int64:
        raise DataError(f"edges have shape {tuple(edges.shape)} and type {edges.dtype}; they must be (2, edges), int64")
    if graph.shape != (nodes,) or (nodes and (bool((graph.diff() < 0).any()) or int(graph[0]) < 0)):
        raise DataError(f"graph must give the graph of each of {nodes} nodes, ascending from 0; sort the nodes by it")
    if nodes and int(graph[-1]) >= graphs:
        raise DataError(f"graph names number {int(graph[-1])}, but graphs={graphs}; count them all")
    outside = ((edges < 0) | (edges >= nodes)).any(0)
    if bool(outside.any()):
        raise DataError(f"edge {edges[:, outside][:, 0].tolist()} points to none of {nodes} nodes; correct it")
    between = graph[edges[0]] != graph[edges[1]]
    if bool(between.any()):
        raise DataError(f"edge {edges[:, between][:, 0].tolist()} runs between two graphs; leave it out")
