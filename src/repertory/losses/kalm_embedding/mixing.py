"""New hard negatives as mixtures of a query's own, in the space of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from repertory.core.randomness import uniform_from
from repertory.errors import DataError, check_choice, check_number
from repertory.layers.embedding import unit_rows


def mix_negatives(
    queries: Tensor,
    negatives: Tensor,
    how: str = "pair",
    *,
    count: int = 1,
    temperature: float = 0.05,
    key: Tensor | None = None,
) -> Tensor:
    r"""Return mixtures of each query's own hard negatives, of length 1, without encoding anything again.

    "pair" mixes two different ones at random, $\beta n_a + (1 - \beta) n_b$ with $\beta \sim \mathrm{Beta}(2, 2)$;
    "list" mixes all of them, weighted by $\mathrm{softmax}_k(s(q, n_k) / \tau)$, through which no gradient flows.

    Args:
        queries: `(batch, dim)`, of any length.
        negatives: `(batch, negatives, dim)`, at least two each; a zero vector is one that is not there.
        how: "pair" or "list".
        count: mixtures of pairs a query; of lists there is one.
        temperature: of the weights of a list.
        key: what the draws depend on, 0-d int64; None draws one from torch's generator.

    Returns:
        `(batch, count or 1, dim)` in float32 or wider; zero where a query has fewer than two negatives (for "list",
        none).

    Raises:
        OptionError: if an option is not allowed.
        DataError: if the shapes do not fit, or there are fewer than two negatives a query.

    >>> query, negatives = torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.0, 2.0], [0.0, 1.0]]])
    >>> mix_negatives(query, negatives)
    tensor([[[0., 1.]]])
    """
    check_choice("how", how, ("pair", "list"))
    check_number("count", count, minimum=1, integer=True)
    check_number("temperature", temperature, above=0)
    if negatives.ndim != 3 or queries.shape != (len(negatives), negatives.shape[2]) or negatives.shape[1] < 2:
        raise DataError(
            f"queries {tuple(queries.shape)} and negatives {tuple(negatives.shape)} must be (batch, dim) and (batch, "
            "negatives, dim), with at least 2 negatives to mix"
        )
    unit = unit_rows(negatives)
    there = unit.any(-1)
    if how == "list":
        with torch.no_grad():
            cosines = (unit @ unit_rows(queries).to(unit.dtype)[..., None]).squeeze(-1)
            low = torch.finfo(cosines.dtype).min
            weights = (cosines / temperature).masked_fill(~there, low).softmax(1) * there
        return unit_rows((weights[..., None] * unit).sum(1, keepdim=True))
    key = torch.randint(2**62, (), device=unit.device) if key is None else key
    size = (len(unit), count, unit.shape[1] + 3)
    draws = uniform_from(key, size).to(unit.dtype)
    # The middle one of three even draws is distributed as Beta(2, 2).
    share = draws[..., :3].median(-1).values[..., None]
    chosen = draws[..., 3:].masked_fill(~there[:, None], -1).topk(2, -1).indices
    first, second = (unit[torch.arange(len(unit), device=unit.device)[:, None], chosen[..., side]] for side in (0, 1))
    both = (there.sum(1) > 1)[:, None, None]
    return unit_rows(share * first + (1 - share) * second) * both
