"""What a comparison may say: paired differences, their uncertainty, and the verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from repertory.errors import DataError, OptionError

Verdict = Literal["helps", "hurts", "cannot tell"]

BASELINE = "baseline"
"""The label of the runs that every method is compared with."""

ALPHA = 0.05
_FEW = 5
COSTS = ("passes", "seconds", "peak_bytes")


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference, treatment minus baseline, over seeds that both finished.

    Args:
        n: number of pairs.
        mean: mean difference, in the metric's own unit.
        sd: standard deviation of the differences (n - 1 in the denominator); None for one pair.
        low: lower end of Student's t interval; None for one pair.
        high: upper end of Student's t interval; None for one pair.
        bootstrap_low: lower end of the bias-corrected accelerated bootstrap interval; None for one pair.
        bootstrap_high: upper end of the same; None for one pair.
        p: two-sided p-value of the paired t test; None for one pair.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    bootstrap_low: float | None
    bootstrap_high: float | None
    p: float | None


def paired(
    treatment: Sequence[float],
    baseline: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Estimate the mean of `treatment - baseline`, pair by pair, with two intervals and a p-value.

    One pair has no spread, so everything but its mean is None. Where all differences are equal the t interval
    has no width: both intervals are the mean itself, and p is 1 if that mean is 0, else 0.

    Args:
        treatment: values of the method, `(seeds,)`.
        baseline: values of the baseline for the same seeds in the same order, `(seeds,)`.
        confidence: coverage of both intervals, between 0 and 1.
        resamples: bootstrap resamples.
        seed: seed of the bootstrap's own generator.

    Returns:
        The difference with its uncertainty.

    Raises:
        DataError: if the two have different lengths, are empty, or hold values that are not finite.

    >>> difference = paired([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
    >>> difference.mean, difference.sd, round(difference.low, 3), round(difference.p, 4)
    (2.0, 1.0, -0.484, 0.0742)
    """
    import numpy as np
    from scipy import stats

    first, second = np.asarray(treatment, dtype=float), np.asarray(baseline, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise DataError(f"treatment has {first.size} values and baseline {second.size}: give one value a seed to both")
    difference = first - second
    if not np.isfinite(difference).all():
        raise DataError("treatment and baseline must hold finite values: leave out the seeds of runs that diverged")
    n, mean = difference.size, float(difference.mean())
    if n == 1:
        return PairedDifference(1, mean, None, None, None, None, None, None)
    sd = float(difference.std(ddof=1))
    # Subtraction leaves rounding noise of this size in differences that are equal on paper.
    noise = 4 * np.finfo(float).eps * max(np.abs(first).max(), np.abs(second).max())
    if sd <= noise:
        mean = 0.0 if abs(mean) <= noise else mean
        return PairedDifference(n, mean, 0.0, mean, mean, mean, mean, float(mean == 0))
    error = sd / math.sqrt(n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    interval = stats.bootstrap(
        (difference,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return PairedDifference(n, mean, sd, mean - half, mean + half, float(interval.low), float(interval.high), p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for the number of tests, by Holm's step-down procedure.

    The k-th smallest of m values is multiplied by m - k + 1; the results may not fall along that order, nor
    exceed 1. None and NaN are no tests: they come back as they are and do not count.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted: list[float | None] = list(p_values)
    tests = sorted((p, index) for index, p in enumerate(p_values) if p is not None and not math.isnan(p))
    largest = 0.0
    for rank, (p, index) in enumerate(tests):
        largest = max(largest, min(1.0, (len(tests) - rank) * p))
        adjusted[index] = largest
    return adjusted


def seeds_needed(
    difference_mean: float,
    difference_sd: float | None,
    *,
    power: float = 0.8,
    alpha: float = ALPHA,
    most: int = 1000,
) -> int | None:
    """Return the smallest number of seeds at which a two-sided paired t test would see this effect.

    The power is exact (noncentral t), for the effect that was observed, so the number is an order of magnitude and no
    promise.

    Args:
        difference_mean: mean of the paired differences.
        difference_sd: their standard deviation; None where one pair leaves it unknown.
        power: wanted probability of p < `alpha`.
        alpha: level of the test.
        most: the largest number that is still an answer.

    Returns:
        A number from 2 to `most`; None if the effect is 0, its spread unknown, or `most` are not enough.

    >>> seeds_needed(0.5, 1.0)
    34
    """
    from scipy import stats

    if difference_sd is None or difference_mean == 0:
        return None
    if difference_sd == 0:
        return 2
    # Two seeds see an effect of this many standard deviations; scipy's noncentral t fails far above it.
    effect = min(abs(difference_mean) / difference_sd, 1000.0)

    def enough(n: int) -> bool:
        shift, limit = effect * math.sqrt(n), stats.t.ppf(1 - alpha / 2, n - 1)
        opposite = float(stats.nct.cdf(-limit, n - 1, shift))
        # scipy answers NaN where this tail is too small for it, in which case it adds nothing.
        opposite = 0.0 if math.isnan(opposite) else opposite
        return bool(stats.nct.sf(limit, n - 1, shift) + opposite >= power)

    if most < 2 or not enough(most):
        return None
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def verdict(difference: PairedDifference | None, p_adjusted: float | None, *, higher_is_better: bool) -> Verdict:
    """Say what the difference allows to be said.

    Args:
        difference: treatment minus baseline, None where nothing could be paired.
        p_adjusted: its p-value after `holm`.
        higher_is_better: direction of the metric.

    Returns:
        "helps" or "hurts" if the adjusted p is below 0.05 and the interval leaves out 0, else "cannot tell". A few
        differences that are all equal say nothing of their spread (accuracies on a small test set move in large
        steps), so fewer than five of them cannot tell either.
    """
    if difference is None or difference.low is None or difference.high is None or p_adjusted is None:
        return "cannot tell"
    if difference.sd == 0 and difference.n < _FEW:
        return "cannot tell"
    if not p_adjusted < ALPHA or difference.low <= 0 <= difference.high:
        return "cannot tell"
    return "helps" if (difference.mean > 0) == higher_is_better else "hurts"


def summarise(results: Sequence[Mapping[str, Any]], *, metric: str, higher_is_better: bool) -> list[dict[str, Any]]:
    """Turn run results into one row a label, baseline first, the others in the order of their first run.

    Seeds are paired where both the method and the baseline finished with a finite value; a run that finished
    with another value counts as diverged. Of two results for one label and seed the later one counts.

    Args:
        results: one mapping a run: label, seed, status ("finished", "diverged" or "failed"), metrics, cost.
        metric: name of the test metric.
        higher_is_better: its direction.

    Returns:
        Rows of plain values: `label`, `n` (runs with a value), `values` ({seed: value}), `mean`, `sd`,
        `difference` (the fields of `PairedDifference`, and `values`), `p`, `p_holm`, `verdict`,
        `seeds_needed`, `cost` (ratios of medians to the baseline's: passes, seconds, peak_bytes), `medians`
        (the same, absolute), `diverged` and `failed` (seeds). What cannot be known is None, as are
        `difference` to `seeds_needed` of the baseline itself.

    Raises:
        OptionError: if runs finished but none of them reports `metric`.
    """
    labels = dict.fromkeys(str(result["label"]) for result in results)
    order = [label for label in labels if label == BASELINE] + [label for label in labels if label != BASELINE]
    runs: dict[str, dict[int, Mapping[str, Any]]] = {label: {} for label in order}
    for result in results:
        runs[str(result["label"])][int(result["seed"])] = result
    _check_metric(results, metric)
    rows = [_row(label, runs[label], metric) for label in order]
    if not rows:
        return []
    baseline = rows[0] if rows[0]["label"] == BASELINE else None
    differences = [_difference(row, baseline) for row in rows]
    tests = max(1, sum(difference is not None for difference in differences))
    adjusted = holm([None if difference is None else difference.p for difference in differences])
    for row, difference, p_holm in zip(rows, differences, adjusted, strict=True):
        reference = baseline["medians"] if baseline else dict.fromkeys(COSTS)
        row["cost"] = {name: _ratio(row["medians"][name], reference[name]) for name in COSTS}
        row.update(difference=None, p=None, p_holm=None, verdict=None, seeds_needed=None)
        if row is baseline:
            continue
        row["verdict"] = verdict(difference, p_holm, higher_is_better=higher_is_better)
        if difference is not None and baseline is not None:
            pairs = {
                seed: value - baseline["values"][seed]
                for seed, value in row["values"].items()
                if seed in baseline["values"]
            }
            row["difference"] = {**dataclasses.asdict(difference), "values": pairs}
            row.update(
                p=difference.p,
                p_holm=p_holm,
                seeds_needed=_wanted(difference, tests),
            )
    return rows


def _wanted(difference: PairedDifference, tests: int) -> int | None:
    """Seeds needed for one of several tests; a few equal differences are too few to know the spread from."""
    needed = seeds_needed(difference.mean, difference.sd, alpha=ALPHA / tests)
    return needed if needed is None or difference.sd else max(needed, _FEW)


def _check_metric(results: Sequence[Mapping[str, Any]], metric: str) -> None:
    known = [_test(result) for result in results if result.get("status") == "finished"]
    if known and not any(metric in values for values in known):
        names = ", ".join(sorted({name for values in known for name in values})) or "none"
        raise OptionError(f"metric={metric!r} is in no result; choose one of those reported: {names}")


def _test(result: Mapping[str, Any]) -> Mapping[str, Any]:
    return (result.get("metrics") or {}).get("test") or {}


def _row(label: str, runs: Mapping[int, Mapping[str, Any]], metric: str) -> dict[str, Any]:
    finished = {seed: runs[seed] for seed in sorted(runs) if runs[seed].get("status") == "finished"}
    reported = {seed: _test(run).get(metric) for seed, run in finished.items()}
    values = {seed: float(value) for seed, value in reported.items() if value is not None and math.isfinite(value)}
    lost = [seed for seed, value in reported.items() if value is not None and seed not in values]
    diverged = [seed for seed in runs if runs[seed].get("status") == "diverged"]
    mean = math.fsum(values.values()) / len(values) if values else None
    sd = None
    if mean is not None and len(values) > 1:
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values.values()) / (len(values) - 1))
    costs = [run.get("cost") or {} for run in finished.values()]
    return {
        "label": label,
        "n": len(values),
        "values": values,
        "mean": mean,
        "sd": sd,
        "medians": {name: _median([cost.get(name) for cost in costs]) for name in COSTS},
        "diverged": sorted(diverged + lost),
        "failed": sorted(seed for seed in runs if runs[seed].get("status") == "failed"),
    }


def _difference(row: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> PairedDifference | None:
    if baseline is None or row is baseline:
        return None
    common = [seed for seed in row["values"] if seed in baseline["values"]]
    if not common:
        return None
    return paired([row["values"][seed] for seed in common], [baseline["values"][seed] for seed in common])


def _median(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    return median(known) if known else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None
