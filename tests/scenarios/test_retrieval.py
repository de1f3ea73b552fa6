"""Retrieval: what is searched by, what it is judged on, and what is kept of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from repertory import compare
from repertory.datasets import load
from repertory.errors import DivergedError, OptionError, UserError
from repertory.estimators.graph_reranking import GCR
from repertory.recipe import Part, Recipe
from repertory.retrieval import retrieval_metrics
from repertory.scenarios import retrieval, supervised
from repertory.scenarios.methods import arm
from repertory.scenarios.registry import Outcome, scenario
from repertory.training.budget import Budget
from repertory.training.learner import Learner

MLP = Part("repertory.models.small:mlp", {"width": 16})


def run(recipe: Recipe | None = None, spec: str = "digits", steps: int = 20, **options: Any) -> Outcome:
    data = retrieval.view(load(spec))
    recipe = retrieval.baseline(data, MLP, epochs=1) if recipe is None else recipe
    return retrieval.run(recipe, data, seed=0, budget=Budget("steps", steps), **options)


class Doubled:
    """Sets all embeddings of a part to the class's direction, if it is told one; else shifts them."""

    def refine(self, embeddings: Tensor, labels: Tensor | None = None, groups: Tensor | None = None) -> Tensor:
        assert labels is None
        return torch.cat([embeddings, embeddings], 1)


class Broken:
    def refine(self, embeddings: Tensor, labels: Tensor | None = None, groups: Tensor | None = None) -> Tensor:
        return embeddings * float("nan")


def test_metrics_are_those_of_the_embeddings_that_are_kept() -> None:
    outcome = run()
    kept = outcome.tables["embeddings"]
    labels = torch.tensor([int(name) for name in kept["class"]])
    again = retrieval_metrics(torch.tensor(kept["embedding"]), labels)
    assert {name: outcome.metrics["test"][name] for name in again} == pytest.approx(again, abs=1e-6)
    assert kept["row"] == outcome.splits.indices["test"]
    assert {"map_at_r_eighth", "nmi"} <= set(outcome.metrics["test"])


def test_training_raises_the_metric_and_the_curve_shows_it() -> None:
    outcome = run(steps=120)
    assert outcome.metrics["test"]["map_at_r"] > run(steps=1).metrics["test"]["map_at_r"] + 0.05
    assert {"map_at_r", "recall_at_1"} <= set(outcome.curve[-1]["validation"])


def test_the_first_eighth_is_a_search_by_the_first_numbers() -> None:
    outcome = run()
    kept = outcome.tables["embeddings"]
    labels = torch.tensor([int(name) for name in kept["class"]])
    short = torch.tensor(kept["embedding"])[:, :8]
    assert outcome.metrics["test"]["map_at_r_eighth"] == pytest.approx(
        retrieval_metrics(short, labels)["map_at_r"], abs=1e-6
    )


def test_the_embedding_of_a_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(self.body(inputs).relu())

    class Encoding(Two):
        def encode(self, inputs: Tensor) -> Tensor:
            return inputs[:, :1]

    class Embeds(nn.Module):
        embeds = True

    inputs = torch.randn(5, 4)
    plain = Two()
    assert torch.equal(Learner(plain, nn.CrossEntropyLoss()).embed(inputs), plain.body(inputs).relu())
    assert torch.equal(Learner(plain, Embeds()).embed(inputs), plain(inputs))
    assert torch.equal(Learner(Encoding(), Embeds()).embed(inputs), inputs[:, :1])


def test_parts_after_training_may_change_all_embeddings_of_a_part_together() -> None:
    recipe = retrieval.baseline(retrieval.view(load("digits")), MLP, epochs=1)
    changed = run(recipe.add("after", Part(f"{__name__}:Doubled")))
    assert len(changed.tables["embeddings"]["embedding"][0]) == 128
    with pytest.raises(DivergedError, match="an embedding of the validation part is not finite"):
        run(recipe.add("after", Part(f"{__name__}:Broken")))


def test_plain_classifiers_are_searched_by_what_enters_their_last_layer() -> None:
    recipe = scenario("supervised").baseline(load("digits"), MLP, epochs=1)
    assert len(run(recipe).tables["embeddings"]["embedding"][0]) == 16


def test_coarse_labels_are_judged_by_the_classes() -> None:
    outcome = run(spec="digits?coarse=2")
    assert set(outcome.tables["embeddings"]["class"]) == set(map(str, range(10)))


