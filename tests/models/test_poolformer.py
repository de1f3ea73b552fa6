"""PoolFormer against closed forms, the published sizes, and timm's port of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repertory.errors import OptionError
from repertory.models import MetaFormer
from repertory.models.poolformer import (
    edit,
    poolformer_m36,
    poolformer_m48,
    poolformer_s12,
    poolformer_s24,
    poolformer_s36,
    poolformer_tiny,
)
from repertory.models.poolformer.metaformer import Block, DropPath
from repertory.models.poolformer.mixers import (
    MIXERS,
    NORMS,
    Attention,
    ChannelNorm,
    Pooling,
    PositionEmbedding,
    RandomMixing,
    SpatialMixing,
    make_mixer,
)
from repertory.recipe import Part, Recipe


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def block(mixer: str = "pooling", norm: str = "group", layer_scale: float = 0.5, **options: float) -> Block:
    torch.manual_seed(0)
    mixing = make_mixer(mixer, 8, (4, 4), pool_size=3, head_dim=4)
    return Block(8, mixing, norm, 4.0, layer_scale, **{"drop_rate": 0.0, "drop_path_rate": 0.0, **options})


def test_pooling_of_a_single_point_by_hand() -> None:
    point = torch.zeros(1, 1, 3, 3)
    point[..., 1, 1] = 1
    expected = torch.tensor([[1 / 4, 1 / 6, 1 / 4], [1 / 6, -8 / 9, 1 / 6], [1 / 4, 1 / 6, 1 / 4]])
    torch.testing.assert_close(Pooling()(point)[0, 0], expected)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_pooling_of_a_constant_map_is_zero(size: int) -> None:
    torch.testing.assert_close(Pooling(size)(torch.full((2, 3, 4, 6), 1.7)), torch.zeros(2, 3, 4, 6))


def test_pooling_leaves_channels_apart() -> None:
    x = images(1, 2, 4, 4)
    torch.testing.assert_close(Pooling()(x)[:, 1:], Pooling()(x[:, 1:]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_block_with_zero_scales_is_the_identity(mixer: str, norm: str) -> None:
    x = images(2, 8, 4, 4)
    assert torch.equal(block(mixer, norm, layer_scale=0.0)(x), x)


def test_a_block_is_two_residual_branches_in_order() -> None:
    made = block(layer_scale=0.3)
    x = images(2, 8, 4, 4)
    normed = nn.functional.group_norm(x, 1, eps=1e-5)
    x1 = x + 0.3 * (nn.functional.avg_pool2d(normed, 3, 1, 1, count_include_pad=False) - normed)
    hidden = nn.functional.gelu(made.mlp[0](nn.functional.group_norm(x1, 1, eps=1e-5)))
    torch.testing.assert_close(made(x), x1 + 0.3 * made.mlp[3](hidden))


@pytest.mark.parametrize("norm", NORMS)
def test_identity_mixing_commutes_with_a_permutation_of_positions(norm: str) -> None:
    x, order = images(2, 8, 4, 4), torch.randperm(16, generator=torch.Generator().manual_seed(1))

    def permuted(value: Tensor) -> Tensor:
        return value.flatten(2)[..., order].view_as(value)

    made = block("identity", norm)
    torch.testing.assert_close(made(permuted(x)), permuted(made(x)))


@pytest.mark.parametrize("mixer", ["pooling", "random", "depthwise", "spatial"])
def test_other_mixers_depend_on_where_positions_are(mixer: str) -> None:
    x, made = images(2, 8, 4, 4), block(mixer)
    assert not torch.allclose(made(x.flip(2).roll(1, 3)), made(x).flip(2).roll(1, 3), atol=1e-3)


def test_random_mixing_has_rows_that_sum_to_one_no_gradient_and_keeps_a_constant_map() -> None:
    mixing = RandomMixing((3, 4))
    torch.testing.assert_close(mixing.weight.sum(1), torch.ones(12))
    assert list(mixing.parameters()) == []
    assert "weight" in mixing.state_dict()
    constant = images(2, 5, 1, 1).expand(2, 5, 3, 4)
    torch.testing.assert_close(mixing(constant), constant)


def test_random_mixing_averages_positions_with_the_weights_of_their_row() -> None:
    mixing, x = RandomMixing((2, 3)), images(2, 4, 2, 3)
    expected = torch.einsum("mn,bcn->bcm", mixing.weight, x.flatten(2)).view_as(x)
    torch.testing.assert_close(mixing(x), expected)


def test_spatial_mixing_is_one_linear_map_for_every_channel() -> None:
    mixing, x = SpatialMixing((2, 3)), images(2, 4, 2, 3)
    assert [tuple(p.shape) for p in mixing.parameters()] == [(6, 6)]
    expected = torch.einsum("mn,bcn->bcm", mixing.linear.weight, x.flatten(2)).view_as(x)
    torch.testing.assert_close(mixing(x), expected)


def test_attention_equals_torchs_multi_head_attention() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(12, head_dim=4), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(ours.projection.state_dict())
    x = images(2, 12, 3, 5)
    tokens = x.flatten(2).transpose(1, 2)
    expected = theirs(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).view_as(x)
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-6)


def test_channel_norm_normalises_each_position_by_itself() -> None:
    made = ChannelNorm(6)(images(2, 6, 3, 4) * 5 + 2)
    torch.testing.assert_close(made.mean(1), torch.zeros(2, 3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(made.var(1, correction=0), torch.ones(2, 3, 4), rtol=1e-4, atol=0)


def test_drop_path_keeps_or_drops_whole_examples_and_the_mean() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.25)(torch.ones(4000, 2, 3))
    per_example = dropped.flatten(1)
    assert torch.equal(per_example, per_example[:, :1].expand(-1, 6))
    torch.testing.assert_close(per_example.unique(), torch.tensor([0.0, 4 / 3]))
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(DropPath(0.25).eval()(dropped), dropped)


def test_drop_path_rises_linearly_over_all_blocks() -> None:
    model = MetaFormer((3, 32, 32), 2, depths=(1, 3, 1), dims=(4, 4, 4), strides=(4, 2, 2), drop_path_rate=0.4)
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("factory", "count", "scale", "rate"),
    [
        (poolformer_s12, 11_915_176, 1e-5, 0.1),
        (poolformer_s24, 21_388_968, 1e-5, 0.1),
        (poolformer_s36, 30_862_760, 1e-6, 0.2),
        (poolformer_m36, 56_172_520, 1e-6, 0.3),
        (poolformer_m48, 73_473_448, 1e-6, 0.4),
    ],
)
def test_published_sizes_have_their_published_parameter_counts(
    factory: Callable[..., MetaFormer], count: int, scale: float, rate: float
) -> None:
    with torch.device("meta"):
        model = factory(in_shape=(3, 224, 224), outputs=1000)
    assert sum(p.numel() for p in model.parameters()) == count
    narrow = factory(in_shape=(3, 32, 32), outputs=2, dims=(4, 4, 4, 4))
    scales = torch.cat([p.flatten() for name, p in narrow.named_parameters() if "scale" in name])
    torch.testing.assert_close(scales, torch.full_like(scales, scale), rtol=1e-6, atol=0)
    assert narrow.stages[-1][-1].drop_path.rate == pytest.approx(rate)


def from_timm(name: str) -> str:
    """Return our name of one of the weights of timm's poolformer."""
    stage, _, rest = name.removeprefix("stages.").partition(".")
    if name.startswith("stem."):
        return name.replace("stem.conv.", "stem.")
    if name.startswith("head."):
        return name.replace("head.norm.", "norm.").replace("head.fc.", "head.")
    if rest.startswith("downsample."):
        return f"stages.{stage}.0.{rest.rpartition('.')[2]}"
    _, position, *tail = rest.split(".")
    offset = 0 if stage == "0" else 1
    inner = ".".join(tail).replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
    inner = inner.replace("layer_scale1.scale", "scale1").replace("layer_scale2.scale", "scale2")
    return f"stages.{stage}.{int(position) + offset}.{inner}"


