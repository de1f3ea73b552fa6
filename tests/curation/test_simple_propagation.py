"""SimPLe: first masks from extreme points, contrast of pixels, spreading labels, and the three stages."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory.core.dense import IGNORED
from repertory.core.step import Step
from repertory.curation.simple_propagation import (
    PairContrast,
    SimilarityPropagation,
    SimPLe,
    edit,
    extreme_points,
    initial_mask,
    pair_contrast,
    propagate,
)
from repertory.curation.simple_propagation.initial import _paths, steepness
from repertory.curation.simple_propagation.pixels import at_pixels, drawn
from repertory.datasets import Examples, Normaliser, Splits
from repertory.errors import DataError, OptionError, UserError
from repertory.losses import PixelCrossEntropyLoss
from repertory.recipe import Part, Recipe
from repertory.scenarios.segmentation import SegmentationBench
from repertory.testing import check_method
from repertory.training.budget import Budget

RELEASED = json.loads((Path(__file__).parent / "simple_propagation_released.json").read_text(encoding="utf-8"))


def disc(side: int = 40, radius: int = 9) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return ((rows - side // 2 + 2).square() + (columns - side // 2 - 1).square() <= radius**2).long()


def noisy(mask: Tensor, noise: float, seed: int = 0) -> Tensor:
    return mask + noise * torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))


def volume() -> tuple[np.ndarray, np.ndarray]:
    """A ball on noise that is the sum of four hashed numbers, the same on every machine."""
    place = np.arange(24 * 40 * 40, dtype=np.uint64)
    noise = np.zeros(place.shape)
    for k in range(4):
        bits = (place * np.uint64(2654435761) + np.uint64(k * 40503 + 1)) % np.uint64(2**32)
        bits ^= bits >> np.uint64(15)
        bits = (bits * np.uint64(2246822519)) % np.uint64(2**32)
        bits ^= bits >> np.uint64(13)
        noise += bits % np.uint64(1000)
    z, y, x = np.indices((24, 40, 40))
    ball = ((z - 12) / 5) ** 2 + ((y - 19) / 8) ** 2 + ((x - 21) / 7) ** 2 <= 1
    image = 1500 * ball + noise.reshape(ball.shape)
    return image - image.min(), ball


def waves(*shape: int, start: int) -> Tensor:
    return torch.sin(torch.arange(start, start + math.prod(shape), dtype=torch.float64) * 0.7).view(shape)


def given() -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels (1 object, 0 background, 2 open) and logits that the released figures were made from."""
    labels = ((torch.arange(432) * 7) % 3).view(2, 6, 6, 6)
    return waves(2, 5, 6, 6, 6, start=0) + 0.5, labels, 2 * waves(2, 2, 6, 6, 6, start=500)


def network(outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, outputs, 1))


def step_with(method: nn.Module, seed: int = 0) -> Step:
    torch.manual_seed(seed)
    model = network()
    return Step(model, torch.optim.SGD(model.parameters(), lr=0.1), PixelCrossEntropyLoss(), methods=[method])


def batch() -> dict[str, Tensor]:
    masks = disc(12, 3).repeat(4, 1, 1)
    masks[:, 5:7] = torch.where(masks[:, 5:7] == 1, IGNORED, masks[:, 5:7])
    return {"input": noisy(masks, 0.3)[:, None], "target": masks}


# First masks


def test_first_mask_of_a_volume_is_that_of_the_authors_code() -> None:
    image, ball = volume()
    points = torch.tensor(RELEASED["initial"]["points"])
    assert torch.equal(extreme_points(torch.from_numpy(ball.astype(np.int64))), points)
    low, high = points.amin(0), points.amax(0) + 1
    box = tuple(map(slice, low.tolist(), high.tolist()))
    bits = np.unpackbits(np.frombuffer(base64.b64decode(RELEASED["initial"]["object"]), np.uint8))
    theirs = bits[: math.prod((high - low).tolist())].reshape((high - low).tolist()) == 1
    mask = initial_mask(image, points, margin=(10, 20, 20)).numpy()
    assert ((mask[box] == 1) != theirs).sum() <= 3
    mask[box] = 0
    assert not mask.any()


def test_first_mask_of_a_noisy_disc_is_sure_inside_and_open_in_the_box_only() -> None:
    truth = disc()
    points = extreme_points(truth)
    mask = initial_mask(noisy(truth, 0.3, seed=1), points)
    low, high = points.amin(0), points.amax(0)
    outside = torch.ones_like(truth, dtype=torch.bool)
    outside[low[0] : high[0] + 1, low[1] : high[1] + 1] = False
    assert (mask[outside] == 0).all()
    assert (mask[~outside] != 0).all()
    assert 0 < (mask == IGNORED).sum() < (~outside).sum()
    sure = mask == 1
    # The box as it is would be right in 79 of 100 pixels.
    assert (truth[sure] == 1).double().mean() > 0.88
    assert (mask[truth == 1] == 1).double().mean() > 0.9


