r"""Let the examples of a batch attend to each other in training, so that rare classes learn from frequent ones.

## Idea
One layer of a transformer runs over the batch as if its examples were the words of a sentence. Each feature is mixed
with those of the other examples, and gradients flow between them. The classifier is shared by the features as they are
and the mixed ones, so it does not come to depend on the mixture: after training the layer is left out, and prediction
costs what it did.

## Use it when
- classes are imbalanced and the rare ones are what you care about, together with a loss that corrects for frequency;
- there is little data, or a domain is missing from it, and you want regularisation that costs nothing at test time;
- you can afford batches in which many classes occur.

## Do not use it when
- the batch is small, or sorted by class: there is nothing to learn from the others, or the mixed half gives the class
  away;
- memory only allows micro-batches: the batch that is mixed is then the micro-batch;
- the network gives a vector a pixel or a token instead of one an example.

## Equations
With features $f \in \mathbb{R}^{N \times C}$ of a batch, $g = \mathrm{Encoder}(f)$ over the $N$ examples, without
position or mask, a classifier $W$ and labels $y$:
$$ L = \frac{1}{2N} \sum_i \big[ \ell(W f_i, y_i) + \ell(W g_i, y_i) \big], \qquad
   \text{prediction: } W f . $$
Encoder layer, after the addition as in the original transformer: $u = \mathrm{LN}(f + \mathrm{Attention}(f))$,
$g = \mathrm{LN}(u + W_2 \, \mathrm{ReLU}(W_1 u))$.

## Defaults
`heads=4, dropout=0.5, layers=1` and an inner width of $C$ are the authors'; for features of 128 numbers or fewer they
take one head in one of their programs. `lr_scale=1` (of the step's method) is that of most of them; with balanced
softmax they train the layer at a tenth of the network's learning rate.

## Cost
No further pass through the network. $6 N C^2 + 2 N^2 C$ multiplications for the layer and $N$ more rows for the
classifier: a step of a small convolutional network on 64 images of 32 x 32 takes about 1.1 times as long, one of a
small perceptron 3 to 4 times. Each of several processes mixes the whole batch. Nothing at test time.

## Claim
More accurate on long-tailed data, and most of all on the rare classes: ImageNet-LT, ResNet-50, RIDE with 3 experts,
53.6 to 54.1 % in all and 33.2 to 35.1 % on the few-shot classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory.card import Card
from repertory.core.distributed import gather_with_gradient, own_rows
from repertory.core.state import Run
from repertory.errors import DataError, OptionError, check_number
from repertory.layers.doubled import DoubledBatch, attention, in_heads, repeated
from repertory.layers.dropout import CountedDropout
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="batchformer",
    name="BatchFormer",
    title="BatchFormer: Learning to Explore Sample Relationships for Robust Representation Learning",
    authors="Zhi Hou et al.",
    year=2022,
    venue="CVPR 2022",
    link="https://arxiv.org/abs/2203.01522",
    kind="layer",
    entry="BatchFormer",
    problems=("class imbalance", "long tail", "domain generalisation", "sample relations", "little data"),
    defaults={"heads": 4, "dropout": 0.5, "layers": 1, "seed": 0},
    scenarios=("supervised", "retrieval"),
    search={"dropout": (0.1, 0.7)},
    across_batch=True,
    tags=("batch attention", "transformer", "no cost at test time", "few-shot classes", "unseen classes"),
)


class BatchFormer(nn.Module):
    """A transformer encoder over the examples of a batch, before a classifier that it shares with the plain features.

    In training it gives the features with the mixed ones behind them, and each target twice; in evaluation it gives
    back what it got. Over several processes the batch is that of all of them together. `layers` holds torch's own
    `nn.TransformerEncoderLayer`s, so weights go from and to an `nn.TransformerEncoder`.

    Args:
        dim: size of the features.
        heads: of the attention; divides `dim`.
        dropout: rate on attention weights and on both branches, in [0, 1).
        layers: of the encoder.
        seed: of the dropout masks, which depend on it and the number of calls alone.

    Raises:
        OptionError: if an option is outside its range, or in use, if features are not of size `dim`.
        DataError: in use, if a target does not have one row an example.

    >>> mix = BatchFormer(dim=8)
    >>> features, target = mix(torch.randn(6, 8), torch.arange(6))
    >>> features.shape, target.tolist()
    (torch.Size([12, 8]), [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])
    >>> mix.eval()(features).shape
    torch.Size([12, 8])

    Notes:
        Of the authors' options the one that averages the logits of both halves at test time, which makes a prediction
        depend on the rest of its batch, is left out; so is the second version, inside of transformers.

    Reference: Hou, Yu, Tao, https://arxiv.org/abs/2203.01522.
    """

    def __init__(self, dim: int, heads: int = 4, dropout: float = 0.5, layers: int = 1, seed: int = 0) -> None:
        super().__init__()
        check_number("dim", dim, minimum=1, integer=True)
        _check(heads, dropout, layers)
        if dim % heads:
            raise OptionError(f"heads={heads} is not allowed: it must divide dim={dim}; the authors also use heads=1")
        self.dim = dim
        self.heads = heads
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(dim, heads, dim, dropout=0.0) for _ in range(layers))
        self.drop = CountedDropout(dropout, seed)

    def forward(self, features: Tensor, *targets: Any) -> Any:
        """Double the batch in training.

        Args:
            features: `(batch, dim)`.
            targets: tensors with a row an example, or tuples, lists or mappings of them.

        Returns:
            features `(2 * batch, dim)`, the first half unchanged, with the doubled targets behind them where any were
            given; in evaluation, what was given.
        """
        if self.training:
            size = len(features)
            bad = [tuple(t.shape) for t in targets if isinstance(t, Tensor) and t.shape[:1] != (size,)]
            if bad:
                raise DataError(f"a target of shape {bad[0]} does not have a row for each of {size} features; give one")
            features = torch.cat([features, self.mixed(features)])
            targets = repeated(targets, size)
        return (features, *targets) if targets else features

    def mixed(self, features: Tensor) -> Tensor:
        """Return the features `(batch, dim)`, each mixed with the others."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise OptionError(
                f"dim={self.dim} does not fit features of shape {tuple(features.shape)}; they must be "
                f"(batch, {self.dim})"
            )
        rows = gather_with_gradient(features)
        for layer in self.layers:
            rows = self._encoded(layer, rows)
        return rows[own_rows(len(features), features.device)]

    def _encoded(self, layer: Any, rows: Tensor) -> Tensor:
        attend = layer.self_attn
        projected = functional.linear(rows, attend.in_proj_weight, attend.in_proj_bias)
        query, key, value = (in_heads(part, self.heads) for part in projected.chunk(3, dim=1))
        rows = layer.norm1(rows + self.drop(attend.out_proj(attention(query, key, value, drop=self.drop))))
        inner: Tensor = self.drop(functional.relu(layer.linear1(rows)))
        return layer.norm2(rows + self.drop(layer.linear2(inner)))

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"dim={self.dim}, heads={self.heads}"


