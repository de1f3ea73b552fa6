r"""Train text embeddings on pairs, with more weight on hard queries and mixtures of hard negatives.

## Idea
A query's loss is how surely it finds its own passage among the others of the batch. Late in training most queries do,
and their many small losses drown those that do not. So each loss is weighted by how far the query is from being sure.
Hard negatives that a search has found go stale as the model learns; mixing a query's own ones gives new ones for
nothing. The paper's recipe around it: a decoder without its causal mask, mean pooling, prefixes that can be searched by
themselves, and the mean of several fine-tunings.

## Use it when
- you train a search on pairs of texts: questions and answers, titles and articles, code and documentation;
- in-batch negatives have become easy: the training loss is small, the search is still wrong;
- your data has hard negatives (columns `negative1`, `negative2`, ...), or enough passages to mine some.

## Do not use it when
- many pairs are mislabelled, or passages answer each other's queries: these are the queries that stay hard;
- there are fewer than two hard negatives a query: then nothing is mixed, and only the weights are left;
- batches are small and without hard negatives: then most queries are sure of their passage at once.

## Equations
With the logits $s / \tau$ of InfoNCE over positives and hard negatives of the batch, and $p_i$ the share of the own
passage:
$$ p_i = \frac{\exp(s(q_i, p_i^+) / \tau)}{Z_i}, \qquad \ell = \frac{1}{N} \sum_i (1 - p_i)^\gamma \, (-\log p_i) . $$
Mixtures of the own negatives $n_k$, of length 1, join $Z_i$:
$$ \tilde n \propto \beta n_a + (1 - \beta) n_b, \quad \beta \sim \mathrm{Beta}(2, 2); \qquad
   \tilde n \propto \sum_k \mathrm{softmax}_k \big( s(q, n_k) / \tau \big) \, n_k . $$

## Defaults
`temperature=0.01` and seven negatives from ranks 50 to 100, with pairs left out whose passage is not among the 50
nearest, are those of the authors' scripts; `gamma=0.5` and Beta(2, 2) are the paper's as others report them. How many
mixtures the paper makes is not known: here one of a pair and one of the list. In a comparison the recipe keeps its own
temperature, and no negatives are mined unless you ask with `negatives=7`: they take as many more passes, for which it
then trains shorter. Prefixes of the embedding that can be searched by alone: `sizes=[32,64,128]` (the authors' are 64,
128, 256, 512 and 896, with `weights` 0.1, 0.1, 0.2, 0.3 and 1). The mean of several fine-tunings:
`repertory.transforms.model_soups.uniform_soup`. A decoder that reads both ways: `--model hf:NAME:causal=false`.

## Cost
Weights and mixtures: `batch * (negatives + mixtures) * dim` multiplications. Mined negatives: one pass over the
training texts, and then `2 + negatives` texts an example in place of 2.

## Claim
On pairs of texts focal weights find passages better than InfoNCE, and so do mixtures of hard negatives than these
alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.errors import OptionError, check_choice, check_number
from repertory.layers.embedding import with_embedding
from repertory.losses.info_nce import InfoNCELoss, candidate_logits
from repertory.losses.kalm_embedding.batches import SemiHomogeneousBatches
from repertory.losses.kalm_embedding.mining import MinedNegatives, mine_negatives
from repertory.losses.kalm_embedding.mixing import mix_negatives
from repertory.recipe import Part, Recipe

__all__ = [
    "CARD",
    "FocalInfoNCE",
    "MinedNegatives",
    "SemiHomogeneousBatches",
    "edit",
    "focal_weights",
    "mine_negatives",
    "mix_negatives",
]

CARD = Card(
    slug="kalm-embedding",
    name="KaLM-Embedding-V2",
    title="KaLM-Embedding-V2: Superior Training Techniques and Data Inspire A Versatile Embedding Model",
    authors="Xinping Zhao et al.",
    year=2025,
    venue="arXiv 2025",
    link="https://arxiv.org/abs/2506.20923",
    kind="loss",
    entry="FocalInfoNCE",
    problems=(
        "text embeddings",
        "semantic search",
        "question answering over own documents",
        "hard negatives",
        "contrastive learning on pairs",
    ),
    defaults={
        "temperature": 0.01,
        "gamma": 0.5,
        "detach": False,
        "mixed_pairs": 1,
        "mixed_list": True,
        "mix_gradient": False,
        "extended": False,
        "reduction": "mean",
    },
    scenarios=("retrieval",),
    search={"temperature": (0.01, 0.2), "gamma": (0.1, 2.0)},
    across_batch=True,
    tags=("InfoNCE", "focal loss", "retrieval", "dense retrieval", "hard-negative mining", "FAQ", "RAG", "pairs"),
)

_INFO_NCE = "repertory.losses.info_nce:InfoNCELoss"


def focal_weights(values: Tensor, gamma: float) -> Tensor:
    """Return the weight of each loss, `(1 - exp(-value)) ** gamma`: near 1 for hard ones, near 0 for solved ones.

    Args:
        values: losses `-log p`, of any shape, at least 0.
        gamma: how much less the solved ones count; 0 weighs all alike.

    >>> focal_weights(torch.tensor([0.0, 0.5, 5.0]), gamma=2.0)
    tensor([0.0000, 0.1548, 0.9866])
    """
    # Rounding may leave a loss just below zero, and the slope of a root at zero has no end.
    return (-torch.expm1(-values)).clamp(min=torch.finfo(values.dtype).tiny).pow(gamma)


class FocalInfoNCE(InfoNCELoss):
    """InfoNCE with focal weights, and with mixtures of each query's own hard negatives as further ones.

    Takes pairs or classes as `InfoNCELoss` does. Mixtures are made in training mode, where a query has at least two
    hard negatives. Computed in float32 or wider, also under autocast.

    Args:
        temperature: divides the cosines.
        gamma: how much less a query counts that is sure of its passage; 0 weighs all alike.
        detach: take the weights as constants, through which no gradient flows.
        mixed_pairs: mixtures of two of a query's hard negatives; 0 for none.
        mixed_list: whether to add the mixture of all of them, the nearest most.
        mix_gradient: let gradients flow through the mixtures to the negatives that they are made of.
        extended: compare queries with queries and positives with positives too.
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if an option is outside its range.
        DataError: in use, if embeddings and targets do not match.

    >>> criterion = FocalInfoNCE(temperature=0.05, gamma=1.0)
    >>> criterion(torch.randn(4, 5, 8), torch.arange(4)).shape  # a query, its passage and three hard negatives each
    torch.Size([])

    Notes:
        The authors' released trainer has neither weights nor mixtures; they follow the paper's text. Whether its
        weights carry a gradient is not said; its formula taken as it stands, and the focal loss that it names, do. Its
        trainer masks only a query's own place among the extended negatives; here all pairs of the same passage are
        masked.

    Reference: Zhao, Hu, Shan, et al., https://arxiv.org/abs/2506.20923.
    """

    key: Tensor

    def __init__(
        self,
        temperature: float = 0.01,
        gamma: float = 0.5,
        detach: bool = False,
        mixed_pairs: int = 1,
        mixed_list: bool = True,
        mix_gradient: bool = False,
        extended: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, extended, reduction)
        check_number("gamma", gamma, minimum=0)
        check_choice("detach", detach, (True, False))
        check_number("mixed_pairs", mixed_pairs, minimum=0, integer=True)
        check_choice("mixed_list", mixed_list, (True, False))
        check_choice("mix_gradient", mix_gradient, (True, False))
        self.gamma = gamma
        self.detach = detach
        self.mixed_pairs = mixed_pairs
        self.mixed_list = mixed_list
        self.mix_gradient = mix_gradient
        # Counts on with each use, so that a resumed run draws what an undisturbed one does.
        self.register_buffer("key", torch.randint(2**62, ()))

    def per_query(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Return each query's weighted loss `(batch,)`, in float32 or wider."""
        logits, place, found = candidate_logits(embedding, target, self.temperature, extended=self.extended)
        mixtures = self._mixtures(embedding)
        if mixtures:
            mixed = torch.cat(mixtures, 1)
            queries = nn.functional.normalize(embedding[:, 0].to(mixed.dtype), dim=-1)
            further = (mixed @ queries[..., None]).squeeze(-1) / self.temperature
            logits = torch.cat([logits, further.masked_fill(~mixed.any(-1), -math.inf)], 1)
        values = nn.functional.cross_entropy(logits, place, reduction="none").where(found, 0.0)
        if not self.gamma:
            return values
        weights = focal_weights(values.detach() if self.detach else values, self.gamma)
        return weights * values

    def _mixtures(self, embedding: Tensor) -> list[Tensor]:
        if not self.training or embedding.ndim == 2 or embedding.shape[1] < 4:
            return []
        negatives = embedding[:, 2:] if self.mix_gradient else embedding[:, 2:].detach()
        found = []
        if self.mixed_pairs:
            self.key.add_(1)
            found.append(mix_negatives(embedding[:, 0], negatives, "pair", count=self.mixed_pairs, key=self.key))
        if self.mixed_list:
            found.append(mix_negatives(embedding[:, 0], negatives, "list", temperature=self.temperature))
        return found

    def extra_repr(self) -> str:
        """Return the options, for printing."""
        return (
            f"{super().extra_repr()}, gamma={self.gamma}, mixed_pairs={self.mixed_pairs}, mixed_list={self.mixed_list}"
        )


