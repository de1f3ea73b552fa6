"""Wrong labels of every kind: how many, of which classes, and decided by what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from repertory.datasets import load
from repertory.datasets.noise import KINDS, flip_labels, parse_noise
from repertory.errors import OptionError

TARGETS = torch.arange(4).repeat_interleave(torch.tensor([8000, 4000, 2000, 1000]))
INPUTS = torch.randn(len(TARGETS), 6, generator=torch.Generator().manual_seed(1))


def flipped(kind: str, rate: float = 0.3, seed: int = 0) -> Tensor:
    return flip_labels(TARGETS, rate, 4, torch.Generator().manual_seed(seed), kind=kind, inputs=INPUTS)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_asked_share_of_labels_is_wrong(kind: str, rate: float) -> None:
    noisy = flipped(kind, rate)
    assert int((noisy != TARGETS).sum()) == round(rate * len(TARGETS))
    assert (int(noisy.min()), int(noisy.max())) == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_labels(kind: str) -> None:
    assert torch.equal(flipped(kind), flipped(kind))
    assert not torch.equal(flipped(kind), flipped(kind, seed=1))


def test_pairs_move_to_the_next_class_and_the_last_to_the_first() -> None:
    noisy = flipped("pair")
    moved = noisy != TARGETS
    assert torch.equal(noisy[moved], (TARGETS[moved] + 1) % 4)


def test_frequent_classes_get_wrong_labels_by_their_counts() -> None:
    noisy = flipped("frequent", 0.5)
    from_last = noisy[(TARGETS == 3) & (noisy != 3)].bincount(minlength=3)[:3].double()
    shares = from_last / from_last.sum()
    # About 500 draws: a standard deviation of at most 0.023.
    torch.testing.assert_close(shares, torch.tensor([8.0, 4.0, 2.0]).double() / 14, atol=0.1, rtol=0)
    # 4000 stay, and 2000 * 8/11 + 1000 * 8/13 + 500 * 8/14 come; alike they would be 1167.
    assert abs(int(noisy.bincount()[0]) - 6356) < 250


def test_an_input_decides_on_its_wrong_class_and_its_likelihood() -> None:
    """Inputs that are alike are mistaken for the same class; the draw of one class says nothing of another's."""
    inputs = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(2000, 1) * 40
    targets = torch.zeros(4000, dtype=torch.int64)
    noisy = flip_labels(targets, 0.5, 3, torch.Generator().manual_seed(3), kind="instance", inputs=inputs)
    first, second = (noisy[k::2][noisy[k::2] > 0].bincount(minlength=3)[1:].double() for k in (0, 1))
    assert float((first / first.sum() - second / second.sum()).abs().max()) > 0.2
    alike = flip_labels(targets, 0.5, 3, torch.Generator().manual_seed(3), kind="instance", inputs=torch.ones(4000, 2))
    even = alike[alike > 0].bincount(minlength=3)[1:].double()
    assert float((even / even.sum() - 0.5).abs().max()) < 0.06


def test_kinds_are_read_with_their_rate() -> None:
    assert parse_noise("0") == ("symmetric", 0.0)
    assert parse_noise("instance0.25") == ("instance", 0.25)


@pytest.mark.parametrize("text", ["1", "pair1", "-0.1", "nan", "some0.2", "0.4pair", "", "pair"])
def test_other_kinds_and_rates_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="is not a share of at least 0 and below 1, alone or after a kind"):
        parse_noise(text)


def test_what_a_kind_needs_is_asked_for() -> None:
    generator = torch.Generator()
    with pytest.raises(OptionError, match="needs inputs="):
        flip_labels(TARGETS, 0.1, 4, generator, kind="instance")
    with pytest.raises(OptionError, match="all labels are of one class"):
        flip_labels(TARGETS[:9], 0.1, 4, generator, kind="frequent")


def test_images_decide_too() -> None:
    splits = load("digits?noise=instance0.2").prepare(0)
    wrong = splits.train.targets != splits.clean_targets
    assert int(wrong.sum()) == round(0.2 * len(splits.train))
