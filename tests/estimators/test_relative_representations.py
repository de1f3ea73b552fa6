"""Relative representations against numbers of another package, by hand, and under what they must not notice."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from repertory.core.randomness import seeded
from repertory.errors import DataError, OptionError
from repertory.estimators import RelativeLayer, RelativeProjection
from repertory.estimators.relative_representations import (
    alignment_errors,
    choose_anchors,
    edit,
    latent_similarity,
    quantise,
    relative_projection,
)
from repertory.estimators.relative_representations.projection import SIMILARITIES
from repertory.recipe import Part, Recipe

# What latentis 0.0.8 (latentis/transform/projection.py, with torch in float64) gives for pattern(5, 4, 1.7) and the
# anchors pattern(3, 4, 2.3).
LATENTIS = {
    "cosine": [
        [0.630424262, 0.0302669, -0.250974539],
        [-0.634498571, -0.939806627, -0.368947534],
        [0.498263526, 0.76102626, 0.75123877],
        [-0.435345647, 0.395759513, 0.3475498],
        [-0.224034676, -0.652250091, 0.125653219],
    ],
    "angular": [
        [0.28288094, 0.490364275, 0.580751044],
        [0.718793358, 0.88899504, 0.620281798],
        [0.33397121, 0.224695809, 0.229456677],
        [0.643373833, 0.370481381, 0.387013761],
        [0.57192289, 0.726174804, 0.459897334],
    ],
    "euclidean": [
        [1.34559825, 2.06847981, 2.390447291],
        [2.09338778, 2.785738292, 2.402083532],
        [1.475859076, 1.100348687, 1.120811652],
        [1.932311028, 1.53832901, 1.631058641],
        [1.607186441, 2.318515509, 1.733923019],
    ],
    "l1": [
        [2.095755006, 3.812080376, 3.488609609],
        [4.096462657, 5.168128524, 4.241167591],
        [2.826732782, 1.857634693, 1.505677244],
        [3.760632511, 2.635914444, 2.565677223],
        [2.583040258, 4.38595445, 2.566077138],
    ],
    "basis": [
        [2.474821167, -0.412008814, -0.811698078],
        [-0.479556083, -1.014957471, -0.107035676],
        [-0.201936838, 0.882833231, 0.817195105],
        [-2.231775113, 0.880441704, 0.734259281],
        [-0.056892055, -0.716864437, 0.28499683],
    ],
}


def pattern(count: int, width: int, step: float) -> Tensor:
    places = torch.arange(count * width, dtype=torch.float64)
    return (step * places + 0.3 * places**2).sin().view(count, width)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int) -> Tensor:
    return torch.linalg.qr(drawn(width, width, seed=9))[0]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_projections_are_those_of_latentis(similarity: str) -> None:
    found = relative_projection(pattern(5, 4, 1.7), pattern(3, 4, 2.3), similarity)
    torch.testing.assert_close(found, torch.tensor(LATENTIS[similarity], dtype=torch.float64), rtol=0, atol=2e-8)


def test_by_hand() -> None:
    latent, anchors = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    expected = {
        "cosine": [0.6, 0.8],
        "angular": [0.29516724, 0.20483276],
        "euclidean": [20**0.5, 13**0.5],
        "l1": [6.0, 5.0],
        "basis": [3.0, 2.0],
    }
    for name, values in expected.items():
        torch.testing.assert_close(relative_projection(latent, anchors, name), torch.tensor([values]))
    both = relative_projection(latent, anchors, ["l1", "cosine"])
    torch.testing.assert_close(both, torch.tensor([[6.0, 5.0, 0.6, 0.8]]))


@pytest.mark.parametrize("similarity", ["cosine", "angular"])
def test_rotation_and_scale_change_nothing(similarity: str) -> None:
    latents, anchors, turn = drawn(30, 6), drawn(9, 6, seed=1), rotation(6)
    plain = relative_projection(latents, anchors, similarity)
    torch.testing.assert_close(relative_projection(7 * latents @ turn, 7 * anchors @ turn, similarity), plain)
    skewed = relative_projection(latents @ drawn(6, 6, seed=2), anchors @ drawn(6, 6, seed=2), similarity)
    assert (skewed - plain).abs().max() > 0.1


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_translation_changes_nothing_where_anchors_are_centred(similarity: str) -> None:
    latents, anchors, shift = drawn(30, 6), drawn(9, 6, seed=1), drawn(6, seed=2)
    plain = relative_projection(latents, anchors, similarity, center=True)
    torch.testing.assert_close(relative_projection(latents + shift, anchors + shift, similarity, center=True), plain)
    moved = relative_projection(latents + shift, anchors + shift, similarity)
    unmoved = relative_projection(latents, anchors, similarity)
    assert bool(torch.allclose(moved, unmoved)) == (similarity in ("euclidean", "l1"))


def test_coordinates_in_the_anchors_outlast_any_linear_map() -> None:
    latents, anchors, change = drawn(30, 6), drawn(6, 6, seed=1), drawn(6, 6, seed=2)
    coordinates = relative_projection(latents, anchors, "basis")
    torch.testing.assert_close(relative_projection(latents @ change, anchors @ change, "basis"), coordinates)
    torch.testing.assert_close(coordinates @ anchors, latents)


def test_standard_basis_gives_the_unit_latent_and_an_anchor_sees_itself() -> None:
    latents = drawn(8, 5)
    torch.testing.assert_close(relative_projection(latents, torch.eye(5)), normalize(latents, dim=1))
    own = {name: relative_projection(latents, latents, name).diagonal() for name in SIMILARITIES[:4]}
    for name, expected in (("cosine", 1.0), ("angular", 0.0), ("euclidean", 0.0), ("l1", 0.0)):
        torch.testing.assert_close(own[name], torch.full((8,), expected).double(), rtol=0, atol=1e-7)


def test_near_rows_far_from_the_origin_keep_their_distance() -> None:
    latents = 1000 + drawn(40, 3).float()
    expected = torch.cdist(latents.double(), latents.double()).float()
    torch.testing.assert_close(relative_projection(latents, latents, "euclidean"), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("center", [False, True])
def test_gradients(similarity: str, center: bool) -> None:
    latents, anchors = drawn(3, 4).requires_grad_(), drawn(5, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, a: relative_projection(z, a, similarity, center=center), (latents, anchors)
    )


@pytest.mark.parametrize("similarity", SIMILARITIES[:4])
def test_a_row_that_is_its_own_anchor_has_the_gradient_of_the_other_anchors(similarity: str) -> None:
    # In single precision, where rounding leaves some cosines of a row with itself just below 1.
    latents = drawn(20, 4).float().requires_grad_()
    (found,) = torch.autograd.grad(relative_projection(latents, latents.detach(), similarity).sum(), latents)
    for i in range(20):
        others = [j for j in range(20) if j != i]
        apart = relative_projection(latents[i : i + 1], latents.detach()[others], similarity).sum()
        torch.testing.assert_close(found[i], torch.autograd.grad(apart, latents)[0][i], rtol=1e-5, atol=1e-5)


def test_a_zero_row_has_a_gradient_from_distances_only() -> None:
    for name in SIMILARITIES[:2]:
        zero = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
        relative_projection(zero, drawn(3, 4), name).sum().backward()
        assert zero.grad is not None
        assert not zero.grad.any()
    zero = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: relative_projection(z, drawn(3, 4), ["euclidean", "l1"]), (zero,))


def test_half_precision_and_autocast_compute_in_single() -> None:
    latents, anchors = drawn(5, 4).float(), drawn(3, 4, seed=1).float()
    plain = relative_projection(latents, anchors)
    assert relative_projection(300 * latents.half(), anchors.half()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(relative_projection(latents, anchors), plain)


def test_rounding_passes_the_gradient_straight_through() -> None:
    values = torch.tensor([0.12, -0.26, 0.5], requires_grad=True)
    rounded = quantise(values, 0.25)
    assert rounded.tolist() == [0.0, -0.25, 0.5]
    rounded.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 1.0, 1.0]


def test_smooth_steps_rest_at_whole_bins() -> None:
    values = drawn(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: quantise(v, 0.5, "smooth"), (values,))
    at_bins = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    steps = quantise(at_bins, 0.5, "smooth")
    torch.testing.assert_close(steps, at_bins, atol=1e-12, rtol=0)
    steps.sum().backward()
    torch.testing.assert_close(at_bins.grad, torch.zeros(3).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("choice", ["random", "stratified", "farthest", "kmeans"])
def test_anchors_are_distinct_and_the_draw_has_a_seed(choice: str) -> None:
    latents, labels = drawn(40, 5), torch.arange(40) % 3
    first, again, other = (choose_anchors(latents, 12, choice, labels=labels, seed=seed) for seed in (1, 1, 2))
    assert len(first.unique()) == 12
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(choose_anchors(latents, 40, choice, labels=labels).unique()) == 40


def test_stratified_anchors_are_even_over_classes_as_far_as_these_go() -> None:
    labels = torch.tensor([0] * 30 + [1] * 8 + [2] * 2)
    counts = torch.bincount(labels[choose_anchors(drawn(40, 2), 12, "stratified", labels=labels)])
    assert counts.tolist() == [5, 5, 2]


def test_farthest_anchors_by_brute_force() -> None:
    unit = normalize(drawn(25, 3), dim=1)
    chosen = choose_anchors(5 * unit, 6, "farthest").tolist()
    for number in range(1, 6):
        distances = torch.cdist(unit, unit[chosen[:number]]).min(1).values
        assert chosen[number] == int(distances.argmax())


def test_kmeans_anchors_are_the_rows_nearest_to_the_means() -> None:
    middle = torch.eye(5).double()[:3]
    offset = 0.05 * torch.eye(5).double()[3]
    latents = torch.cat([middle - offset, middle, middle + offset])
    for seed in range(4):
        assert choose_anchors(latents, 3, "kmeans", seed=seed).sort().values.tolist() == [3, 4, 5]


def test_kmeans_anchors_take_one_of_each_tight_group() -> None:
    groups = torch.arange(30) % 5
    latents = torch.eye(5).double()[groups] + 0.01 * drawn(30, 5)
    assert groups[choose_anchors(latents, 5, "kmeans")].sort().values.tolist() == [0, 1, 2, 3, 4]
    assert len(choose_anchors(torch.eye(5)[groups], 7, "kmeans").unique()) == 7


def test_a_turned_space_is_as_alike_as_can_be_and_another_is_not() -> None:
    latents, other = drawn(60, 8), drawn(60, 8, seed=5)
    anchors = torch.arange(0, 60, 3)
    for measure in ("cosine", "jaccard", "mrr"):
        same = latent_similarity(latents, 2 * latents @ rotation(8), anchors, measure=measure)
        assert same == pytest.approx(1.0)
        assert latent_similarity(latents, other, anchors, measure=measure) < 0.4


def test_latent_similarities_by_hand() -> None:
    first, second = torch.eye(3), torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    # All are seen from row 2 alone: the first two look alike, so that each finds itself at place 2 of a tie.
    assert latent_similarity(first, second, torch.tensor([2]), measure="mrr") == pytest.approx((1 / 3 + 1 / 3 + 1) / 3)
    one, two = drawn(9, 3), drawn(9, 3, seed=1)
    overlaps = [len(set(a) & set(b)) for a, b in zip(_nearest(one, 3), _nearest(two, 3))]
    assert 0 < sum(overlaps) < 27
    expected = sum(shared / (6 - shared) for shared in overlaps) / 9
    assert latent_similarity(one, two, measure="jaccard", k=3) == pytest.approx(expected)


def _nearest(latents: Tensor, k: int) -> list[list[int]]:
    described = relative_projection(latents, latents)
    near = (normalize(described, dim=1) @ normalize(described, dim=1).T).fill_diagonal_(-2)
    return near.topk(k).indices.tolist()


def test_an_example_that_moved_has_the_largest_alignment_error() -> None:
    latents = drawn(20, 4)
    other = latents @ rotation(4)
    torch.testing.assert_close(alignment_errors(latents, other), torch.zeros(20).double(), atol=1e-6, rtol=0)
    other[7] = -other[7]
    assert int(alignment_errors(latents, other).argmax()) == 7


def test_estimator_gives_two_turned_spaces_the_same_rows() -> None:
    latents = drawn(50, 6)
    other = 3 * latents @ rotation(6)
    one = RelativeProjection(anchors=10, choice="stratified").fit(latents, torch.arange(50) % 4)
    two = RelativeProjection(anchors=one.anchor_rows_.tolist()).fit(other.numpy())
    assert isinstance(one.transform(latents), Tensor)
    np.testing.assert_allclose(two.transform(other.numpy()), one.transform(latents), atol=1e-12)
    pairs = RelativeProjection(anchors=None).fit(latents[:7])
    torch.testing.assert_close(pairs.transform(latents), relative_projection(latents, latents[:7]))


def network(seed: int) -> nn.Sequential:
    with seeded(seed, "network"):
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()


def test_layer_is_the_projection_of_what_the_encoder_gives() -> None:
    encoder, anchors, inputs = network(0), drawn(5, 4), drawn(7, 4, seed=1)
    layer = RelativeLayer(encoder, anchors, similarity="euclidean", center=True, bin_size=0.1).eval()
    expected = relative_projection(encoder(inputs), encoder(anchors), "euclidean", center=True)
    torch.testing.assert_close(layer(inputs), quantise(expected, 0.1))


def test_anchors_pass_without_gradient_and_without_moving_batch_statistics() -> None:
    encoder, anchors, inputs = network(0), drawn(5, 4), drawn(7, 4, seed=1)
    layer = RelativeLayer(encoder, anchors).train()
    latents: list[Tensor] = []
    encoder.register_forward_hook(lambda module, given, output: latents.append(output))
    before = encoder[1].num_batches_tracked.clone()
    layer(inputs).sum().backward()
    assert encoder[1].num_batches_tracked == before + 1
    assert [latent.requires_grad for latent in latents] == [True, False]
    assert encoder.training
    assert encoder[1].training


def test_anchors_are_encoded_as_often_as_asked() -> None:
    for refresh, passes in ((1, [2, 2, 2, 2]), (3, [2, 1, 1, 2]), (None, [1, 1, 1, 1])):
        encoder = nn.Linear(4, 3)
        layer = RelativeLayer(encoder, torch.ones(2, 4), refresh=refresh).train()
        calls = Mock(return_value=None)
        encoder.register_forward_hook(calls)
        counts = [0]
        for _ in range(4):
            layer(torch.ones(1, 4))
            counts.append(calls.call_count)
        assert [b - a for a, b in pairwise(counts)] == passes
        layer.eval()(torch.ones(1, 4))
        assert calls.call_count - counts[-1] == (1 if refresh is None else 2)


def test_a_head_works_behind_another_encoder_that_is_turned() -> None:
    anchors, inputs = drawn(6, 4), drawn(9, 4, seed=1)
    first = nn.Linear(4, 4, bias=False).double()
    second = nn.Linear(4, 4, bias=False).double()
    second.weight.data = 2 * rotation(4) @ first.weight.data
    head = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)).double()
    native, stitched = (nn.Sequential(RelativeLayer(encoder, anchors), head) for encoder in (first, second))
    torch.testing.assert_close(stitched(inputs), native(inputs))


def test_state_of_the_layer_has_its_anchors() -> None:
    layer, other = (RelativeLayer(nn.Linear(4, 3), drawn(2, 4, seed=s).float(), refresh=None) for s in (0, 1))
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(torch.ones(1, 4)), layer(torch.ones(1, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchors": 31}, r"anchors=31 is more than the rows there are \(n_samples=30\); lower anchors"),
        ({"anchors": 0}, "anchors=0"),
        ({"anchors": "many"}, "anchors='many'"),
        ({"anchors": [3, 40]}, "anchors names row 40, but X has rows 0 to 29"),
        ({"anchors": [0.5]}, "a list of rows, or None"),
        ({"similarity": "cos"}, "similarity='cos'"),
        ({"similarity": []}, "similarity=''"),
        ({"choice": "best"}, "choice='best'"),
        ({"center": "yes"}, "center='yes'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RelativeProjection(**{"anchors": 5, **options}).fit(drawn(30, 4).numpy())


def test_bad_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"needs one label a row, y \(30,\), and was given None"):
        RelativeProjection(anchors=5, choice="stratified").fit(drawn(30, 4))
    with pytest.raises(DataError, match=r"latents \(3, 4\) and anchors \(3, 5\) must be"):
        relative_projection(drawn(3, 4), drawn(3, 5))
    with pytest.raises(DataError, match="first has 3 rows and second 4"):
        latent_similarity(drawn(3, 4), drawn(4, 4))
    with pytest.raises(OptionError, match="bin_size=0"):
        RelativeLayer(nn.Linear(2, 2), torch.ones(1, 2), bin_size=0)
    with pytest.raises(OptionError, match="similarity='dot'"):
        edit(Recipe(*(Part("torch.nn:Identity") for _ in range(3))), similarity="dot")
