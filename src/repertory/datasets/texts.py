"""Pairs of texts as a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from repertory.core.texts import text_bytes
from repertory.datasets.columns import Column
from repertory.datasets.dataset import Dataset
from repertory.datasets.encoder import Encoder
from repertory.errors import DataError

_MOST_BYTES = 1024
"""Longest text that is kept whole when the length is chosen from the data; about 170 words."""
_SHARE = 0.95
"""Share of the texts that a length chosen from the data leaves whole, if that takes no more."""
_STEP = 32


def from_pairs(
    columns: Sequence[tuple[str, Sequence[str]]],
    name: str,
    spec: str,
    *,
    length: int | None = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """Make a data set of pairs of texts, with hard negatives where there are any.

    Args:
        columns: names and texts: queries, passages, and any number of hard negatives, which may be empty.
        name: short name of the data.
        spec: what the user typed.
        length: bytes that are kept of a text; None keeps 95 % of the texts whole, as far as 1024 bytes do.
        notes: what was handled on reading and should be said.

    Returns:
        The data set; targets are numbers of the distinct passages, in the order of their first pair.

    Raises:
        DataError: if a query or passage is empty, or there are too few passages.

    >>> data = from_pairs([("question", list("abcdefg")), ("answer", list("uvwxyzu"))], "faq", "faq")
    >>> data.inputs.shape, data.targets.tolist()
    (torch.Size([7, 2, 32]), [0, 1, 2, 3, 4, 5, 0])
    """
    texts = [[text.replace("\0", " ").strip() for text in column] for _, column in columns]
    for (what, _), column in zip(columns[:2], texts):
        if empty := [row + 1 for row, text in enumerate(column) if not text]:
            raise DataError(
                f"{name}: {what!r} is empty in {len(empty)} rows, first in row {empty[0]}; fill it in, or "
                "remove the rows"
            )
    said = list(notes)
    wrong = [[text == passage for text, passage in zip(column, texts[1])] for column in texts[2:]]
    if count := sum(map(sum, wrong)):
        said.append(f"negatives left out since they are the pair's own passage: {count}")
        texts[2:] = [["" if bad else text for text, bad in zip(*each)] for each in zip(texts[2:], wrong)]
    sizes = sorted(len(text.encode(errors="ignore")) for column in texts for text in column if text)
    if length is None:
        wanted = sizes[math.ceil(_SHARE * len(sizes)) - 1]
        length = min(_MOST_BYTES, _STEP * math.ceil(wanted / _STEP))
    if cut := sum(size > length for size in sizes):
        said.append(f"texts cut after {length} bytes: {cut} of {len(sizes)}")
    numbers: dict[str, int] = {}
    return Dataset(
        name=name,
        spec=spec,
        task="pairs",
        modality="text",
        inputs=torch.stack([text_bytes(column, length) for column in texts], 1),
        targets=torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts[1]]),
        classes=(),
        encoder=Encoder("text", (len(columns), length), tuple(Column(what) for what, _ in columns)),
        notes=tuple(said),
    )


def distinct_passages(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of the passages of pairs, rising, and the position of the first pair of each.

    Args:
        targets: number of each pair's passage `(pairs,)`, int64.

    Returns:
        Two of `(passages,)`, int64.

    >>> distinct_passages(torch.tensor([4, 2, 4]))
    (tensor([2, 4]), tensor([1, 0]))
    """
    numbers, places = targets.unique(return_inverse=True)
    first = torch.full((len(numbers),), len(targets), device=targets.device)
    return numbers, first.scatter_reduce(0, places, torch.arange(len(targets), device=targets.device), "amin")
