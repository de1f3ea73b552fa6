"""A plan's fingerprint changes with what decides the results, and with nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from repertory.compare import plan as planning
from repertory.compare.plan import Plan, make_plan
from repertory.errors import UserError
from repertory.scenarios.choices import Source


def plan(*methods: str, data: str = "iris", **settings: Any) -> Plan:
    return make_plan(methods or ("lion",), Source(data), device="cpu", **{"epochs": 2, **settings})


def test_the_same_plan_has_the_same_fingerprint() -> None:
    assert plan().fingerprint() == plan().fingerprint()


@pytest.mark.parametrize(
    "changed",
    [{"seeds": 4}, {"seed": 1}, {"epochs": 3}, {"lr": 0.1}, {"batch_size": 9}, {"tune": 1}, {"precision": "bf16"},
     {"budget": "steps"}, {"data": "wine"}, {"data": "iris?noise=0.1"}, {"model": "repertory:mlp:width=9"}],
    ids=str,
)  # fmt: skip
def test_whatever_decides_the_results_changes_the_fingerprint(changed: dict[str, Any]) -> None:
    assert plan(**changed).fingerprint() != plan().fingerprint()


def test_methods_their_options_and_their_order_change_the_fingerprint() -> None:
    prints = [plan(*m).fingerprint() for m in (("lion",), ("lion:lr=1",), ("lion", "esam"), ("esam", "lion"))]
    assert len(set(prints)) == 4


def test_the_same_path_with_other_content_is_another_plan(tmp_path: Path) -> None:
    path, prints = tmp_path / "t.csv", []
    for shift in (0, 1):
        path.write_text("a,y\n" + "\n".join(f"{i + shift},{'pq'[i % 2]}" for i in range(20)))
        prints.append(make_plan(["lion"], Source(str(path), "y"), device="cpu").fingerprint())
    assert prints[0] != prints[1]


def test_a_measured_length_of_time_does_not_change_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []
    for seconds in (0.1, 0.2):
        monkeypatch.setattr(planning, "_seconds_per_epoch", lambda *_, seconds=seconds: seconds)
        plans.append(plan(budget="seconds"))
    assert [p.budget.amount for p in plans] == [0.2, 0.4]
    assert plans[0].fingerprint() == plans[1].fingerprint()


def test_time_is_measured_on_the_baseline_when_asked_for() -> None:
    assert 0 < plan(budget="seconds").budget.amount < 60


def test_the_baseline_comes_first_and_a_method_named_twice_is_one_arm() -> None:
    assert [arm.label for arm in plan("lion", "esam", "lion", "lion:lr=1").arms] == [
        "baseline", "lion", "esam", "lion:lr=1",
    ]  # fmt: skip


def test_seeds_go_on_from_the_first() -> None:
    assert plan(seeds=3, seed=5).seeds == (5, 6, 7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds=0 is not allowed: seeds must be a whole number, at least 1"),
        ({"seed": -1}, "seed=-1 is not allowed"),
        ({"tune": -1}, "tune=-1 is not allowed"),
        ({"budget": "time"}, "budget='time' is not allowed: budget must be one of 'compute', 'steps', 'seconds'"),
        ({"precision": "16"}, "precision='16' is not allowed"),
        ({"scenario": "few_shot"}, "scenario='few_shot' is not allowed: scenario must be one of 'supervised'"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(**settings)