class BatchFormerTraining(DoubledBatch):
    """BatchFormer in a `Step`: the network stays as it is, and is trained with the layer before its last linear one.

    Args:
        heads: of the attention; divides the width of the features.
        dropout: rate on attention weights and on both branches, in [0, 1).
        layers: of the encoder.
        lr_scale: factor on the learning rate of the layer, where the optimizer is made by `Step`.

    Raises:
        OptionError: if an option is outside its range.

    >>> import functools
    >>> from repertory import Step
    >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> sgd = functools.partial(torch.optim.SGD, lr=0.1)
    >>> step = Step(model, sgd, nn.CrossEntropyLoss(), methods=[BatchFormerTraining()])
    >>> step((torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]))).shape
    torch.Size([])

    Reference: Hou, Yu, Tao, https://arxiv.org/abs/2203.01522.
    """

    slug = "batchformer"

    def __init__(self, heads: int = 4, dropout: float = 0.5, layers: int = 1, lr_scale: float = 1.0) -> None:
        super().__init__(lr_scale)
        _check(heads, dropout, layers)
        self.heads = heads
        self.dropout = dropout
        self.layers = layers

    def make(self, run: Run, width: int, seed: int) -> nn.Module:
        """Return the layer for features of this width."""
        return BatchFormer(width, self.heads, self.dropout, self.layers, seed)

    def enlarge(self, features: Tensor, inputs: Any) -> Tensor:
        """Return the features with the mixed ones behind them."""
        assert self.layer is not None
        enlarged: Tensor = self.layer(features)
        return enlarged


def _check(heads: object, dropout: object, layers: object) -> None:
    check_number("heads", heads, minimum=1, integer=True)
    check_number("dropout", dropout, minimum=0, below=1)
    check_number("layers", layers, minimum=1, integer=True)


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Train with BatchFormer before the network's last linear layer."""
    return recipe.add("methods", Part("repertory.layers.batchformer:BatchFormerTraining", options, "batchformer"))
