from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from repertory.datasets import Dataset, Encoder, load
from repertory.datasets.corruptions import shift_inputs
from repertory.datasets.noise import flip_labels
from repertory.errors import OptionError


def make(counts: tuple[int, ...] = (200, 150, 100), **corruptions: str) -> Dataset:
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Dataset(
        name="made",
        spec="made",
        task="classification",
        modality="table",
        inputs=torch.randn(len(targets), 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0]),
        targets=targets,
        classes=tuple("abcdef"[: len(counts)]),
        encoder=Encoder("table", (2,)),
        corruptions=corruptions,
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted(images: Tensor, kind: str, strength: float) -> Tensor:
    return shift_inputs(images, kind, strength, torch.ones(1), generator())


@pytest.mark.parametrize("rate", ["0", "0.1", "0.4", "0.99"])
def test_noise_changes_exactly_the_asked_share_of_training_labels(rate: str) -> None:
    splits = make(noise=rate).prepare(0)
    changed = int((splits.train.targets != splits.clean_targets).sum())
    assert changed == round(float(rate) * len(splits.train))


@pytest.mark.parametrize("rate", ["0.4", "pair0.3", "frequent0.2", "instance0.25"])
def test_validation_labels_are_clean_unless_noise_is_asked_for_there_too(rate: str) -> None:
    clean, noisy, both = (
        make(**options).prepare(0) for options in ({}, {"noise": "0.4"}, {"noise": "0.4", "validation_noise": rate})
    )
    assert torch.equal(noisy.validation.targets, clean.validation.targets)
    wrong = both.validation.targets != clean.validation.targets
    share = float(rate.lstrip("abcdefghijklmnopqrstuvwxyz"))
    assert int(wrong.sum()) == round(share * len(wrong)) > 0
    assert set(both.validation.targets.tolist()) <= set(clean.train.targets.tolist())
    for part in ("train", "test"):
        assert torch.equal(getattr(both, part).targets, getattr(noisy, part).targets)
    assert torch.equal(both.validation.inputs, clean.validation.inputs)


def test_noise_by_the_input_takes_the_same_classes_for_each_other_in_both_parts() -> None:
    splits = make((400, 400, 400), noise="instance0.5", validation_noise="instance0.5").prepare(0)
    clean = make((400, 400, 400)).prepare(0)
    moves = []
    for part in ("train", "validation"):
        given, true = getattr(splits, part).targets, getattr(clean, part).targets
        rows = given != true
        moved = torch.zeros(3, 3, dtype=torch.float64).index_put_(
            (true[rows], given[rows]), torch.ones(()).double(), True
        )
        moves.append(moved / moved.sum())
    assert (moves[0] - moves[1]).abs().max() < 0.1


def test_noise_touches_nothing_but_training_labels() -> None:
    clean, noisy = make().prepare(0), make(noise="0.4").prepare(0)
    assert noisy.indices == clean.indices
    assert torch.equal(noisy.clean_targets, clean.train.targets)
    assert torch.equal(noisy.train.inputs, clean.train.inputs)
    for part in ("validation", "test"):
        assert torch.equal(getattr(noisy, part).targets, getattr(clean, part).targets)


def test_noisy_labels_spread_evenly_over_the_other_classes() -> None:
    targets = torch.full((30_000,), 2)
    noisy = flip_labels(targets, 0.9, 4, generator())
    counts = noisy.bincount(minlength=4)
    assert counts[2] == 3_000
    # Each other class expects 9000, with a binomial standard deviation of 77.
    assert ((counts[[0, 1, 3]] - 9_000).abs() < 5 * 77.5).all()


@pytest.mark.parametrize(("ratio", "expected"), [("50", [100, 14, 2]), ("4", [140, 70, 35]), ("1", [70, 70, 70])])
def test_imbalance_makes_class_counts_decay_exponentially(ratio: str, expected: list[int]) -> None:
    splits = make(imbalance=ratio).prepare(0)
    assert splits.train.targets.bincount().tolist() == expected
    assert len(splits.test) == len(make().prepare(0).test)


def test_imbalance_of_less_than_its_last_class_can_carry_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"imbalance=200 .*at most 140"):
        make(imbalance="200").prepare(0)


def test_labels_keeps_exactly_that_many_and_hides_the_rest() -> None:
    full, few = make().prepare(0), make(labels="40").prepare(0)
    assert few.unlabelled is not None
    assert (len(few.train), len(few.unlabelled)) == (40, len(full.train) - 40)
    assert set(few.unlabelled.targets.tolist()) == {-1}
    assert sorted(few.indices["train"] + few.indices["unlabelled"]) == full.indices["train"]
    assert torch.equal(few.unlabelled.inputs, make().inputs[few.indices["unlabelled"]])


@pytest.mark.parametrize("labels", [3, 10, 40, 300])
def test_labels_keep_the_proportions_of_the_classes(labels: int) -> None:
    counts = make(labels=str(labels)).prepare(0).train.targets.bincount()
    proportional = labels * torch.tensor([200, 150, 100]) / 450
    assert ((counts - proportional).abs() <= 1).all()


def test_each_rare_class_keeps_a_label() -> None:
    splits = make((400, 4, 4, 4), labels="5").prepare(0)
    assert splits.train.targets.bincount().tolist() == [2, 1, 1, 1]


def test_all_labels_leave_nothing_unlabelled() -> None:
    splits = make(labels=str(len(make().prepare(0).train))).prepare(0)
    assert splits.unlabelled is None
    assert "unlabelled" not in splits.indices


