from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from repertory.core.texts import bytes_text
from repertory.datasets import Dataset, Encoder, Normaliser, load, pydoc
from repertory.datasets.texts import distinct_passages, from_pairs
from repertory.errors import DataError, OptionError

LETTERS = "abcdefghijklmnopqrst"
FAQ = {"question": [f"where is {c}?" for c in LETTERS], "answer": [f"{c} is here" for c in LETTERS]}


def write(folder: Path, columns: dict[str, Any], name: str = "faq.csv") -> str:
    frame = pd.DataFrame(columns)
    if name.endswith(".parquet"):
        frame.to_parquet(folder / name)
    else:
        frame.to_csv(folder / name, index=False)
    return str(folder / name)


def read(folder: Path, columns: dict[str, Any], options: str = "", **given: Any) -> Dataset:
    return load(write(folder, columns) + "?task=pairs" + options, **{"target": "answer", **given})


@pytest.mark.parametrize("name", ["faq.csv", "faq.parquet"])
def test_a_table_of_texts_becomes_bytes_of_queries_and_passages(tmp_path: Path, name: str) -> None:
    data = load(write(tmp_path, FAQ, name) + "?task=pairs", target="answer")
    assert (data.name, data.task, data.modality, data.classes, data.outputs) == ("faq", "pairs", "text", (), 0)
    assert data.inputs.dtype == torch.uint8
    assert data.inputs.shape == (20, 2, 32)
    assert bytes_text(data.inputs[:, 0]) == FAQ["question"]
    assert bytes_text(data.inputs[:, 1]) == FAQ["answer"]
    assert data.targets.tolist() == list(range(20))
    assert data.notes == ()


def test_equal_passages_share_a_number_and_a_part(tmp_path: Path) -> None:
    answers = [f"answer {number % 9}" for number in range(20)]
    data = read(tmp_path, {**FAQ, "answer": answers})
    assert data.targets.tolist() == [number % 9 for number in range(20)]
    for seed in range(5):
        splits = data.prepare(seed)
        parts = [set(getattr(splits, part).targets.tolist()) for part in ("train", "validation", "test")]
        assert sum(map(len, parts)) == 9
        assert set.union(*parts) == set(range(9))
        assert min(map(len, parts)) >= 2
        assert sorted(itertools.chain(*splits.indices.values())) == list(range(20))
        assert torch.equal(splits.test.targets, data.targets[splits.indices["test"]])


def test_the_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    data = read(tmp_path, FAQ)
    assert data.prepare(0).indices == data.prepare(0).indices
    assert data.prepare(0).indices != data.prepare(1).indices


def test_bytes_are_not_normalised_and_stay_so_when_saved(tmp_path: Path) -> None:
    splits = read(tmp_path, FAQ).prepare(0)
    for normaliser in (splits.normaliser, Normaliser.from_dict(json.loads(json.dumps(splits.normaliser.to_dict())))):
        assert torch.equal(normaliser(splits.train.inputs), splits.train.inputs)
        assert normaliser(splits.train.inputs).dtype == torch.uint8
    assert (splits.target_mean, splits.target_std) == (0.0, 1.0)


def test_hard_negatives_stand_behind_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    some = [*FAQ["answer"][1:], None]
    data = read(tmp_path, {"negative10": some, **FAQ, "negative2": [None] * 20})
    assert data.inputs.shape == (20, 4, 32)
    assert [column.name for column in data.encoder.columns] == ["question", "answer", "negative2", "negative10"]
    assert bytes_text(data.inputs[:, 2]) == [""] * 20
    assert bytes_text(data.inputs[:, 3]) == [*FAQ["answer"][1:], ""]


def test_a_negative_that_is_the_passage_itself_is_left_out(tmp_path: Path) -> None:
    data = read(tmp_path, {**FAQ, "negative1": ["a is here"] * 20})
    assert bytes_text(data.inputs[:2, 2]) == ["", "a is here"]
    assert "negatives left out since they are the pair's own passage: 1" in data.notes


def test_columns_of_numbers_do_not_count(tmp_path: Path) -> None:
    data = read(tmp_path, {"id": range(20), **FAQ, "score": np.linspace(0, 1, 20)})
    assert data.in_shape == (2, 32)
    assert "columns of numbers left out: id, score" in data.notes


