r"""An image network with the layout of a transformer and plain average pooling in the place of attention.

## Idea
A transformer block is a shell: norm, token mixer, residual; norm, channel MLP, residual. Keep the shell (a
*MetaFormer*) and let the tokens mix by average pooling, which has no parameters and costs next to nothing:
accuracy stays close to that of attention. So most of the result comes from the shell, and the mixer can be
chosen for its price, stage by stage.

## Use it when
- you want a hierarchical image backbone that is cheaper than attention, above all at high resolution;
- you want to know what a token mixer is worth on your data: `mixers=` changes it and nothing else;
- early stages have many positions: pooling there, attention in the last one or two stages, is the paper's
  best hybrid.

## Do not use it when
- images are few and training starts from nothing: a convolutional network usually learns faster;
- what matters is far apart in the image and the network is shallow: pooling reaches one neighbour a block;
- image sizes vary and you want "random" or "spatial" mixers or position embeddings, which fix the size.

## Equations
$$ x \leftarrow x + \gamma_1 \odot \operatorname{Mixer}(\operatorname{Norm}(x)), \qquad
   x \leftarrow x + \gamma_2 \odot \operatorname{MLP}(\operatorname{Norm}(x)) $$
$$ \operatorname{Pooling}(x)_{c,i} = \frac{1}{|N(i)|} \sum_{j \in N(i)} x_{c,j} - x_{c,i} $$

The average is over the positions of a 3 x 3 window that exist, and less the position itself, since the
residual adds it back. Norm is group norm with one group: mean and variance over channels and positions of an
example.

## Defaults
The published sizes, all with MLP ratio 4 and a 3 x 3 window:

| size | blocks | channels | parameters | LayerScale | DropPath | ImageNet top-1 |
|---|---|---|---|---|---|---|
| s12 | 2, 2, 6, 2 | 64, 128, 320, 512 | 11.9 M | 1e-5 | 0.1 | 77.2 |
| s24 | 4, 4, 12, 4 | 64, 128, 320, 512 | 21.4 M | 1e-5 | 0.1 | 80.3 |
| s36 | 6, 6, 18, 6 | 64, 128, 320, 512 | 30.9 M | 1e-6 | 0.2 | 81.4 |
| m36 | 6, 6, 18, 6 | 96, 192, 384, 768 | 56.2 M | 1e-6 | 0.3 | 82.1 |
| m48 | 8, 8, 24, 8 | 96, 192, 384, 768 | 73.5 M | 1e-6 | 0.4 | 82.5 |

`poolformer_tiny` is ours, for small images and short runs: one block a stage, 16, 32, 48 and 64 channels,
about 0.1 M parameters, LayerScale 0.1, no DropPath. A LayerScale of 1e-5 is made for 300 epochs: in a short
run the blocks would hardly act. The authors train with AdamW, learning rate 1e-3 for batches of 1024, weight
decay 0.05, and strong augmentation.

## Cost
The pooling mixer has no parameters and takes time in proportion to the positions, where attention's grows
with their square. The MLPs are nearly all of the time.

## Claim
Pooling is clearly better than no mixing at all, and close to attention, at the same depth and width.
"""

from __future__ import annotations

from typing import Any

from repertory.card import Card
from repertory.errors import OptionError, check_choice
from repertory.models.poolformer.metaformer import MetaFormer
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="poolformer",
    name="PoolFormer",
    title="MetaFormer is Actually What You Need for Vision",
    authors="Weihao Yu et al.",
    year=2022,
    venue="CVPR 2022",
    link="https://arxiv.org/abs/2111.11418",
    kind="model",
    entry="MetaFormer",
    problems=("image backbone", "cheap token mixer", "replace attention", "hierarchical vision transformer"),
    defaults={
        "depths": (2, 2, 6, 2),
        "dims": (64, 128, 320, 512),
        "mixers": "pooling",
        "norm": "group",
        "position_embedding": False,
        "mlp_ratio": 4.0,
        "pool_size": 3,
        "head_dim": 32,
        "layer_scale": 1e-5,
        "drop_rate": 0.0,
        "drop_path_rate": 0.1,
        "strides": (4, 2, 2, 2),
    },
    scenarios=("supervised", "retrieval", "continual", "semi_supervised"),
    tags=("vision", "images", "MetaFormer", "pooling", "efficient network"),
)

SIZES = ("tiny", "s12", "s24", "s36", "m36", "m48")
"""Names of the sizes that there is a factory for: `poolformer_tiny`, `poolformer_s12`, ..."""

_SMALL = (64, 128, 320, 512)
_MEDIUM = (96, 192, 384, 768)


