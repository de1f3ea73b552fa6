"""The default networks take inputs of every size and train every parameter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from repertory.errors import OptionError
from repertory.models.small import conv1d, convnet, mlp, small_cnn

CASES = [
    (mlp, (7,)),
    (mlp, (2, 3, 5)),
    (small_cnn, (1, 8, 8)),
    (small_cnn, (3, 1, 1)),
    (small_cnn, (3, 17, 5)),
    (small_cnn, (2, 33, 64)),
    (small_cnn, (3, 64, 64)),
    (small_cnn, (1, 97, 131)),
    (conv1d, (1, 40)),
    (conv1d, (2, 1)),
    (conv1d, (3, 9)),
    (conv1d, (1, 203)),
]


@pytest.mark.parametrize(("factory", "in_shape"), CASES)
def test_an_example_is_judged_alone_and_every_parameter_has_a_gradient(
    factory: Callable[..., nn.Module], in_shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model, inputs = factory(in_shape=in_shape, outputs=5, width=8), torch.randn(16, *in_shape)
    output = model(inputs)
    assert output.shape == (16, 5)
    model.eval()
    torch.testing.assert_close(model(inputs[:3]), model(inputs)[:3], rtol=1e-4, atol=1e-5)
    nn.functional.cross_entropy(output, torch.arange(16) % 5).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(("factory", "in_shape"), CASES)
def test_ends_in_the_only_linear_layer_of_that_size(
    factory: Callable[..., nn.Module], in_shape: tuple[int, ...]
) -> None:
    *_, last = factory(in_shape=in_shape, outputs=5).modules()
    assert isinstance(last, nn.Linear)
    assert last.out_features == 5


def test_the_linear_model_is_an_mlp_of_depth_zero() -> None:
    assert [type(layer) for layer in mlp((3,), 2, depth=0)] == [nn.Flatten, nn.Linear]


def test_hidden_layers_of_the_mlp_have_the_given_width_and_number() -> None:
    sizes = [(m.in_features, m.out_features) for m in mlp((2, 3), 4, width=5, depth=3) if isinstance(m, nn.Linear)]
    assert sizes == [(6, 5), (5, 5), (5, 5), (5, 4)]


@pytest.mark.parametrize(("side", "expected"), [(8, [8, 4, 2]), (16, [16, 8, 4]), (32, [16, 8, 4]), (64, [16, 8, 4])])
def test_large_images_are_reduced_by_the_first_stage(side: int, expected: list[int]) -> None:
    value, sides = torch.zeros(1, 3, side, side), []
    for layer in small_cnn((3, side, side), 2):
        value = layer(value)
        if isinstance(layer, nn.Conv2d):
            sides.append(value.shape[-1])
    assert sides == expected


def test_the_mnist1d_network_keeps_five_positions() -> None:
    assert conv1d((1, 40), 10, width=25)[-1].in_features == 125


@pytest.mark.parametrize(
    ("factory", "in_shape", "options", "message"),
    [
        (mlp, (3,), {"width": 0}, "width=0"),
        (mlp, (3,), {"depth": -1}, "depth=-1"),
        (mlp, (3,), {"outputs": 0}, "outputs=0"),
        (small_cnn, (8, 8), {}, r"in_shape=\(8, 8\)"),
        (small_cnn, (1, 8, 8), {"width": 1.5}, r"width=1\.5"),
        (conv1d, (40,), {}, r"in_shape=\(40,\)"),
    ],
)
def test_bad_options_name_themselves(
    factory: Callable[..., nn.Module], in_shape: tuple[int, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        factory(**{"in_shape": in_shape, "outputs": 2, **options})


@pytest.mark.parametrize("shape", [(3, 64, 48), (1, 8, 8), (2, 3, 5), (1, 28, 28), (1, 1, 2)])
def test_convnet_takes_images_of_any_size_each_by_itself(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model, images = convnet(shape, 4, width=5), torch.randn(3, *shape)
    assert model.training
    torch.testing.assert_close(model(images), torch.cat([model(one) for one in images.split(1)]))
    assert isinstance(model[-1], nn.Linear)
    assert max(model[:3](images).shape[2:]) <= 16
    assert not list(model.buffers())


def test_convnet_refuses_an_image_of_one_place() -> None:
    with pytest.raises(OptionError, match=r"in_shape=\(3, 1, 1\) leaves one place"):
        convnet((3, 1, 1), 2)
    with pytest.raises(OptionError, match="depth=0"):
        convnet((1, 8, 8), 2, depth=0)
