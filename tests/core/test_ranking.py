"""The area under the ROC curve against scikit-learn, and what is refused."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score

from repertory.core.ranking import roc_auc
from repertory.errors import DataError


@pytest.mark.parametrize("decimals", [8, 1])
def test_equals_scikit_learn_with_and_without_ties(decimals: int) -> None:
    generator = torch.Generator().manual_seed(decimals)
    scores = torch.rand(200, generator=generator, dtype=torch.float64).round(decimals=decimals)
    positive = torch.rand(200, generator=generator) < 0.3
    assert roc_auc(scores, positive) == pytest.approx(roc_auc_score(positive.numpy(), scores.numpy()))
    assert roc_auc(-scores, positive) == pytest.approx(1 - roc_auc(scores, positive))


def test_infinite_scores_have_a_rank() -> None:
    assert roc_auc(torch.tensor([-torch.inf, 0.0, torch.inf]), torch.tensor([0, 0, 1])) == 1.0


def test_one_kind_only_other_lengths_and_what_is_no_number_are_refused() -> None:
    with pytest.raises(DataError, match="0 of 3 examples are positive"):
        roc_auc(torch.rand(3), torch.zeros(3))
    with pytest.raises(DataError, match="must be of one length"):
        roc_auc(torch.rand(3), torch.zeros(2))
    with pytest.raises(DataError, match="1 scores are not numbers"):
        roc_auc(torch.tensor([torch.nan, 1.0]), torch.tensor([0, 1]))
