"""Scenarios are found by name, and from the methods that are compared."""

from __future__ import annotations

import pytest

from repertory import catalogue
from repertory.datasets import load
from repertory.errors import OptionError, UserError
from repertory.scenarios.registry import SCENARIOS, scenario, suitable


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_offers_what_a_comparison_needs(name: str) -> None:
    found = scenario(name)
    for part in ("main_metric", "default_model", "baseline", "budget_of", "run"):
        assert callable(getattr(found, part))


def test_a_scenario_that_is_not_there_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match="did you mean supervised"):
        scenario("supervized")


def test_every_card_names_scenarios_that_are_there() -> None:
    named = {name for entry in catalogue.entries().values() for name in entry.card.scenarios}
    assert named <= set(SCENARIOS)


@pytest.mark.parametrize("methods", [["esam", "lion"], ["mypkg:Method"], []])
def test_the_first_scenario_that_suits_all_methods_is_taken(methods: list[str]) -> None:
    assert suitable(methods) == "supervised"


@pytest.mark.parametrize(
    ("methods", "expected"),
    [(["look"], "retrieval"), (["look+lion"], "supervised"), (["ecaml", "lion"], "retrieval"),
     (["key-value-bottleneck"], "continual"), (["softtriple"], "supervised")],
)  # fmt: skip
def test_of_several_the_one_that_cards_name_first_is_taken(methods: list[str], expected: str) -> None:
    assert suitable(methods) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("digits", "supervised"), ("digits?coarse=5", "retrieval"), ("digits?tasks=2", "continual")],
)
def test_data_with_options_of_a_scenario_ask_for_it(spec: str, expected: str) -> None:
    assert suitable(["lion"], load(spec)) == expected


def test_methods_of_no_common_scenario_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = catalogue.entries()
    esam, lion = entries["esam"], entries["lion"]
    other = type(lion)(**{**vars(lion), "card": type(lion.card)(**{**vars(lion.card), "scenarios": ("online",)})})
    monkeypatch.setattr(catalogue, "entries", lambda: {"esam": esam, "lion": other})
    with pytest.raises(UserError, match="esam: supervised or retrieval or continual or segmentation; lion: online"):
        suitable(["esam+lion"])
