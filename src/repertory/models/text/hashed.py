"""A small encoder of texts given as bytes: hashed words and character trigrams, averaged, then a small perceptron."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory.errors import DataError, check_number

_MODULUS = 2**31 - 1
"""A prime; products of two numbers below it fit 64 bits."""
_BASE = 1_000_003
_SALT = 1_471_343
"""Keeps a word of three letters apart from the trigram of the same letters."""
_SPACE = 32
"""What everything counts as that is neither a letter nor a digit."""


def hashed_words(characters: Tensor) -> Tensor:
    """Return a hash of each word, at its last character, and 0 elsewhere; equal words have equal hashes.

    Args:
        characters: from `word_characters`, `(texts, length)` int64.

    Returns:
        int64 `(texts, length)`, from 1 on where a word ends.
    """
    length = characters.shape[1]
    within = characters != _SPACE
    first = within & ~functional.pad(within, (1, 0))[:, :-1]
    last = within & ~functional.pad(within, (0, 1))[:, 1:]
    powers = _powers(_BASE, length, characters.device)
    # A polynomial of the word's characters is a difference of prefix sums, divided by the power at which it begins.
    sums = functional.pad((characters * powers % _MODULUS).cumsum(1), (1, 0))
    start = torch.where(first, torch.arange(length, device=characters.device), 0).cummax(1).values
    shares = _powers(pow(_BASE, -1, _MODULUS), length, characters.device)
    values = (sums[:, 1:] - sums.gather(1, start)) % _MODULUS * shares[start] % _MODULUS
    return torch.where(last, 1 + values, 0)


def hashed_trigrams(characters: Tensor) -> Tensor:
    """Return a hash of each character of a word with its neighbours, and 0 at what belongs to no word.

    Args:
        characters: from `word_characters`, `(texts, length)` int64.

    Returns:
        int64 `(texts, length)`, from 1 on.
    """
    padded = functional.pad(characters, (1, 1), value=_SPACE)
    values = (padded[:, :-2] * _BASE + padded[:, 1:-1]) % _MODULUS * _BASE + padded[:, 2:]
    return torch.where(characters != _SPACE, 1 + (values + _SALT) * _BASE % _MODULUS, 0)


def word_characters(texts: Tensor) -> Tensor:
    """Return the bytes of texts in lower case, with a space for all but letters, digits and what is not ASCII.

    Args:
        texts: UTF-8 bytes `(texts, length)`, 0 after the end.

    Returns:
        int64 of the same shape.
    """
    codes = texts.long()
    codes = torch.where((codes >= ord("A")) & (codes <= ord("Z")), codes + ord("a") - ord("A"), codes)
    digits = (codes >= ord("0")) & (codes <= ord("9"))
    letters = ((codes >= ord("a")) & (codes <= ord("z"))) | (codes >= 128)
    return torch.where(digits | letters, codes, _SPACE)


@functools.lru_cache(maxsize=8)
def _powers(base: int, count: int, device: torch.device) -> Tensor:
    powers = itertools.accumulate(range(1, count), lambda power, _: power * base % _MODULUS, initial=1)
    return torch.tensor(list(powers)[:count], device=device)


class HashedText(nn.Module):
    """Embed texts by the means of learnt vectors of their words and of their character trigrams.

    Words and trigrams are found and hashed by tensor operations on the bytes, so nothing needs a vocabulary, and the
    same text has the same hashes everywhere. The two means, each at root mean square 1, are put side by side; a small
    perceptron adds to them, which starts from nothing. So texts that share words are near each other before any
    training.

    Args:
        outputs: size of the embedding; None keeps the two means, `2 * width`.
        width: size of the vector of a word or trigram.
        buckets: number of such vectors; what has the same hash shares one.
        hidden: units of the perceptron's hidden layer.
        dropout: share of a text's words and trigrams that are left out in training, drawn anew each time.

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if the inputs are not texts.

    >>> model = HashedText(outputs=3)
    >>> text = torch.tensor([list(b"two words")])
    >>> model(text).shape, model(text.repeat(2, 1)[None]).shape
    (torch.Size([1, 3]), torch.Size([1, 2, 3]))
    """

    def __init__(
        self,
        outputs: int | None = None,
        width: int = 64,
        buckets: int = 16384,
        hidden: int = 256,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        check_number("width", width, minimum=1, integer=True)
        check_number("buckets", buckets, minimum=1, integer=True)
        check_number("hidden", hidden, minimum=1, integer=True)
        check_number("dropout", dropout, minimum=0, below=1)
        self.dropout = dropout
        self.table = nn.Parameter(torch.randn(buckets, width) / 10)
        self.norm = nn.RMSNorm(width)
        first, last = nn.Linear(2 * width, hidden), nn.Linear(hidden, 2 * width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.perceptron = nn.Sequential(first, nn.GELU(), last)
        if outputs is None:
            self.head = nn.Linear(2 * width, 2 * width)
            nn.init.eye_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        else:
            check_number("outputs", outputs, minimum=1, integer=True)
            self.head = nn.Linear(2 * width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return embeddings; those of empty texts are zero.

        Args:
            inputs: UTF-8 bytes, 0 after the end, `(batch, length)` or `(batch, texts, length)`.

        Returns:
            `(batch, outputs)` or `(batch, texts, outputs)`.
        """
        if inputs.ndim not in (2, 3):
            raise DataError(
                f"inputs of shape {tuple(inputs.shape)} are no texts: (batch, length) or (batch, texts, length)"
            )
        texts = inputs.flatten(0, -2)
        features = torch.cat(self.norm(self._means(texts)).chunk(2), 1)
        output: Tensor = self.head(features + self.perceptron(features))
        return (output * texts.any(1, keepdim=True)).unflatten(0, inputs.shape[:-1])

    def get_classifier(self) -> nn.Module:
        """Return the last layer, as timm's networks do."""
        return self.head

    def _means(self, texts: Tensor) -> Tensor:
        """The mean vector of each text's words, and below them those of its trigrams, `(2 * texts, width)`."""
        characters = word_characters(texts)
        hashes = torch.cat([hashed_words(characters), hashed_trigrams(characters)])
        kept = hashes > 0
        if self.training and self.dropout:
            kept = kept & (torch.rand(hashes.shape, device=hashes.device) >= self.dropout)
        counts = kept.sum(1)
        # Short texts are mostly padding, which is not looked up.
        return functional.embedding_bag(
            hashes[kept] % len(self.table), self.table, counts.cumsum(0) - counts, mode="mean"
        )
