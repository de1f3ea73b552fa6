"""BatchFormer against torch's own encoder, by hand, and by what may depend on what."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Step
from repertory.errors import DataError, OptionError
from repertory.layers import BatchFormer
from repertory.layers.batchformer import BatchFormerTraining

SIZE, DIM = 5, 8


def layer(seed: int = 0, **options: object) -> BatchFormer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = BatchFormer(DIM, **{"heads": 2, "dropout": 0.0, **options}).double()  # type: ignore[arg-type]
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.5)
    return made


def features(seed: int = 1, size: int = SIZE) -> Tensor:
    return torch.randn(size, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("heads", [1, 4])
def test_equals_torchs_encoder_over_the_batch(layers: int, heads: int) -> None:
    made = layer(layers=layers, heads=heads)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(DIM, heads, DIM, 0.0), layers, enable_nested_tensor=False
    )
    encoder.double().layers.load_state_dict(made.layers.state_dict())
    given = features()
    # As in the authors' code: the examples are a sequence in a batch of one.
    torch.testing.assert_close(made.mixed(given), encoder(given.unsqueeze(1)).squeeze(1))


def test_evaluation_gives_back_what_it_got() -> None:
    made, given, target = layer().eval(), features(), torch.arange(SIZE)
    assert made(given) is given
    same, labels = made(given, target)
    assert same is given
    assert labels is target


def test_training_puts_the_mixed_features_behind_the_plain_ones_and_doubles_every_target() -> None:
    made, given = layer(), features()
    labels, weights, share = torch.arange(SIZE), torch.rand(SIZE, 3), torch.tensor(0.3)
    doubled, first, (second, third) = made(given, labels, (weights, share))
    assert torch.equal(doubled[:SIZE], given)
    assert torch.equal(doubled[SIZE:], made.mixed(given))
    assert torch.equal(first, torch.cat([labels, labels]))
    assert torch.equal(second, torch.cat([weights, weights]))
    assert third is share


def test_order_of_the_examples_does_not_matter() -> None:
    made, given, order = layer(), features(), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(made.mixed(given[order]), made.mixed(given)[order])


def test_mixed_rows_learn_from_all_examples_and_plain_ones_from_their_own() -> None:
    made = layer()
    slopes = torch.autograd.functional.jacobian(made, features())  # type: ignore[no-untyped-call]
    depends = slopes.abs().sum((1, 3)) > 1e-9
    assert torch.equal(depends[:SIZE], torch.eye(SIZE, dtype=torch.bool))
    assert depends[SIZE:].all()


def test_a_batch_of_one_attends_to_itself() -> None:
    made, given = layer(), features(size=1)
    block = made.layers[0]
    attend = block.self_attn
    value = functional.linear(given, attend.in_proj_weight[2 * DIM :], attend.in_proj_bias[2 * DIM :])
    inner = block.norm1(given + attend.out_proj(value))
    expected = block.norm2(inner + block.linear2(block.linear1(inner).relu()))
    torch.testing.assert_close(made.mixed(given), expected)


def test_is_two_layer_norms_where_both_branches_give_nothing() -> None:
    made, given = layer(), features()
    block = made.layers[0]
    for module in (block.self_attn.out_proj, block.linear2):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    torch.testing.assert_close(made.mixed(given), block.norm2(block.norm1(given)))


def test_drops_attention_weights_and_both_branches() -> None:
    made, shapes = layer(dropout=0.5), []

    class Noted(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            shapes.append(tuple(values.shape))
            return values

    made.drop = Noted()  # type: ignore[assignment]
    made.mixed(features())
    assert shapes == [(2, SIZE, SIZE), (SIZE, DIM), (SIZE, DIM), (SIZE, DIM)]


def test_masks_follow_from_seed_and_count_and_leave_the_global_generator_alone() -> None:
    state, given = torch.get_rng_state(), features()
    first = layer(dropout=0.5, seed=3)
    values = [first.mixed(given) for _ in range(3)]
    assert not torch.equal(values[0], values[1])
    again = layer(dropout=0.5, seed=3)
    assert torch.equal(again.mixed(given), values[0])
    saved = again.state_dict()
    other = layer(dropout=0.5, seed=4)
    assert not torch.equal(other.mixed(given), values[0])
    other.load_state_dict(saved)
    assert torch.equal(other.mixed(given), values[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients() -> None:
    given = features(size=3).requires_grad_()
    made = layer()
    assert torch.autograd.gradcheck(made.mixed, (given,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_near_what_float64_makes_of_the_same_numbers(dtype: torch.dtype) -> None:
    made = layer().to(dtype)
    given = features().to(dtype) * 50
    with torch.no_grad():
        found = made.mixed(given)
        expected = made.double().mixed(given.double())
    assert found.isfinite().all()
    # A layer normalisation ends it, so that errors stay a few units of the type's last place.
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=40 * torch.finfo(dtype).eps)


def test_features_and_targets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OptionError, match=r"dim=8 does not fit features of shape \(5, 3\)"):
        layer()(torch.ones(SIZE, 3))
    with pytest.raises(OptionError, match=r"shape \(5, 8, 2\)"):
        layer()(torch.ones(SIZE, DIM, 2))
    with pytest.raises(DataError, match=r"target of shape \(4,\) does not have a row for each of 5"):
        layer()(features(), torch.arange(4))


@pytest.mark.parametrize("options", [{"dim": 0}, {"heads": 3}, {"dropout": 1.0}, {"layers": 0}, {"seed": -1}])
def test_bad_options_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        BatchFormer(**{"dim": DIM, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"heads": 0}, {"dropout": 1.0}, {"layers": 0}, {"lr_scale": -1.0}])
def test_bad_options_of_the_method_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        BatchFormerTraining(**options)  # type: ignore[arg-type]


def test_the_layer_trains_at_its_own_share_of_the_learning_rate() -> None:
    model = nn.Sequential(nn.Linear(2, DIM), nn.ReLU(), nn.Linear(DIM, 3))
    step = Step(
        model,
        functools.partial(torch.optim.SGD, lr=0.5),
        nn.CrossEntropyLoss(),
        methods=[BatchFormerTraining(heads=2, lr_scale=0.1)],
    )
    assert [group["lr"] for group in step.optimizer.param_groups] == [0.5, 0.05]
    assert sum(p.numel() for p in step.optimizer.param_groups[1]["params"]) == sum(
        p.numel() for p in BatchFormer(DIM, 2).parameters()
    )
