"""Networks: factories that take the shape of one input and the number of outputs."""

from repertory.models.poolformer import MetaFormer

__all__ = ["MetaFormer"]
