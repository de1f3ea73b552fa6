"""Token mixers and norms for a MetaFormer: they take maps `(batch, channels, height, width)`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from repertory.errors import OptionError

NORMS = ("group", "channel", "batch")
"""Norms a block can use: one group over channels and positions; channels at each position; batch norm."""

MIXERS = ("identity", "pooling", "random", "depthwise", "attention", "spatial")
"""Token mixers a stage can use."""


class Pooling(nn.Module):
    """Average of the neighbourhood, less the position itself; no parameters.

    Args:
        size: side of the neighbourhood, odd. At the border only the positions that exist are averaged.

    >>> Pooling()(torch.ones(1, 1, 2, 2)).tolist()
    [[[[0.0, 0.0], [0.0, 0.0]]]]
    """

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map."""
        return self.pool(x) - x


class RandomMixing(nn.Module):
    """Mixing of positions by a fixed random matrix whose rows sum to one.

    Args:
        size: height and width of the maps.
    """

    weight: Tensor

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        tokens = size[0] * size[1]
        self.register_buffer("weight", torch.rand(tokens, tokens).softmax(1))

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map of the size given at the start."""
        check_map_size(x, self.size)
        return nn.functional.linear(x.flatten(2), self.weight).view_as(x)


class SpatialMixing(nn.Module):
    """Learned linear map over positions, shared by the channels, without bias.

    Args:
        size: height and width of the maps.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.linear = nn.Linear(size[0] * size[1], size[0] * size[1], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map of the size given at the start."""
        check_map_size(x, self.size)
        return self.linear(x.flatten(2)).view_as(x)


class Attention(nn.Module):
    """Multi-head self-attention over the positions of a map.

    Args:
        channels: width of the maps, a multiple of the number of heads.
        head_dim: wished width of a head; there are `channels // head_dim` heads, at least one.
    """

    def __init__(self, channels: int, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = max(1, channels // head_dim)
        if channels % self.heads:
            raise OptionError(
                f"head_dim={head_dim} is not allowed: it gives {self.heads} heads, which cannot share "
                f"{channels} channels evenly; choose a divisor of {channels}"
            )
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.projection = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map."""
        tokens = x.flatten(2).transpose(1, 2)
        # (batch, positions, 3 * channels) -> three of (batch, heads, positions, head width)
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.projection(mixed.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(x.shape)


class PositionEmbedding(nn.Module):
    """Learned vector for each position, added to the map; zero at the start.

    Args:
        channels: width of the maps.
        size: height and width of the maps.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.embedding = nn.Parameter(torch.zeros(channels, *size))

    def forward(self, x: Tensor) -> Tensor:
        """Add the embedding to a map of the size given at the start."""
        check_map_size(x, self.size)
        return x + self.embedding


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position by itself.

    Args:
        channels: width of the maps.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a map."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def make_norm(norm: str, channels: int) -> nn.Module:
    """Return one of `NORMS` for maps of a width."""
    if norm == "group":
        return nn.GroupNorm(1, channels)
    return ChannelNorm(channels) if norm == "channel" else nn.BatchNorm2d(channels)


def make_mixer(mixer: str, channels: int, size: tuple[int, int], pool_size: int, head_dim: int) -> nn.Module:
    """Return one of `MIXERS` for maps of a width and size.

    Args:
        mixer: its name.
        channels: width of the maps.
        size: height and width of the maps.
        pool_size: side of the neighbourhood of "pooling".
        head_dim: width of a head of "attention".
    """
    if mixer == "pooling":
        return Pooling(pool_size)
    if mixer == "random":
        return RandomMixing(size)
    if mixer == "depthwise":
        return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    if mixer == "attention":
        return Attention(channels, head_dim)
    return SpatialMixing(size) if mixer == "spatial" else nn.Identity()


def check_map_size(x: Tensor, size: tuple[int, int]) -> None:
    """Check that a map has the size that a mixer or embedding was made for.

    Raises:
        OptionError: if it has not.
    """
    if tuple(x.shape[-2:]) != size:
        raise OptionError(
            f"a map of {x.shape[-2]} x {x.shape[-1]} positions reached a stage of {size[0]} x {size[1]}: "
            f"random and spatial mixers and position embeddings fix the image size; set in_shape to it"
        )
