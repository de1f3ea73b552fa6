"""Clustering of a stream of features, in which every cluster keeps at least a given share of the examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.core.distributed import gather_rows, own_rows
from repertory.errors import DataError, OptionError, check_number


class OnlineConstrainedKMeans(nn.Module):
    r"""Spherical k-means of batches as they come, with a lower bound on the size of each cluster.

    Each cluster has a dual variable that rises while the cluster gets fewer examples than it should, and falls when it
    gets more; it is added to the cosines, so that small clusters win examples at the margin. For a batch $u_1..u_B$ of
    unit length, all with the same centres $c_k$ and duals $\rho_k$,
    $$ y_i = \arg\max_k u_i^\top c_k + \rho_k, \qquad
       \rho_k \leftarrow \Big[\rho_k + s \Big(B \frac{r}{K} - \lvert\{i : y_i = k\}\rvert\Big)\Big]_+ , $$
    and $c_k$ becomes the mean of what it got since the epoch began, at length 1. The bound is met over an epoch, and
    on average.

    Used alone, on features of any origin: `labels = kmeans.observe(features)` for each batch, `kmeans.end_epoch()`
    after each pass.

    Args:
        clusters: number of clusters K, or a list of them for as many clusterings of the same features.
        dim: size of a feature.
        ratio: r, the share of an even size that each cluster keeps at least, in [0, 1]; at 1 all are to be even, and
            duals may be negative. 0 sets no bound.
        dual_step: s, change of a dual for one example too few or too many; 0 is plain online k-means.

    Attributes:
        sizes: number of clusters of each clustering. What follows has a place for all their clusters, in this order.
        previous: centres at the end of the epoch before `(clusters, dim)`, for whoever learns to predict the clusters.
        centers: centres now `(clusters, dim)`.
        duals: dual variables `(clusters,)`.
        counts: examples that each cluster got in this epoch `(clusters,)`.
        epochs: number of epochs that have ended.
        averaged: epochs since `average` was called, the present one included; 0 before.

    Raises:
        OptionError: if an option is out of range.

    >>> kmeans = OnlineConstrainedKMeans(3, 2, ratio=0.6, dual_step=0.25)
    >>> _ = kmeans.centers.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    >>> kmeans.observe(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist()
    [0, 0, 0, 1]
    >>> kmeans.duals
    tensor([0.0000, 0.0000, 0.2000])

    Reference: Qian, Xu, Hu, Li, Jin, https://arxiv.org/abs/2105.11527.
    """

    previous: Tensor
    centers: Tensor
    duals: Tensor
    counts: Tensor
    _bound: Tensor
    _start: Tensor

    def __init__(self, clusters: int | Sequence[int], dim: int, ratio: float = 0.4, dual_step: float = 0.02) -> None:
        super().__init__()
        self._several = not isinstance(clusters, int)
        self.sizes = (clusters,) if isinstance(clusters, int) else tuple(clusters)
        if not self.sizes:
            raise OptionError("clusters=[] names no clustering; give a whole number, or a list as in [30, 40, 50]")
        for number in self.sizes:
            check_number("clusters", number, minimum=2, integer=True)
        check_number("dim", dim, minimum=1, integer=True)
        check_number("ratio", ratio, minimum=0, maximum=1)
        check_number("dual_step", dual_step, minimum=0)
        self.ratio = ratio
        self.dual_step = dual_step
        first = F.normalize(torch.cat([torch.randn(number, dim) for number in self.sizes]), dim=1)
        self.register_buffer("previous", first.clone())
        self.register_buffer("centers", first)
        self.register_buffer("duals", torch.zeros(len(first)))
        self.register_buffer("counts", torch.zeros(len(first)))
        numbers = torch.tensor(self.sizes)
        self.register_buffer("_bound", (ratio / numbers).repeat_interleave(numbers), persistent=False)
        self.register_buffer("_start", numbers.cumsum(0) - numbers, persistent=False)
        self.epochs = 0
        self.averaged = 0

    @torch.no_grad()
    def assign(self, features: Tensor) -> Tensor:
        """Return each feature's cluster, and leave centres and duals as they are.

        Args:
            features: `(batch, dim)`, of length 1 or less.

        Returns:
            `(batch,)`, int64; `(batch, clusterings)` where a list of them was asked for.

        Raises:
            DataError: if they have another shape.
        """
        if features.ndim != 2 or features.shape[1] != self.centers.shape[1]:
            raise DataError(f"features {tuple(features.shape)} must be (batch, {self.centers.shape[1]})")
        centers = self.previous if self.averaged else self.centers
        scores = torch.addmm(self.duals, features.to(centers.dtype), centers.T)
        labels = torch.stack([part.argmax(1) for part in scores.split(self.sizes, 1)], 1)
        return labels if self._several else labels[:, 0]

    @torch.no_grad()
    def observe(self, features: Tensor) -> Tensor:
        """Assign a batch, and move duals and centres by it; over several processes, by the batches of all together.

        Args:
            features: `(batch, dim)`, of length 1 or less.

        Returns:
            Each feature's cluster, as `assign` does.

        Raises:
            DataError: if they have another shape, or are not finite.
        """
        rows = gather_rows(features.detach())
        labels = self.assign(rows)
        # A sum is one number to look at, and unit vectors do not overflow it.
        if not bool(rows.sum().isfinite()):
            raise DataError("features hold values that are not finite; a smaller learning rate helps most")
        self._move(rows.to(self.centers.dtype), labels)
        return labels[own_rows(len(features), features.device)]

    def average(self) -> None:
        """Begin the second stage, at an epoch's start: centres settle to an average over its epochs.

        Examples are then assigned to the centres at the end of the epoch before.
        """
        self.averaged = 1

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Keep the centres as those of the epoch before, and begin to count anew."""
        if self.averaged:
            share = 1.0 / self.averaged
            settled = (1 - share) * self.previous + share * F.normalize(self.centers, dim=1)
            self.centers.copy_(F.normalize(settled, dim=1))
            self.averaged += 1
        self.epochs += 1
        self.previous.copy_(self.centers)
        self.counts.zero_()

    def get_extra_state(self) -> dict[str, int]:
        """Return the counters, for the state dict."""
        return {"epochs": self.epochs, "averaged": self.averaged}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Take over saved counters."""
        self.epochs, self.averaged = state["epochs"], state["averaged"]

    def _move(self, rows: Tensor, labels: Tensor) -> None:
        places = labels.reshape(len(rows), -1) + self._start
        hits = places.flatten().bincount(minlength=len(self.counts)).to(self.counts.dtype)
        self.duals.add_(len(rows) * self._bound - hits, alpha=self.dual_step)
        if self.ratio < 1:
            self.duals.clamp_(min=0)
        total = self.counts + hits
        # A cluster that is hit for the first time in an epoch forgets its centre, since its count is 0.
        kept = torch.where(hits > 0, self.counts / total.clamp(min=1), 1.0)
        shares = (rows[:, None] / total[places][:, :, None]).flatten(0, 1)
        self.centers.mul_(kept[:, None]).index_add_(0, places.flatten(), shares)
        if not self.averaged:
            self.centers.copy_(F.normalize(self.centers, dim=1))
        self.counts.copy_(total)


def averaged_labels(labels: Tensor, weights: Tensor, new: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Give the newest label its share of an average over few labels; the others, together, keep the rest.

    A label that is not among those of its row takes the place of the lightest one, whose weight goes to the others.

    Args:
        labels: `(..., kept)`, int64, each at most once in a row; whatever has weight 0 does not matter.
        weights: `(..., kept)`, each row sums to 1, or to 0 where there is no label yet.
        new: the newest label `(...,)`, int64.
        share: its share, in (0, 1].

    Returns:
        Labels and weights of the same shapes; each row of weights sums to 1.

    >>> averaged_labels(torch.tensor([[4, 7]]), torch.tensor([[0.75, 0.25]]), torch.tensor([2]), share=0.5)
    (tensor([[4, 2]]), tensor([[0.5000, 0.5000]]))
    """
    same = (labels == new[..., None]) & (weights > 0)
    slot = torch.where(same.any(-1), same.float().argmax(-1), weights.argmin(-1))[..., None]
    gone = torch.where(same.any(-1, keepdim=True), 0.0, weights.gather(-1, slot))
    kept = weights.scatter_add(-1, slot, -gone)
    total = kept.sum(-1, keepdim=True)
    kept = kept * torch.where(total > 0, (1 - share) / total, 0.0)
    # Where nothing is left beside it, the newest label is all there is.
    added = torch.where(total > 0, torch.full_like(total, share), 1.0)
    return labels.scatter(-1, slot, new[..., None]), kept.scatter_add(-1, slot, added)


def sharpened(weights: Tensor, temperature: float) -> Tensor:
    """Return a softmax of the weights over the labels that have any, `(..., kept)`; the others stay 0.

    >>> sharpened(torch.tensor([[2 / 3, 1 / 3, 0.0]]), 0.5)
    tensor([[0.6608, 0.3392, 0.0000]])
    """
    return (weights / temperature).masked_fill(weights <= 0, -torch.inf).softmax(-1)
