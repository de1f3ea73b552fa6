"""MadaCos: a softmax on cosines whose scale and margin follow the median of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from repertory.core.distributed import gather_rows, own_rows, world_size
from repertory.errors import DataError, OptionError, check_choice, check_number
from repertory.layers.embedding import unit_rows


@torch.no_grad()
def madacos_scale_and_margin(
    cosines: Tensor,
    target: Tensor,
    alpha: float = 0.02,
    rho: float = 9999999.0,
    smallest_scale: float = 32.0,
    largest_scale: float = 512.0,
) -> tuple[Tensor, Tensor]:
    r"""Return the scale and the margin at which the median example has probability `alpha` of its class.

    With m the (lower) median of the cosines with the right class, and i the example that has it,
    $s = \log(\rho (1 - \alpha) / \alpha) / (1 - m)$ within its limits, and
    $\delta = m - \frac1s \log\big( \frac{\alpha}{1 - \alpha} \sum_{c \ne y_i} e^{s \cos_{ic}} \big)$, at least 0.
    The median is that of the batches of all processes together.

    Args:
        cosines: with each class, `(batch, classes)`.
        target: classes `(batch,)`, int64.
        alpha: probability of the median example, in (0, 1).
        rho: how far scaled cosines may be apart; the authors' constant.
        smallest_scale: limit of the scale from below.
        largest_scale: limit of the scale from above, which keeps it finite where the median comes near 1.

    Returns:
        Scale and margin, 0-d, without gradient.

    >>> cosines = torch.tensor([[0.5, 0.1], [0.2, 0.4], [0.7, 0.0]])
    >>> scale, _ = madacos_scale_and_margin(cosines, torch.tensor([0, 1, 0]))
    >>> scale  # log(9999999 * 49) / 0.5
    tensor(40.0198)
    """
    right = cosines.gather(1, target[:, None])[:, 0]
    everyone = gather_rows(right)
    median, place = everyone.kthvalue((len(everyone) + 1) // 2)
    # Above 1 by rounding, the median would turn the sign of the scale.
    scale = math.log(rho * (1 - alpha) / alpha) / (1 - median).clamp(min=torch.finfo(cosines.dtype).eps)
    scale = scale.clamp(smallest_scale, largest_scale)
    place = place - own_rows(len(right), right.device).start
    row = place.clamp(0, len(right) - 1)[None]
    wrong = scale * cosines[row].scatter(1, target[row][:, None], -math.inf)
    others = wrong.logsumexp(1)
    if world_size() > 1:
        # One process has the median example, and its sum counts.
        mine = ((place >= 0) & (place < len(right)))[None]
        others = gather_rows(others)[gather_rows(mine.to(others.dtype)).argmax()][None]
    margin = median - (others[0] + math.log(alpha / (1 - alpha))) / scale
    return scale, margin.clamp(min=0)


class MadaCos(nn.Module):
    """Cross-entropy on scaled cosines with one learnt direction a class; scale and margin are set by each batch.

    Both are constants for the gradient. In evaluation mode there is no margin. Everything is computed in float32 or
    wider, also under autocast; the batch is that of all processes together.

    Args:
        outputs: number of classes.
        dim: size of the embeddings.
        alpha: probability that the median example is given, in (0, 1); the smaller, the larger the margin.
        rho: how far scaled cosines may be apart.
        smallest_scale: limit of the scale from below.
        largest_scale: limit of the scale from above.
        reduction: "mean", "sum" or "none".

    Raises:
        OptionError: if an option is outside its range; in use, if embeddings are not of size `dim`.
        DataError: in use, if embeddings and targets do not match.

    >>> criterion = MadaCos(outputs=3, dim=4)
    >>> criterion(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])).shape
    torch.Size([])

    Notes:
        The authors' code sets no upper limit. Its sum of exponentials overflows where the scale reaches some hundreds,
        and the margin is then 0; here the sum is kept as a logarithm, and the scale stops at `largest_scale`. `alpha`
        is 0.02 in their experiments (0.1 in the signature of their layer).

    Reference: Zhu, Gao, Ke, Qiao, Sun, Coarse-to-Fine: Learning Compact Discriminative Representation for Single-Stage
    Image Retrieval, https://arxiv.org/abs/2308.04008.
    """

    takes: ClassVar[Mapping[str, str]] = {"target": "hard"}
    scale: Tensor

    def __init__(
        self,
        outputs: int,
        dim: int = 64,
        alpha: float = 0.02,
        rho: float = 9999999.0,
        smallest_scale: float = 32.0,
        largest_scale: float = 512.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_number("outputs", outputs, minimum=2, integer=True)
        check_number("dim", dim, minimum=1, integer=True)
        check_number("alpha", alpha, above=0, below=1)
        check_number("rho", rho, above=1)
        check_number("smallest_scale", smallest_scale, above=0)
        check_number("largest_scale", largest_scale, minimum=smallest_scale)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.alpha = alpha
        self.rho = rho
        self.smallest_scale = smallest_scale
        self.largest_scale = largest_scale
        self.reduction = reduction
        self.directions = nn.Parameter(torch.empty(outputs, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.register_buffer("scale", torch.tensor(float(smallest_scale)))

    def forward(self, embedding: Tensor, target: Tensor) -> Tensor:
        """Return the loss: 0-d, or `(batch,)` with `reduction="none"`.

        Args:
            embedding: `(batch, dim)`, of any length.
            target: classes `(batch,)`, int64.
        """
        if target.shape != embedding.shape[:1] or target.is_floating_point():
            raise DataError(
                f"embeddings {tuple(embedding.shape)} and targets {tuple(target.shape)} of {target.dtype} must be "
                "(batch, dim) and classes (batch,)"
            )
        outputs = len(self.directions)
        # A compiled graph cannot stop for an error; there a class out of range fails where it is used.
        if not torch.compiler.is_compiling() and not 0 <= target.min() <= target.max() < outputs:
            raise DataError(
                f"targets hold classes from {int(target.min())} to {int(target.max())}, but outputs={outputs}; classes "
                f"must be from 0 to {outputs - 1}"
            )
        with torch.autocast(embedding.device.type, enabled=False):
            cosines = self._cosines(embedding)
            scale, margin = madacos_scale_and_margin(
                cosines, target, self.alpha, self.rho, self.smallest_scale, self.largest_scale
            )
            logits = scale * cosines
            if self.training:
                self.scale.copy_(scale)
                logits.scatter_add_(1, target[:, None], (-scale * margin).expand(len(target), 1))
            return nn.functional.cross_entropy(logits, target, reduction=self.reduction)

    def logits(self, embedding: Tensor) -> Tensor:
        """Return the cosine with each class times the scale of the last batch trained on, `(batch, classes)`."""
        with torch.autocast(embedding.device.type, enabled=False):
            cosines = self._cosines(embedding)
            return self.scale.to(cosines.dtype) * cosines

    def _cosines(self, embedding: Tensor) -> Tensor:
        dim = self.directions.shape[1]
        if embedding.ndim != 2 or embedding.shape[1] != dim:
            raise OptionError(
                f"dim={dim} does not fit embeddings of shape {tuple(embedding.shape)}; they must be (batch, {dim})"
            )
        unit = unit_rows(embedding)
        return unit @ unit_rows(self.directions).to(unit.dtype).T

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        outputs, dim = self.directions.shape
        return f"outputs={outputs}, dim={dim}, alpha={self.alpha}, reduction={self.reduction!r}"
