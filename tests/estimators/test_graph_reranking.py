"""GCR and profile vectors against the authors' numbers, dense formulas, limits, and what must not matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from repertory.core import neighbours
from repertory.errors import DataError, OptionError
from repertory.estimators import GCR, ProfileVector
from repertory.estimators.graph_reranking import edit, graph_rerank
from repertory.estimators.graph_reranking.graph import MODES
from repertory.recipe import Part, Recipe

Array = np.ndarray

RELEASED = json.loads((Path(__file__).parent / "graph_reranking_released.json").read_text(encoding="utf-8"))
SMALL: dict[str, Any] = {"k1": 6, "k2": 3}


def rows(count: int = 24, width: int = 5, step: float = 1.7) -> Array:
    """Unit rows that any version of any library makes alike."""
    places = np.arange(count * width, dtype=float)
    made = np.sin(step * places + 0.3 * places**2).reshape(count, width)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


CAMERAS = np.arange(24) % 3


def dense(x: Array, cameras: Array | None, k1: int, k2: int, beta: float, scale: float, frozen: Any = None) -> Any:
    """One round of the equations with full matrices; of another round's graphs where they are given."""
    if frozen is None:
        frozen = []
        for k, across in ((k1, False), (k2, True)):
            similarity = x @ x.T
            if across and cameras is not None:
                similarity[cameras[:, None] == cameras[None, :]] = -np.inf
                np.fill_diagonal(similarity, 1.0)
            rank = (-similarity).argsort(1).argsort(1)
            weights = np.where(rank < k, np.exp(similarity / beta), 0.0)
            frozen.append(weights / np.sqrt(weights.sum(1)[:, None] * weights.sum(0)[None, :]))
    share = 0.0 if cameras is None else scale
    new = (share * frozen[1] + (1 - share) * frozen[0]) @ x
    return new / np.linalg.norm(new, axis=1, keepdims=True), frozen


@pytest.mark.parametrize("case", list(RELEASED["gcr"]))
def test_features_are_those_of_the_authors_code(case: str) -> None:
    options = {**SMALL, **RELEASED["gcr"][case]["options"]}
    if options.get("mode") == "localk":
        options["mode"] = "localk-inplace"
    found = GCR(**options).fit_transform(rows(), groups=CAMERAS)
    np.testing.assert_allclose(found, RELEASED["gcr"][case]["features"], atol=2e-9)


@pytest.mark.parametrize("case", list(RELEASED["profile"]))
def test_profile_vectors_are_those_of_the_authors_code(case: str) -> None:
    statistics, operation = case.split()
    profile = ProfileVector(0.5, operation, statistics).fit(rows()[6:], groups=CAMERAS[6:])
    found = profile.transform(rows(6, step=2.3), groups=np.arange(6) % 3)
    np.testing.assert_allclose(found, RELEASED["profile"][case], atol=1e-7)


def test_profile_vectors_of_tracks_are_those_of_the_authors_code() -> None:
    profile = ProfileVector(0.5).fit(rows()[6:], groups=CAMERAS[6:])
    found = profile.transform(rows(6, step=2.3), groups=[0, 0, 1, 1, 1, 2], tracks=["e", "e", "b", "b", "b", "i"])
    np.testing.assert_allclose(found, RELEASED["tracks"], atol=1e-7)