def test_points_in_any_order_and_any_scale_of_the_image_give_the_same_mask() -> None:
    truth = disc()
    image, points = noisy(truth, 0.5), extreme_points(truth)
    mask = initial_mask(image, points)
    assert torch.equal(mask, initial_mask(image, points[[2, 0, 3, 1]]))
    assert torch.equal(mask, initial_mask(7 * image - 30, points))
    assert torch.equal(mask, initial_mask(image[None].repeat(3, 1, 1), points))


def test_turning_image_and_points_turns_the_mask() -> None:
    truth = disc()
    image, points = noisy(truth, 0.5), extreme_points(truth)
    assert torch.equal(initial_mask(image.T, points.flip(1)).T, initial_mask(image, points))


def test_path_over_even_ground_is_straight_and_one_wider_on_every_side() -> None:
    seeds = _paths(np.ones((1, 12, 12)), np.array([[2, 2], [8, 8]]))
    wanted = np.zeros((12, 12), dtype=int)
    for k in range(2, 9):
        wanted[k - 1 : k + 2, k - 1 : k + 2] = 1
    assert (seeds == wanted).all()


def test_path_goes_round_a_wall() -> None:
    image = np.zeros((1, 15, 15))
    image[0, :12, 7] = 50.0
    seeds = _paths(image, np.array([[3, 1], [3, 13]]))
    assert not seeds[:11, 7].any()
    assert seeds[13, 7] == 1


def test_steepness_is_sobels_gradient() -> None:
    from skimage.filters import sobel

    image = np.random.default_rng(0).normal(size=(9, 11))
    # scikit-image divides the kernel by 4 and the sum of squares by 2, and reflects at the edges.
    assert np.allclose(steepness(image)[1:-1, 1:-1], 4 * np.sqrt(2) * sobel(image)[1:-1, 1:-1])
    ramp = np.indices((5, 6, 7))[1].astype(float)
    assert np.allclose(steepness(ramp)[1:-1, 1:-1, 1:-1], 2 * (4 * 1 + 4 * 3 + 6))


def test_without_points_all_is_background_and_a_box_that_fills_the_image_leaves_only_paths() -> None:
    image = noisy(disc(), 0.5)
    assert not initial_mask(image, torch.empty(0, 2, dtype=torch.int64)).any()
    points = torch.tensor([[0, 20], [39, 20], [20, 0], [20, 39]])
    mask = initial_mask(image, points)
    assert ((mask == 1) == torch.from_numpy(_paths(image.double().numpy()[None], points.numpy()) == 1)).all()
    assert set(mask.unique().tolist()) == {1, IGNORED}


def test_extreme_points_are_the_ends_along_each_axis() -> None:
    points = extreme_points(disc())
    assert points[:2, 0].tolist() == [9, 27]
    assert points[2:, 1].tolist() == [12, 30]
    assert extreme_points(torch.zeros(4, 5, 6, dtype=torch.int64)).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"points": torch.tensor([[5.0, 5.0], [9.0, 9.0]])}, DataError, "whole numbers"),
        ({"points": torch.tensor([[5, 5], [9, 40]])}, DataError, r"\[9, 40\] lies outside"),
        ({"points": torch.tensor([[5, 5]])}, DataError, "one point only"),
        ({"image": torch.zeros(2, 2, 40, 40)}, DataError, "does not fit points of 2"),
        ({"image": torch.full((40, 40), math.nan)}, DataError, "not finite"),
        ({"margin": (1, 2, 3)}, OptionError, "margin"),
        ({"background": 0.9}, OptionError, "background"),
        ({"runs": 0}, OptionError, "runs"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object], error: type[Exception], words: str) -> None:
    arguments = {"image": torch.zeros(40, 40), "points": torch.tensor([[5, 5], [9, 9]]), **change}
    with pytest.raises(error, match=words):
        initial_mask(**arguments)  # type: ignore[arg-type]


# Contrast


def test_contrast_is_that_of_the_authors_code() -> None:
    maps, labels, _ = given()
    chosen = [at_pixels(maps, labels == label)[:100] for label in (1, 0)]
    assert float(pair_contrast(*chosen)) == pytest.approx(RELEASED["contrast"], rel=1e-9)


