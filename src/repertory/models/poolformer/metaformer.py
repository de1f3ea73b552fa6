"""The MetaFormer: the shell of a transformer around any token mixer, in four stages of falling resolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from repertory.errors import OptionError, check_choice, check_number
from repertory.models.poolformer.mixers import MIXERS, NORMS, PositionEmbedding, make_mixer, make_norm


class DropPath(nn.Module):
    """In training, drop the branch of each example with a probability, and scale the others to keep the mean.

    Args:
        rate: probability, below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole examples of a branch's output `(batch, ...)`."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty((len(x),) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


class Block(nn.Module):
    """Norm, token mixer, residual; norm, channel MLP, residual.

    Args:
        channels: width of the maps.
        mixer: module that mixes positions.
        norm: one of `NORMS`.
        mlp_ratio: width of the MLP's hidden layer over `channels`.
        layer_scale: start value of the learned scale of each branch's channels.
        drop_rate: dropout rate of the MLP.
        drop_path_rate: rate at which an example skips a branch.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        norm: str,
        mlp_ratio: float,
        layer_scale: float,
        drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.norm1 = make_norm(norm, channels)
        self.mixer = mixer
        self.norm2 = make_norm(norm, channels)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.GELU(),
            nn.Dropout(drop_rate),
            nn.Conv2d(hidden, channels, 1),
            nn.Dropout(drop_rate),
        )
        self.scale1 = nn.Parameter(torch.full((channels, 1, 1), float(layer_scale)))
        self.scale2 = nn.Parameter(torch.full((channels, 1, 1), float(layer_scale)))
        self.drop_path = DropPath(drop_path_rate)
        for layer in self.mlp:
            if isinstance(layer, nn.Conv2d):
                _initialise(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Transform a map."""
        x = x + self.drop_path(self.scale1 * self.mixer(self.norm1(x)))
        return x + self.drop_path(self.scale2 * self.mlp(self.norm2(x)))


