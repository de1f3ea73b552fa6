"""The layer: embeddings choose keys, and the values of these vote."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.errors import DataError, OptionError, check_choice, check_number

_HELD = 2**24
"""Distances that are held at once: 64 MiB of float32."""


class KeyValueBottleneck(nn.Module):
    """Logits that are the mean vote of the nearest keys' values, one key a codebook; only the values are trained.

    Keys are found in float32 or wider, also under autocast, and without gradient. They start from standard normal
    numbers; place them with `initialise_keys` before training.

    Args:
        dim: size of the embedding.
        outputs: size of a value, the number of classes.
        codebooks: number of codebooks, each with a projection of its own.
        pairs: keys with their values in a codebook.
        dim_key: size of a key.
        topk: keys whose values are added up in each codebook.
        splitter: "random" projects the embedding by fixed normal matrices with columns of length 1; "chunk" cuts it in
            `codebooks` pieces of `dim_key` numbers.
        mask_unused: in evaluation, choose only among keys that training has given a value.

    Raises:
        OptionError: if an option is outside its range, or pieces do not add up to `dim`.

    >>> layer = KeyValueBottleneck(dim=6, outputs=3, codebooks=4, pairs=8, dim_key=2)
    >>> layer(torch.randn(5, 6)).shape, layer.usage()
    (torch.Size([5, 3]), 0.0)

    Notes:
        The authors count how often a key was chosen in training, and mask those never chosen by the largest distance in
        the batch. Here a key counts as used when its value is not 0, which is the same after training from 0, needs no
        counter, and agrees between processes.

    Reference: Träuble, Goyal, Rahaman, Mozer, Kawaguchi, Bengio, Schölkopf, https://arxiv.org/abs/2207.11240.
    """

    keys: Tensor
    projections: Tensor | None

    def __init__(
        self,
        dim: int,
        outputs: int,
        codebooks: int = 256,
        pairs: int = 4096,
        dim_key: int = 14,
        topk: int = 1,
        splitter: str = "random",
        mask_unused: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "outputs": outputs, "codebooks": codebooks, "pairs": pairs, "dim_key": dim_key}
        for name, value in sizes.items():
            check_number(name, value, minimum=1, integer=True)
        check_number("topk", topk, minimum=1, maximum=pairs, integer=True)
        check_choice("splitter", splitter, ("random", "chunk"))
        check_choice("mask_unused", mask_unused, (True, False))
        if splitter == "chunk" and codebooks * dim_key != dim:
            raise OptionError(
                f"splitter='chunk' cuts dim={dim} into {codebooks} codebooks of dim_key={dim_key}, which make "
                f"{codebooks * dim_key}; change them, or take splitter='random'"
            )
        self.dim = dim
        self.topk = topk
        self.mask_unused = mask_unused
        random = nn.functional.normalize(torch.randn(codebooks, dim, dim_key), dim=1)
        self.register_buffer("projections", random if splitter == "random" else None)
        self.register_buffer("keys", torch.randn(codebooks, pairs, dim_key))
        self.values = nn.Parameter(torch.zeros(codebooks, pairs, outputs))

    def forward(self, embedding: Tensor) -> Tensor:
        """Return logits.

        Args:
            embedding: `(batch, dim)`, or `(batch, tokens, dim)`.

        Returns:
            `(batch, outputs)`, in the type of the values.

        Raises:
            DataError: if the embedding is of another size.
        """
        codebooks, pairs, outputs = self.values.shape
        chosen = self.chosen(embedding)
        starts = pairs * torch.arange(codebooks, device=chosen.device)
        bags = (chosen + starts[:, None]).flatten(1)
        tokens = bags.shape[1] // (codebooks * self.topk)
        with torch.autocast(bags.device.type, enabled=False):
            votes = nn.functional.embedding_bag(bags, self.values.view(-1, outputs), mode="sum")
        return votes / (codebooks * tokens)

    @torch.no_grad()
    def chosen(self, embedding: Tensor) -> Tensor:
        """Return the keys that embeddings choose in each codebook, nearest first.

        Args:
            embedding: `(batch, dim)`, or `(batch, tokens, dim)`.

        Returns:
            `(batch, tokens, codebooks, topk)`, int64; one token where there is no such axis.
        """
        heads, tokens = self.heads(embedding), embedding[0].numel() // self.dim if len(embedding) else 1
        unused = self.used().logical_not_() if self.mask_unused and not self.training else None
        found = nearest_keys(heads, self.keys, self.topk, unused)
        return found.permute(1, 0, 2).unflatten(0, (-1, tokens))

    def heads(self, embedding: Tensor) -> Tensor:
        """Return what is compared with the keys, `(codebooks, batch * tokens, dim_key)`, float32 or wider."""
        if embedding.ndim not in (2, 3) or embedding.shape[-1] != self.dim:
            raise DataError(
                f"the embedding has shape {tuple(embedding.shape)}; it must be (batch, {self.dim}) or (batch, tokens, "
                f"{self.dim})"
            )
        with torch.autocast(embedding.device.type, enabled=False):
            rows = embedding.reshape(-1, self.dim).to(torch.promote_types(embedding.dtype, self.keys.dtype))
            if self.projections is None:
                return rows.view(len(rows), len(self.keys), -1).transpose(0, 1)
            return torch.matmul(rows, self.projections.to(rows.dtype))

    def used(self) -> Tensor:
        """Return which keys training has given a value, `(codebooks, pairs)`, bool."""
        return self.values.detach().any(-1)

    def usage(self) -> float:
        """Return the share of keys that training has given a value; small where keys lie far from the inputs."""
        return float(self.used().double().mean())

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        codebooks, pairs, outputs = self.values.shape
        return f"dim={self.dim}, outputs={outputs}, codebooks={codebooks}, pairs={pairs}, dim_key={self.keys.shape[2]}"


def nearest_keys(heads: Tensor, keys: Tensor, topk: int = 1, left_out: Tensor | None = None) -> Tensor:
    """Return the nearest keys of each head in its own codebook, nearest first, a few codebooks at a time.

    Args:
        heads: `(codebooks, n, dim_key)`.
        keys: `(codebooks, pairs, dim_key)`.
        topk: keys a head.
        left_out: keys that are only taken where no others are left, `(codebooks, pairs)`, bool.

    Returns:
        `(codebooks, n, topk)`, int64.

    >>> nearest_keys(torch.tensor([[[0.9]]]), torch.tensor([[[0.0], [1.0], [3.0]]]), topk=2).tolist()
    [[[1, 0]]]
    """
    found = []
    size = max(1, _HELD // max(1, heads.shape[1] * keys.shape[1]))
    for start in range(0, len(keys), size):
        part = slice(start, start + size)
        own = keys[part].to(heads.dtype)
        # Half of the squared distance, without the head's own part, which is the same for all keys.
        offset = own.square().sum(-1)[:, None] / 2
        if left_out is not None:
            offset = offset.masked_fill(left_out[part, None], torch.inf)
        with torch.autocast(heads.device.type, enabled=False):
            distances = torch.baddbmm(offset, heads[part], own.transpose(1, 2), alpha=-1)
        nearest = distances.argmin(-1, keepdim=True) if topk == 1 else distances.topk(topk, largest=False).indices
        found.append(nearest)
    return torch.cat(found)