def test_contrast_is_the_mean_over_pairs_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (5, 3))
    values = []
    for i in range(5):
        for j in range(i + 1, 5):
            q = torch.sigmoid(F.cosine_similarity(own[i], own[j], 0) / 0.2)
            values.append(-q.log())
        for row in other:
            values.append(-(1 - torch.sigmoid(F.cosine_similarity(own[i], row, 0) / 0.2)).log())
    assert torch.allclose(pair_contrast(own, other, 0.2), torch.stack(values).mean(), rtol=1e-12)


def test_contrast_of_features_that_are_all_alike() -> None:
    alike = torch.ones(6, 3, dtype=torch.float64)
    pairs, mixed = 15, 36
    wanted = (pairs * math.log1p(math.exp(-10)) + mixed * math.log1p(math.exp(10))) / (pairs + mixed)
    assert float(pair_contrast(alike, 5 * alike)) == pytest.approx(wanted, rel=1e-12)
    assert float(pair_contrast(alike, alike[:0])) == pytest.approx(math.log1p(math.exp(-10)), rel=1e-12)


def test_contrast_of_no_pair_is_nothing_and_zero_vectors_do_no_harm() -> None:
    rows = torch.ones(3, 4)
    assert float(pair_contrast(rows[:1], rows[:0])) == 0
    assert float(pair_contrast(rows[:0], rows)) == 0
    zeros = torch.zeros(3, 4, requires_grad=True)
    loss = pair_contrast(zeros, rows)
    assert float(loss.detach()) == pytest.approx(math.log(2))
    loss.backward()
    assert zeros.grad is not None
    assert not zeros.grad.any()


def test_contrast_has_the_right_gradient_and_half_precision_is_computed_wider() -> None:
    own, other = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 2))
    assert torch.autograd.gradcheck(lambda a, b: pair_contrast(a, b, 0.5), (own, other))
    half = [rows.detach().bfloat16() for rows in (own, other)]
    with torch.autocast("cpu", torch.bfloat16):
        found = pair_contrast(*half, temperature=0.01)
    exact = pair_contrast(*(rows.double() for rows in half), temperature=0.01)
    assert float(found) == pytest.approx(float(exact), rel=1e-5)


def test_contrast_wants_features_of_one_size() -> None:
    with pytest.raises(DataError, match="same dim"):
        pair_contrast(torch.ones(3, 4), torch.ones(3, 5))


# Spreading


@pytest.mark.parametrize("case", RELEASED["spreading"], ids=lambda case: str(case["n"]) + str(case["similarity"]))
def test_spreading_is_that_of_the_authors_code(case: dict[str, object]) -> None:
    maps, labels, logits = given()
    opened = labels == 2
    known = at_pixels(maps, labels == 1)[: case["n"]]
    found = propagate(at_pixels(maps, opened), known, case["similarity"], case["agreement"])  # type: ignore[arg-type]
    assert found.nonzero().flatten().tolist() == case["places"]
    if case["loss"] is not None:
        values = F.cross_entropy(at_pixels(logits, opened)[found], torch.ones(int(found.sum()), dtype=torch.long))
        assert float(0.1 * values) == pytest.approx(case["loss"], rel=1e-9)


def test_label_spreads_where_more_than_the_share_of_pixels_is_alike() -> None:
    def at(cosine: float) -> list[float]:
        return [cosine, math.sqrt(1 - cosine**2)]

    known = torch.tensor([at(0.95), at(0.95), at(0.95), at(0.1)])
    pixel = torch.tensor([[3.0, 0.0]])
    assert propagate(pixel, known, 0.9, 0.5).tolist() == [True]
    known = torch.tensor([at(0.95), at(0.95), at(0.1), at(0.1)])
    assert propagate(pixel, known, 0.9, 0.5).tolist() == [False]
    assert propagate(pixel, known[:0]).tolist() == [False]
    assert propagate(pixel[:0], known).shape == (0,)


def test_spreading_under_autocast_is_that_of_wide_numbers() -> None:
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = propagate(rows, rows[:40], 0.3, 0.2)
    assert torch.equal(found, propagate(rows.double(), rows[:40].double(), 0.3, 0.2))
    assert 0 < int(found.sum()) < 200


def test_spreading_in_chunks_is_spreading_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    whole = propagate(rows, rows[:10], 0.3, 0.4)
    monkeypatch.setattr("repertory.curation.simple_propagation.propagation._CHUNK", 7)
    assert torch.equal(propagate(rows, rows[:10], 0.3, 0.4), whole)
    assert 0 < int(whole.sum()) < 50