def test_agrees_with_timms_poolformer_s12_on_its_weights() -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("poolformer_s12", num_classes=10).eval()
    ours = poolformer_s12(in_shape=(3, 64, 64), outputs=10).eval()
    # At 1e-5 the blocks would be lost in rounding, so that anything would agree.
    weights = {
        name: value + torch.rand_like(value) if "layer_scale" in name or "norm" in name else value
        for name, value in theirs.state_dict().items()
    }
    theirs.load_state_dict(weights)
    ours.load_state_dict(
        {from_timm(name): value.view(-1, 1, 1) if "layer_scale" in name else value for name, value in weights.items()}
    )
    with torch.no_grad():
        x = images(2, 3, 64, 64)
        theirs_map = theirs.forward_features(x)
        torch.testing.assert_close(ours.forward_intermediates(x)[-1], theirs_map, rtol=1e-4, atol=1e-4)
        # timm pools before its last norm, so the logits agree where the last map is a single position.
        theirs.head.norm.eps = 1e-5
        x = images(2, 3, 32, 32)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("side", "maps"),
    [
        (8, [8, 4, 2, 2]),
        (15, [15, 8, 4, 4]),
        (16, [16, 8, 4, 2]),
        (28, [28, 14, 7, 4]),
        (32, [16, 8, 4, 2]),
        (64, [16, 8, 4, 2]),
    ],
)
def test_the_tiny_size_reduces_by_what_the_image_has_to_give(side: int, maps: list[int]) -> None:
    model = poolformer_tiny(in_shape=(1, side, side), outputs=3)
    assert [x.shape[-1] for x in model.forward_intermediates(images(1, 1, side, side))] == maps


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mixer", MIXERS)
def test_gradient_reaches_every_parameter(mixer: str, norm: str) -> None:
    torch.manual_seed(0)
    model = poolformer_tiny(in_shape=(2, 9, 12), outputs=3, mixers=mixer, norm=norm, position_embedding=True)
    logits = model(images(4, 2, 9, 12))
    assert logits.shape == (4, 3)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    # The bias of what enters a norm, or of keys in attention, may have a gradient of 0 up to rounding.
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_mixers_and_position_embeddings_are_chosen_stage_by_stage() -> None:
    model = poolformer_tiny(
        in_shape=(1, 16, 16),
        outputs=2,
        mixers=("pooling", "pooling", "attention", "spatial"),
        position_embedding=(False, False, True, False),
    )
    kinds = [type(b.mixer) for b in model.modules() if isinstance(b, Block)]
    assert kinds == [Pooling, Pooling, Attention, SpatialMixing]
    embeddings = [m.embedding.shape for m in model.modules() if isinstance(m, PositionEmbedding)]
    assert embeddings == [(48, 4, 4)]