def edit(
    recipe: Recipe,
    negatives: int = 0,
    ranks: Sequence[int] = (50, 100),
    filter_topk: int | None = 50,
    sizes: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    dim: int = 64,
    per_class: int = 2,
    **options: Any,
) -> Recipe:
    """Train with focal weights and mixtures, at the recipe's own temperature unless one is given.

    Args:
        recipe: the baseline.
        negatives: hard negatives a query that the untrained network finds before training; pairs of texts only.
        ranks: window of ranks that these are drawn from.
        filter_topk: leave out pairs whose passage is not among so many nearest, when negatives are mined.
        sizes: numbers of leading dimensions that are trained to be searched by alone, the whole embedding the largest.
        weights: factor on the loss of each size, None for 1.
        dim: size of the embedding, where there are classes.
        per_class: examples of a class that come together in a batch, where there are classes.
        options: of `FocalInfoNCE`.

    Raises:
        OptionError: if an option is outside its range, or negatives are to be mined where there are classes.
    """
    check_number("negatives", negatives, minimum=0, integer=True)
    options = {"temperature": recipe.criterion.options.get("temperature", 0.05), **options}
    if recipe.criterion.factory != _INFO_NCE:
        if negatives:
            raise OptionError(
                f"negatives={negatives} mines passages for pairs of texts, but the data have classes; leave it out"
            )
        dim = dim if sizes is None else max(sizes)
        recipe = with_embedding(recipe, dim, "kalm-embedding").replace(
            sampler=Part("repertory.core.sampling:ClassBatches", {"per_class": per_class}, "kalm-embedding")
        )
    if negatives:
        mining: dict[str, Any] = {"count": negatives, "ranks": list(ranks), "filter_topk": filter_topk}
        MinedNegatives(**mining)
        recipe = recipe.add(
            "curation", Part("repertory.losses.kalm_embedding:MinedNegatives", mining, "kalm-embedding")
        ).replace(train_share=recipe.train_share * 2 / (2 + negatives))
    criterion = Part("repertory.losses.kalm_embedding:FocalInfoNCE", options, "kalm-embedding")
    if sizes is not None:
        around = {"around": criterion.to_dict(), "sizes": list(sizes), "weights": weights}
        criterion = Part("repertory.losses.matryoshka:matryoshka_criterion", around, "kalm-embedding")
    return recipe.replace(criterion=criterion)
