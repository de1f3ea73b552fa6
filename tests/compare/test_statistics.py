from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from repertory.compare.statistics import PairedDifference, holm, paired, seeds_needed, summarise, verdict
from repertory.errors import DataError, OptionError


def run(label: str, seed: int, value: float | None, status: str = "finished", seconds: float = 10.0) -> dict[str, Any]:
    metrics = {} if value is None else {"test": {"accuracy": value}, "validation": {"accuracy": value}}
    cost = {"steps": 10, "passes": 100.0, "seconds": seconds, "peak_bytes": None}
    return {"label": label, "seed": seed, "status": status, "metrics": metrics, "cost": cost}


def rows_of(results: list[dict[str, Any]], higher_is_better: bool = True) -> dict[str, dict[str, Any]]:
    rows = summarise(results, metric="accuracy", higher_is_better=higher_is_better)
    return {row["label"]: row for row in rows}


def test_interval_of_three_pairs_is_the_one_worked_by_hand() -> None:
    # Differences 2, 3, 1: mean 2, sd 1, and t(0.975, 2) = 4.302653, so the half width is 4.302653 / sqrt(3).
    difference = paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    assert (difference.n, difference.mean, difference.sd) == (3, 2.0, 1.0)
    assert difference.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert difference.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_p_value_and_interval_are_those_of_scipys_paired_t_test() -> None:
    generator = np.random.default_rng(1)
    first, second = generator.normal(0.3, 1, 9), generator.normal(0, 1, 9)
    difference, reference = paired(list(first), list(second), confidence=0.9), stats.ttest_rel(first, second)
    interval = reference.confidence_interval(0.9)
    assert difference.p == pytest.approx(reference.pvalue)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))


def test_bootstrap_interval_nears_the_normal_one_for_many_pairs() -> None:
    values = np.random.default_rng(2).normal(1, 2, 400)
    difference = paired(list(values), [0.0] * 400)
    half = 1.96 * values.std(ddof=1) / 20
    assert difference.bootstrap_low == pytest.approx(values.mean() - half, abs=0.03)
    assert difference.bootstrap_high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_is_the_same_every_time_and_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    values = [0.1, 0.5, 0.2, 0.9]
    assert paired(values, [0.0] * 4) == paired(values, [0.0] * 4)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


def test_one_pair_has_a_mean_and_nothing_else() -> None:
    assert paired([0.75], [0.5]) == PairedDifference(1, 0.25, None, None, None, None, None, None)


@pytest.mark.parametrize(("treatment", "mean", "p"), [([0.9, 0.8, 0.7], 0.1, 0.0), ([0.8, 0.7, 0.6], 0.0, 1.0)])
def test_equal_differences_leave_no_width(treatment: list[float], mean: float, p: float) -> None:
    difference = paired(treatment, [0.8, 0.7, 0.6])
    assert difference.p == p
    assert difference.sd == 0
    assert difference.low == difference.high == difference.bootstrap_low == pytest.approx(mean)


@pytest.mark.parametrize(("first", "second"), [([1.0], [1.0, 2.0]), ([], []), ([math.nan], [1.0])])
def test_what_cannot_be_paired_is_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(DataError, match="treatment"):
        paired(first, second)


def test_holm_follows_the_example_worked_by_hand() -> None:
    # Sorted: 0.01 x 4, 0.013 x 3 (raised to 0.04, what came before), 0.02 x 2 = 0.04, 0.6 x 1.
    assert holm([0.02, 0.01, 0.6, 0.013]) == pytest.approx([0.04, 0.04, 0.6, 0.04])


def test_holm_never_exceeds_one() -> None:
    assert holm([0.7, 0.8]) == [1.0, 1.0]


def test_holm_passes_over_what_is_no_test() -> None:
    first, second, third = holm([None, 0.03, math.nan])
    assert (first, second) == (None, 0.03)
    assert third is not None
    assert math.isnan(third)


# The textbook sample sizes of a paired t test at alpha 0.05 and power 0.8.
@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_are_the_published_sample_sizes(effect: float, n: int) -> None:
    assert seeds_needed(effect, 1.0) == seeds_needed(-effect * 3, 3.0) == n


def _power_by_integration(effect: float, n: int) -> float:
    limit, sd = stats.t.ppf(0.975, n - 1), np.linspace(1e-6, 6, 20_001)
    density = stats.chi.pdf(sd * math.sqrt(n - 1), n - 1) * math.sqrt(n - 1)
    shift = effect * math.sqrt(n)
    seen = stats.norm.sf(limit * sd - shift) + stats.norm.cdf(-limit * sd - shift)
    return float(np.trapezoid(density * seen, sd))


@pytest.mark.parametrize(("effect", "n"), [(3.7, 3), (2.0, 4), (1.3, 7), (0.7, 20), (0.31, 60)])
def test_seeds_needed_are_exact_to_a_thousandth_of_power(effect: float, n: int) -> None:
    power = _power_by_integration(effect, n)
    assert seeds_needed(effect, 1.0, power=power - 0.001) == n
    assert seeds_needed(effect, 1.0, power=power + 0.001) == n + 1


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.01, 1.0), (0.5, None), (0.0, 0.0)])
def test_no_number_of_seeds_where_none_would_do(mean: float, sd: float | None) -> None:
    assert seeds_needed(mean, sd) is None


@pytest.mark.parametrize(("mean", "sd"), [(0.5, 0.0), (1e9, 1e-9), (50.0, 1.0)])
def test_two_seeds_do_for_an_effect_without_noise(mean: float, sd: float) -> None:
    assert seeds_needed(mean, sd) == 2


