"""The small U-Net: shapes at any size, what it calls features, and that every pixel sees its surroundings."""

from __future__ import annotations

import pytest
import torch

from repertory.errors import OptionError
from repertory.models import TorchvisionSegmenter, UNet, small_unet


@pytest.mark.parametrize("sides", [(32, 32), (17, 23), (1, 5)])
def test_there_are_logits_for_every_pixel_at_any_size(sides: tuple[int, int]) -> None:
    network = small_unet((3, *sides), 5)
    assert network(torch.zeros(2, 3, *sides)).shape == (2, 5, *sides)


def test_the_classifier_reads_the_features() -> None:
    network = UNet((1, 16, 16), 3, (4, 8)).eval()
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    features = network.forward_features(images)
    assert features.shape == (2, 4, 16, 16)
    torch.testing.assert_close(network.classifier(features), network(images))


def test_coarse_levels_widen_what_a_pixel_sees() -> None:
    """One level has two 3x3 convolutions, so a pixel sees those up to two away, and no further."""
    seen = []
    for widths in ((4,), (4, 4), (4, 4, 4)):
        torch.manual_seed(0)
        network = UNet((1, 33, 33), 1, widths).eval()
        images = torch.randn(1, 1, 33, 33, generator=torch.Generator().manual_seed(0)).requires_grad_()
        network(images)[0, 0, 16, 16].backward()
        assert images.grad is not None
        seen.append(int((images.grad[0, 0] != 0).any(0).sum()))
    assert seen[0] == 5
    assert seen[0] < seen[1] < seen[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [({"in_shape": (6,)}, r"in_shape=\(6,\)"), ({"widths": ()}, r"widths=\(\)"), ({"outputs": 0}, "outputs=0")],
)
def test_bad_options_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        UNet(**{"in_shape": (1, 8, 8), "outputs": 2, **change})  # type: ignore[arg-type]


def test_torchvision_refuses_what_it_cannot_take() -> None:
    with pytest.raises(OptionError, match="of 1 or 3 channels"):
        TorchvisionSegmenter((2, 8, 8), 2)
    with pytest.raises(ValueError, match="no segmentation network 'fcn_resnet5'; did you mean fcn_resnet50"):
        TorchvisionSegmenter((3, 8, 8), 2, "fcn_resnet5")
