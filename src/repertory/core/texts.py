"""Texts as tensors of bytes, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def text_bytes(texts: Sequence[str], length: int) -> Tensor:
    """Return texts as UTF-8 bytes, cut at whole characters and filled up with 0.

    Args:
        texts: any number of them.
        length: bytes of each that are kept at most.

    Returns:
        uint8 `(texts, length)`.

    >>> text_bytes(["no", "né"], 2).tolist()
    [[110, 111], [110, 0]]
    """
    rows = [_cut(text.replace("\0", " ").encode(errors="ignore"), length).ljust(length, b"\0") for text in texts]
    if not rows:
        return torch.zeros(0, length, dtype=torch.uint8)
    return torch.frombuffer(bytearray().join(rows), dtype=torch.uint8).view(-1, length)


def bytes_text(rows: Tensor) -> list[str]:
    """Return the texts that `text_bytes` was given, as far as they were kept.

    Args:
        rows: `(texts, length)`, on any device.

    >>> bytes_text(text_bytes(["no", "né"], 2))
    ['no', 'n']
    """
    count, length = rows.shape
    together = bytes(rows.to("cpu", torch.uint8).flatten().tolist())
    starts = range(0, count * length, length) if length else [0] * count
    return [together[start : start + length].rstrip(b"\0").decode(errors="ignore") for start in starts]


def _cut(text: bytes, length: int) -> bytes:
    return text if len(text) <= length else text[:length].decode(errors="ignore").encode()