def test_spreading_adds_the_weighted_cross_entropy_of_the_pixels_it_reached() -> None:
    method = SimilarityPropagation(n=1000, similarity=0.5, agreement=0.3, weight=0.25)
    step, entries = step_with(method), batch()
    model = step.run.model
    with torch.no_grad():
        maps, logits = model[:2](entries["input"]), model(entries["input"])
        plain = PixelCrossEntropyLoss()(logits, entries["target"])
        opened = entries["target"] == IGNORED
        reached = propagate(at_pixels(maps, opened), at_pixels(maps, entries["target"] == 1), 0.5, 0.3)
        assert 0 < int(reached.sum()) < len(reached)
        more = -at_pixels(logits, opened)[reached].log_softmax(1)[:, 1].mean()
    assert float(step(entries)) == pytest.approx(float(plain + 0.25 * more), rel=1e-5)


def test_no_open_pixel_and_none_reached_leave_the_loss_as_it_is() -> None:
    entries = batch()
    plain = float(step_with(SimilarityPropagation(weight=0.0))(entries))
    assert float(step_with(SimilarityPropagation(similarity=1.0))(entries)) == plain
    entries["target"] = entries["target"].clamp(max=1)
    full = float(step_with(SimilarityPropagation(weight=0.0))(entries))
    assert float(step_with(SimilarityPropagation(similarity=-1.0, agreement=0.0))(entries)) == full


# In a step


def test_contrast_is_added_to_the_loss_of_the_step() -> None:
    step, entries = step_with(PairContrast(n=1000, temperature=0.5, weight=2.0)), batch()
    model = step.run.model
    with torch.no_grad():
        maps, logits = model[:2](entries["input"]), model(entries["input"])
        plain = PixelCrossEntropyLoss()(logits, entries["target"])
        more = pair_contrast(*(at_pixels(maps, entries["target"] == label) for label in (1, 0)), temperature=0.5)
    assert float(step(entries)) == pytest.approx(float(plain + 2 * more), rel=1e-5)


def test_both_stages_work_on_volumes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv3d(4, 2, 1))
    masks = torch.zeros(2, 6, 8, 8, dtype=torch.int64)
    masks[:, 2:4, 2:5, 2:5] = 1
    masks[:, 4, 2:5, 2:5] = IGNORED
    entries = {"input": noisy(masks.clamp(max=1), 0.3)[:, None], "target": masks}
    with torch.no_grad():
        maps, logits = model[:2](entries["input"]), model(entries["input"])
        known, opened = at_pixels(maps, masks == 1), masks == IGNORED
        reached = propagate(at_pixels(maps, opened), known, 0.3, 0.4)
        assert 0 < int(reached.sum()) < len(reached)
        more = pair_contrast(known, at_pixels(maps, masks == 0))
        more += 0.1 * F.cross_entropy(at_pixels(logits, opened)[reached], torch.ones(int(reached.sum())).long())
        plain = PixelCrossEntropyLoss()(logits, masks)
    methods = [PairContrast(n=1000), SimilarityPropagation(n=1000, similarity=0.3, agreement=0.4)]
    step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), PixelCrossEntropyLoss(), methods=methods)
    assert float(step(entries)) == pytest.approx(float(plain + more), rel=1e-5)


def test_both_stages_keep_the_contract() -> None:
    neutral = {PairContrast: {"weight": 0.0}, SimilarityPropagation: {"weight": 0.0}}
    for method, options in neutral.items():
        step, entries = step_with(method(**options)), batch()
        plain = step_with(PairContrast(weight=0.0))
        for _ in range(3):
            assert float(step(entries)) == float(plain(entries))
        for check in ("bad_options_are_refused", "docstring_example_runs", "public_docstrings"):
            check_method(method, only=check)


def test_drawing_is_even_and_takes_all_where_there_are_few() -> None:
    where = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    assert drawn(where, 1000, torch.Generator()) is where
    counts = torch.zeros(where.shape)
    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        chosen = drawn(where, 3, generator)
        assert int(chosen.sum()) == 3
        assert not (chosen & ~where).any()
        counts += chosen
    expected = 400 * 3 / int(where.sum())
    assert ((counts[where] - expected).abs() < 5 * math.sqrt(expected)).all()


def test_rows_of_pixels_are_those_of_the_map() -> None:
    maps = torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2)
    where = torch.zeros(2, 2, 2, dtype=torch.bool)
    where[1, 0, 1] = where[0, 1, 0] = True
    assert at_pixels(maps, where).tolist() == [maps[0, :, 1, 0].tolist(), maps[1, :, 0, 1].tolist()]
    with pytest.raises(DataError, match="do not belong together"):
        at_pixels(maps, where[:, :1])


