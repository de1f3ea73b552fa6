"""Segmentation networks of torchvision as plain networks: images in, logits of every pixel out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from repertory.errors import OptionError, UserError, check_number, nearest


class TorchvisionSegmenter(nn.Module):
    """A network of `torchvision.models.segmentation`, for grey and colour images.

    Args:
        in_shape: `(channels, height, width)` of one image, of 1 or 3 channels; a grey one is given three times.
        outputs: number of classes.
        name: torchvision's name of the architecture.
        pretrained: whether its backbone starts from published weights (downloaded, or from the local cache).
        options: further keyword arguments of the architecture.

    Raises:
        UserError: if torchvision is not installed or has no such network, or the weights cannot be had.
        OptionError: if the images have another number of channels.

    >>> import torch
    >>> network = TorchvisionSegmenter((1, 32, 32), 4, "lraspp_mobilenet_v3_large").eval()
    >>> network(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 4, 32, 32])
    """

    def __init__(
        self,
        in_shape: tuple[int, ...],
        outputs: int,
        name: str = "lraspp_mobilenet_v3_large",
        pretrained: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if len(in_shape) != 3 or in_shape[0] not in (1, 3):
            raise OptionError(
                f"in_shape={tuple(in_shape)} is not allowed: torchvision:{name} takes images (channels, height, width) "
                "of 1 or 3 channels; use repertory:small_unet"
            )
        check_number("outputs", outputs, minimum=1, integer=True)
        try:
            from torchvision import models
        except ModuleNotFoundError:
            raise UserError("torchvision is not installed; run: pip install torchvision") from None
        known = models.list_models(module=models.segmentation)
        if name not in known:
            hint = nearest(name, known) or f"it has {', '.join(known)}"
            raise UserError(f"torchvision has no segmentation network {name!r}; {hint}")
        backbone = "DEFAULT" if pretrained else None
        try:
            self.network = models.get_model(
                name, weights=None, weights_backbone=backbone, num_classes=outputs, **options
            )
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"torchvision:{name} cannot be built with pretrained={pretrained}: {str(error).splitlines()[0]}; try "
                "without pretrained weights"
            ) from error

    def get_classifier(self) -> nn.Module:
        """Return the last convolution of the head that predicts; an auxiliary head is used in training alone."""
        return [module for module in self.network.classifier.modules() if isinstance(module, nn.Conv2d)][-1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of every pixel, `(batch, outputs, height, width)`."""
        found: Tensor = self.network(images.expand(-1, 3, -1, -1))["out"]
        return found
