"""A static classifier, and clusters of what it rejects: discovery that forgets nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from repertory.algorithms.grow_and_merge.novelty import novelty_scores, novelty_split, novelty_threshold
from repertory.core.classifier import classifier_of, features_and_output, replace_classifier
from repertory.core.method import Method
from repertory.core.randomness import derived_seed
from repertory.errors import check_number

if TYPE_CHECKING:
    from repertory.scenarios.category_discovery import DiscoveryBench
    from repertory.training.learner import Learner

_CERTAIN = 1e-4
"""Probability that is left to the side of the line on which an example does not lie."""


class ClusteredRejects(nn.Module):
    """A classifier that gives examples it is unsure of to the nearest of some clusters of its features.

    Args:
        network: the classifier.
        threshold: 1 minus the largest probability above which an example is rejected, 0-d.

    >>> made = ClusteredRejects(nn.Sequential(nn.Linear(4, 3)), torch.tensor(0.2))
    >>> made.add(torch.randn(2, 4))
    >>> made(torch.randn(5, 4)).shape
    torch.Size([5, 5])
    """

    threshold: Tensor
    centres: Tensor

    def __init__(self, network: nn.Module, threshold: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("threshold", threshold.clone())
        self.register_buffer("centres", torch.zeros(0, 0))

    def add(self, centres: Tensor) -> None:
        """Add clusters `(n, width)`."""
        centres = centres.to(self.threshold)
        self.centres = torch.cat([self.centres, centres]) if len(self.centres) else centres

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        # How many classes and clusters there were, only the saved tensors know.
        name, layer = classifier_of(self.network)
        rows = state_dict.get(f"{prefix}network.{name}{'.' if name else ''}weight")
        centres = state_dict.get(f"{prefix}centres")
        if rows is not None and len(rows) != layer.out_features:
            bias = layer.bias is not None
            self.network = replace_classifier(
                self.network,
                lambda width: nn.utils.skip_init(nn.Linear, width, len(rows), bias=bias, device=layer.weight.device),
            )
        if centres is not None:
            self.centres = torch.empty_like(centres, device=self.threshold.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return log-probabilities of the classes, and of the clusters after them `(batch, classes + clusters)`."""
        features, logits = features_and_output(self.network, inputs)
        if not len(self.centres):
            return logits
        rejected = novelty_scores(logits) > self.threshold
        aside = torch.where(rejected, 1 - _CERTAIN, _CERTAIN)[:, None].log()
        kept = torch.where(rejected, _CERTAIN, 1 - _CERTAIN)[:, None].log()
        near = -torch.cdist(features, self.centres).square()
        return torch.cat([logits.log_softmax(1) + kept, near.log_softmax(1) + aside], 1)


class RejectedClusters(Method):
    """Discovery of new classes by k-means on the features of what a static classifier rejects.

    It trains nothing: what the known classes left of the budget stays unspent. A method of the slot `objective` in the
    scenario category_discovery, and its baseline.

    Args:
        quantile: share of the validation examples of known classes that is not rejected, which draws the line.

    Attributes:
        rejected: which examples of the last set without labels were rejected `(n,)`, bool.

    Raises:
        OptionError: if the share is out of range.

    >>> RejectedClusters(quantile=0.9).quantile
    0.9
    """

    slug = "rejected-clusters"
    owns = frozenset({"target"})

    def __init__(self, quantile: float = 0.95) -> None:
        super().__init__()
        check_number("quantile", quantile, above=0, below=1)
        self.quantile = quantile
        self.rejected = torch.zeros(0, dtype=torch.bool)

    def discover(self, learner: Learner, bench: DiscoveryBench) -> Learner:
        """Add a cluster for each new class of the present set."""
        from sklearn.cluster import KMeans

        # Not those of the training part: a network that learnt them is surer of them than of others like them.
        known = novelty_scores(bench.look(_static(learner.network), bench.splits.validation.inputs)[1])
        features, logits = bench.look(_static(learner.network), bench.unlabelled)
        self.rejected = novelty_split(novelty_scores(logits), known, self.quantile, least=bench.new_classes)
        if not isinstance(learner.network, ClusteredRejects):
            threshold = novelty_threshold(known, self.quantile).to(bench.device)
            learner.network = ClusteredRejects(learner.network, threshold)
        seed = derived_seed(bench.seed, f"{self.slug}/{bench.step}") % 2**32
        means = KMeans(bench.new_classes, n_init=10, random_state=seed).fit(features[self.rejected].numpy())
        learner.network.add(torch.from_numpy(means.cluster_centers_))
        return learner

    def rebuild(self, learner: Learner, outputs: int) -> Learner:
        """Return a model of the structure that `discover` left, for saved weights to be loaded into."""
        learner.network = ClusteredRejects(learner.network, torch.zeros(()))
        return learner


def _static(network: Any) -> nn.Module:
    inner: nn.Module = network.network if isinstance(network, ClusteredRejects) else network
    return inner
