"""Graphs as rows of numbers: a round trip, agreement with torch-geometric's batches, and what cannot be packed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from repertory.core.graphs import distinct, pack, sizes, undirected, unpack
from repertory.errors import DataError


def graphs(seed: int = 0, count: int = 7, width: int = 3) -> list[tuple[Tensor, Tensor]]:
    """Features and edges of graphs of 1 to 6 nodes, some without an edge."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        nodes = int(torch.randint(1, 7, (), generator=generator))
        edges = torch.randint(nodes, (2, 0 if number % 3 == 0 else 2 * nodes), generator=generator)
        made.append((torch.randn(nodes, width, generator=generator), edges))
    return made


def batched(made: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """The batch of torch-geometric: features, edges, and the graph of each node."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.data import Batch, Data
    batch = Batch.from_data_list([Data(x=x, edge_index=edges) for x, edges in made])
    return batch.x, batch.edge_index, batch.batch


@pytest.mark.parametrize("width", [1, 2, 3, 11])
def test_unpacking_a_batch_gives_what_torch_geometric_batches(width: int) -> None:
    made = graphs(width=width)
    expected = batched(made)
    rows = pack(*expected, graphs=len(made))
    for found, wanted in zip(unpack(rows), expected):
        assert torch.equal(found, wanted)


def test_any_rows_in_any_order_make_the_batch_of_those_graphs() -> None:
    made, chosen = graphs(), [4, 0, 0, 6]
    rows = pack(*batched(made), graphs=len(made))
    for found, wanted in zip(unpack(rows[chosen]), batched([made[n] for n in chosen])):
        assert torch.equal(found, wanted)


def test_edges_may_come_in_any_order_and_graphs_may_be_empty() -> None:
    features, graph = torch.arange(4.0)[:, None], torch.tensor([1, 1, 3, 3])
    rows = pack(features, torch.tensor([[3, 0, 2], [2, 1, 3]]), graph, graphs=5, lines=12)
    assert rows.shape == (5, 12, 1)
    assert sizes(rows).tolist() == [0, 2, 0, 2, 0]
    found = unpack(rows)
    assert torch.equal(found[1], torch.tensor([[0, 3, 2], [1, 2, 3]]))
    assert torch.equal(found[2], graph)
    assert [len(each) for each in unpack(torch.zeros(3, 5, 2))] == [0, 2, 0]


def test_gradients_reach_the_features_of_nodes() -> None:
    rows = pack(*batched(graphs()), graphs=7).requires_grad_()
    unpack(rows)[0].sum().backward()
    assert rows.grad is not None
    assert rows.grad.sum() == unpack(rows)[0].numel()


def test_edges_are_made_distinct_and_undirected() -> None:
    edges = torch.tensor([[2, 0, 0, 1, 2], [0, 2, 1, 1, 0]])
    assert distinct(edges, 3).tolist() == [[0, 0, 2], [1, 2, 0]]
    assert undirected(edges, 3).tolist() == [[0, 0, 1, 2], [1, 2, 0, 0]]
    assert undirected(torch.zeros(2, 0, dtype=torch.int64), 0).shape == (2, 0)


X, E, G = torch.zeros(3, 2), torch.tensor([[0], [1]]), torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((X[:, 0], E, G, 2), r"features of nodes have shape \(3,\)"),
        ((X, E.float(), G, 2), "type torch.float32"),
        ((X, E, G.flip(0), 2), "ascending from 0; sort the nodes"),
        ((X, E, G[:2], 2), "graph must give the graph of each of 3 nodes"),
        ((X, E, G, 1), "graphs=1; count them all"),
        ((X, E + 2, G, 2), r"edge \[2, 3\] points to none of 3 nodes"),
        ((X, E + 1, G, 2), r"edge \[1, 2\] runs between two graphs"),
        ((X, E, G, 2, 3), "graph 0 has 2 nodes and 1 edges, which need 4 lines of 2 numbers, but lines=3"),
    ],
)
def test_what_is_no_graph_is_refused(given: tuple[Tensor, Tensor, Tensor, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        pack(*given)


def test_rows_that_are_no_packed_graphs_are_refused() -> None:
    with pytest.raises(DataError, match=r"inputs of shape \(4, 6\) are no packed graphs"):
        unpack(torch.zeros(4, 6))
    rows = pack(X, E, G, 2)
    for place, value in ((0, 0.5), (0, -1.0), (1, 9.0)):
        wrong = rows.clone()
        wrong.flatten(1)[1, place] = value
        with pytest.raises(DataError, match="row 1 of the batch is no packed graph"):
            unpack(wrong)
