"""Search by problem: which words meet which cards, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from repertory.catalogue import Entry, index
from repertory.catalogue.find import closest_problems, search
from repertory.catalogue.synonyms import FILLER, SYNONYMS, WEAK
from repertory.errors import OptionError

Write = Callable[..., Path]


@pytest.fixture
def catalogue(root: Path, write: Write) -> Mapping[str, Entry]:
    write("dash", problems=("semi-supervised learning", "few labels"))
    write("rcal", problems=("label noise", "long-tailed data"), use="- labels are wrong and\n- classes are rare")
    write("cdtrans", problems=("domain adaptation", "few labels", "noisy labels"))
    write("ps-kd", problems=("calibration", "label softening"))
    write("lion", kind="optimizer", problems=("memory-efficient optimizer",))
    write(
        "saf",
        problems=("flat minima", "generalisation"),
        idea="Hold the outputs near those of earlier epochs.",
    )
    write("softtriple", kind="loss", problems=("image retrieval", "deep metric learning"))
    write("card", kind="model", problems=("time-series forecasting",), tags=("transformer",))
    return index._read(root)


def slugs(catalogue: Mapping[str, Entry], query: str) -> list[str]:
    return [hit.entry.card.slug for hit in search(catalogue, query)]


def test_a_card_that_meets_both_ideas_of_a_query_comes_first(catalogue: Mapping[str, Entry]) -> None:
    found = slugs(catalogue, "few noisy labels")
    assert found[0] == "cdtrans"
    assert set(found) == {"cdtrans", "dash", "rcal"}


@pytest.mark.parametrize(
    ("query", "slug"),
    [
        ("my network is overconfident", "ps-kd"),
        ("wrong labels", "rcal"),
        ("imbalanced classes", "rcal"),
        ("out of memory", "lion"),
        ("similarity search", "softtriple"),
        ("overfitting", "saf"),
        ("unlabelled semi supervised", "dash"),
    ],
)
def test_a_synonym_finds_what_the_card_calls_otherwise(catalogue: Mapping[str, Entry], query: str, slug: str) -> None:
    assert slugs(catalogue, query)[0] == slug


@pytest.mark.parametrize("query", ["generalization", "Generalisation", "generalizing"])
def test_spelling_and_ending_do_not_matter(catalogue: Mapping[str, Entry], query: str) -> None:
    assert slugs(catalogue, query)[0] == "saf"


@pytest.mark.parametrize(
    ("query", "slug"), [("softtriple", "softtriple"), ("optimizer", "lion"), ("transformer", "card")]
)
def test_names_kinds_and_tags_are_searched(catalogue: Mapping[str, Entry], query: str, slug: str) -> None:
    assert slugs(catalogue, query) == [slug]


def test_a_problem_counts_more_than_a_mention(root: Path, write: Write) -> None:
    write("aaa", problems=("drift",), idea="It has nothing to do with pruning.")
    write("bbb", problems=("pruning",), idea="Short.")
    for slug in ("ccc", "ddd", "eee"):
        write(slug)
    assert slugs(index._read(root), "pruning") == ["bbb", "aaa"]


def test_a_problem_in_the_words_of_the_query_comes_before_more_of_a_part_of_it(root: Path, write: Write) -> None:
    often = ("unlabelled data", "many classes")
    write("often", problems=often, tags=("unlabelled", "classes"), use="- there are unlabelled examples")
    write("whole", problems=("new classes in unlabelled data", "forgetting", "open-world recognition", "streams"))
    assert slugs(index._read(root), "new classes in unlabelled data")[0] == "whole"


def test_why_names_the_problems_and_quotes_the_advice(catalogue: Mapping[str, Entry]) -> None:
    (first, *_) = search(catalogue, "rare classes")
    assert first.why == 'solves: long-tailed data; use it when: "labels are wrong and classes are rare"'


def test_why_quotes_the_text_when_no_problem_is_met(catalogue: Mapping[str, Entry]) -> None:
    (hit,) = search(catalogue, "earlier epochs")
    assert hit.why == 'mentions: "Hold the outputs near those of earlier epochs."'


def test_limit_keeps_the_best(catalogue: Mapping[str, Entry]) -> None:
    hits = search(catalogue, "labels", limit=2)
    assert hits == search(catalogue, "labels", limit=5)[:2]
    assert len(hits) == 2


def test_no_hit_is_an_empty_list(catalogue: Mapping[str, Entry]) -> None:
    assert search(catalogue, "zebra") == []


@pytest.mark.parametrize("query", ['"few" labels*', "few -labels:", "NEAR(few labels", "few'; labels"])
def test_search_syntax_in_a_query_is_only_text(catalogue: Mapping[str, Entry], query: str) -> None:
    assert set(slugs(catalogue, "few labels")) <= set(slugs(catalogue, query))


@pytest.mark.parametrize("query", ["", "  ", "what is the"])
def test_a_query_without_a_telling_word_is_an_error(catalogue: Mapping[str, Entry], query: str) -> None:
    with pytest.raises(OptionError, match="names no problem"):
        search(catalogue, query)


def test_a_limit_below_one_is_an_error(catalogue: Mapping[str, Entry]) -> None:
    with pytest.raises(OptionError, match="limit=0 is not allowed"):
        search(catalogue, "labels", limit=0)


def test_closest_problems_are_spelled_alike(catalogue: Mapping[str, Entry]) -> None:
    assert closest_problems(catalogue, "calibartion")[0] == "calibration"
    assert closest_problems(catalogue, "zebra", count=1) == ["few labels"]


def test_no_phrase_of_the_table_is_met_by_a_word_that_says_nothing() -> None:
    for group in SYNONYMS:
        assert len(set(group)) == len(group) > 1
        for phrase in group:
            telling = set(phrase.split()) - FILLER
            assert len(telling) > 1 or telling - WEAK, phrase
    assert not FILLER & WEAK
