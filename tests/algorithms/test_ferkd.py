"""FerKD against the authors' crop replay and loss, hand-made regions and labels, FKD, and plain training on labels."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory import Method, Step
from repertory.algorithms import KD, PSKD, SAM, FerKD
from repertory.algorithms.ferkd import LabelBank, calibrated, draw_boxes, regions, replay, selfmix
from repertory.algorithms.ferkd.labels import box
from repertory.errors import ConflictError, OptionError
from repertory.recipe import Part
from repertory.testing.tiny import baseline_recipe

RELEASED = json.loads((Path(__file__).parent / "ferkd_released.json").read_text())
COUNT, CLASSES, SIDE = 8, 3, 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = COUNT) -> Tensor:
    return torch.randn(count, 2, SIDE, SIDE, generator=generator(3))


def targets(count: int = COUNT) -> Tensor:
    return torch.arange(count) % CLASSES


def network(seed: int = 0) -> nn.Sequential:
    linear = nn.Linear(2 * SIDE * SIDE, CLASSES)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator(seed)) / 4
    return nn.Sequential(nn.Flatten(), linear)


def batch(rows: Tensor | None = None) -> dict[str, Tensor]:
    rows = torch.arange(COUNT) if rows is None else rows
    return {"input": images()[rows], "target": targets()[rows], "index": rows}


def step_of(*methods: Method, model: nn.Module | None = None, **more: Any) -> Step:
    model = network() if model is None else model
    given: dict[str, Any] = {
        "teacher": network(1),
        "training": [batch()],
        "examples": COUNT,
        "classes": CLASSES,
        **more,
    }
    return Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), list(methods), **given)


class Spy(Method):
    """Keeps what reaches the network."""

    slug = "spy"

    def gradient(self, state: Any, inner: Any) -> Tensor:
        self.batch = dict(state.batch)
        return inner(state)


@pytest.mark.parametrize("case", RELEASED["crops"], ids=lambda case: f"flip={case['flip']} {case['box'][2]:.2f}")
def test_replay_agrees_with_the_authors_crop_and_mirroring(case: dict[str, Any]) -> None:
    image = torch.tensor(RELEASED["image"])[None, None]
    found = replay(image, torch.tensor([case["box"]]), torch.tensor([case["flip"]]))
    torch.testing.assert_close(found[0, 0], torch.tensor(case["crop"]), rtol=1e-4, atol=1e-5)


def test_replay_is_torchs_interpolation_of_the_pixels_inside_the_box() -> None:
    many = torch.randn(5, 3, 9, 7, generator=generator())
    boxes = draw_boxes(5, 9, 7, generator(1))
    flips = torch.tensor([True, False, True, False, False])
    found = replay(many, boxes, flips)
    for image, (top, left, tall, wide), flip, crop in zip(many, boxes, flips, found):
        top, left, tall, wide = (round(float(v)) for v in (top * 9, left * 7, tall * 9, wide * 7))
        cut = image[None, :, top : top + tall, left : left + wide]
        expected = F.interpolate(cut, (9, 7), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(crop, expected.flip(2) if flip else expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(replay(many, boxes, flips), found)


def test_the_whole_image_comes_back_as_it_was() -> None:
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(replay(images(1), whole, torch.tensor([False])), images(1), rtol=1e-5, atol=1e-5)


def test_boxes_lie_on_pixels_inside_the_image_and_have_the_shares_asked_for() -> None:
    boxes = draw_boxes(4000, 20, 30, generator(), smallest=0.2, largest=0.5)
    pixels = boxes * torch.tensor([20, 30, 20, 30])
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-4)
    top, left, tall, wide = pixels.round().unbind(1)
    assert float((top + tall).max()) <= 20
    assert float((left + wide).max()) <= 30
    area = tall * wide / 600
    assert 0.15 < float(area.min()) < float(area.max()) < 0.56
    assert abs(float(area.mean()) - 0.35) < 0.01
    assert len(top.unique()) > 10
    assert len(left.unique()) > 10


def test_an_image_into_which_no_crop_fits_is_taken_whole() -> None:
    boxes = draw_boxes(6, 1, 20, generator(), smallest=0.9, largest=1.0)
    assert boxes.tolist() == [[0.0, 0.0, 1.0, 1.0]] * 6


def test_the_authors_loss_is_torchs_for_probabilities() -> None:
    found = F.cross_entropy(torch.tensor(RELEASED["logits"]), torch.tensor(RELEASED["soft"]))
    torch.testing.assert_close(found, torch.tensor(RELEASED["cross_entropy"]))


def test_regions_and_labels_by_hand() -> None:
    assert regions(torch.tensor([0.1, 0.15, 0.2, 0.3, 0.95, 0.96])).tolist() == [0, 1, 1, 2, 2, 0]
    soft = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2], [0.6, 0.1, 0.1, 0.1, 0.1]])
    labels = calibrated(soft, torch.tensor([2, 2]), torch.tensor([False, True]), smoothing=0.1)
    torch.testing.assert_close(labels, torch.tensor([[0.025, 0.025, 0.9, 0.025, 0.025], [0.6, 0.1, 0.1, 0.1, 0.1]]))
    with pytest.raises(OptionError, match="target holds classes from 5 to 5"):
        calibrated(soft[:1], torch.tensor([5]), torch.tensor([True]))


def test_a_batch_has_stored_crops_with_the_teachers_labels() -> None:
    spy, method = Spy(), FerKD(low=0.0, middle=0.0, top=1.0, crops=2, stored=5, k=CLASSES, mix=0.0)
    step = step_of(method, spy)
    step(batch())
    seen, bank = spy.batch, method.bank
    assert seen["input"].shape == (2 * COUNT, 2, SIDE, SIDE)
    assert seen["index"].tolist() == [i for i in range(COUNT) for _ in range(2)]
    with torch.no_grad():
        said = network(1)(seen["input"]).softmax(1)
    torch.testing.assert_close(seen["target"], said, rtol=1e-4, atol=1e-5)
    every = bank.replayed(torch.arange(COUNT), torch.arange(5).expand(COUNT, -1), images())
    for i, crop in zip(seen["index"].tolist(), seen["input"]):
        assert any(torch.equal(crop, stored) for stored in every[i])
    first, second = seen["input"].unflatten(0, (COUNT, 2)).unbind(1)
    assert not any(torch.equal(a, b) for a, b in zip(first, second))
    assert (step.run.counts.forward, step.run.counts.backward) == (COUNT * 5 + 2 * COUNT, 2 * COUNT)
    step(batch())
    assert step.run.counts.forward == COUNT * 5 + 4 * COUNT


def test_without_thresholds_and_mixing_it_is_distillation_on_soft_labels_alone() -> None:
    spy, model = Spy(), network()
    plain = copy.deepcopy(model)
    step = step_of(FerKD(low=0.0, middle=0.0, top=1.0, crops=2, stored=5, k=CLASSES, mix=0.0), spy, model=model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        step(batch())
        optimizer.zero_grad()
        with torch.no_grad():
            said = network(1)(spy.batch["input"]).softmax(1)
        (-(said * plain(spy.batch["input"]).log_softmax(1)).sum(1).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()), rtol=1e-4, atol=1e-5)


def test_with_all_crops_unsure_it_is_label_smoothing() -> None:
    spy, model = Spy(), network()
    plain = copy.deepcopy(model)
    step_of(FerKD(low=0.0, middle=2.0, top=2.0, smoothing=0.2, crops=2, stored=4, mix=0.0), spy, model=model)(batch())
    # Torch spreads the smoothing over all classes, the true one among them.
    rate = 0.2 * CLASSES / (CLASSES - 1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    F.cross_entropy(plain(spy.batch["input"]), targets().repeat_interleave(2), label_smoothing=rate).backward()
    optimizer.step()
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()), rtol=1e-4, atol=1e-6)


def test_crops_between_the_thresholds_are_taken_and_the_least_extreme_others_where_too_few_are_left() -> None:
    method = FerKD(low=0.2, middle=0.3, top=0.9, crops=2, stored=4)
    sure = torch.tensor([[0.1, 0.5, 0.95, 0.25], [0.05, 0.18, 0.99, 0.5], [0.01, 0.02, 0.97, 0.93]])
    assert method.kept(sure).tolist() == [
        [False, True, False, True],
        [False, True, False, True],
        [False, False, True, True],
    ]


def test_dropped_crops_are_not_replayed_and_unsure_ones_get_the_true_class() -> None:
    method, spy = FerKD(crops=1, stored=40, k=CLASSES, low=0.45, middle=0.6, top=0.9, smoothing=0.3, mix=0.0), Spy()
    step = step_of(method, spy)
    smoothed = torch.full((COUNT, CLASSES), 0.15).scatter_(1, targets()[:, None], 0.7)
    corrected = 0
    for _ in range(20):
        step(batch())
        with torch.no_grad():
            said = network(1)(spy.batch["input"]).softmax(1)
        sure = said.amax(1)
        assert bool(((sure > 0.449) & (sure < 0.901)).all())
        for row in range(COUNT):
            expected = smoothed[row] if sure[row] < 0.6 else said[row]
            torch.testing.assert_close(spy.batch["target"][row], expected, rtol=1e-4, atol=1e-4)
        corrected += int((sure < 0.6).sum())
    assert 0 < corrected < 20 * COUNT
    shares = method.shares()
    sure = method.bank.confidence
    assert shares["dropped"] == pytest.approx(float(((sure < 0.45) | (sure > 0.9)).double().mean()))
    assert sum(shares.values()) == pytest.approx(1.0)


def test_quantiles_cut_the_bank_at_the_shares_asked_for() -> None:
    method = FerKD(low=0.1, middle=0.25, top=0.95, quantiles=True, crops=1, stored=50)
    step_of(method)(batch())
    shares = method.shares()
    assert shares["dropped"] == pytest.approx(0.15, abs=0.01)
    assert shares["hard"] == pytest.approx(0.15, abs=0.01)
    step_of(method)(batch())
    assert method.shares() == shares


def test_confidence_may_be_that_of_the_true_class() -> None:
    bank = LabelBank(COUNT, CLASSES, SIDE, SIDE, crops=3, confidence="true", k=CLASSES, generator=generator(), flip=0.0)
    bank.fill(torch.arange(COUNT), images(), targets(), network(1))
    chosen = torch.arange(3).expand(COUNT, -1)
    with torch.no_grad():
        said = network(1)(bank.replayed(torch.arange(COUNT), chosen, images()).flatten(0, 1)).softmax(1)
    expected = said.gather(1, targets().repeat_interleave(3)[:, None]).view(COUNT, 3)
    torch.testing.assert_close(bank.sure(torch.arange(COUNT)), expected)


@pytest.mark.parametrize("switch", [0.0, 1.0])
def test_selfmix_stays_within_an_image_and_mixes_labels_as_pixels(switch: float) -> None:
    count, each = 4, 5
    # A crop's pixels all hold its number, so that what was mixed can be read off.
    numbers = torch.arange(float(count * each)).view(count, each)
    crops = numbers[:, :, None, None, None].expand(-1, -1, 2, 6, 9).clone()
    labels = F.one_hot(torch.arange(count * each), count * each).float().view(count, each, -1)
    mixed, soft = selfmix(crops, labels, generator(4), switch=switch)
    torch.testing.assert_close(mixed.mean((2, 3, 4)), (soft * torch.arange(float(count * each))).sum(-1))
    torch.testing.assert_close(soft.sum(-1), torch.ones(count, each))
    owner = torch.arange(count * each) // each
    for image in range(count):
        assert float(soft[image][:, owner != image].abs().max()) == 0
    assert not torch.equal(mixed, crops)
    pure = [len(crop.unique()) for crop in mixed.flatten(0, 1)]
    assert max(pure) == (2 if switch else 1)


def test_a_pasted_box_is_counted_pixel_by_pixel() -> None:
    for seed in range(50):
        down, across, pixels = box(6, 9, 0.4, generator(seed))
        canvas = torch.zeros(6, 9)
        canvas[down, across] = 1
        assert int(canvas.sum()) == pixels
        assert pixels <= 0.6 * 54
    assert box(6, 9, 1.0, generator())[2] == 0


def test_mixing_acts_on_labels_that_were_corrected_before() -> None:
    spy = Spy()
    step = step_of(FerKD(low=0.0, middle=2.0, top=2.0, smoothing=0.2, crops=3, stored=4), spy)
    for _ in range(3):
        step(batch())
        expected = torch.full((COUNT, CLASSES), 0.1).scatter_(1, targets()[:, None], 0.8).repeat_interleave(3, 0)
        torch.testing.assert_close(spy.batch["target"], expected)


def test_both_passes_of_sam_see_the_same_crops() -> None:
    spy = Spy()
    step = step_of(FerKD(crops=2, stored=4), SAM(rho=0.1), spy)
    step(batch())
    assert step.run.counts.backward == 2 * 2 * COUNT


def test_other_methods_get_the_crops_too() -> None:
    step = step_of(FerKD(crops=2, stored=4), KD())
    step(batch())
    assert step.run.counts.forward == COUNT * 4 + 2 * 2 * COUNT


def test_a_bank_in_files_gives_the_same_steps_and_is_saved_whole(tmp_path: Path) -> None:
    given: dict[str, Any] = {"crops": 6, "k": 2}
    banks = []
    for limit in (10, 2**32):
        bank = LabelBank(COUNT, CLASSES, SIDE, SIDE, generator=generator(), limit=limit, folder=tmp_path, **given)
        for rows in torch.arange(COUNT).split(3):
            bank.fill(rows, images()[rows], targets()[rows], network(1))
        banks.append(bank)
    assert banks[0].bytes + banks[0].table.bytes == 0
    assert banks[1].bytes + banks[1].table.bytes == COUNT * 6 * (17 + 4 + 2 * 6)
    file = io.BytesIO()
    torch.save(banks[0].state_dict(), file)
    file.seek(0)
    fresh = LabelBank(COUNT, CLASSES, SIDE, SIDE, generator=generator(9), limit=10, **given)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    index, chosen = torch.arange(COUNT), torch.tensor([[5, 0]]).expand(COUNT, -1)
    for bank in (banks[0], fresh):
        assert torch.equal(bank.labels(index, chosen), banks[1].labels(index, chosen))
        assert torch.equal(bank.replayed(index, chosen, images()), banks[1].replayed(index, chosen, images()))
        assert torch.equal(bank.sure(index), banks[1].sure(index))
    with pytest.raises(OptionError, match=r"the saved bank has \(8, 6\)"):
        LabelBank(COUNT, CLASSES, SIDE, SIDE, crops=5, generator=generator()).load_state_dict(banks[0].state_dict())


def test_a_run_that_goes_on_does_not_ask_the_teacher_again() -> None:
    first = step_of(FerKD(crops=2, stored=4, quantiles=True))
    first(batch())
    again = step_of(FerKD(crops=2, stored=4, quantiles=True), training=[])
    again.load_state_dict(first.state_dict())
    assert torch.equal(first(batch()), again(batch()))
    assert again.run.counts.forward == first.run.counts.forward


def test_the_edit_keeps_the_size_of_batches_and_the_number_of_crops_seen() -> None:
    from repertory.algorithms.ferkd import edit

    recipe = baseline_recipe().replace(batch_size=64, epochs=30, augment="flip-shift")
    edited = edit(recipe, crops=4, low=0.2)
    assert (edited.batch_size, edited.epochs, edited.augment) == (16, 8, "none")
    expected = {"stored": 22, "flip": 0.5, "crops": 4, "low": 0.2}
    assert edited.methods == (Part("repertory.algorithms.ferkd:FerKD", expected, "ferkd"),)
    assert edit(recipe.replace(augment="none")).methods[0].options["flip"] == 0.0


def test_what_cannot_work_is_refused_with_a_way_out() -> None:
    with pytest.raises(ConflictError, match=r"ferkd needs images .* but the inputs are \(8, 5\)"):
        step_of(FerKD())({**batch(), "input": torch.zeros(COUNT, 5)})
    with pytest.raises(ConflictError, match="pass teacher=module"):
        step_of(FerKD(), teacher=None)
    with pytest.raises(ConflictError, match="pass training=loader"):
        step_of(FerKD(), training=None)
    with pytest.raises(ConflictError, match="pass examples="):
        step_of(FerKD(), examples=None)(batch())
    with pytest.raises(ConflictError, match="yield \\(input, target, index\\)"):
        step_of(FerKD(), training=[(images(), targets())])(batch())
    with pytest.raises(ConflictError, match=r"the teacher gives \(32, 7\) for 32 crops"):
        step_of(FerKD(stored=4), teacher=nn.Sequential(nn.Flatten(), nn.Linear(72, 7)))(batch())
    with pytest.raises(ConflictError, match="target"):
        step_of(FerKD(), PSKD(), epochs=3)
    for options, words in (
        ({"low": 0.5, "middle": 0.4}, "middle"),
        ({"top": 0.2}, "top"),
        ({"quantiles": True, "top": 1.5}, "top"),
        ({"stored": 3}, "stored"),
        ({"confidence": "mean"}, "confidence"),
    ):
        with pytest.raises(OptionError, match=words):
            FerKD(**options)
