"""The first stage: the network learns features without labels, before it is trained with them."""

from __future__ import annotations

from typing import Any

from repertory.algorithms.simclr import SimCLR
from repertory.errors import check_number


class ContrastivePretraining:
    """Train a network without labels before its training, for a share of the budget; for a recipe's slot `before`.

    The classifier is left as it was drawn.

    Args:
        share: share of the whole budget.
        temperature: of the contrastive loss.

    Raises:
        OptionError: if an option is out of range.
    """

    def __init__(self, share: float = 0.5, temperature: float = 0.2) -> None:
        check_number("share", share, above=0, below=1)
        check_number("temperature", temperature, above=0)
        self.share = share
        self.temperature = temperature

    def apply(self, model: Any, bench: Any) -> Any:
        """Return the learner, trained on the training part of `bench` without its labels."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model = bench.train(model, self.share, name="rcal-contrastive", objective=SimCLR(self.temperature))
        # The objective has frozen the classifier and the criterion.
        for parameter in trained:
            parameter.requires_grad_(True)
        return model