@pytest.mark.parametrize("grouped", [True, False])
def test_sparse_links_give_the_dense_formula(grouped: bool) -> None:
    x = rows(50, 8)
    cameras = np.arange(50) % 4 if grouped else None
    found = graph_rerank(torch.from_numpy(x), cameras, k1=7, k2=4, beta1=0.1, beta2=0.1, scale=0.4, rounds=2)
    expected = dense(dense(x, cameras, 7, 4, 0.1, 0.4)[0], cameras, 7, 4, 0.1, 0.4)[0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_fixed_graph_is_that_of_the_first_round() -> None:
    x = rows()
    first, graphs = dense(x, CAMERAS, 6, 3, 0.2, 0.3)
    expected = dense(first, CAMERAS, 6, 3, 0.2, 0.3, graphs)[0]
    np.testing.assert_allclose(GCR(**SMALL, rounds=2, mode="fixA").fit_transform(x, groups=CAMERAS), expected)


@pytest.mark.parametrize("k", [5, 15])
def test_local_graphs_one_by_one(k: int) -> None:
    x, beta = rows(20, 8), 0.3
    assert k == 5 or ((x @ x.T) > 0).sum(1).min() < 15
    expected = np.empty_like(x)
    for i in range(len(x)):
        similarity = x @ x[i]
        others = [j for j in (-similarity).argsort() if j != i and similarity[j] > 0][:k]
        nodes = x[[*others, i]]
        weights = np.exp(nodes @ nodes.T / beta)
        sums = weights.sum(1)
        expected[i] = (weights[-1] / np.sqrt(sums[-1] * sums)) @ nodes
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = GCR(k1=k, beta1=beta, rounds=1, mode="localk").fit_transform(x)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "localk-inplace"])
def test_order_of_the_rows_does_not_matter(mode: str) -> None:
    order = np.random.default_rng(0).permutation(24)
    plain = GCR(**SMALL, mode=mode).fit_transform(rows(), groups=CAMERAS)
    turned = GCR(**SMALL, mode=mode).fit_transform(rows()[order], groups=CAMERAS[order])
    np.testing.assert_allclose(turned, plain[order], atol=1e-12)


def test_chunks_of_the_search_and_of_local_graphs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [GCR(**SMALL, mode=mode).fit_transform(rows(), groups=CAMERAS) for mode in ("nonsym", "localk")]
    monkeypatch.setattr(neighbours, "_HELD", 256 * 5)
    monkeypatch.setattr("repertory.estimators.graph_reranking.graph._HELD", 7 * 7 * 4)
    for mode, expected in zip(("nonsym", "localk"), whole):
        np.testing.assert_allclose(GCR(**SMALL, mode=mode).fit_transform(rows(), groups=CAMERAS), expected, atol=1e-12)


def test_links_to_itself_alone_change_nothing() -> None:
    np.testing.assert_allclose(GCR(k1=1).fit_transform(rows()), rows(), atol=1e-15)
    found = GCR(k1=6, k2=3, scale=1.0).fit_transform(rows(), groups=np.zeros(24))
    np.testing.assert_allclose(found, rows(), atol=1e-15)


def test_high_temperature_over_all_rows_gives_their_mean() -> None:
    mean = rows().mean(0)
    found = GCR(k1=24, beta1=1e12, rounds=1).fit_transform(rows())
    np.testing.assert_allclose(found, np.tile(mean / np.linalg.norm(mean), (24, 1)), atol=1e-9)


def test_links_between_all_rows_are_symmetric_already() -> None:
    plain, symmetric = (GCR(k1=24, rounds=2, mode=mode).fit_transform(rows()) for mode in ("nonsym", "sym"))
    np.testing.assert_allclose(symmetric, plain, atol=1e-12)


def test_half_precision_at_low_temperature_is_near_float64() -> None:
    features = torch.from_numpy(rows()).half()
    found, exact = (graph_rerank(x, CAMERAS, **SMALL, beta1=0.005, beta2=0.005) for x in (features, features.double()))
    torch.testing.assert_close(found.double(), exact, rtol=0.0, atol=1e-3)


def test_rotation_of_the_features_rotates_the_result() -> None:
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    plain = GCR(**SMALL).fit_transform(rows(), groups=CAMERAS)
    np.testing.assert_allclose(GCR(**SMALL).fit_transform(3 * rows() @ turn, groups=CAMERAS), plain @ turn, atol=1e-12)