class MetaFormer(nn.Module):
    """Hierarchical vision network whose token mixer is a choice; with its defaults this is PoolFormer-S12.

    Args:
        in_shape: `(channels, height, width)` of one image. The size is binding only for "random" and
            "spatial" mixers and position embeddings; otherwise the network takes images of any size.
        outputs: number of classes; 0 leaves out the classifier, so that the network returns pooled features.
        depths: blocks of each stage.
        dims: channels of each stage, as many as `depths`.
        mixers: one of "identity", "pooling", "random", "depthwise", "attention", "spatial", or one for each
            stage.
        norm: "group" (one group over channels and positions), "channel" (layer norm at each position) or
            "batch".
        position_embedding: whether each stage begins with a learned position embedding, or one answer a
            stage.
        mlp_ratio: width of an MLP's hidden layer over the stage's.
        pool_size: side of the neighbourhood of "pooling", odd.
        head_dim: width of a head of "attention".
        layer_scale: start value of the learned scales; 1e-5 suits 300 epochs, short runs want about 0.1.
        drop_rate: dropout rate of the MLPs.
        drop_path_rate: rate of dropped branches in the last block, rising linearly from 0 in the first.
        strides: how much each stage reduces the map. The first is the stem's: 4 for the published 7 x 7
            convolution, 1 to 3 for a 3 x 3 one that suits small images; the others are 1 or 2.

    Attributes:
        num_features: channels of the last stage.
        num_classes: number of classes.

    Raises:
        OptionError: if an option is outside its range, or the lists do not have one entry a stage.

    >>> model = MetaFormer((3, 32, 32), 10, depths=(1, 1), dims=(8, 16), strides=(4, 2), mixers="attention")
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    >>> model.forward_features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 16, 4, 4])

    Notes:
        The final norm comes before the pooling over positions, as in the authors' code, and is part of
        `forward_features`; timm's port pools first. The authors' networks for dense prediction give each
        stage's output a norm of its own, which belongs to the head that uses them: see
        `forward_intermediates`.

    Reference: Yu, Luo, Zhou, Si, Zhou, Wang, Feng, Yan, https://arxiv.org/abs/2111.11418.
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        outputs: int,
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        mixers: str | Sequence[str] = "pooling",
        norm: str = "group",
        position_embedding: bool | Sequence[bool] = False,
        mlp_ratio: float = 4.0,
        pool_size: int = 3,
        head_dim: int = 32,
        layer_scale: float = 1e-5,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        strides: Sequence[int] = (4, 2, 2, 2),
    ) -> None:
        super().__init__()
        count = len(depths)
        mixers = [mixers] * count if isinstance(mixers, str) else list(mixers)
        embedded = [position_embedding] * count if isinstance(position_embedding, bool) else list(position_embedding)
        _check_stages(depths, dims=dims, mixers=mixers, position_embedding=embedded, strides=strides)
        _check_options(dims, mixers, norm, strides, pool_size, head_dim)
        check_number("outputs", outputs, minimum=0, integer=True)
        check_number("mlp_ratio", mlp_ratio, above=0)
        check_number("layer_scale", layer_scale)
        check_number("drop_rate", drop_rate, minimum=0, below=1)
        check_number("drop_path_rate", drop_path_rate, minimum=0, below=1)
        size = _check_image(in_shape)

        self.num_classes = outputs
        self.num_features = dims[-1]
        kernel, padding = (7, 2) if strides[0] == 4 else (3, 1)
        size = _reduced(size, kernel, strides[0], padding)
        self.stem = nn.Conv2d(in_shape[0], dims[0], kernel, strides[0], padding)
        self.stages = nn.ModuleList()
        total = sum(depths)
        starts = [0, *accumulate(depths)]
        for i, (channels, mixer) in enumerate(zip(dims, mixers)):
            layers: list[nn.Module] = []
            if i > 0:
                size = _reduced(size, 3, strides[i], 1)
                layers.append(nn.Conv2d(dims[i - 1], channels, 3, strides[i], 1))
            if embedded[i]:
                layers.append(PositionEmbedding(channels, size))
            for block in range(starts[i], starts[i + 1]):
                mixing = make_mixer(mixer, channels, size, pool_size, head_dim)
                rate = drop_path_rate * block / max(1, total - 1)
                layers.append(Block(channels, mixing, norm, mlp_ratio, layer_scale, drop_rate, rate))
            self.stages.append(nn.Sequential(*layers))
        self.norm = make_norm(norm, self.num_features)
        self.head = nn.Linear(self.num_features, outputs) if outputs else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _initialise(module)

    def forward_intermediates(self, x: Tensor) -> list[Tensor]:
        """Return the map that each stage ends with, not normalised: the input of a dense-prediction head."""
        x = self.stem(x)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's normalised map `(batch, num_features, height, width)`."""
        return self.norm(self.forward_intermediates(x)[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a map over its positions and classify it.

        Args:
            x: what `forward_features` returns.
            pre_logits: return the pooled features `(batch, num_features)` instead.
        """
        pooled = x.mean((-2, -1))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(batch, outputs)` of images `(batch, channels, height, width)`."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one; 0 classes leave it out."""
        check_number("num_classes", num_classes, minimum=0, integer=True)
        self.num_classes = num_classes
        if num_classes:
            weight = self.stem.weight
            self.head = nn.Linear(self.num_features, num_classes, device=weight.device, dtype=weight.dtype)
            _initialise(self.head)
        else:
            self.head = nn.Identity()


def _initialise(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _reduced(size: tuple[int, int], kernel: int, stride: int, padding: int) -> tuple[int, int]:
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    if min(height, width) < 1:
        raise OptionError(
            "in_shape is too small: a stem of stride 4 needs images of at least 3 x 3; use strides=(1, ...)"
        )
    return height, width


def _check_image(in_shape: tuple[int, ...]) -> tuple[int, int]:
    if len(in_shape) != 3 or any(size < 1 for size in in_shape):
        raise OptionError(
            f"in_shape={tuple(in_shape)} is not allowed: a MetaFormer takes images (channels, height, "
            f"width); use a model for other inputs, such as repertory.models.small:mlp"
        )
    return in_shape[1], in_shape[2]


def _check_stages(depths: Sequence[int], **lists: Sequence[object]) -> None:
    for depth in depths:
        check_number("depths", depth, minimum=1, integer=True)
    for name, values in lists.items():
        if len(values) != len(depths) or not depths:
            raise OptionError(
                f"{name}={tuple(values)} has {len(values)} entries, but depths={tuple(depths)} makes "
                f"{len(depths)} stages; give one entry a stage, and at least one stage"
            )


def _check_options(
    dims: Sequence[int],
    mixers: Sequence[str],
    norm: str,
    strides: Sequence[int],
    pool_size: int,
    head_dim: int,
) -> None:
    for width in dims:
        check_number("dims", width, minimum=1, integer=True)
    for mixer in mixers:
        check_choice("mixers", mixer, MIXERS)
    check_choice("norm", norm, NORMS)
    for position, stride in enumerate(strides):
        check_number("strides", stride, minimum=1, maximum=2 if position else 4, integer=True)
    check_number("head_dim", head_dim, minimum=1, integer=True)
    check_number("pool_size", pool_size, minimum=1, integer=True)
    if pool_size % 2 == 0:
        raise OptionError(f"pool_size={pool_size} is not allowed: an even window has no centre; use {pool_size + 1}")
