"""Forgetting scores against closed forms and plain loops, the choice by them, and what it costs on a bench."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Part, Recipe
from repertory.algorithms import SimCLR
from repertory.core.randomness import seeded
from repertory.curation import CFS
from repertory.curation.transreid_ssl import cfs_scores, dataset_gap, edit, forgetting, select
from repertory.errors import DataError, OptionError
from repertory.testing.subject import Subject
from repertory.testing.tiny import EXAMPLES
from repertory.testing.use import tiny_bench


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_score_is_one_less_the_cosine() -> None:
    before, after = draw(20, 5), draw(20, 5, seed=1)
    torch.testing.assert_close(forgetting(before, after), 1 - functional.cosine_similarity(before, after))
    length = (functional.normalize(before, dim=1) - functional.normalize(after, dim=1)).norm(dim=1)
    torch.testing.assert_close(forgetting(before, after, "euclidean"), length)


def test_scores_lie_between_0_for_the_same_place_and_2_for_the_opposite() -> None:
    rows = draw(6, 3)
    assert forgetting(rows, 3 * rows).tolist() == pytest.approx([0] * 6, abs=1e-15)
    assert forgetting(rows, -rows).tolist() == pytest.approx([2] * 6)
    assert forgetting(rows.half(), rows.half()).max() == 0


def test_a_rotation_of_both_changes_nothing_and_of_one_everything() -> None:
    before, after = draw(10, 4), draw(10, 4) + 0.1 * draw(10, 4, seed=1)
    turn = torch.linalg.qr(draw(4, 4, seed=2)).Q
    torch.testing.assert_close(forgetting(before @ turn, after @ turn), forgetting(before, after))
    assert forgetting(before, after @ turn).mean() > 10 * forgetting(before, after).mean()


def test_encoders_are_scored_in_chunks_in_evaluation_mode_and_put_back() -> None:
    with seeded(0, "encoders"):
        before, after = (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).double() for _ in range(2))
    after[1].eval()
    inputs = draw(11, 4)
    found = cfs_scores(before, after, inputs, chunk=4)
    assert (before.training, after.training, after[1].training) == (True, True, False)
    expected = forgetting(before.eval()(inputs), after.eval()(inputs))
    torch.testing.assert_close(found, expected.detach())
    batches = [(inputs[:3], None), {"input": inputs[3:8]}, [inputs[8:]]]
    torch.testing.assert_close(cfs_scores(before, after, batches), found)


def test_gap_of_a_data_set_is_its_mean_score() -> None:
    def turned(rows: Tensor) -> Tensor:
        return rows + torch.tensor([0.0, 1.0])

    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert dataset_gap(turned, turned, inputs) == 0
    assert dataset_gap(nn.Identity(), turned, inputs) == pytest.approx((1 - 0.5**0.5) / 2)
    assert dataset_gap(nn.Identity(), turned, inputs, distance="euclidean") == pytest.approx((2 - 2**0.5) ** 0.5 / 2)


def test_choice_keeps_the_least_forgotten_and_breaks_ties_by_row() -> None:
    scores = torch.tensor([0.5, 0.1, 0.5, 0.1, 0.9])
    assert select(scores, 0.5).tolist() == [1, 3]
    assert select(scores, 0.6).tolist() == [0, 1, 3]
    assert select(scores, 0.5, largest=True).tolist() == [0, 4]
    assert select(scores, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert select(scores, 0.01).tolist() == [1]
    assert len(select(torch.arange(100.0), 0.29)) == 29


@pytest.mark.parametrize("bad", [torch.tensor([0.1, torch.nan]), torch.zeros(0), torch.zeros(2, 2)])
def test_scores_that_rank_nothing_are_refused(bad: Tensor) -> None:
    with pytest.raises(DataError, match="scores"):
        select(bad)


def test_embeddings_that_do_not_match_are_refused() -> None:
    with pytest.raises(DataError, match=r"before \(3, 2\) and after \(3, 4\)"):
        forgetting(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(DataError, match="no examples"):
        cfs_scores(nn.Identity(), nn.Identity(), [])


def bench(unlabelled: bool = False, **options: Any) -> Any:
    subject = Subject.of("transreid-ssl")
    made = tiny_bench(subject, edit(subject.baseline, **options))
    if unlabelled:
        examples = made.splits.train.subset(torch.arange(6))
        made.splits = dataclasses.replace(made.splits, unlabelled=examples)
    return made


@pytest.mark.parametrize("unlabelled", [False, True])
def test_two_trainings_without_labels_come_first_and_are_counted(unlabelled: bool) -> None:
    made, seen, objectives = bench(unlabelled), [], []
    train = made.train

    def noted(model: Any, share: float, **more: Any) -> Any:
        objectives.append(more["objective"])
        seen.append((round(share, 3), more.get("part", "train"), more.get("lr_scale", 1.0)))
        return train(model, share, **more)

    made.train = noted
    rows = CFS(share=0.5, adaptation=0.5).choose(made)
    assert seen == [(0.25, "train", 1.0), (0.25, "unlabelled" if unlabelled else "validation", 0.1)]
    assert len(rows) == EXAMPLES // 2
    # One objective, which goes on with its projection.
    assert isinstance(objectives[0], SimCLR)
    assert (objectives[0].temperature, objectives[0].dim) == (0.2, 64)
    assert objectives[1] is objectives[0]
    # 8 steps in all; 2 each of 6 examples in two views, then two passes over 12 examples.
    assert made.counts.steps == 4
    assert made.counts.backward == 4 * 6 * 2
    assert made.counts.forward == 4 * 6 * 2 + 2 * EXAMPLES


def test_labels_do_not_matter_to_the_choice() -> None:
    first, second = bench(), bench()
    shuffled = dataclasses.replace(second.splits.train, targets=second.splits.train.targets.flip(0))
    second.splits = dataclasses.replace(second.splits, train=shuffled)
    torch.testing.assert_close(CFS(share=0.5).scores(first), CFS(share=0.5).scores(second), rtol=0, atol=0)


def test_keeping_everything_costs_nothing() -> None:
    made = bench(keep=1.0)
    assert CFS(keep=1.0).choose(made).tolist() == list(range(EXAMPLES))
    assert made.counts.passes == 0
    assert made.recipe.train_share == 1


@pytest.mark.parametrize("options", [{"keep": 0.0}, {"share": 1.0}, {"adaptation": 0.0}, {"temperature": 0.0}])
def test_bad_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))}="):
        CFS(**options)


def test_recipe_pays_for_the_scores_and_takes_the_stem_where_it_is_asked_for() -> None:
    recipe = Recipe(Part("torch.nn:Identity"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD", {"lr": 0.1}))
    plain, with_stem = edit(recipe, share=0.3), edit(recipe, stem=True)
    assert plain.train_share == pytest.approx(0.7)
    assert (len(plain.curation), plain.surgery) == (1, ())
    assert [part.factory for part in with_stem.surgery] == ["repertory.layers.conv_stem:replace_patch_embed"]
