"""The projection as a layer behind an encoder that is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repertory.core.modes import evaluating
from repertory.errors import check_choice, check_number
from repertory.estimators.relative_representations.projection import check_similarity, quantise, relative_projection


class RelativeLayer(nn.Module):
    """An encoder whose output is described by its similarity to anchors, which pass through the same encoder.

    What follows sees no coordinates of the latent space. So a head that was trained behind one encoder works behind
    another with the same anchors: stitch them with `nn.Sequential`. A `LayerNorm` belongs in front of each head.

    Args:
        encoder: maps inputs to latents `(batch, dim)`.
        anchors: inputs of the anchors `(anchors, ...)`, the same examples in the same order for all encoders.
        similarity: see `relative_projection`.
        center: subtract the mean of the anchors' latents first.
        bin_size: round the similarities to multiples of it (`quantise`); None leaves them.
        refresh: training passes after which the anchors are encoded anew; 1 does so in each. None encodes them once,
            for an encoder that is frozen.

    Raises:
        OptionError: if an option is outside its range.

    >>> def untrained(seed):
    ...     _ = torch.manual_seed(seed)
    ...     return nn.Linear(4, 3)
    >>> anchors = torch.randn(6, 4)
    >>> one, two = (RelativeLayer(untrained(seed), anchors) for seed in (0, 1))
    >>> head = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2))  # trained behind `one`
    >>> stitched = nn.Sequential(two, head)
    >>> stitched(torch.randn(5, 4)).shape
    torch.Size([5, 2])

    Notes:
        Anchors pass without gradient and in evaluation mode, so that they move no batch statistics; in the authors'
        release they pass in whatever mode the encoder is in. In evaluation they are always encoded anew, unless
        `refresh=None`.

    Reference: Moschella, Maiorca, Fumero, Norelli, Locatello, Rodola, https://arxiv.org/abs/2209.15430.
    """

    anchors: Tensor
    latents: Tensor
    age: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        anchors: Tensor,
        similarity: str | Sequence[str] = "cosine",
        center: bool = False,
        bin_size: float | None = None,
        refresh: int | None = 1,
    ) -> None:
        super().__init__()
        self.similarity = check_similarity(similarity)
        check_choice("center", center, (True, False))
        if bin_size is not None:
            check_number("bin_size", bin_size, above=0)
        if refresh is not None:
            check_number("refresh", refresh, minimum=1, integer=True)
        self.encoder = encoder
        self.center = center
        self.bin_size = bin_size
        self.refresh = refresh
        self.register_buffer("anchors", anchors)
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))
        self.register_buffer("latents", self._encoded())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the similarities to the anchors `(batch, anchors)`.

        Args:
            inputs: of the encoder `(batch, ...)`.
        """
        found = relative_projection(self.encoder(inputs), self._anchors(), self.similarity, center=self.center)
        return found if self.bin_size is None else quantise(found, self.bin_size)

    def _anchors(self) -> Tensor:
        if self.refresh is None:
            return self.latents
        if not self.training:
            return self._encoded()
        if self.age % self.refresh == 0:
            self.latents = self._encoded()
        self.age += 1
        return self.latents

    @torch.no_grad()
    def _encoded(self) -> Tensor:
        with evaluating(self.encoder):
            latents: Tensor = self.encoder(self.anchors)
        return latents
