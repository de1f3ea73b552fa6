from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as judge
from torch import Tensor, nn

from repertory.training import higher_is_better, main_metric, metrics, predict
from repertory.training.evaluate import calibration_error


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_accuracy_and_nll_agree_with_scikit_learn() -> None:
    outputs, targets = random(200, 4) * 3, torch.arange(200) % 4
    found = metrics(outputs, targets, "classification")
    probabilities = outputs.double().softmax(1).numpy()
    assert found["accuracy"] == pytest.approx(judge.accuracy_score(targets, outputs.argmax(1)))
    assert found["nll"] == pytest.approx(judge.log_loss(targets, probabilities))


def test_regression_metrics_agree_with_scikit_learn() -> None:
    outputs, targets = random(100, 1), random(100, seed=1)
    found = metrics(outputs, targets, "regression")
    values = outputs.flatten().numpy()
    assert found["rmse"] == pytest.approx(judge.root_mean_squared_error(targets, values), rel=1e-6)
    assert found["mae"] == pytest.approx(judge.mean_absolute_error(targets, values), rel=1e-6)
    assert found["r2"] == pytest.approx(judge.r2_score(targets, values), rel=1e-6)


def test_r2_of_a_constant_target_is_zero_and_not_infinite() -> None:
    assert metrics(random(5, 1), torch.ones(5), "regression")["r2"] == 0.0


def test_calibration_error_agrees_with_a_loop_over_bins() -> None:
    probabilities = (random(500, 3) * 2).softmax(1)
    targets = torch.arange(500) % 3
    confidence, predicted = (part.numpy() for part in probabilities.max(1))
    right, expected = predicted == targets.numpy(), 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(probabilities, targets) == pytest.approx(float(expected), abs=1e-6)


def test_calibration_error_of_hand_made_cases() -> None:
    sure = torch.tensor([[1.0, 0.0]] * 4)
    assert calibration_error(sure, torch.tensor([0, 0, 0, 0])) == 0.0
    assert calibration_error(sure, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.5)
    assert calibration_error(torch.full((4, 2), 0.5), torch.tensor([0, 0, 1, 1])) == pytest.approx(0.0)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_prediction_does_not_depend_on_the_chunk(chunk: int) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    inputs = random(7, 3)
    expected = model.eval()(inputs * 2)
    model.train()
    torch.testing.assert_close(predict(model, inputs, lambda part: part * 2, chunk), expected.detach())


def test_prediction_is_in_evaluation_mode_and_puts_every_mode_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9), nn.Linear(3, 2))
    model.train()
    model[1].eval()
    statistics = model[0].running_mean.clone()
    assert torch.equal(predict(model, random(8, 3)), predict(model, random(8, 3)))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert torch.equal(model[0].running_mean, statistics)


def test_modes_come_back_also_when_prediction_fails() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError):
        predict(model, random(8, 4))
    assert model.training


def test_every_metric_has_a_direction() -> None:
    for task, targets in (("classification", torch.arange(6) % 2), ("regression", random(6))):
        found = metrics(random(6, 2 if task == "classification" else 1), targets, task)
        assert set(found) <= set(higher_is_better)
        assert main_metric(task) in found
        assert all(np.isfinite(value) for value in found.values())
