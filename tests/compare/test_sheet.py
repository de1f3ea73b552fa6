"""Pictures of inputs in the report: images, curves and texts, escaped."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import torch
from PIL import Image

from repertory.compare.sheet import picture, sheets
from repertory.datasets import load


def test_an_image_is_itself() -> None:
    for channels in (1, 3):
        values = torch.randint(256, (channels, 5, 4), dtype=torch.uint8)
        code = re.search(r"base64,([^\"]+)", str(picture(values, "image")))
        assert code is not None
        read = np.asarray(Image.open(io.BytesIO(base64.b64decode(code[1]))))
        assert np.array_equal(read if channels == 1 else read.transpose(2, 0, 1), values.squeeze(0).numpy())


def test_a_sequence_is_a_curve_from_top_to_bottom() -> None:
    points = re.findall(r"([\d.]+),([\d.]+)", str(picture(torch.tensor([[0.0, 2.0, 1.0]]), "sequence")))
    assert [(float(x), float(y)) for x, y in points] == [(0, 45), (50, 5), (100, 25)]


def test_a_text_is_escaped_and_cut() -> None:
    text = torch.tensor([list(b"<b>" + b"x" * 300)], dtype=torch.uint8)
    shown = str(picture(text, "text"))
    assert shown.startswith("&lt;b&gt;x")
    assert shown.endswith("…")
    assert len(shown) < 200


def test_a_row_of_a_table_has_no_picture() -> None:
    assert picture(torch.ones(3), "table") == ""


def test_one_sheet_a_method_of_its_first_run_that_has_neighbours() -> None:
    found = [{"row": 1, "class": "1", "right": False}]
    query = {"row": 0, "class": "0", "found": found}
    runs = [
        {"label": "saf", "seed": 0},
        {"label": "saf", "seed": 1, "neighbours": [query]},
        {"label": "saf", "seed": 2, "neighbours": [query]},
        {"label": "baseline", "seed": 0, "neighbours": []},
    ]
    made = sheets(runs, load("digits"))
    assert [(sheet["label"], sheet["seed"]) for sheet in made] == [("saf", 1)]
    assert "<img" in made[0]["queries"][0]["found"][0]["picture"]
