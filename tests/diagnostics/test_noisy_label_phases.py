"""Phases of learning wrong labels: closed forms, scikit-learn's mixture, planted noise, and a rule for any loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional

from repertory.core.randomness import seeded
from repertory.core.ranking import roc_auc
from repertory.curation.data_diet import el2n
from repertory.diagnostics.noisy_label_phases import (
    NoisyLabelPhases,
    Phase,
    PhaseRecorder,
    StoppingRule,
    estimate_noise_rate,
    first_step_margin,
    margins,
    noise_scores,
    phase_one_end,
    stopping_epoch,
    transition,
    two_groups,
)
from repertory.errors import DataError, OptionError


def normal(count: int, mean: float, deviation: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + deviation * torch.randn(count, generator=generator, dtype=torch.float64)


def clusters(rate: float = 0.3, count: int = 400, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Four overlapping clusters: inputs, labels of which the first `rate` of each class are the next class, truth."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(count) % 4
    inputs = 2.0 * functional.one_hot(truth, 10).float() + 0.6 * torch.randn(count, 10, generator=generator)
    wrong = torch.arange(count) < rate * count
    return inputs, torch.where(wrong, (truth + 1 + torch.arange(count) // 4 % 3) % 4, truth), truth


def network(seed: int = 0) -> nn.Sequential:
    with seeded(seed, "network"):
        return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 4))


@pytest.mark.parametrize(("kind", "rate"), [("symmetric", 0.5), ("symmetric", 0.9), ("pair", 0.5), ("pair", 0.2)])
def test_one_full_step_of_softmax_regression_has_the_lead_of_theory(kind: str, rate: float) -> None:
    classes, eta = 10, 1.0
    truth, right = torch.arange(classes), torch.eye(classes, dtype=torch.float64)
    if kind == "pair":
        labels = (1 - rate) * right + rate * right.roll(1, dims=1)
    else:
        labels = (1 - rate) * right + rate / (classes - 1) * (1 - right)
    weight = torch.zeros(classes, classes, dtype=torch.float64, requires_grad=True)
    inputs = torch.linalg.qr(normal(100, 0, 1).view(10, 10))[0]
    functional.cross_entropy(inputs @ weight.T, labels).backward()
    logits = inputs @ (-eta * weight.grad).T
    other = (truth + 1) % classes
    lead = logits[truth, truth] - logits[truth, other]
    expected = first_step_margin(rate, classes, eta, kind)
    torch.testing.assert_close(lead, torch.full_like(lead, expected), rtol=0, atol=1e-12)
    losses = [functional.cross_entropy(logits, label, reduction="none") for label in (other, truth)]
    torch.testing.assert_close(losses[0] - losses[1], lead)


def test_the_lead_is_that_of_the_paper_by_hand() -> None:
    assert first_step_margin(0.5, 10) == pytest.approx(0.04444, abs=1e-5)
    assert first_step_margin(0.9, 10) == pytest.approx(0.0, abs=1e-12)
    assert first_step_margin(0.5, 10, kind="pair") == 0.0


def test_margins_are_the_lead_of_the_best_other_class() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [1.0, 4.0, 2.0]])
    assert margins(logits, torch.tensor([1, 0])).tolist() == [-2.0, 3.0]
    with pytest.raises(DataError, match="from 0 to 2"):
        margins(logits, torch.tensor([0, 3]))
    with pytest.raises(DataError, match="one class an example"):
        margins(logits, torch.tensor([0.0, 1.0]))


def test_planted_groups_are_found_with_their_sizes() -> None:
    values = torch.cat([normal(700, -1.5, 0.1), normal(300, 1.5, 0.1, seed=1)])
    groups = two_groups(values)
    assert estimate_noise_rate(values) == pytest.approx(0.3, abs=0.02)
    assert groups.means.tolist() == pytest.approx([-1.5, 1.5], abs=0.03)
    assert groups.separation == pytest.approx(15, rel=0.1)


def test_the_fit_is_that_of_scikit_learn() -> None:
    values = torch.cat([normal(600, -2.0, 0.8), normal(400, 1.0, 0.6, seed=1)])
    low, high = values.quantile(0.01), values.quantile(0.99)
    clipped = values.clamp(low, high)
    theirs = GaussianMixture(2, tol=1e-9, max_iter=1000, random_state=0).fit(clipped.numpy()[:, None])
    order = np.argsort(theirs.means_[:, 0])
    groups = two_groups(values)
    assert groups.weights.numpy() == pytest.approx(theirs.weights_[order], abs=5e-3)
    assert groups.means.numpy() == pytest.approx(theirs.means_[order, 0], abs=1e-2)
    assert groups.deviations.numpy() == pytest.approx(np.sqrt(theirs.covariances_[order, 0, 0]), abs=1e-2)


@pytest.mark.parametrize(
    "values",
    [normal(500, -3.0, 1.0), torch.cat([normal(250, -8.0, 1.0), normal(250, -2.0, 1.0)]), normal(500, 0.3, 1.0)],
    ids=["one group", "two groups of right labels", "nothing learnt yet"],
)
def test_labels_that_look_right_have_no_noise(values: Tensor) -> None:
    assert estimate_noise_rate(values) == 0.0


def test_scores_rise_with_the_margin_also_where_one_group_is_wider() -> None:
    values = torch.cat([normal(700, -2.0, 1.5), normal(300, 2.0, 0.3, seed=1)]).sort().values
    scores = noise_scores(values)
    assert (scores.diff() >= 0).all()
    assert scores[-1] > 0.9 > 0.1 > scores[0]
    torch.testing.assert_close(noise_scores(torch.stack([values, values])), scores)


def test_what_cannot_be_two_groups_is_refused() -> None:
    for values in (torch.tensor([1.0]), torch.tensor([1.0, torch.nan]), torch.ones(2, 2)):
        with pytest.raises(DataError, match="two groups need at least 2 finite values"):
            two_groups(values)
    assert estimate_noise_rate(torch.ones(10)) == 0.0


def trained(rule: StoppingRule | None, recorder: PhaseRecorder, labels: Tensor, epochs: int = 30) -> nn.Module:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(20):
            optimizer.zero_grad()
            functional.cross_entropy(model(recorder.inputs[rows]), labels[rows]).backward()
            optimizer.step()
        if rule is None:
            recorder.observe(model)
        elif rule.stop(model):
            break
    return model


def test_right_labels_are_fitted_before_wrong_ones_and_the_rate_is_found_without_a_clean_label() -> None:
    inputs, labels, truth = clusters()
    known = PhaseRecorder(inputs, labels, clean_targets=truth)
    trained(None, known, labels)
    first = known.phases[0]
    assert first.fit_right > first.fit_wrong + 0.5
    assert known.phases[-1].fit_wrong > 0.5
    blind = PhaseRecorder(inputs, labels)
    trained(None, blind, labels)
    assert blind.noise_rate() == pytest.approx(0.3, abs=0.05)
    assert roc_auc(blind.noise_scores(), labels != truth) > 0.97
    assert blind.phases[0].fit_right is None


def test_scores_rank_as_self_confidence_and_el2n_do() -> None:
    inputs, labels, truth = clusters()
    recorder = PhaseRecorder(inputs, labels)
    model = trained(None, recorder, labels, epochs=3)
    logits = model(inputs).detach()
    # The self-confidence of cleanlab is the predicted probability of the label.
    confidence = logits.softmax(1)[torch.arange(len(labels)), labels]
    ours = roc_auc(noise_scores(recorder.margins()[-1]), labels != truth)
    assert ours == pytest.approx(roc_auc(-confidence, labels != truth), abs=0.02)
    assert ours == pytest.approx(roc_auc(el2n(logits, labels), labels != truth), abs=0.02)


def phase(separation: float, rate: float, right: float | None = None, wrong: float | None = None) -> Phase:
    return Phase(separation, rate, 1.0, 0.5, fit_right=right, fit_wrong=wrong)


def test_phase_one_ends_at_the_largest_gap_or_at_the_clearest_separation() -> None:
    known = [phase(2.0, 0.3, 0.5, 0.1), phase(1.5, 0.3, 0.9, 0.2), phase(1.2, 0.3, 1.0, 0.9)]
    assert phase_one_end(known) == 1
    assert phase_one_end(known, known=False) == 0
    assert phase_one_end([phase(3.0, 0.0), phase(1.5, 0.2)]) == 1
    assert phase_one_end([phase(3.0, 0.0)]) is None


def test_training_stops_once_separation_was_clearer_long_enough_ago_and_many_look_wrong() -> None:
    seen = [phase(1.0, 0.4), phase(2.0, 0.4), phase(1.5, 0.4), phase(1.6, 0.4), phase(1.4, 0.4)]
    assert stopping_epoch(seen[:3], patience=2) is None
    assert stopping_epoch(seen[:4], patience=2) == 1
    assert stopping_epoch(seen, patience=4) is None
    assert stopping_epoch(seen, patience=2, stop_above=0.5) is None


def test_the_rule_stops_a_loop_of_ones_own_and_puts_the_weights_back() -> None:
    inputs, labels, truth = clusters(rate=0.4)
    recorder = PhaseRecorder(inputs, labels, held_out=(inputs, truth))
    rule = StoppingRule(recorder, patience=3)
    model = trained(rule, recorder, labels, epochs=60)
    end = phase_one_end(recorder.phases, known=False)
    assert end is not None
    assert len(recorder.phases) == end + 1 + 3
    assert rule.restore(model)
    assert recorder.observe(model).held_out == recorder.phases[end].held_out


def test_the_rule_lets_clean_labels_be_learnt_to_the_end() -> None:
    inputs, _, truth = clusters(rate=0.0)
    recorder = PhaseRecorder(inputs, truth)
    rule = StoppingRule(recorder, patience=1)
    model = trained(rule, recorder, truth, epochs=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert len(recorder.phases) == 8
    assert not rule.restore(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_observing_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, labels, _ = clusters()
    recorder = PhaseRecorder(inputs, labels)
    assert recorder.observe(model) == recorder.observe(model)
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_instrument_names_the_rate_the_suspects_and_the_class_they_gather_in() -> None:
    inputs, _, truth = clusters()
    wrong = (truth == 2) & (torch.arange(400) % 12 < 4)
    labels = torch.where(wrong, 3, truth)
    record = NoisyLabelPhases(lr=0.1, batch_size=20, stop_above=0.05).measure(network(), (inputs, labels))
    assert record.values["noise rate"] == pytest.approx(wrong.double().mean().item(), abs=0.04)
    assert wrong[record.tables["suspects"]["index"][:25]].double().mean() > 0.9
    rates = dict(zip(record.tables["classes"]["class"], record.tables["classes"]["noise rate"]))
    assert rates[3] == pytest.approx(wrong.sum().item() / (labels == 3).sum().item(), abs=0.08)
    assert max(rates[label] for label in (0, 1, 2)) < rates[3] - 0.05
    assert any("Training should stop" in sentence for sentence in record.findings)


def test_without_noise_the_instrument_says_that_no_group_stands_apart() -> None:
    inputs, _, truth = clusters()
    record = NoisyLabelPhases(epochs=5, lr=0.1, batch_size=20).measure(network(), (inputs, truth))
    assert record.values["noise rate"] == 0.0
    assert "No group of labels stands apart" in record.findings[0]


def test_the_turn_lies_between_rates_on_a_straight_line() -> None:
    found = transition(lambda rate, seed: ([0.4, 0.9, 1.1 - rate - 0.1 * seed], 1), [0.0, 0.1, 0.4], [0, 1])
    torch.testing.assert_close(found.changes, torch.tensor([[0.2, 0.1], [0.1, 0.0], [-0.2, -0.3]]))
    assert found.crossing == pytest.approx(0.15)
    assert transition(lambda rate, seed: ([0.4, 0.9], 0), [0.0, 0.1], [0]).crossing is None


def test_bad_runs_and_options_are_refused() -> None:
    with pytest.raises(OptionError, match="must rise"):
        transition(lambda rate, seed: ([1.0], 0), [0.2, 0.1], [0])
    with pytest.raises(DataError, match="gave 1 accuracies and 3"):
        transition(lambda rate, seed: ([1.0], 3), [0.1], [0])
    with pytest.raises(DataError, match="a class each"):
        PhaseRecorder(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(DataError, match="one for each of 3 labels"):
        PhaseRecorder(torch.zeros(3, 2), torch.tensor([0, 1, 0]), clean_targets=torch.tensor([0]))
    with pytest.raises(DataError, match="nothing was observed yet"):
        PhaseRecorder(torch.zeros(3, 2), torch.tensor([0, 1, 0])).margins()


@pytest.mark.parametrize("options", [{"epochs": 0}, {"lr": 0}, {"momentum": 1.0}, {"patience": 0}, {"stop_above": 2}])
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        NoisyLabelPhases(**options)