def test_too_few_rows_of_other_cameras_are_left_out_not_filled_up() -> None:
    cameras = np.array([0] * 22 + [1, 2])
    found = GCR(k1=1, k2=20, scale=1.0, rounds=1).fit_transform(rows(), groups=cameras)
    expected = dense(rows(), cameras, 1, 20, 0.2, 1.0)[0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grouped", [True, False])
def test_fitted_rows_are_found_again(mode: str, grouped: bool) -> None:
    groups = CAMERAS if grouped else None
    gcr = GCR(**SMALL, mode=mode).fit(rows(), groups=groups)
    found = gcr.transform(rows()[5:9], groups=None if groups is None else groups[5:9])
    np.testing.assert_array_equal(found, gcr.embedding_[5:9])


def test_a_fitted_row_from_another_camera_is_a_query_of_its_own() -> None:
    gcr = GCR(**SMALL).fit(rows(), groups=CAMERAS)
    found = gcr.transform(rows()[5:9], groups=(CAMERAS[5:9] + 1) % 3)
    assert np.abs(found - gcr.embedding_[5:9].numpy()).max(1).min() > 1e-3


@pytest.mark.parametrize("mode", ["nonsym", "sym"])
def test_a_late_query_by_hand(mode: str) -> None:
    # The query links to the first row and to itself; the two rows of the gallery link to each other.
    gallery, query = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.8, 0.6]])
    gcr = GCR(k1=2, beta1=0.5, rounds=1, mode=mode).fit(gallery)
    column = 1 + np.exp(-2)
    link = np.exp((0.8 - 1) / 0.5)
    expected = query / (1 + link) + link / np.sqrt((1 + link) * column) * gallery[:1]
    np.testing.assert_allclose(gcr.transform(query), expected / np.linalg.norm(expected))


@pytest.mark.parametrize("mode", MODES)
def test_late_queries_stay_near_those_refined_together(mode: str) -> None:
    draw = np.random.default_rng(0)
    centres = np.repeat(draw.normal(size=(10, 16)), 6, axis=0)
    x = centres + 0.5 * draw.normal(size=centres.shape)
    queries, gallery = x[::6], np.delete(x, np.arange(0, 60, 6), axis=0)
    together, _ = GCR(k1=6, mode=mode).rerank(queries, gallery)
    late = GCR(k1=6, mode=mode).fit(gallery).transform(queries)
    cosines = (together * late).sum(1) / np.linalg.norm(together, axis=1) / np.linalg.norm(late, axis=1)
    assert cosines.min() > 0.98


def test_queries_and_gallery_are_refined_together() -> None:
    x = rows()
    queries, gallery = GCR(**SMALL).rerank(x[:8], x[8:], CAMERAS[:8], CAMERAS[8:])
    np.testing.assert_array_equal(np.concatenate([queries, gallery]), GCR(**SMALL).fit_transform(x, groups=CAMERAS))


def test_cameras_may_be_words() -> None:
    words = np.array(["door", "hall", "yard"])[CAMERAS]
    by_number, by_word = (GCR(**SMALL).fit_transform(rows(), groups=groups) for groups in (CAMERAS, words))
    np.testing.assert_array_equal(by_word, by_number)


def test_tensors_give_tensors() -> None:
    x, cameras = torch.from_numpy(rows()).float(), torch.from_numpy(CAMERAS)
    found = GCR(**SMALL).fit_transform(x, groups=cameras)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, GCR(**SMALL).fit_transform(rows(), groups=CAMERAS), atol=1e-5)
    profile = ProfileVector().fit_transform(x, groups=cameras)
    assert isinstance(profile, torch.Tensor)
    late = GCR(**SMALL).fit(rows(), groups=CAMERAS).transform(x[:2] + 0.1, groups=cameras[:2])
    assert late.dtype == torch.float32


def test_a_zero_row_stays_zero_and_moves_no_other() -> None:
    x = np.concatenate([rows(), np.zeros((1, 5))])
    found = GCR(k1=6).fit_transform(x)
    np.testing.assert_array_equal(found[-1], 0.0)
    np.testing.assert_allclose(found[:-1], GCR(k1=6).fit_transform(rows()), atol=1e-12)


def test_a_large_ridge_leaves_the_centred_rows() -> None:
    found = ProfileVector(la=1e12).fit_transform(rows(), groups=CAMERAS)
    centred = rows() - np.stack([rows()[camera == CAMERAS].mean(0) for camera in range(3)])[CAMERAS]
    np.testing.assert_allclose(found, centred / np.linalg.norm(centred, axis=1, keepdims=True), atol=1e-9)