def test_a_network_without_convolution_is_refused() -> None:
    with pytest.raises(UserError, match="has no convolution"):
        Step(
            nn.Sequential(nn.ReLU()), torch.optim.SGD([torch.zeros(1)], 0.1), PixelCrossEntropyLoss(), [PairContrast()]
        )


# The three stages


def bench(recipe: Recipe, masks: Tensor) -> SegmentationBench:
    truth = disc(12, 3).repeat(len(masks), 1, 1)
    train = Examples(noisy(truth, 0.3)[:, None], masks)
    splits = Splits(
        train=train,
        validation=Examples(train.inputs, truth),
        test=Examples(train.inputs, truth),
        unlabelled=None,
        normaliser=Normaliser(torch.zeros(()), torch.ones(())),
        indices={"train": list(range(len(masks))), "validation": [], "test": []},
        clean_targets=truth,
    )
    return SegmentationBench(
        recipe, splits, in_shape=(1, 12, 12), outputs=2, task="segmentation", seed=0, budget=Budget("steps", 60)
    )


def recipe() -> Recipe:
    return Recipe(
        model=Part("repertory.models.unet:UNet", {"widths": (4, 8)}),
        criterion=Part("repertory.losses.pixel_cross_entropy:PixelCrossEntropyLoss"),
        optimizer=Part("torch.optim:AdamW", {"lr": 0.01}),
        epochs=15,
        batch_size=4,
    )


def test_predicted_masks_take_the_place_of_the_first_and_stay_inside_the_boxes() -> None:
    masks = torch.zeros(8, 12, 12, dtype=torch.int64)
    masks[:, 3:10, 3:10] = IGNORED
    masks[:, 5:8, 5:8] = 1
    place = bench(recipe(), masks)
    rows = SimPLe().choose(place)
    made = place.splits.train.targets
    assert rows.tolist() == list(range(8))
    assert set(made.unique().tolist()) == {0, 1}
    assert not made[masks == 0].any()
    assert made[masks == IGNORED].double().mean() < 1
    assert place.curve[0]["stage"] == "simple-propagation-contrast"
    assert place.counts.steps == 30
    assert place.counts.forward - place.counts.backward == 8


class Generous(nn.Module):
    """Sees the object everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(images[:, 0]), torch.ones_like(images[:, 0])], 1)


def test_stages_share_the_budget_and_masks_end_at_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.zeros(3, 12, 12, dtype=torch.int64)
    masks[:, 3:10, 4:9] = IGNORED
    masks[:, 5:8, 5:8] = 1
    place = bench(recipe(), masks)
    calls: list[tuple[float, dict[str, object]]] = []
    monkeypatch.setattr(place, "fresh_model", lambda name: Generous())
    monkeypatch.setattr(place, "train", lambda model, share, **options: calls.append((share, options)) or model)
    SimPLe(share=0.4, propagation=0.25, lr_scale=0.02).choose(place)
    assert torch.equal(place.splits.train.targets, (masks != 0).long())
    (first, contrast), (second, spreading) = calls
    assert (first, second) == pytest.approx((0.3, 0.1))
    assert isinstance(contrast["objective"], PairContrast)
    assert isinstance(spreading["objective"], SimilarityPropagation)
    assert (contrast.get("lr_scale", 1.0), spreading["lr_scale"]) == (1.0, 0.02)


def test_images_in_which_nothing_is_found_keep_their_first_masks() -> None:
    masks = torch.zeros(8, 12, 12, dtype=torch.int64)
    masks[:, 3:10, 3:10] = IGNORED
    masks[:4, 5:8, 5:8] = 1
    place = bench(recipe(), masks)
    # A bright object is found in the first four only; the others are dark all over.
    place.splits.train.inputs[:4] += 3 * masks[:4].eq(1)[:, None]
    place.splits.train.inputs[4:] = -1.0
    SimPLe().choose(place)
    made = place.splits.train.targets
    assert set(made[:4].unique().tolist()) == {0, 1}
    assert torch.equal(made[4:], masks[4:])


def test_a_third_value_in_a_mask_is_refused() -> None:
    masks = torch.full((8, 12, 12), 2)
    with pytest.raises(DataError, match="there is a 2"):
        SimPLe().choose(bench(recipe(), masks))


def test_edit_leaves_the_rest_of_the_budget_to_training_anew() -> None:
    edited = edit(recipe(), share=0.3)
    assert edited.train_share == pytest.approx(0.7)
    assert edited.curation[-1].options == {"share": 0.3}
    with pytest.raises(OptionError, match="agreement"):
        edit(recipe(), agreement=1.5)
