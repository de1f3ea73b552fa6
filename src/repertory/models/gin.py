"""A graph isomorphism network: what a comparison trains on graphs when the user names no model."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.graphs import unpack
from repertory.errors import OptionError, UserError, check_choice, check_number


class Readout(nn.Module):
    """Pool what belongs to the nodes of a graph into one vector for the graph.

    Args:
        pooling: "sum" or "mean".

    >>> Readout("mean")(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]), 2).flatten().tolist()
    [2.0, 5.0]
    """

    def __init__(self, pooling: str = "sum") -> None:
        super().__init__()
        check_choice("pooling", pooling, ("sum", "mean"))
        self.pooling = pooling

    def forward(self, nodes: Tensor, graph: Tensor, graphs: int) -> Tensor:
        """Return the vectors of graphs `(graphs, dim)`; that of one without nodes is zero.

        Args:
            nodes: vectors of nodes `(nodes, dim)`.
            graph: number of each node's graph `(nodes,)`.
            graphs: how many there are.
        """
        # Sums over many nodes need more digits than half precision has.
        wide = nodes.to(torch.promote_types(nodes.dtype, torch.float32))
        pooled = wide.new_zeros(graphs, nodes.shape[1]).index_add(0, graph, wide)
        if self.pooling == "mean":
            pooled = pooled / graph.bincount(minlength=graphs).clamp(min=1)[:, None]
        return pooled.to(nodes.dtype)


class GIN(nn.Module):
    """Layers of torch-geometric's `GINConv`, each with a perceptron, batch norm and ReLU; the graph is their sum.

    The vector of a graph is the sum over the layers of what is pooled from its nodes; one linear layer classifies it.
    Since pooling is linear, the layers are added before it: `readout` is called once, with a vector a node, of the same
    meaning as the vector of the graph.

    Args:
        in_shape: `(lines, width)` of packed graphs, see `repertory.core.graphs.pack`; the width alone matters.
        outputs: number of classes.
        hidden: size of the vectors of nodes and graphs.
        layers: how many.
        pooling: "sum" or "mean" over the nodes.
        dropout: share of the graph's vector that is dropped in training, in [0, 1).

    Attributes:
        readout: the module that pools nodes.
        classifier: the linear layer from the vector of a graph to its classes.

    Raises:
        OptionError: if an option is outside its range, or `in_shape` is not that of packed graphs.
        UserError: if torch-geometric is not installed.

    >>> network = GIN((10, 4), 2, hidden=8)
    >>> network(torch.zeros(3, 10, 4)).shape, network.forward_features(torch.zeros(3, 10, 4)).shape
    (torch.Size([3, 2]), torch.Size([3, 8]))

    Notes:
        The paper gives each layer a classifier of its own and concatenates them; so does the authors' code of L2R-GNN,
        which learns its weights on the sum of the layers. Here that sum is what is classified.

    Reference: Xu, Hu, Leskovec, Jegelka, How Powerful are Graph Neural Networks?, https://arxiv.org/abs/1810.00826.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        outputs: int,
        hidden: int = 32,
        layers: int = 3,
        pooling: str = "sum",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(in_shape) != 2 or any(size < 1 for size in in_shape):
            raise OptionError(
                f"in_shape={tuple(in_shape)} is not allowed: GIN takes packed graphs (lines, width); give data of "
                "graphs, as in --data motif-graphs"
            )
        for name, value in (("outputs", outputs), ("hidden", hidden), ("layers", layers)):
            check_number(name, value, minimum=1, integer=True)
        check_number("dropout", dropout, minimum=0, below=1)
        convolution = _convolution()
        widths = (in_shape[1], *[hidden] * (layers - 1))
        self.convolutions = nn.ModuleList(
            convolution(
                nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, hidden)),
                train_eps=True,
            )
            for width in widths
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in widths)
        self.readout = Readout(pooling)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, outputs)

    def forward_features(self, rows: Tensor) -> Tensor:
        """Return the vectors of packed graphs, `(batch, hidden)`."""
        nodes, edges, graph = unpack(rows)
        nodes = nodes.to(self.classifier.weight.dtype)
        total: Tensor | None = None
        for convolution, norm in zip(self.convolutions, self.norms):
            nodes = norm(convolution(nodes, edges)).relu()
            total = nodes if total is None else total + nodes
        features: Tensor = self.dropout(self.readout(total, graph, len(rows)))
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits `(batch, outputs)` of vectors of graphs."""
        logits: Tensor = self.classifier(features)
        return logits

    def forward(self, rows: Tensor) -> Tensor:
        """Return the logits of packed graphs, `(batch, outputs)`."""
        return self.forward_head(self.forward_features(rows))

    def get_classifier(self) -> nn.Linear:
        """Return the linear layer from the vector of a graph to its classes."""
        return self.classifier

    def reset_classifier(self, outputs: int) -> None:
        """Put a fresh linear layer for so many classes in the classifier's place."""
        check_number("outputs", outputs, minimum=1, integer=True)
        old = self.classifier.weight
        self.classifier = nn.Linear(old.shape[1], outputs, device=old.device, dtype=old.dtype)


def _convolution() -> Any:
    try:
        with warnings.catch_warnings():
            # The package compiles some of its own parts with torch.jit, which torch warns of.
            warnings.simplefilter("ignore")
            from torch_geometric.nn import GINConv
    except ImportError:
        raise UserError(
            'networks on graphs need torch-geometric; install it with: pip install "repertory[graphs]"'
        ) from None
    return GINConv
