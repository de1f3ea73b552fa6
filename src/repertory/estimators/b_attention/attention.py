"""Attention that compares neighbours by features and by their profiles of similarities, and the network made of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from repertory.errors import DataError, OptionError, check_choice, check_number

VERSIONS = ("gcn", "transformer")
SCORES = ("B", "S", "Q")


def check_attention(k: int, heads: int, temperature: float, version: str, scores: str) -> None:
    """Check the options of `BAttention` that do not depend on the features.

    Raises:
        OptionError: naming the one that is outside its range.
    """
    check_number("k", k, minimum=1, integer=True)
    check_number("heads", heads, minimum=1, integer=True)
    check_number("temperature", temperature, above=0)
    check_choice("version", version, VERSIONS)
    check_choice("scores", scores, SCORES)


def check_encoder(layers: int, outputs: int, hidden: int, dropout: float) -> None:
    """Check the options of `BAttentionEncoder` beyond those of its layers.

    Raises:
        OptionError: naming the one that is outside its range.
    """
    check_number("layers", layers, minimum=1, integer=True)
    check_number("outputs", outputs, minimum=1, integer=True)
    check_number("hidden", hidden, minimum=1, integer=True)
    check_number("dropout", dropout, minimum=0, below=1)


class BAttention(nn.Module):
    r"""Attention over a row and its nearest neighbours, by features and by similarity profiles.

    Two neighbours attend to each other by their features, as in self-attention, and as far as their similarities to the
    whole context agree. The context's size is built in, and its order has a meaning: the row itself, then its
    neighbours, nearest first.

    Args:
        dim: size of the features.
        k: rows of a context, the row itself among them.
        inner: size of queries and keys over all heads; None takes `dim`.
        heads: of the self-attention; profiles are shared between them.
        temperature: divides the scores.
        version: "gcn" joins a row with the mean of what it attends to and maps both back to `dim`; "transformer" maps
            values first, as usual.
        scores: "B" for both kinds of scores, "S" for features alone (self-attention), "Q" for profiles alone.

    Raises:
        OptionError: if an option is outside its range; in use, if contexts have another size.

    >>> attention = BAttention(dim=4, k=3)
    >>> attention(torch.randn(2, 3, 4)).shape
    torch.Size([2, 3, 4])

    Notes:
        With several heads "gcn" joins a row with the mean of each, where the authors' code fails. As in their code,
        scores carry no factor of $1 / \sqrt{\mathrm{dim}}$.

    Reference: Wang, Zhang, Lin, Wang, Sun, Jin, https://arxiv.org/abs/2210.03956.
    """

    def __init__(
        self,
        dim: int,
        k: int,
        inner: int | None = None,
        heads: int = 1,
        temperature: float = 1.0,
        version: str = "gcn",
        scores: str = "B",
    ) -> None:
        super().__init__()
        check_attention(k, heads, temperature, version, scores)
        check_number("dim", dim, minimum=1, integer=True)
        inner = dim if inner is None else inner
        check_number("inner", inner, minimum=1, integer=True)
        if inner % heads:
            raise OptionError(f"heads={heads} does not divide inner={inner}; choose another of the two")
        self.k = k
        self.heads = heads
        self.temperature = temperature
        self.version = version
        self.scores = scores
        gcn = version == "gcn"
        self.project = nn.Linear(dim, (2 if gcn else 3) * inner)
        self.out = nn.Linear((heads + 1) * dim if gcn else inner, dim)
        self.profile = nn.Linear(k, 2 * k)
        self.fuse = nn.Linear(2, 1)
        for linear in (self.project, self.out, self.profile, self.fuse):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.xavier_normal_(linear.bias.view(1, -1))

    def forward(self, contexts: Tensor, there: Tensor | None = None) -> Tensor:
        """Return new features of all rows of the contexts.

        Args:
            contexts: rows and their neighbours `(batch, k, dim)`; zeros where there are fewer.
            there: which rows there are `(batch, k)` bool; None for all.

        Returns:
            `(batch, k, dim)`. What stands where no row is means nothing.
        """
        if contexts.ndim != 3 or contexts.shape[1] != self.k:
            raise OptionError(
                f"k={self.k} does not fit contexts of shape {tuple(contexts.shape)}; give (batch, {self.k}, dim)"
            )
        batch, k, _ = contexts.shape
        parts = self.project(contexts).view(batch, k, self.heads, -1).transpose(1, 2)
        queries, keys, *values = parts.chunk(2 if self.version == "gcn" else 3, dim=-1)
        weights = self.weights(queries, keys, contexts, there)
        if self.version == "gcn":
            means = weights @ contexts[:, None]
            return self.out(torch.cat([contexts, *means.unbind(1)], -1))
        return self.out((weights @ values[0]).transpose(1, 2).flatten(2))

    def weights(self, queries: Tensor, keys: Tensor, contexts: Tensor, there: Tensor | None = None) -> Tensor:
        """Return how much each row of a context takes from each other `(batch, heads, k, k)`.

        Args:
            queries: `(batch, heads, k, size)`.
            keys: `(batch, heads, k, size)`.
            contexts: `(batch, k, dim)`.
            there: `(batch, k)` bool, or None.
        """
        first, second = self.fuse.weight[0]
        fused = self.fuse.bias.expand(1)
        if self.scores != "Q":
            fused = fused + first * (queries @ keys.transpose(2, 3))
        if self.scores != "S":
            fused = fused + second * profile_scores(contexts, self.profile)[:, None]
        fused = fused.expand(len(contexts), self.heads, self.k, self.k) / self.temperature
        if there is None:
            return fused.softmax(-1)
        linked = (there[:, :, None] & there[:, None, :])[:, None]
        # Not minus infinity: rows that are not there have no link at all, and would become NaN.
        masked = fused.masked_fill(~linked, torch.finfo(fused.dtype).min).softmax(-1)
        return masked.masked_fill(~linked, 0)


def profile_scores(contexts: Tensor, profile: nn.Linear) -> Tensor:
    """Return how far the similarity profiles of the rows of a context agree, `(batch, k, k)` in [-1, 1].

    Args:
        contexts: `(batch, k, dim)`.
        profile: maps the `k` similarities of a row to two profiles of `k` numbers.
    """
    asked, offered = profile(contexts @ contexts.transpose(1, 2)).chunk(2, dim=-1)
    return normalize(asked, dim=-1) @ normalize(offered, dim=-1).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self, attention: BAttention, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.residual = attention.version == "transformer"
        if self.residual:
            self.feedforward = nn.Sequential(
                nn.Linear(dim, hidden), nn.Dropout(dropout), nn.ReLU(), nn.Linear(hidden, dim)
            )
        self.norm = nn.LayerNorm(dim)
        if self.residual:
            self.last_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, contexts: Tensor, there: Tensor | None) -> Tensor:
        new = self.dropout(self.attention(contexts, there))
        if not self.residual:
            return self.norm(new)
        contexts = self.norm(contexts + new)
        return self.last_norm(contexts + self.dropout(self.feedforward(contexts)))


class BAttentionEncoder(nn.Module):
    """Layers of B-attention over contexts, of which the row itself is kept.

    Args:
        dim: size of the features.
        k: rows of a context.
        layers: number of layers.
        outputs: size of what the head gives.
        inner: size of queries and keys; None takes `dim`.
        heads: of each layer.
        hidden: units between the two linear maps of a "transformer" layer.
        dropout: share of numbers that are dropped.
        temperature: divides the scores.
        version: "gcn" or "transformer".
        scores: "B", "S" or "Q".

    Raises:
        OptionError: if an option is outside its range.

    >>> encoder = BAttentionEncoder(dim=4, k=3, outputs=6)
    >>> encoder(torch.randn(2, 3, 4)).shape, encoder.encode(torch.randn(2, 3, 4)).shape
    (torch.Size([2, 6]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        dim: int,
        k: int,
        layers: int = 3,
        outputs: int = 2048,
        inner: int | None = None,
        heads: int = 1,
        hidden: int = 2048,
        dropout: float = 0.0,
        temperature: float = 1.0,
        version: str = "gcn",
        scores: str = "B",
    ) -> None:
        super().__init__()
        check_encoder(layers, outputs, hidden, dropout)
        attentions = [BAttention(dim, k, inner, heads, temperature, version, scores) for _ in range(layers)]
        self.layers = nn.ModuleList(_Block(attention, dim, hidden, dropout) for attention in attentions)
        self.head = nn.Sequential(nn.Linear(dim, outputs), nn.PReLU(outputs))

    def encode(self, contexts: Tensor, there: Tensor | None = None) -> Tensor:
        """Return the new feature of each row `(batch, dim)`, of length 1.

        Args:
            contexts: the row and its neighbours, nearest first `(batch, k, dim)`; zeros where there are fewer.
            there: which rows there are `(batch, k)` bool; None for all.
        """
        for layer in self.layers:
            contexts = layer(contexts, there)
        return normalize(contexts[:, 0], dim=1)

    def forward(self, contexts: Tensor, there: Tensor | None = None) -> Tensor:
        """Return what the head makes of it `(batch, outputs)`, of length 1; the loss is taken on this."""
        return normalize(self.head(self.encode(contexts, there)), dim=1)


def contexts_of(
    rows: Tensor, gallery: Tensor, places: Tensor, k: int, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return rows with their neighbours, filled up with zeros to `k`, and which of them there are.

    Args:
        rows: `(batch, dim)`.
        gallery: `(gallery, dim)`.
        places: neighbours of each row in the gallery `(batch, up to k - 1)` int64, nearest first.
        k: rows of a context.
        known: which of the neighbours count `(batch, up to k - 1)` bool; None for all.

    Returns:
        `(batch, k, dim)` and `(batch, k)` bool.

    Raises:
        DataError: if there are too many neighbours.

    >>> contexts_of(torch.ones(1, 2), torch.zeros(3, 2), torch.tensor([[2]]), k=3)[1]
    tensor([[ True,  True, False]])
    """
    count = 1 + places.shape[1]
    if count > k:
        raise DataError(
            f"places has {places.shape[1]} neighbours a row, but a context of k={k} takes {k - 1}; search for as many"
        )
    contexts = rows.new_zeros(len(rows), k, rows.shape[1])
    there = torch.zeros(len(rows), k, dtype=torch.bool, device=rows.device)
    contexts[:, 0], there[:, 0] = rows, True
    there[:, 1:count] = True if known is None else known
    contexts[:, 1:count] = gallery[places] * there[:, 1:count, None]
    return contexts, there