def poolformer_tiny(in_shape: tuple[int, ...] | None = None, outputs: int | None = None, **options: Any) -> MetaFormer:
    """Build a network of one block a stage for images from 8 x 8 upwards.

    It reduces by what the image has to give, so that the last map has at least 2 x 2 positions: from 64
    pixels a side as published (strides 4, 2, 2, 2); from 32 with a stem of stride 2; below with a stem of
    stride 1, and below 16 with stride 1 also into the last stage (8 x 8 images give maps of 8, 4, 2 and 2).

    Args:
        in_shape: `(channels, height, width)` of one image.
        outputs: number of classes.
        **options: as for `MetaFormer`; also `in_chans`, `img_size` and `num_classes`, as timm names them.

    >>> poolformer_tiny(in_shape=(1, 8, 8), outputs=10).num_features
    64
    """
    image, outputs, options = _call(in_shape, outputs, options)
    side = min(image[1:]) if len(image) == 3 else 0
    if side >= 32:
        strides = (4 if side >= 64 else 2, 2, 2, 2)
    else:
        strides = (1, 2, 2, 2 if side >= 16 else 1)
    tiny = {"depths": (1, 1, 1, 1), "dims": (16, 32, 48, 64), "layer_scale": 0.1, "drop_path_rate": 0.0}
    return MetaFormer(image, outputs, **{**tiny, "strides": strides, **options})


def poolformer_s12(in_shape: tuple[int, ...] | None = None, outputs: int | None = None, **options: Any) -> MetaFormer:
    """Build PoolFormer-S12; arguments as for `poolformer_tiny`, by default for ImageNet.

    >>> sum(p.numel() for p in poolformer_s12(num_classes=1000).parameters())
    11915176
    """
    return _published((2, 2, 6, 2), _SMALL, 1e-5, 0.1, in_shape, outputs, options)


def poolformer_s24(in_shape: tuple[int, ...] | None = None, outputs: int | None = None, **options: Any) -> MetaFormer:
    """Build PoolFormer-S24; arguments as for `poolformer_tiny`, by default for ImageNet."""
    return _published((4, 4, 12, 4), _SMALL, 1e-5, 0.1, in_shape, outputs, options)


def poolformer_s36(in_shape: tuple[int, ...] | None = None, outputs: int | None = None, **options: Any) -> MetaFormer:
    """Build PoolFormer-S36; arguments as for `poolformer_tiny`, by default for ImageNet."""
    return _published((6, 6, 18, 6), _SMALL, 1e-6, 0.2, in_shape, outputs, options)


def poolformer_m36(in_shape: tuple[int, ...] | None = None, outputs: int | None = None, **options: Any) -> MetaFormer:
    """Build PoolFormer-M36; arguments as for `poolformer_tiny`, by default for ImageNet."""
    return _published((6, 6, 18, 6), _MEDIUM, 1e-6, 0.3, in_shape, outputs, options)


def poolformer_m48(in_shape: tuple[int, ...] | None = None, outputs: int | None = None, **options: Any) -> MetaFormer:
    """Build PoolFormer-M48; arguments as for `poolformer_tiny`, by default for ImageNet."""
    return _published((8, 8, 24, 8), _MEDIUM, 1e-6, 0.4, in_shape, outputs, options)


def edit(recipe: Recipe, size: str = "tiny", **options: Any) -> Recipe:
    """Put a PoolFormer of one of `SIZES` in the place of the model, with any option of `MetaFormer`."""
    check_choice("size", size, SIZES)
    return recipe.replace(model=Part(f"repertory.models.poolformer:poolformer_{size}", options, "poolformer"))


def _published(
    depths: tuple[int, ...],
    dims: tuple[int, ...],
    layer_scale: float,
    drop_path_rate: float,
    in_shape: tuple[int, ...] | None,
    outputs: int | None,
    options: dict[str, Any],
) -> MetaFormer:
    image, outputs, options = _call(in_shape, outputs, options)
    published = {"depths": depths, "dims": dims, "layer_scale": layer_scale, "drop_path_rate": drop_path_rate}
    return MetaFormer(image, outputs, **{**published, **options})


def _call(
    in_shape: tuple[int, ...] | None, outputs: int | None, options: dict[str, Any]
) -> tuple[tuple[int, ...], int, dict[str, Any]]:
    timm = {name: options.pop(name) for name in ("in_chans", "img_size", "num_classes") if name in options}
    for ours, names in (("in_shape", ("in_chans", "img_size")), ("outputs", ("num_classes",))):
        twice = [name for name in names if name in timm]
        if twice and (in_shape if ours == "in_shape" else outputs) is not None:
            raise OptionError(f"{twice[0]}={timm[twice[0]]!r} and {ours} say the same thing; give one of the two")
    if in_shape is None:
        size = timm.get("img_size", 224)
        in_shape = (timm.get("in_chans", 3), *((size, size) if isinstance(size, int) else size))
    return tuple(in_shape), timm.get("num_classes", 1000) if outputs is None else outputs, options
