"""Networks by what a user types: of timm, torchvision, Hugging Face, of this package, or of one of the user's own."""

from __future__ import annotations

from typing import Any

from torch import nn

from repertory.errors import UserError, nearest
from repertory.recipe import Part, parse_options


def model_part(text: str, option: str = "--model") -> Part:
    """Read `timm:NAME`, `torchvision:NAME`, `hf:NAME`, `repertory:NAME` or `package.module:factory`.

    Each may end in options, `:option=value,...`. Those of torchvision are its networks for segmentation.

    Args:
        text: what was typed.
        option: what it was typed for, for messages.

    Raises:
        UserError: if it is none of these.

    >>> model_part("timm:resnet18:pretrained=true").options
    {'name': 'resnet18', 'pretrained': True}
    """
    source, colon, rest = text.partition(":")
    name, _, options = rest.partition(":")
    if not source or not colon or not name:
        raise UserError(
            f"{option} {text!r} is not of the form timm:NAME, torchvision:NAME, hf:NAME, repertory:NAME or "
            "package.module:factory"
        )
    given = parse_options(options, text)
    if source == "timm":
        return Part("repertory.models.sources:from_timm", {"name": name, **given})
    if source == "torchvision":
        return Part("repertory.models.torchvision_dense:TorchvisionSegmenter", {"name": name, **given})
    if source == "hf":
        return Part("repertory.models.text:hugging_face", {"name": name, "pretrained": True, **given})
    if source == "repertory":
        from repertory import models

        if name not in models.__all__:
            hint = nearest(name, models.__all__)
            raise UserError(f"repertory has no model {name!r}; it has {', '.join(models.__all__)}; {hint}".rstrip("; "))
        return Part(f"repertory.models:{name}", given)
    return Part(f"{source}:{name}", given)


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