def test_a_camera_that_adds_a_constant_is_centred_away() -> None:
    shift = np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    profile = ProfileVector(operation="neg")
    plain = profile.fit_transform(rows(), groups=CAMERAS)
    shifted = profile.fit_transform(rows() + (CAMERAS == 1)[:, None] * shift, groups=CAMERAS)
    np.testing.assert_allclose(shifted, plain, atol=1e-12)


def test_more_links_than_rows_are_refused() -> None:
    with pytest.raises(OptionError, match=r"k1=25 is more than the rows there are \(n_samples=24\); lower k1"):
        GCR(k1=25).fit(rows())
    with pytest.raises(OptionError, match="k2=25"):
        GCR(k1=2, k2=25).fit(rows(), groups=CAMERAS)
    GCR(k1=2, k2=25).fit(rows())


@pytest.mark.parametrize(
    ("options", "name"),
    [({"mode": "symm"}, "mode"), ({"scale": 1.5}, "scale"), ({"beta1": 0.0}, "beta1"), ({"rounds": -1}, "rounds")],
)
def test_bad_options_are_refused_by_edit_already(options: dict[str, Any], name: str) -> None:
    recipe = Recipe(*(Part("torch.nn:Identity") for _ in range(3)))
    with pytest.raises(OptionError, match=f"{name}="):
        edit(recipe, **options)


def test_bad_data_is_refused() -> None:
    gcr = GCR(**SMALL)
    with pytest.raises(DataError, match=r"groups has shape \(3,\) for 24 rows"):
        gcr.fit(rows(), groups=[0, 1, 2])
    with pytest.raises(DataError, match="row 1 is not finite"):
        gcr.fit(torch.tensor([[1.0, 2.0], [float("nan"), 1.0]]))
    gcr.fit(rows(), groups=CAMERAS)
    with pytest.raises(DataError, match="groups must be given to fit and to transform"):
        gcr.transform(rows())
    with pytest.raises(DataError, match="X has 3 features, but GCR is expecting 5"):
        gcr.transform(torch.ones(2, 3), groups=[0, 1])
    with pytest.raises(DataError, match="query_groups and gallery_groups"):
        gcr.rerank(rows(), rows(), query_groups=CAMERAS)


def test_profile_vectors_refuse_cameras_that_they_cannot_know() -> None:
    with pytest.raises(DataError, match=r"camera .*7.* has 1 sample"):
        ProfileVector().fit(rows(), groups=[7, *[1] * 23])
    profile = ProfileVector().fit(rows(), groups=CAMERAS)
    with pytest.raises(DataError, match=r"camera .*9.* is not one of those in fit"):
        profile.transform(rows()[:1], groups=[9])
    with pytest.raises(DataError, match="groups is not given"):
        profile.transform(rows())
    with pytest.raises(DataError, match="groups are given, but fit had none"):
        ProfileVector().fit(rows()).transform(rows(), groups=CAMERAS)


def test_edit_adds_profile_vectors_that_wait_for_cameras() -> None:
    recipe = edit(Recipe(*(Part("torch.nn:Identity") for _ in range(3))), k1=6)
    profile, gcr = (part.build() for part in recipe.after)
    embeddings = torch.from_numpy(rows())
    assert profile.refine(embeddings) is embeddings
    together = gcr.refine(profile.refine(embeddings, groups=CAMERAS), groups=CAMERAS)
    expected = GCR(k1=6).fit_transform(ProfileVector().fit_transform(rows(), groups=CAMERAS), groups=CAMERAS)
    np.testing.assert_allclose(together, expected, atol=1e-12)
    assert len(edit(recipe, profile=False).after) == 3


def test_no_rounds_leave_rows_as_they_are() -> None:
    features = 3 * rows()
    gcr = GCR(**SMALL, rounds=0)
    np.testing.assert_array_equal(gcr.fit_transform(features), features)
    np.testing.assert_array_equal(gcr.transform(features[:3]), features[:3])


@parametrize_with_checks([ProfileVector()])
def test_keeps_scikit_learns_contract(estimator: Any, check: Any) -> None:
    check(estimator)
