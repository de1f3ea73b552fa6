"""Scenario retrieval on pairs of texts: what is searched among what, against loops; from a table to an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import repertory
from repertory.compare.sheet import sheets
from repertory.core.texts import bytes_text
from repertory.datasets import Dataset
from repertory.datasets.texts import from_pairs
from repertory.errors import OptionError, UserError
from repertory.recipe import Part, Recipe
from repertory.retrieval import Index
from repertory.scenarios import pairs, retrieval, supervised
from repertory.scenarios.choices import check_arm
from repertory.scenarios.fit import fit
from repertory.scenarios.methods import Arm
from repertory.scenarios.registry import Outcome, suitable
from repertory.training.augment import random_view
from repertory.training.budget import Budget
from repertory.training.build import build_learner

WORDS = [f"{first}{second}" for first in "abcdefgh" for second in ("ox", "um", "ia", "er", "on")]
QUERIES = [f"where is {word}?" for word in WORDS] + ["and the aox?", "aox again"]
PASSAGES = [f"the {word} is over there" for word in WORDS] + ["the aox is over there"] * 2
MODEL = Part("repertory.models.text:HashedText", {"buckets": 256, "width": 8, "hidden": 4})


@pytest.fixture(scope="module")
def words() -> Dataset:
    return from_pairs([("question", QUERIES), ("answer", PASSAGES)], "words", "words")


def run(data: Dataset, recipe: Recipe, **more: Any) -> Outcome:
    return retrieval.run(recipe, data, seed=0, budget=Budget("steps", 4), **more)


@pytest.fixture(scope="module")
def outcome(words: Dataset) -> Outcome:
    return run(words, retrieval.baseline(words, MODEL, epochs=2))


def test_the_baseline_is_infonce_on_what_the_network_gives(words: Dataset) -> None:
    default, reason = retrieval.default_model(words)
    assert default.factory == "repertory.models.text:HashedText"
    assert "texts" in reason
    recipe = retrieval.baseline(words, default)
    assert recipe.criterion == Part("repertory.losses.info_nce:InfoNCELoss", {"temperature": 0.05})
    assert recipe.surgery == ()
    assert recipe.optimizer.options["lr"] == 2e-3
    pretrained = retrieval.baseline(
        words, Part("repertory.models.text:hugging_face", {"name": "x", "pretrained": True})
    )
    assert pretrained.optimizer.options["lr"] == 2e-5


def test_queries_search_among_the_distinct_passages_of_their_part(words: Dataset, outcome: Outcome) -> None:
    part = outcome.splits.test
    embeddings = outcome.learner.eval().embed(part.inputs).detach()
    passages = {int(number): embeddings[row, 1] for row, number in enumerate(part.targets)}
    ranks = []
    for row, number in enumerate(part.targets.tolist()):
        scores = {n: float(functional.cosine_similarity(embeddings[row, 0], p, dim=0)) for n, p in passages.items()}
        ranks.append(1 + sum(score > scores[number] for n, score in scores.items() if n != number))
    found = outcome.metrics["test"]
    assert found["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks))
    assert found["recall_at_1"] == pytest.approx(sum(rank == 1 for rank in ranks) / len(ranks))
    assert found["recall_at_5"] == pytest.approx(sum(rank <= 5 for rank in ranks) / len(ranks))
    assert found["map_at_r"] == found["recall_at_1"]
    assert set(found) == {
        "recall_at_1", "recall_at_5", "r_precision", "map_at_r", "mrr", "map_at_r_eighth",
    }  # fmt: skip
    assert retrieval.main_metric("pairs") == "mrr"
    assert [record["validation"]["mrr"] for record in outcome.curve]


def test_a_passage_of_several_pairs_is_searched_once_as_its_first_pair_has_it() -> None:
    embeddings = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    rows = pairs.stacked(embeddings, torch.tensor([3, 1, 3, 2]))
    assert torch.equal(rows, torch.cat([embeddings[:, 0], embeddings[[1, 3, 0], 1]]))


def test_the_table_has_the_texts_with_their_embeddings(words: Dataset, outcome: Outcome) -> None:
    table = outcome.tables["embeddings"]
    part, count = outcome.splits.test, len(outcome.splits.test)
    assert table["role"] == ["query"] * count + ["passage"] * len(part.targets.unique())
    assert table["text"][:count] == bytes_text(part.inputs[:, 0])
    for row, role, text in zip(table["row"], table["role"], table["text"]):
        assert bytes_text(words.inputs[row])[role == "passage"] == text
    embeddings = outcome.learner.eval().embed(part.inputs).detach()
    torch.testing.assert_close(torch.tensor(table["embedding"][:count]), embeddings[:, 0])


def test_some_queries_are_shown_with_the_passages_that_they_find(words: Dataset, outcome: Outcome) -> None:
    part = outcome.splits.test
    assert len(outcome.neighbours) == min(8, len(part))
    (sheet,) = sheets([{"label": "b", "seed": 0, "neighbours": outcome.neighbours}], words)
    for query, drawn in zip(outcome.neighbours, sheet["queries"]):
        assert drawn["picture"] == QUERIES[query["row"]]
        assert [found["picture"] for found in drawn["found"]] == [PASSAGES[found["row"]] for found in query["found"]]
        assert query["column"] == 0
        assert query["row"] in outcome.splits.indices["test"]
        for found in query["found"]:
            assert found["column"] == 1
            assert found["right"] == bool(words.targets[found["row"]] == words.targets[query["row"]])
        rights = [found["right"] for found in query["found"]]
        assert sum(rights) <= 1


class Zeroed:
    """Refines all embeddings of a part to zero but the first: a search that finds nothing."""

    def refine(self, embeddings: Tensor) -> Tensor:
        """Return them."""
        assert embeddings.ndim == 2
        return torch.cat([embeddings[:1], torch.zeros_like(embeddings[1:])])


def test_what_comes_after_training_refines_queries_and_passages_together(words: Dataset) -> None:
    recipe = retrieval.baseline(words, MODEL, epochs=2).add("after", Part(f"{__name__}:Zeroed"))
    assert max(map(abs, run(words, recipe).tables["embeddings"]["embedding"][-1])) == 0


def test_training_is_what_its_seed_decides(words: Dataset) -> None:
    recipe = retrieval.baseline(words, MODEL, epochs=2)
    first, second = run(words, recipe), run(words, recipe)
    assert first.metrics == second.metrics
    assert first.tables == second.tables


def test_hard_negatives_train_but_are_not_searched(words: Dataset) -> None:
    more = from_pairs([("q", QUERIES), ("a", PASSAGES), ("negative1", [*PASSAGES[3:], "", "", ""])], "words", "words")
    outcome = run(more, retrieval.baseline(more, MODEL, epochs=2))
    assert more.in_shape[0] == 3
    assert outcome.tables["embeddings"]["role"].count("passage") == len(outcome.splits.test.targets.unique())


def test_the_scenario_is_found_from_the_data_and_others_refuse_pairs(words: Dataset) -> None:
    assert suitable([], words) == "retrieval"
    assert suitable(["kalm-embedding"], words) == "retrieval"
    with pytest.raises(OptionError, match="pairs of texts, which scenario supervised has no use for; add --scenario"):
        supervised.view(words)


def test_networks_that_do_not_embed_texts_are_refused(words: Dataset) -> None:
    recipe = retrieval.baseline(words, MODEL)
    with pytest.raises(UserError, match="mlp' is not made for pairs of texts; use --model hf:NAME"):
        check_arm(Arm("b", (), recipe.replace(model=Part("repertory.models.small:mlp"))), words)
    with pytest.raises(UserError, match=r"gives \(2, 3\) for 2 examples of 2 texts; it must give an embedding of each"):
        check_arm(Arm("b", (), recipe.replace(model=Part("repertory.models.small:mlp", {"outputs": 3}))), words)


def test_a_network_chooses_the_size_of_its_embedding(words: Dataset) -> None:
    for options, size in (({}, 16), ({"outputs": 5}, 5)):
        recipe = retrieval.baseline(words, Part(MODEL.factory, {**MODEL.options, **options}))
        learner = build_learner(recipe, words.in_shape, words.outputs, seed=0)
        assert learner.embed(words.inputs[:3]).shape == (3, 2, size)


def test_texts_have_no_random_views() -> None:
    with pytest.raises(UserError, match="bytes of texts"):
        random_view(torch.zeros(2, 2, 8, dtype=torch.uint8), torch.Generator())


def test_from_a_table_to_a_model_to_an_index(tmp_path: Path) -> None:
    table = tmp_path / "faq.csv"
    pd.DataFrame({"question": QUERIES, "answer": PASSAGES}).to_csv(table, index=False)
    model = "repertory:HashedText:buckets=512"
    fit(data=f"{table}?task=pairs", out=tmp_path / "model", target="answer", model=model, epochs=2, device="cpu")
    loaded = repertory.load(tmp_path / "model")
    vectors, rows = loaded.embed(table)
    assert vectors.shape == (len(PASSAGES), 128)
    assert rows[:2] == ["1", "2"]
    index = Index(dim=128)
    index.add(vectors)
    _, found = index.search(loaded.embed_queries(["where is the bum?", "aox"]), k=1)
    assert [PASSAGES[number] for number in found[:, 0].tolist()] == ["the bum is over there", "the aox is over there"]
    with pytest.raises(UserError, match="predicts nothing, it embeds texts"):
        loaded.predict(table)
