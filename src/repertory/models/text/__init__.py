"""Encoders of texts given as UTF-8 bytes: a small one that needs no vocabulary, and those of Hugging Face."""

from repertory.models.text.hashed import HashedText
from repertory.models.text.transformer import TransformerText, bidirectional, hugging_face, mean_pool

__all__ = ["HashedText", "TransformerText", "bidirectional", "hugging_face", "mean_pool"]
