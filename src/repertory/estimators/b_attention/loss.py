"""The loss of the features of one neighbourhood: same classes together, the hardest others apart."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.errors import DataError, check_choice, check_number
from repertory.layers.embedding import unit_rows

PAIRS = ("allmax", "maxmax", "allall", "alltopk")


def cluster_loss(
    features: Tensor,
    labels: Tensor,
    pairs: str = "allmax",
    margin: float = 1.0,
    positive_margin: float = 0.95,
    positive_weight: float = 10.0,
) -> Tensor:
    r"""Return the loss of a batch, 0-d.

    $w \, \mathrm{mean}_{P} \max(0, m_+ - c_{ij}) + \mathrm{mean}_{N} \max(0, m + c_{ij})$ over pairs $P$ of one class
    and $N$ of different classes. A row and itself are a pair of one class. Without pairs of different classes there is
    nothing to push apart.

    Args:
        features: `(batch, dim)`; compared by cosine.
        labels: `(batch,)`, int64.
        pairs: "allmax" takes all pairs of one class and the nearest pair of different ones; "maxmax" the farthest pair
            of one class; "allall" all of different ones; "alltopk" as many of the nearest as there are rows.
        margin: $m$.
        positive_margin: $m_+$.
        positive_weight: $w$.

    Raises:
        OptionError: if an option is not allowed.
        DataError: if there are not as many labels as rows.

    >>> round(float(cluster_loss(torch.ones(3, 2), torch.tensor([0, 0, 1]))), 4)
    2.0
    """
    check_choice("pairs", pairs, PAIRS)
    for name, value in (("margin", margin), ("positive_margin", positive_margin), ("positive_weight", positive_weight)):
        check_number(name, value)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise DataError(
            f"features {tuple(features.shape)} and labels {tuple(labels.shape)} must be (batch, dim), (batch,)"
        )
    with torch.autocast(features.device.type, enabled=False):
        unit = unit_rows(features)
        cosines = unit @ unit.T
        same = labels[:, None] == labels[None, :]
        near, far = cosines[same], cosines[~same]
        if pairs == "maxmax":
            near = near.min()
        if far.numel() and pairs != "allall":
            far = far.topk(min(len(labels), far.numel())).values if pairs == "alltopk" else far.max()
        loss = positive_weight * (positive_margin - near).relu().mean()
        return loss + (margin + far).relu().mean() if far.numel() else loss
