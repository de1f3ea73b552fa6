"""RBI: relations of images by hand and against scikit-image, attention against torch's, and what depends on what."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn

from repertory import Part, Recipe, Step
from repertory.errors import DataError, OptionError
from repertory.layers import RBI
from repertory.layers.relationship_batch import RBITraining, edit, psnr_matrix, relate, relation_codes

SIZE, DIM = 5, 8
NEAR = {"rtol": 1e-5, "atol": 1e-5}
"""Codes are computed in float32."""


def layer(dim: int = DIM, **options: object) -> RBI:
    with torch.random.fork_rng(devices=[]):
        made = RBI(dim, **{"heads": 2, **options}).double()  # type: ignore[arg-type]
        torch.manual_seed(0)
        for name, parameter in made.named_parameters():
            if name != "gate":
                nn.init.normal_(parameter, std=0.5)
    return made


def features(size: int = SIZE) -> Tensor:
    return torch.randn(size, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def images(size: int = SIZE, side: int = 6) -> Tensor:
    return torch.rand(size, 3, side, side, generator=torch.Generator().manual_seed(2))


def test_ratios_of_constant_images_by_hand() -> None:
    flat = torch.tensor([0.0, 0.1, 1.0])[:, None].expand(3, 16)
    found = psnr_matrix(flat)
    expected = torch.tensor([20.0, 0.0, 0.9151])
    torch.testing.assert_close(found[[0, 0, 1], [1, 2, 2]], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.diagonal(), torch.full((3,), 80.0))


def test_ratios_equal_those_of_scikit_image() -> None:
    given = images()
    found = psnr_matrix(given)
    for i in range(SIZE):
        for j in range(i):
            expected = peak_signal_noise_ratio(given[i].numpy(), given[j].numpy(), data_range=1)
            assert found[i, j].item() == pytest.approx(expected, abs=1e-4)


def test_equal_images_far_from_zero_have_no_difference() -> None:
    given = torch.cat([images(3), images(3)]) + 50
    found = psnr_matrix(given)
    torch.testing.assert_close(found[:3, 3:].diagonal(), torch.full((3,), 80.0))


def test_small_differences_of_images_far_from_zero_are_seen() -> None:
    given = images(1) + 0.01 * images()
    torch.testing.assert_close(psnr_matrix(given + 50), psnr_matrix(given), rtol=0, atol=0.01)


def test_codes_are_symmetric_between_zero_and_one_and_one_with_itself() -> None:
    codes = relation_codes(images())
    assert torch.equal(codes, codes.T)
    assert torch.equal(codes.diagonal(), torch.ones(SIZE))
    others = codes[~torch.eye(SIZE, dtype=torch.bool)]
    assert (others.min(), others.max()) == (0, 1)
    assert not relation_codes(images().requires_grad_()).requires_grad


def test_codes_do_not_change_with_scale_and_offset_of_the_images_or_with_their_order() -> None:
    given, order = images(), torch.tensor([4, 2, 0, 1, 3])
    codes = relation_codes(given)
    torch.testing.assert_close(relation_codes(3 * given + given[0]), codes, rtol=0, atol=1e-4)
    torch.testing.assert_close(relation_codes(given[order]), codes[order][:, order])
    whole = (255 * given).round().to(torch.uint8)
    torch.testing.assert_close(relation_codes(whole), codes, rtol=0, atol=0.01)


def test_codes_are_defined_for_one_image_and_for_equal_ones() -> None:
    assert relation_codes(images(1)).tolist() == [[1.0]]
    assert torch.equal(relation_codes(images(1).expand(3, -1, -1, -1)), torch.eye(3))


def test_without_relations_equals_torchs_attention() -> None:
    made, given = layer(rpe=None), features()
    attend = nn.MultiheadAttention(DIM, 2).double()
    attend.load_state_dict(
        {
            "in_proj_weight": made.project.weight,
            "in_proj_bias": made.project.bias,
            "out_proj.weight": made.out.weight,
            "out_proj.bias": made.out.bias,
        }
    )
    rows = made.norm(given)
    torch.testing.assert_close(made.mixed(given, images()), given + attend(rows, rows, rows)[0], **NEAR)


@pytest.mark.parametrize("rpe", ["qr", "bias"])
def test_relations_enter_the_scores_as_written(rpe: str) -> None:
    made, given = layer(rpe=rpe), features()
    size = DIM // 2
    query, key, value = made.project(made.norm(given)).chunk(3, 1)
    codes, parts = relation_codes(images()).double(), []
    for head in range(2):
        own = slice(head * size, (head + 1) * size)
        # The code of a pair as a vector of its own, as a linear map of one number gives it.
        vectors = codes[:, :, None] * made.relation if rpe == "qr" else torch.zeros(SIZE, SIZE, size).double()
        scores = (query[:, own, None] * (key[:, own].T[None] + vectors.transpose(1, 2))).sum(1) / size**0.5
        scores = scores if rpe == "qr" else scores + made.relation[head] * codes
        parts.append(scores.softmax(1) @ value[:, own])
    torch.testing.assert_close(made.mixed(given, images()), given + made.out(torch.cat(parts, 1)), **NEAR)


def test_feature_stays_as_it_is_where_attention_gives_nothing() -> None:
    given = features()
    for combine in ("sum", "gate"):
        made = layer(combine=combine)
        nn.init.zeros_(made.out.weight)
        nn.init.zeros_(made.out.bias)
        assert torch.equal(made.mixed(given, images()), given)


def test_gate_and_join_combine_what_the_sum_adds() -> None:
    given, added = features(), layer().mixed(features(), images()) - features()
    gated = layer(combine="gate").mixed(given, images())
    torch.testing.assert_close(gated, given + added / (1 + torch.e**2))
    joined = layer(combine="concat")
    torch.testing.assert_close(joined.mixed(given, images()), joined.join(torch.cat([given, added], 1)))


def test_order_of_the_examples_does_not_matter() -> None:
    made, given, order = layer(), features(), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(made.mixed(given[order], images()[order]), made.mixed(given, images())[order])


def test_mixed_rows_learn_from_all_examples_and_plain_ones_from_their_own() -> None:
    made = layer()
    slopes = torch.autograd.functional.jacobian(lambda f: made(f, images()), features())  # type: ignore[no-untyped-call]
    depends = slopes.abs().sum((1, 3)) > 1e-9
    assert torch.equal(depends[:SIZE], torch.eye(SIZE, dtype=torch.bool))
    assert depends[SIZE:].all()


@pytest.mark.parametrize(("rpe", "combine"), [("qr", "gate"), ("bias", "concat")])
def test_gradients(rpe: str, combine: str) -> None:
    made = layer(4, rpe=rpe, combine=combine)
    names = [name for name, _ in made.named_parameters()]

    def mixed(given: Tensor, *parameters: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(made, dict(zip(names, parameters)), (given, images(3)))
        return found

    given = features(3)[:, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(mixed, (given, *made.parameters()), fast_mode=True)


def test_alone_is_a_batch_of_one() -> None:
    made, given = layer(), features()
    for i in range(SIZE):
        torch.testing.assert_close(made.alone(given)[i], made.mixed(given[i : i + 1], images(1))[0])


def test_training_and_evaluation_do_what_the_options_say() -> None:
    given, seen, target = features(), images(), torch.arange(SIZE)
    doubled, labels = layer()(given, seen, target)
    assert torch.equal(doubled, torch.cat([given, layer().mixed(given, seen)]))
    assert torch.equal(labels, target.repeat(2))
    alone, labels = layer(train="joint")(given, seen, target)
    assert torch.equal(alone, layer().mixed(given, seen))
    assert labels is target
    assert layer().eval()(given, seen) is given
    assert torch.equal(layer(inference="batch").eval()(given, seen), layer().mixed(given, seen))
    assert torch.equal(layer(inference="single").eval()(given, seen), layer().alone(given))


def test_large_images_are_brought_down_before_they_are_compared() -> None:
    small, given = images(side=4), features()
    large = small.repeat_interleave(16, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(layer(image_size=4).mixed(given, large), layer().mixed(given, small), **NEAR)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_near_what_float64_makes_of_the_same_numbers(dtype: torch.dtype) -> None:
    made, given = layer().to(dtype), features().to(dtype) * 50
    with torch.no_grad():
        found = made.mixed(given, images())
        expected = made.double().mixed(given.double(), images().double())
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), expected, rtol=40 * torch.finfo(dtype).eps, atol=0.5)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(108, DIM), nn.Tanh(), nn.Linear(DIM, 3))


def trained(model: nn.Module, **options: object) -> nn.Module:
    method = RBITraining(**options)  # type: ignore[arg-type]
    step = Step(model, functools.partial(torch.optim.SGD, lr=0.1), nn.CrossEntropyLoss(), methods=[method])
    for _ in range(2):
        step((images(), torch.arange(SIZE) % 3))
    return step.run.model.eval()


def test_a_network_trained_to_drop_the_layer_predicts_without_it() -> None:
    model = trained(network())
    assert len(list(model.parameters())) == 4
    torch.testing.assert_close(model(images())[:1], model(images()[:1]))


@pytest.mark.parametrize("train", ["dual", "joint"])
def test_a_network_that_keeps_the_layer_mixes_in_evaluation(train: str) -> None:
    fresh = relate(network(), 3, train=train, inference="batch")
    model = trained(copy.deepcopy(fresh), train=train, inference="batch")
    assert isinstance(model.layer, RBI)
    assert not torch.equal(model.layer.out.weight, fresh.layer.out.weight)
    tail = model.network[3]  # type: ignore[index]
    hidden = model.network[:3](images())  # type: ignore[index]
    torch.testing.assert_close(model(images()), tail(model.layer.mixed(hidden, images())))
    torch.testing.assert_close(copy.deepcopy(model)(images()), model(images()))
    torch.testing.assert_close(model.train()(images()), tail(hidden))


def test_keeping_the_layer_needs_a_network_that_has_it() -> None:
    with pytest.raises(OptionError, match=r"inference='batch' needs the layer inside of the network: model = .*relate"):
        trained(network(), inference="batch")


def test_recipe_keeps_the_layer_where_evaluation_uses_it() -> None:
    recipe = Recipe(Part("m:f"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:AdamW"))
    assert edit(recipe).surgery == ()
    edited = edit(recipe, inference="single", rpe="bias", lr_scale=0.5)
    model = edited.surgery[0].build(network(), outputs=3)
    assert (model.layer.inference, model.layer.rpe) == ("single", "bias")
    assert edited.methods[0].build().lr_scale == 0.5


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OptionError, match=r"dim=8 does not fit features of shape \(5, 3\)"):
        layer()(torch.ones(SIZE, 3), images())
    with pytest.raises(DataError, match="with a row for each of 5 features, not list"):
        layer()(features(), [1, 2])
    with pytest.raises(DataError, match=r"not \(4, 3, 6, 6\)"):
        layer()(features(), images(4))
    with pytest.raises(DataError, match=r"target of shape \(4,\)"):
        layer()(features(), images(), torch.arange(4))


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 0},
        {"heads": 3},
        {"rpe": "sin"},
        {"combine": "mean"},
        {"train": "both"},
        {"inference": "all"},
        {"image_size": 0},
    ],
)
def test_bad_options_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        RBI(**{"dim": DIM, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"heads": 0}, {"rpe": "sin"}, {"image_size": 0}, {"lr_scale": -1.0}])
def test_bad_options_of_the_method_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        RBITraining(**options)  # type: ignore[arg-type]
