"""Find methods by the problem a user has: full-text search with synonyms over the cards."""

from __future__ import annotations

import functools
import math
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from difflib import get_close_matches

from repertory.catalogue.entry import Entry
from repertory.catalogue.index import entries
from repertory.catalogue.synonyms import FILLER, SYNONYMS, WEAK
from repertory.errors import OptionError, check_number

_WEIGHTS = {
    "problems": 4.0,
    "name": 4.0,
    "tags": 3.0,
    "title": 2.0,
    "summary": 2.0,
    "advice": 1.0,
    "idea": 0.3,
}
_RELEVANCE = f"SELECT rowid, -bm25(cards, {', '.join(map(str, _WEIGHTS.values()))}) FROM cards WHERE cards MATCH ?"
_TOKENIZER = "porter unicode61"
_BULLET = re.compile(r"^\s*[-*] +", re.MULTILINE)
_OPEN, _CLOSE = "\x02", "\x03"
_SATURATION = 2.0
_WHOLE = 1.0
"""What a card gets for a problem that has all words of the query."""


@dataclass(frozen=True)
class Hit:
    """A method that fits a query.

    Args:
        entry: the method.
        score: how well it fits; larger is better, comparable within one query only.
        why: the problems of its card, and the part of its advice, that the query met.
    """

    entry: Entry
    score: float
    why: str


def find(query: str, limit: int = 10) -> list[Hit]:
    """Return the methods for a problem, best first.

    Each idea in the query (a phrase with its synonyms, or a word) counts by how rare it is among the cards,
    so a method that meets two ideas once beats one that meets a single idea often. A card that states the problem in
    the query's own words, of two or more, gets a bonus.

    Args:
        query: what the user has or wants, in plain words: "few noisy labels".
        limit: largest number of hits.

    Returns:
        The hits; empty when no card speaks of it.

    Raises:
        OptionError: if the query has no words, or `limit` is below 1.
    """
    return search(entries(), query, limit)


def search(catalogue: Mapping[str, Entry], query: str, limit: int = 10) -> list[Hit]:
    """Do what `find` does over the given entries."""
    check_number("limit", limit, minimum=1, integer=True)
    terms = _terms(query)
    if not terms:
        raise OptionError(f"query={query!r} names no problem; say what you have, such as 'few noisy labels'")
    listed = list(catalogue.values())
    scores: dict[int, float] = {}
    with closing(_index(listed)) as index:
        for term, weight in terms.items():
            found = index.execute(_RELEVANCE, (term,)).fetchall()
            rarity = weight * math.log1p(len(listed) / max(len(found), 1))
            for row, relevance in found:
                scores[row] = scores.get(row, 0.0) + rarity * relevance / (relevance + _SATURATION)
        for row in _literal(listed, query) & scores.keys():
            scores[row] += _WHOLE
        best = sorted(scores, key=lambda row: (-scores[row], row))[:limit]
        return [Hit(listed[row], round(scores[row], 4), _why(index, row, " OR ".join(terms))) for row in best]


def closest_problems(catalogue: Mapping[str, Entry], query: str, count: int = 6) -> list[str]:
    """Return problems of the catalogue that are spelled like the query, or else the most common ones."""
    known: dict[str, int] = {}
    for entry in catalogue.values():
        for problem in entry.card.problems:
            known[problem] = known.get(problem, 0) + 1
    words: dict[str, str] = {word: problem for problem in known for word in _words(problem) if len(word) > 3}
    near = get_close_matches(query.lower(), known, count, 0.6)
    near += [words[hit] for word in _words(query) for hit in get_close_matches(word, words, 2, 0.75)]
    common = sorted(known, key=lambda problem: (-known[problem], problem))
    return (list(dict.fromkeys(near)) or common)[:count]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _telling(text: str) -> list[str]:
    return [word for word in _words(text) if word not in FILLER]


