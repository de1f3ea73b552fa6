from __future__ import annotations

import torch

from repertory.core.texts import bytes_text, text_bytes

TEXTS = ["", "plain", "naïve façade", "日本語", "🙂" * 4]


def test_texts_come_back_whole_where_they_fit() -> None:
    rows = text_bytes(TEXTS, 20)
    assert rows.dtype == torch.uint8
    assert rows.shape == (5, 20)
    assert bytes_text(rows) == TEXTS


def test_texts_are_cut_at_whole_characters() -> None:
    for length in range(1, 20):
        for text, found in zip(TEXTS, bytes_text(text_bytes(TEXTS, length))):
            assert text.startswith(found)
            rest = text[len(found) : len(found) + 1]
            assert len((found + rest).encode()) > length or not rest


def test_what_marks_the_end_cannot_be_inside_a_text() -> None:
    assert bytes_text(text_bytes(["a\0b\0"], 8)) == ["a b "]


def test_halves_of_characters_are_left_out() -> None:
    assert bytes_text(text_bytes(["a\ud800b"], 8)) == ["ab"]


def test_no_texts_are_no_rows() -> None:
    assert text_bytes([], 4).shape == (0, 4)
    assert bytes_text(text_bytes([], 4)) == []