@pytest.mark.parametrize(
    ("columns", "options", "target", "said"),
    [
        (
            {"topic": ["x"] * 20},
            "",
            "answer",
            r"there is 2 further text columns \(question, topic\).*drop=name.*the columns",
        ),
        ({}, "&drop=question", "answer", "there is no further text column; .* are question, answer"),
        ({"id": range(20)}, "", "id", "there is no text in 'id'"),
        ({}, "", "reply", "target=reply is not a column"),
        ({}, "", None, "target must name the column"),
        ({}, "&drop=answer", "answer", "drop=answer is the column of passages"),
        ({}, "&drop=where", "answer", "drop=where is not a column"),
        ({}, "&noise=0.2", "answer", "noise=0.2 damages labels or numbers, but the data are pairs of texts"),
        ({}, "&shift=noise1", "answer", "shift=noise1 damages"),
        ({}, "&coarse=3", "answer", "coarse=3 needs classes, but the task is pairs"),
    ],
)
def test_what_is_no_table_of_pairs_is_refused_with_its_columns(
    tmp_path: Path, columns: dict[str, Any], options: str, target: str | None, said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        read(tmp_path, {**FAQ, **columns}, options, target=target)


def test_a_column_dropped_leaves_one_of_queries(tmp_path: Path) -> None:
    assert read(tmp_path, {**FAQ, "topic": ["x"] * 20}, "&drop=topic").in_shape == (2, 32)


@pytest.mark.parametrize("gap", ["", None, "  "])
def test_missing_texts_are_reported_by_row_or_left_out_on_request(tmp_path: Path, gap: str | None) -> None:
    columns = {**FAQ, "answer": ["x", gap, *FAQ["answer"][2:]]}
    with pytest.raises(DataError, match=r"'answer' has 1 \(row 2\)"):
        read(tmp_path, columns)
    data = read(tmp_path, columns, skip_bad=True)
    assert len(data.targets) == 19
    assert "1 of 20 rows without a query or a passage were left out" in data.notes


def test_too_few_passages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 5 different passages to split; the minimum is 6, 2 for each of train"):
        read(tmp_path, {**FAQ, "answer": [f"answer {n % 5}" for n in range(20)]})


def test_fixed_parts_may_not_share_a_passage() -> None:
    data = from_pairs([("q", list(LETTERS)), ("p", [*LETTERS[:19], "a"])], "faq", "faq")
    with pytest.raises(DataError, match="fixed parts share passages"):
        dataclasses.replace(data, fixed={"train": torch.arange(10), "test": torch.arange(10, 20)})


def test_the_length_is_chosen_so_that_few_texts_are_cut() -> None:
    answers = [f"{number} " + "x" * (10 * number) for number in range(20)]
    data = from_pairs([("q", list(LETTERS)), ("p", answers)], "faq", "faq")
    # 38 of 40 texts must fit: the third longest has 173 bytes.
    assert data.in_shape == (2, 192)
    assert data.notes == ("texts cut after 192 bytes: 1 of 40",)
    assert from_pairs([("q", list(LETTERS)), ("p", ["y" * 3000 + a for a in answers])], "f", "f").in_shape == (2, 1024)
    assert from_pairs([("q", list(LETTERS)), ("p", answers)], "faq", "faq", length=5).in_shape == (2, 5)


def test_pairs_are_read_from_tables_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((20, 3)), y=np.arange(20) % 2)
    with pytest.raises(OptionError, match="task=pairs reads a table of texts"):
        load(f"{tmp_path}/a.npz?task=pairs")


def test_new_texts_are_read_from_a_table_or_from_lines(tmp_path: Path) -> None:
    data = read(tmp_path, FAQ)
    encoder = Encoder.from_dict(json.loads(json.dumps(data.encoder.to_dict())))
    inputs, names = encoder.encode(str(tmp_path / "faq.csv"))
    assert torch.equal(inputs, data.inputs[:, 1])
    assert names == [str(row + 1) for row in range(20)]
    (tmp_path / "new.txt").write_text("first\n\nsecond line\n", encoding="utf-8")
    inputs, names = encoder.encode(str(tmp_path / "new.txt"))
    assert bytes_text(inputs) == ["first", "second line"]
    assert torch.equal(encoder.texts(["first"]), inputs[:1])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("other.csv", "question\nwhere?\n", "lacks the column 'answer' of the passages; it has question"),
        ("empty.txt", "\n \n", "holds no texts"),
        ("a.pdf", "x", r"allowed are \.csv, .*\.txt, a text a line"),
    ],
)
def test_new_texts_that_do_not_fit_are_an_error(tmp_path: Path, name: str, content: str, said: str) -> None:
    encoder = read(tmp_path, FAQ).encoder
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        encoder.encode(str(tmp_path / name))


def test_distinct_passages_name_the_first_pair_of_each() -> None:
    numbers, first = distinct_passages(torch.tensor([5, 2, 5, 9, 2]))
    assert numbers.tolist() == [2, 5, 9]
    assert first.tolist() == [1, 0, 3]


def test_pydoc_has_the_documentation_of_pythons_library() -> None:
    data = load("pydoc")
    assert (data.name, data.task, data.modality, data.in_shape) == ("pydoc", "pairs", "text", (2, 256))
    assert 1500 <= len(data.targets) <= 4000
    queries, passages = bytes_text(data.inputs[:, 0]), bytes_text(data.inputs[:, 1])
    found = queries.index("Stop the listener.")
    assert passages[found].startswith("This asks the thread to terminate")
    assert min(len(query.split()) for query in queries) >= 3
    assert len(set(zip(queries, passages))) > 0.98 * len(queries)
    assert load("pydoc").describe() == data.describe()


def test_pydoc_imports_none_of_the_modules_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    pydoc._texts.cache_clear()
    monkeypatch.setattr(pydoc, "_MODULES", "graphlib poplib")
    before = set(sys.modules)
    queries, _ = pydoc._texts()
    pydoc._texts.cache_clear()
    assert len(queries) > 3
    assert set(sys.modules) - before <= {"graphlib", "poplib"} & before


def test_pydoc_without_sources_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pydoc._texts.cache_clear()
    monkeypatch.setattr(pydoc, "_MODULES", "no_such_module")
    with pytest.raises(DataError, match="sources of Python's library"):
        load("pydoc")


@pytest.mark.parametrize(
    ("name", "document", "expected"),
    [
        ("f", "Do this. And that.\n\nMore of it.", ("Do this.", "And that. More of it.")),
        ("pop", "Remove and pop an item\nfrom the left.", ("Remove and an item from the left.", "")),
        ("f", "", ("", "")),
        ("f", "One sentence\n    that goes on.\n\n  Rest\n  here", ("One sentence that goes on.", "Rest here")),
    ],
)
def test_a_docstring_is_split_after_its_first_sentence(name: str, document: str, expected: tuple[str, str]) -> None:
    assert pydoc.split_summary(name, document) == expected