def test_a_position_embedding_starts_at_zero_and_is_added() -> None:
    embedding, x = PositionEmbedding(3, (2, 2)), images(2, 3, 2, 2)
    assert torch.equal(embedding(x), x)
    embedding.embedding.data.fill_(1.5)
    assert torch.equal(embedding(x), x + 1.5)


def test_pooling_takes_images_of_any_size_and_fixed_mixers_refuse_them() -> None:
    other = images(1, 1, 16, 16)
    assert poolformer_tiny(in_shape=(1, 8, 8), outputs=2)(other).shape == (1, 2)
    for options in ({"mixers": "random"}, {"mixers": "spatial"}, {"position_embedding": True}):
        with pytest.raises(OptionError, match="16 x 16 positions reached a stage of 8 x 8"):
            poolformer_tiny(in_shape=(1, 8, 8), outputs=2, **options)(other)


def test_follows_the_protocol_of_timm() -> None:
    model, x = poolformer_tiny(in_shape=(1, 8, 8), outputs=4).eval(), images(2, 1, 8, 8)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 2)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model(x), model.get_classifier()(pooled))
    model.reset_classifier(7)
    assert (model.num_classes, model(x).shape) == (7, (2, 7))
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)


def test_timms_names_of_arguments_build_the_same_model() -> None:
    torch.manual_seed(0)
    ours = poolformer_tiny(in_shape=(1, 12, 8), outputs=5)
    torch.manual_seed(0)
    theirs = poolformer_tiny(in_chans=1, img_size=(12, 8), num_classes=5)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_weights_of_the_mlps_and_the_head_start_small_and_biases_at_zero() -> None:
    torch.manual_seed(0)
    model = poolformer_tiny(in_shape=(3, 16, 16), outputs=100)
    layer = model.stages[3][1].mlp[0]
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not layer.bias.any()
    assert not model.head.bias.any()
    assert model.stem.weight.std().item() > 0.1


def test_edit_replaces_the_model() -> None:
    recipe = Recipe(model=Part("repertory.models.small:mlp"), criterion=Part("c:c"), optimizer=Part("o:o"))
    edited = edit(recipe, mixers="attention")
    assert edited == recipe.replace(model=edited.model)
    assert edited.model.slug == "poolformer"
    assert isinstance(edited.model.build(in_shape=(1, 8, 8), outputs=2).stages[0][0].mixer, Attention)
    assert edit(recipe, size="m48").model.factory == "repertory.models.poolformer:poolformer_m48"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixers": "pool"}, "mixers='pool'"),
        ({"mixers": ("pooling", "identity")}, r"mixers=.* has 2 entries"),
        ({"norm": "layer"}, "norm='layer'"),
        ({"pool_size": 2}, "pool_size=2"),
        ({"dims": (8, 8, 8, 0)}, "dims=0"),
        ({"dims": (8, 8)}, r"dims=\(8, 8\) has 2 entries"),
        ({"depths": (1, 1, 0, 1)}, "depths=0"),
        ({"depths": (), "dims": (), "strides": ()}, "at least one stage"),
        ({"strides": (1, 4, 2, 2)}, "strides=4"),
        ({"strides": (5, 2, 2, 2)}, "strides=5"),
        ({"position_embedding": (True,)}, r"position_embedding=\(True,\) has 1 entries"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"layer_scale": float("nan")}, "layer_scale=nan"),
        ({"drop_rate": 1.0}, r"drop_rate=1\.0"),
        ({"drop_path_rate": -0.1}, r"drop_path_rate=-0\.1"),
        ({"head_dim": 0}, "head_dim=0"),
        ({"mixers": "attention", "dims": (8, 8, 8, 10), "head_dim": 3}, "head_dim=3"),
        ({"outputs": -1}, "outputs=-1"),
        ({"num_classes": 3}, "num_classes=3 and outputs say the same thing"),
        ({"in_chans": 3}, "in_chans=3 and in_shape say the same thing"),
        ({"in_shape": (8,)}, r"in_shape=\(8,\)"),
        ({"in_shape": (1, 2, 2), "strides": (4, 2, 2, 2)}, "in_shape is too small"),
    ],
)
def test_bad_options_name_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        poolformer_tiny(**{"in_shape": (1, 8, 8), "outputs": 2, **options})


def test_an_unknown_size_is_refused() -> None:
    recipe = Recipe(model=Part("repertory.models.small:mlp"), criterion=Part("c:c"), optimizer=Part("o:o"))
    with pytest.raises(OptionError, match="size='s13'"):
        edit(recipe, size="s13")
