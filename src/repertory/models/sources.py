"""Networks from elsewhere: timm by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from repertory.errors import UserError, nearest


def from_timm(
    in_shape: tuple[int, ...], outputs: int, name: str = "resnet18", pretrained: bool = False, **options: Any
) -> nn.Module:
    """Build a network of timm for images of any size.

    Args:
        in_shape: `(channels, height, width)` of one image.
        outputs: number of classes, or of values.
        name: timm's name of the architecture.
        pretrained: whether to load the published weights (from timm's hub, or its local cache).
        options: further keyword arguments of `timm.create_model`.

    Raises:
        UserError: if timm has no such network, the data are not images, or the weights cannot be had.
    """
    import timm

    if len(in_shape) != 3:
        raise UserError(f"timm:{name} takes images (channels, height, width); this data has inputs of shape {in_shape}")
    if not timm.is_model(name.split(".")[0]):
        hint = nearest(name, timm.list_models())
        raise UserError(f"timm has no model {name!r}; {hint or 'timm.list_models() names them all'}")
    arguments: dict[str, Any] = {
        "num_classes": outputs,
        "in_chans": in_shape[0],
        "pretrained": pretrained,
        **options,
    }
    try:
        try:
            return timm.create_model(name, img_size=in_shape[1:], **arguments)
        except TypeError:
            return timm.create_model(name, **arguments)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"timm:{name} cannot be built with pretrained={pretrained} for images {in_shape}: {reason}; "
            "try without pretrained "
            f"weights, or another image size (--image-size)"
        ) from error
