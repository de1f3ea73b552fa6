"""The stem against the authors' code, the invariances of its normalisation, and surgery on vision transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from repertory.errors import OptionError, UserError
from repertory.layers import IBN, ConvStem, replace_patch_embed

# Tokens by `PatchEmbed_VOLO` of the authors' code, run aside in float64, in training and then in evaluation mode.
AUTHORS_TRAIN = [
    [[0.11303143, -0.09966854, -0.14726783, -0.46865762], [0.03315002, -0.33438147, -0.12330456, -0.22823566]],
    [[0.08291811, -1.30585585, -0.40451724, 0.67624245], [-0.00249606, -0.73955338, -0.18418685, 0.16243161]],
]
AUTHORS_EVAL = [
    [[-0.69703680, -0.38900758, 0.59386811, -0.00274994], [-0.33730788, -0.23867763, 0.26995388, -0.23024940]],
    [[0.18602280, -0.31750342, -0.27215630, -0.28057623], [0.10713465, -0.53655045, -0.24545403, -0.05516765]],
]


def wave(count: int, frequency: float, phase: float) -> Tensor:
    return (frequency * torch.arange(count, dtype=torch.float64) + phase).sin()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_tokens_are_those_of_the_authors_code() -> None:
    stem = ConvStem(dim=4, patch=16, width=6).double()
    for number, parameter in enumerate(stem.parameters()):
        made = wave(parameter.numel(), 0.7 + 0.1 * number, 0.3 * number) * 0.5
        parameter.data = made.reshape(parameter.shape)
    images = wave(2 * 3 * 32 * 16, 0.37, 0.1).reshape(2, 3, 32, 16)
    for expected, mode in ((AUTHORS_TRAIN, True), (AUTHORS_EVAL, False)):
        tokens = stem.train(mode)(images).flatten(2).transpose(1, 2)
        torch.testing.assert_close(tokens, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("size", "patch", "stride", "tokens"),
    [((256, 128), 16, 2, (16, 8)), ((64, 32), 16, 2, (4, 2)), ((8, 8), 4, 1, (2, 2)), ((24, 16), (8, 4), 4, (3, 4))],
)
def test_there_are_as_many_tokens_as_patches(
    size: tuple[int, int], patch: int | tuple[int, int], stride: int, tokens: tuple[int, int]
) -> None:
    stem = ConvStem(dim=5, patch=patch, channels=1, width=4, stride=stride).eval()
    assert stem(torch.zeros(1, 1, *size)).shape == (1, 5, *tokens)


@pytest.mark.parametrize("channels", [4, 5, 2])
def test_the_first_half_is_normalised_by_image_and_the_rest_by_batch(channels: int) -> None:
    maps, half = draw(3, channels, 6, 5), channels // 2
    found = IBN(channels).double()(maps)
    for axes, part in (((2, 3), slice(half)), ((0, 2, 3), slice(half, None))):
        mean = maps[:, part].mean(axes, keepdim=True)
        spread = maps[:, part].var(axes, unbiased=False, keepdim=True)
        torch.testing.assert_close(found[:, part], (maps[:, part] - mean) / (spread + 1e-5).sqrt())


def test_the_first_half_does_not_depend_on_the_other_images_of_the_batch() -> None:
    norm, maps = IBN(6).double(), draw(4, 6, 5, 5)
    together, alone = norm(maps), norm(maps[:1])
    torch.testing.assert_close(together[:1, :3], alone[:, :3])
    assert (together[:1, 3:] - alone[:, 3:]).abs().max() > 0.01


def test_the_first_half_forgets_brightness_and_contrast_of_an_image() -> None:
    norm, maps = IBN(4).double().eval(), 10 * draw(2, 4, 8, 8)
    changed = maps * torch.tensor([3.0, 0.5]).view(2, 1, 1, 1) + torch.tensor([1.0, -7.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(norm(changed)[:, :2], norm(maps)[:, :2], rtol=1e-4, atol=1e-4)
    assert (norm(changed)[:, 2:] - norm(maps)[:, 2:]).abs().max() > 1


def vit(**options: object) -> nn.Module:
    import timm

    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=3, **{"img_size": (64, 32), **options})


def test_surgery_on_a_vision_transformer_keeps_all_but_the_patch_embedding() -> None:
    model = vit()
    before = {name: value.clone() for name, value in model.state_dict().items() if "patch_embed" not in name}
    changed = replace_patch_embed(model, width=8)
    assert changed is model
    after = changed.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert isinstance(changed.get_submodule("patch_embed.proj"), ConvStem)
    images = draw(2, 3, 64, 32).float().requires_grad_()
    output = changed(images)
    output.square().sum().backward()
    assert output.shape == (2, 3)
    assert all(p.grad is not None for p in changed.parameters())


def test_surgery_leaves_sizes_that_change_to_the_transformer() -> None:
    model = replace_patch_embed(vit(img_size=32, dynamic_img_size=True), width=8).eval()
    assert model(torch.zeros(1, 3, 48, 64)).shape == (1, 3)


def test_a_network_without_a_patch_embedding_is_refused() -> None:
    with pytest.raises(UserError, match=r"Sequential has no convolution patch_embed\.proj"):
        replace_patch_embed(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("options", [{"dim": 0}, {"patch": 0}, {"channels": 0}, {"width": 1}, {"stride": 0}])
def test_bad_options_are_named(options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))}="):
        ConvStem(**{"dim": 4, **options})


def test_a_stride_that_does_not_divide_the_patch_is_refused() -> None:
    with pytest.raises(OptionError, match="stride=3"):
        ConvStem(4, patch=16, stride=3)