def test_labels_come_before_imbalance_and_imbalance_before_noise() -> None:
    splits = make(labels="90", imbalance="4", noise="0.5").prepare(0)
    assert splits.clean_targets.bincount().tolist() == [40, 20, 10]
    assert splits.unlabelled is not None
    assert len(splits.unlabelled) == len(make().prepare(0).train) - 90
    assert int((splits.train.targets != splits.clean_targets).sum()) == round(0.5 * 70)


def test_few_labels_work_for_regression() -> None:
    splits = load("diabetes?labels=20").prepare(0)
    assert len(splits.train) == 20
    assert splits.unlabelled is not None
    assert splits.unlabelled.targets.unique().tolist() == [-1]


def test_table_noise_is_in_units_of_the_training_deviation() -> None:
    clean, shifted = make((2000, 2000)).prepare(0), make((2000, 2000), shift="noise0.5").prepare(0)
    added = (shifted.test.inputs - clean.test.inputs) / clean.normaliser.std
    torch.testing.assert_close(added.std(0), torch.full((2,), 0.5), atol=0.06, rtol=0)
    assert torch.equal(shifted.train.inputs, clean.train.inputs)
    assert torch.equal(shifted.validation.inputs, clean.validation.inputs)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
@pytest.mark.parametrize("side", [4, 7])
def test_rotation_by_quarters_equals_rot90(quarters: int, side: int) -> None:
    images = torch.randint(0, 256, (300, 3, side, side), dtype=torch.uint8, generator=generator())
    assert torch.equal(shifted(images, "rotate", 90 * quarters), torch.rot90(images, quarters, (-2, -1)))


def test_half_turn_of_an_oblong_image_flips_both_sides() -> None:
    images = torch.randint(0, 256, (2, 1, 4, 6), dtype=torch.uint8, generator=generator())
    assert torch.equal(shifted(images, "rotate", 180), images.flip(-2, -1))


def test_rotation_keeps_lengths_in_an_oblong_image() -> None:
    image = torch.zeros(1, 1, 21, 41, dtype=torch.uint8)
    image[..., 10, 26] = 255
    turned = shifted(image, "rotate", 90)
    assert turned[0, 0, 4, 20] > 200


def test_image_noise_has_the_asked_share_of_the_range() -> None:
    grey = torch.full((50, 1, 20, 20), 128, dtype=torch.uint8)
    noisy = shifted(grey, "noise", 0.1)
    assert noisy.dtype == torch.uint8
    assert float(noisy.float().std()) == pytest.approx(25.5, rel=0.05)


def test_blur_spreads_a_point_into_a_gaussian_and_leaves_flat_images() -> None:
    point = torch.zeros(1, 1, 15, 15, dtype=torch.uint8)
    point[..., 7, 7] = 255
    blurred = shifted(point, "blur", 1.0)[0, 0]
    kernel = [math.exp(-0.5 * d * d) for d in range(-3, 4)]
    assert blurred[7, 7].item() == round(255 / sum(kernel) ** 2)
    assert blurred[7, 8].item() == round(255 * math.exp(-0.5) / sum(kernel) ** 2)
    flat = torch.full((2, 3, 3, 5), 77, dtype=torch.uint8)
    assert torch.equal(shifted(flat, "blur", 2.0), flat)


def test_shift_changes_the_test_images_alone() -> None:
    clean, turned = load("digits").prepare(0), load("digits?shift=rotate90").prepare(0)
    assert torch.equal(turned.test.inputs, torch.rot90(clean.test.inputs, 1, (-2, -1)))
    assert torch.equal(turned.train.inputs, clean.train.inputs)
    assert torch.equal(turned.validation.inputs, clean.validation.inputs)


@pytest.mark.parametrize(
    ("corruptions", "said"),
    [
        ({"noise": "1"}, "noise=1 is not a share of at least 0 and below 1"),
        ({"noise": "-0.1"}, "noise=-0.1"),
        ({"validation_noise": "half"}, "validation_noise=half is not a share"),
        ({"noise": "lots"}, "noise=lots"),
        ({"noise": "nan"}, "noise=nan"),
        ({"imbalance": "0.5"}, "imbalance=0.5 is not a finite ratio of at least 1"),
        ({"imbalance": "inf"}, "imbalance=inf"),
        ({"labels": "2"}, "labels=2 is fewer than the 3 classes"),
        ({"labels": "4.5"}, "labels=4.5 is not a whole number"),
        ({"shift": "noise"}, r"shift=noise cannot .*noise0\.3"),
        ({"shift": "noise0"}, "shift=noise0"),
        ({"shift": "rotate30"}, "shift=rotate30 cannot be applied to table inputs"),
    ],
)
def test_bad_value_is_an_error_that_names_it(corruptions: dict[str, str], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        make(**corruptions)


def test_more_labels_than_training_examples_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"labels=451 is more than the \d+ training examples"):
        make(labels="451").prepare(0)


@pytest.mark.parametrize("option", ["noise=0.2", "validation_noise=0.2", "imbalance=10"])
def test_corruptions_of_classes_do_not_apply_to_regression(option: str) -> None:
    with pytest.raises(OptionError, match=f"{option} needs classes"):
        load(f"diabetes?{option}")


def test_corruptions_differ_between_seeds() -> None:
    def draw(seed: int, **options: Any) -> Tensor:
        splits = make(**options).prepare(seed)
        return (splits.train.targets != splits.clean_targets).nonzero()

    assert not torch.equal(draw(0, noise="0.2"), draw(1, noise="0.2"))
    assert torch.equal(draw(0, noise="0.2"), draw(0, noise="0.2"))
