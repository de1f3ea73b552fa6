"""Networks: factories that take the shape of one input and the number of outputs."""

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

__all__ = [
    "MetaFormer",
    "conv1d",
    "mlp",
    "poolformer_m36",
    "poolformer_m48",
    "poolformer_s12",
    "poolformer_s24",
    "poolformer_s36",
    "poolformer_tiny",
    "small_cnn",
]