def test_sequences_and_tables_work_too() -> None:
    assert run(spec="wine?split=examples", steps=5).metrics["test"]["map_at_r"] > 0.3


def test_two_runs_from_one_seed_are_the_same() -> None:
    assert run().tables == run().tables


def test_what_has_nothing_to_search_for_is_refused() -> None:
    with pytest.raises(UserError, match="searches for examples of a class, but the task is regression"):
        retrieval.view(load("diabetes"))
    with pytest.raises(UserError, match="3 classes are too few to hold some out"):
        retrieval.view(load("iris"))
    for name in ("supervised", "online"):
        with pytest.raises(OptionError, match=rf"coarse=2 has no use in scenario {name}; add --scenario retrieval"):
            scenario(name).view(load("digits?coarse=2"))


def test_a_comparison_keeps_embeddings_and_shows_what_is_found(tmp_path: Path) -> None:
    found = compare(
        "softtriple", data="digits", scenario="retrieval", model="repertory:mlp", seeds=2, epochs=1, jobs=1,
        out=tmp_path / "run",
    )  # fmt: skip
    assert found["metric"] == "map_at_r"
    assert [row["label"] for row in found["rows"]] == ["baseline", "softtriple"]
    frame = pd.read_parquet(tmp_path / "run" / "embeddings" / "softtriple" / "seed-1.parquet")
    assert list(frame.columns) == ["row", "class", "embedding"]
    assert len(frame["embedding"][0]) == 64
    html = (tmp_path / "run" / "report.html").read_text()
    assert html.count('class="query"') == 16
    assert "MAP@R (%)" in html


def camera_rows() -> pd.DataFrame:
    """Six classes of points, each seen by two cameras that shift what they see."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(20)
    camera = torch.arange(120) % 2
    rows = 3 * torch.randn(6, 4, generator=generator)[labels] + torch.randn(120, 4, generator=generator)
    rows[:, 0] += 2 * camera
    table = pd.DataFrame(rows.numpy(), columns=list("abcd"))
    return table.assign(kind=[f"k{k}" for k in labels.tolist()], seen_by=["north" if c else "south" for c in camera])


def test_cameras_of_a_table_reach_what_refines_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera_rows().to_csv(tmp_path / "seen.csv", index=False)
    dataset = retrieval.view(load(f"{tmp_path}/seen.csv?group=seen_by", target="kind"))
    assert dataset.in_shape == (4,)
    assert dataset.group_names == ("north", "south")
    told: list[Tensor] = []
    refine = GCR.refine

    def noted(self: Any, embeddings: Tensor, labels: Any = None, groups: Any = None) -> Tensor:
        told.append(groups)
        return refine(self, embeddings, labels, groups)

    monkeypatch.setattr(GCR, "refine", noted)
    recipe = retrieval.baseline(dataset, Part("repertory.testing.tiny:network"), epochs=1)
    edited = arm("graph-reranking:k1=4", recipe, dataset.task, "retrieval").recipe
    outcome = retrieval.run(edited, dataset, seed=0, budget=Budget("steps", 3))
    for groups, part in zip(told, ("validation", "test"), strict=True):
        cameras = [dataset.group_names[code] for code in groups.tolist()]
        expected = camera_rows()["seen_by"].iloc[outcome.splits.indices[part]].tolist()
        assert cameras == expected


def test_a_camera_is_one_in_all_folders_of_its_name(tmp_path: Path) -> None:
    for number, name in enumerate(f"{label}/{camera}" for label in ("cat", "dog") for camera in ("c1", "c2")):
        (tmp_path / name).mkdir(parents=True)
        for k in range(4):
            Image.new("L", (8, 8), color=20 * number + k).save(tmp_path / name / f"{k}.png")
    dataset = load(f"{tmp_path}?group=folders")
    assert dataset.group_names == ("c1", "c2")
    assert dataset.groups is not None
    assert dataset.groups.bincount().tolist() == [8, 8]
    assert dataset.classes == ("cat", "dog")


def test_cameras_that_nothing_says_are_refused() -> None:
    with pytest.raises(UserError, match="group=camera names nothing in digits; it is a column of a table"):
        retrieval.view(load("digits?group=camera"))
    with pytest.raises(OptionError, match="group=camera has no use in scenario supervised"):
        supervised.view(load("digits?group=camera"))
