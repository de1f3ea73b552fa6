"""A classifier that also weighs the instances of a bag by attention."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from repertory.core.classifier import classifier_of, replace_classifier
from repertory.errors import DataError, check_choice, check_number


def attention_weights(scores: Tensor, groups: Tensor) -> Tensor:
    """Return the softmax of scores within each bag.

    Args:
        scores: of the instances `(rows,)`.
        groups: bag of each instance `(rows,)`, from 0 on.

    Returns:
        `(rows,)`, which sum to 1 over each bag.

    >>> attention_weights(torch.tensor([0.0, 0.0, 5.0]), torch.tensor([0, 0, 1]))
    tensor([0.5000, 0.5000, 1.0000])
    """
    bags = int(groups.max()) + 1 if len(groups) else 0
    highest = scores.new_full((bags,), -math.inf).scatter_reduce(0, groups, scores, "amax")
    shares = (scores - highest[groups]).exp()
    return shares / shares.new_zeros(bags).index_add_(0, groups, shares)[groups]


class AttentionClassifier(nn.Linear):
    r"""A linear classifier of instances, with a small network that says how much each counts for its bag.

    The score of an instance with features $h$ is $w^\top \tanh(V h)$, or with a gate
    $w^\top (\tanh(V h) \odot \sigma(U h))$. Called like any linear layer it gives the logits of instances; since it is
    linear, their mean weighted by attention is its logit of the mean of the features.

    Args:
        in_features: size of the features.
        out_features: number of classes.
        width: hidden units of the attention.
        gated: with a gate.
        bias: of the classifier.

    Raises:
        OptionError: if an option is outside its range.

    >>> layer = AttentionClassifier(3, 2)
    >>> layer(torch.zeros(5, 3)).shape, layer.bag_logits(torch.zeros(5, 3), torch.tensor([0, 0, 0, 1, 1])).shape
    (torch.Size([5, 2]), torch.Size([2, 2]))

    Reference: Ilse, Tomczak, Welling, https://arxiv.org/abs/1802.04712.
    """

    def __init__(
        self, in_features: int, out_features: int, width: int = 128, gated: bool = False, bias: bool = True
    ) -> None:
        super().__init__(in_features, out_features, bias)
        check_number("width", width, minimum=1, integer=True)
        check_choice("gated", gated, (True, False))
        # Not linear layers, of which the last one counts as a network's classifier.
        self.hidden = nn.Parameter(torch.empty((1 + gated), width, in_features))
        self.hidden_bias = nn.Parameter(torch.empty((1 + gated), width))
        self.score = nn.Parameter(torch.empty(width))
        bound = 1 / math.sqrt(in_features)
        for parameter, limit in ((self.hidden, bound), (self.hidden_bias, bound), (self.score, 1 / math.sqrt(width))):
            nn.init.uniform_(parameter, -limit, limit)

    def attention(self, features: Tensor) -> Tensor:
        """Return the scores of instances `(rows,)` for their features `(rows, in_features)`, before any softmax."""
        found = torch.einsum("nf,gwf->gnw", features, self.hidden) + self.hidden_bias[:, None]
        hidden = found[0].tanh() * found[1].sigmoid() if len(found) == 2 else found[0].tanh()
        return hidden @ self.score

    def bag_logits(self, features: Tensor, groups: Tensor) -> Tensor:
        """Return the logits of bags.

        Args:
            features: of the instances `(rows, in_features)`.
            groups: bag of each `(rows,)`, int64 from 0 on without a gap.

        Returns:
            `(bags, out_features)`.

        Raises:
            DataError: if there is not one bag a row.
        """
        if groups.shape != features.shape[:1]:
            raise DataError(f"groups {tuple(groups.shape)} must be one bag for each of {len(features)} instances")
        weights = attention_weights(self.attention(features), groups)
        logits = self(features)
        made = logits.new_zeros(int(groups.max()) + 1, self.out_features)
        return made.index_add_(0, groups, weights[:, None] * logits)


def attention_head(model: nn.Module, outputs: int, width: int = 128, gated: bool = False) -> nn.Module:
    """Let the network's last linear layer weigh instances too; what it has learnt stays.

    Args:
        model: changed in place, unless it is a single linear layer.
        outputs: number of classes.
        width: hidden units of the attention.
        gated: with a gate.

    Returns:
        The network.
    """

    def made(features: int) -> nn.Module:
        return AttentionClassifier(features, outputs, width, gated)

    old = copy.deepcopy(classifier_of(model)[1])
    if isinstance(old, AttentionClassifier):
        return model
    model = replace_classifier(model, made)
    new = classifier_of(model)[1]
    with torch.no_grad():
        new.weight.copy_(old.weight)
        if old.bias is not None:
            new.bias.copy_(old.bias)
        else:
            new.bias.zero_()
    return model.to(old.weight.device)