def _index(listed: Sequence[Entry]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE VIRTUAL TABLE cards USING fts5({', '.join(_WEIGHTS)}, tokenize='{_TOKENIZER}')")
    rows = [(row, *_fields(entry)) for row, entry in enumerate(listed)]
    places = ", ".join("?" * (len(_WEIGHTS) + 1))
    connection.executemany(f"INSERT INTO cards(rowid, {', '.join(_WEIGHTS)}) VALUES ({places})", rows)
    return connection


def _fields(entry: Entry) -> tuple[str, ...]:
    card = entry.card
    return (
        "\n".join(card.problems),
        f"{card.slug} {card.name} {card.entry}",
        " ".join((*card.tags, card.kind, *card.scenarios)).replace("_", " "),
        card.title,
        entry.summary,
        _BULLET.sub("", entry.sections.get("Use it when", "")),
        entry.sections.get("Idea", ""),
    )


def _literal(listed: Sequence[Entry], query: str) -> set[int]:
    """Return the places of the cards of which one problem has all words of a query of two or more."""
    asked = _words(query)
    if len(set(asked)) < 2:
        return set()
    wanted = set(_stems(asked))
    problems = [(row, _words(problem)) for row, entry in enumerate(listed) for problem in entry.card.problems]
    stems = iter(_stems([word for _, words in problems for word in words]))
    found = [(row, {next(stems) for _ in words}) for row, words in problems]
    return {row for row, own in found if wanted <= own}


def _terms(query: str) -> dict[str, float]:
    """Return full-text expressions for the ideas in a query, with their weights."""
    words = _telling(query)
    stems = _stems(words)
    groups: list[tuple[str, int]] = []
    covered: set[int] = set()
    for phrase, stemmed, group in sorted(_phrases(), key=lambda item: -len(item[1])):
        places = _occurrence(stemmed, stems)
        if places and not places <= covered:
            covered |= places
            groups.append((phrase, group))
    terms: dict[str, float] = {}
    for phrase, group in groups:
        terms[_either([phrase])] = 0.5
        terms[_either(SYNONYMS[group])] = 1.0
    loose = [word for place, word in enumerate(words) if place not in covered]
    strong = [word for word in loose if word not in WEAK] or ([] if groups else loose)
    return {**{_either([word]): 1.0 for word in strong}, **terms}


def _either(phrases: Sequence[str]) -> str:
    """Return an expression for any of the phrases, in both spellings, the words of each near one another."""
    spelled = dict.fromkeys(spelling for phrase in phrases for spelling in _spellings(phrase))
    quoted = (" ".join(f'"{word}"' for word in _words(spelling)) for spelling in spelled)
    return f"({' OR '.join(f'NEAR({words}, 2)' for words in quoted)})"


def _spellings(phrase: str) -> tuple[str, ...]:
    american = re.sub(r"is(?=e|ing|ation)", "iz", phrase).replace("our", "or")
    british = re.sub(r"iz(?=e|ing|ation)", "is", phrase).replace("or", "our")
    return phrase, american, british


@functools.cache
def _phrases() -> list[tuple[str, list[str], int]]:
    phrases = [(phrase, group) for group, members in enumerate(SYNONYMS) for phrase in members]
    words = [_telling(phrase) for phrase, _ in phrases]
    stems = iter(_stems([word for split in words for word in split]))
    return [(phrase, [next(stems) for _ in split], group) for (phrase, group), split in zip(phrases, words)]


def _stems(words: Sequence[str]) -> list[str]:
    # The index's own tokenizer, read back from its vocabulary: query and index can never stem differently.
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE VIRTUAL TABLE words USING fts5(word, tokenize='{_TOKENIZER}')")
        connection.execute("CREATE VIRTUAL TABLE stems USING fts5vocab(words, instance)")
        spelled = [(row, _spellings(word)[1]) for row, word in enumerate(words)]
        connection.executemany("INSERT INTO words(rowid, word) VALUES (?, ?)", spelled)
        found = dict(connection.execute("SELECT doc, term FROM stems").fetchall())
    return [found.get(row, word) for row, word in enumerate(words)]


def _occurrence(phrase: Sequence[str], words: Sequence[str]) -> set[int]:
    """Return the places of the phrase's words, in any order, at most one other word between; or nothing."""
    for start in range(len(words)):
        window = words[start : start + len(phrase) + 1]
        if words[start] in phrase and set(phrase) <= set(window):
            return {start + window.index(word) for word in phrase}
    return set()


def _why(index: sqlite3.Connection, row: int, expression: str) -> str:
    problems, advice, other = index.execute(
        "SELECT highlight(cards, 0, ?1, ?2), snippet(cards, 5, ?1, ?2, '…', 12),"
        " snippet(cards, -1, ?1, ?2, '…', 12) FROM cards WHERE cards MATCH ?3 AND rowid = ?4",
        (_OPEN, _CLOSE, expression, row),
    ).fetchone()
    reasons = []
    solved = [problem for problem in problems.split("\n") if _OPEN in problem]
    if solved:
        reasons.append(f"solves: {_plain(', '.join(solved))}")
    if _OPEN in advice:
        reasons.append(f'use it when: "{_plain(advice)}"')
    return "; ".join(reasons) or f'mentions: "{_plain(other)}"'


def _plain(text: str) -> str:
    return " ".join(text.replace(_OPEN, "").replace(_CLOSE, "").split())