@pytest.mark.parametrize(
    ("low", "high", "p", "higher_is_better", "expected"),
    [
        (0.1, 0.3, 0.01, True, "helps"),
        (0.1, 0.3, 0.01, False, "hurts"),
        (-0.3, -0.1, 0.01, True, "hurts"),
        (-0.3, -0.1, 0.01, False, "helps"),
        (0.1, 0.3, 0.05, True, "cannot tell"),
        (-0.1, 0.3, 0.01, True, "cannot tell"),
        (None, None, None, True, "cannot tell"),
    ],
)
def test_verdict_needs_both_the_p_value_and_the_interval(
    low: float | None, high: float | None, p: float | None, higher_is_better: bool, expected: str
) -> None:
    mean = 0.2 if low is None or high is None else (low + high) / 2
    difference = PairedDifference(3, mean, 0.1, low, high, low, high, p)
    assert verdict(difference, p, higher_is_better=higher_is_better) == expected


def test_rows_keep_the_given_order_with_the_baseline_first() -> None:
    labels = ["saf", "baseline", "esam", "lion"]
    rows = summarise([run(label, 0, 0.5) for label in labels], metric="accuracy", higher_is_better=True)
    assert [row["label"] for row in rows] == ["baseline", "saf", "esam", "lion"]


def test_only_seeds_finished_by_both_are_paired() -> None:
    results = [run("baseline", seed, 0.5 + 0.01 * seed) for seed in (0, 1, 2)]
    results += [run("saf", 3, 0.9), run("saf", 2, 0.62), run("saf", 1, 0.61), run("saf", 0, None, "diverged")]
    row = rows_of(results)["saf"]
    assert row["difference"]["n"] == 2
    assert row["difference"]["values"] == pytest.approx({1: 0.1, 2: 0.1})
    assert (row["n"], row["diverged"], row["failed"]) == (3, [0], [])


def test_a_finished_run_without_a_finite_value_counts_as_diverged() -> None:
    results = [run("baseline", 0, 0.5), run("saf", 0, math.nan)]
    assert (rows_of(results)["saf"]["n"], rows_of(results)["saf"]["diverged"]) == (0, [0])


def test_p_values_are_adjusted_over_the_methods_and_decide_the_verdict() -> None:
    noise = [0.0, 0.01, -0.01, 0.02]
    results = [run("baseline", seed, 0.5) for seed in range(4)]
    results += [run("saf", seed, 0.52 + noise[seed]) for seed in range(4)]
    alone = rows_of(results)["saf"]
    results += [run(f"m{at}", seed, 0.5 + noise[seed] / 7) for at in range(9) for seed in range(4)]
    among = rows_of(results)["saf"]
    assert alone["p"] == alone["p_holm"] == among["p"]
    assert among["p_holm"] == pytest.approx(10 * among["p"])
    assert (alone["verdict"], among["verdict"]) == ("helps", "cannot tell")


def test_costs_are_ratios_of_medians_to_the_baseline() -> None:
    results = [run("baseline", seed, 0.5, seconds=s) for seed, s in enumerate((10, 20, 90))]
    results += [run("saf", seed, 0.5, seconds=s) for seed, s in enumerate((30, 25, 1))]
    row = rows_of(results)["saf"]
    assert row["cost"] == {"passes": 1.0, "seconds": 1.25, "peak_bytes": None}
    assert row["medians"] == {"passes": 100.0, "seconds": 25.0, "peak_bytes": None}


def test_cost_of_runs_that_stopped_early_is_left_out() -> None:
    results = [run("baseline", 0, 0.5), run("saf", 0, 0.5), run("saf", 1, None, "diverged", seconds=0.1)]
    assert rows_of(results)["saf"]["cost"]["seconds"] == 1.0


def test_without_a_baseline_nothing_is_told() -> None:
    row = rows_of([run("saf", 0, 0.5), run("saf", 1, 0.6)])["saf"]
    assert (row["difference"], row["verdict"], row["cost"]["seconds"]) == (None, "cannot tell", None)


def test_a_method_whose_runs_all_failed_has_a_row() -> None:
    row = rows_of([run("baseline", 0, 0.5), run("saf", 0, None, "failed")])["saf"]
    assert (row["n"], row["mean"], row["failed"], row["verdict"]) == (0, None, [0], "cannot tell")


def test_no_results_make_no_rows() -> None:
    assert summarise([], metric="accuracy", higher_is_better=True) == []


def test_a_later_result_for_the_same_seed_replaces_the_earlier() -> None:
    assert rows_of([run("baseline", 0, None, "failed"), run("baseline", 0, 0.5)])["baseline"]["values"] == {0: 0.5}


def test_an_unknown_metric_is_named_with_those_there_are() -> None:
    with pytest.raises(OptionError, match=r"acc.*accuracy"):
        summarise([run("baseline", 0, 0.5)], metric="acc", higher_is_better=True)


@pytest.mark.parametrize(("seeds", "expected"), [(2, "cannot tell"), (4, "cannot tell"), (5, "helps")])
def test_a_few_equal_differences_cannot_tell(seeds: int, expected: str) -> None:
    runs = [run("baseline", s, 0.5) for s in range(seeds)] + [run("saf", s, 0.75) for s in range(seeds)]
    row = rows_of(runs)["saf"]
    assert row["verdict"] == expected
    assert row["seeds_needed"] == 5


def test_more_methods_need_more_seeds() -> None:
    differences = [0.01, 0.03, 0.02, 0.05]
    base = [run("baseline", s, 0.5) for s in range(4)]

    def needed(methods: int) -> int:
        arms = [run(f"m{k}", s, 0.5 + d) for k in range(methods) for s, d in enumerate(differences)]
        return int(rows_of(base + arms)["m0"]["seeds_needed"])

    assert needed(5) > needed(1)
