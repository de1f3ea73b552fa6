"""Random streams: one a name, the same everywhere, none of them the global one."""

from __future__ import annotations

import torch

from repertory.core.randomness import derived_seed, generator_for, seeded, uniform_from


def test_a_derived_seed_depends_on_seed_and_name_only_and_never_changes() -> None:
    # Resumed and repeated runs rely on this number staying what it is.
    assert derived_seed(0, "esam") == 8362873189023152299
    assert len({derived_seed(seed, name) for seed in range(20) for name in ("a", "b", "1/a")}) == 60


def test_seed_and_name_cannot_be_confused() -> None:
    assert derived_seed(1, "2/a") != derived_seed(12, "a")
    assert derived_seed(1, "1") != derived_seed(11, "")


def test_generators_of_one_name_draw_the_same_and_of_two_names_do_not() -> None:
    first, again, other = (torch.rand(8, generator=generator_for(0, name)) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_seeding_inside_a_block_leaves_the_global_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    with seeded(0, "model"):
        inside = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(0, "model"):
        assert torch.equal(torch.rand(3), inside)


def test_uniform_numbers_are_those_of_split_mix() -> None:
    # SplitMix64, started at what it gives first for the seed 5 (Vigna's C program).
    expected = [16439010, 1776185, 14493218, 13053323, 3755842]
    assert (uniform_from(torch.tensor(5), (5,)) * 2**24).tolist() == expected


def test_uniform_numbers_fill_the_interval_and_neighbouring_keys_are_unrelated() -> None:
    first, second = (uniform_from(torch.tensor(key), (400, 500)) for key in (-1, 0))
    assert first.shape == (400, 500)
    assert 0 <= first.min() < 1e-4
    assert 1 - 1e-4 < first.max() < 1
    torch.testing.assert_close(first.histc(10, 0, 1) / first.numel(), torch.full((10,), 0.1), rtol=0, atol=0.005)
    pairs = torch.stack([first.flatten(), second.flatten(), first.flatten().roll(1)])
    torch.testing.assert_close(pairs.corrcoef(), torch.eye(3), rtol=0, atol=0.01)
