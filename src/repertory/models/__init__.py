"""Networks: factories that take the shape of one input and the number of outputs."""

from repertory.models.gin import GIN
from repertory.models.poolformer import (
    MetaFormer,
    poolformer_m36,
    poolformer_m48,
    poolformer_s12,
    poolformer_s24,
    poolformer_s36,
    poolformer_tiny,
)
from repertory.models.small import conv1d, mlp, small_cnn
from repertory.models.text import HashedText, hugging_face
from repertory.models.torchvision_dense import TorchvisionSegmenter
from repertory.models.unet import UNet, small_unet

__all__ = [
    "GIN",
    "HashedText",
    "MetaFormer",
    "TorchvisionSegmenter",
    "UNet",
    "conv1d",
    "hugging_face",
    "mlp",
    "poolformer_m36",
    "poolformer_m48",
    "poolformer_s12",
    "poolformer_s24",
    "poolformer_s36",
    "poolformer_tiny",
    "small_cnn",
    "small_unet",
]
