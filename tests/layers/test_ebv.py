"""EBV's vectors against the bounds and autograd, its head against hand calculation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Part, Recipe
from repertory.errors import OptionError
from repertory.layers import EBVHead
from repertory.layers.ebv import coherence_bound, edit, generate_ebv, penalty_gradient, replace_with_ebv


def largest_cosine(vectors: Tensor) -> float:
    return (vectors.double() @ vectors.double().T).fill_diagonal_(0).abs().max().item()


@pytest.mark.parametrize(("count", "dim", "threshold"), [(10, 10, 0.002), (100, 50, 0.15), (100, 50, 0.12)])
@pytest.mark.parametrize("seed", [0, 1])
def test_vectors_have_unit_length_and_keep_the_threshold(count: int, dim: int, threshold: float, seed: int) -> None:
    vectors = generate_ebv(count, dim, threshold, seed=seed)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(count))
    assert coherence_bound(count, dim) <= largest_cosine(vectors) <= threshold + 1.01e-4


@pytest.mark.parametrize(
    ("count", "dim", "threshold", "steps"), [(10, 10, 0.002, (500, 600)), (100, 50, 0.15, (150, 190))]
)
def test_takes_as_many_steps_as_the_authors_code(
    count: int, dim: int, threshold: float, steps: tuple[int, int]
) -> None:
    with pytest.raises(OptionError, match="was not reached"):
        generate_ebv(count, dim, threshold, max_steps=steps[0])
    generate_ebv(count, dim, threshold, max_steps=steps[1])


@pytest.mark.parametrize("slice_size", [4, 7, 130])
def test_penalty_gradient_equals_autograd(slice_size: int) -> None:
    vectors = functional.normalize(torch.randn(13, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    leaf = vectors.clone().requires_grad_()
    cosines = (leaf @ leaf.T).abs() - torch.eye(13)
    functional.relu(cosines - 0.3).sum().backward()
    found = torch.empty_like(vectors)
    largest = penalty_gradient(vectors, 0.3, slice_size, found)
    torch.testing.assert_close(found, leaf.grad)
    assert largest == pytest.approx(cosines.max().item(), rel=1e-6)


def test_antipodal_vectors_repel_like_equal_ones() -> None:
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found = torch.empty_like(vectors)
    assert penalty_gradient(vectors, 0.1, 2, found) == 1.0
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))


def test_bound_is_reached_by_known_optimal_vectors() -> None:
    golden = (1 + math.sqrt(5)) / 2
    icosahedron = [(0, 1, golden), (0, 1, -golden), (1, golden, 0), (1, -golden, 0), (golden, 0, 1), (-golden, 0, 1)]
    assert coherence_bound(6, 3) == pytest.approx(
        largest_cosine(functional.normalize(torch.tensor(icosahedron), dim=1))
    )
    angles = torch.arange(4, dtype=torch.float64) * math.pi / 4
    plane = torch.stack([angles.cos(), angles.sin()], 1)
    assert coherence_bound(4, 2) == pytest.approx(largest_cosine(plane))


def test_thresholds_below_the_bound_are_refused_at_once() -> None:
    with pytest.raises(OptionError, match=r"threshold=0\.05 is not allowed.*0\.1005; raise threshold or dim"):
        generate_ebv(100, 50, 0.05)


def test_same_seed_same_vectors_and_another_seed_others() -> None:
    state = torch.get_rng_state()
    first = generate_ebv(12, 8, 0.4, seed=3)
    first += 1.0
    again = generate_ebv(12, 8, 0.4, seed=3)
    torch.testing.assert_close(again, first - 1.0)
    assert not torch.allclose(generate_ebv(12, 8, 0.4, seed=4), again)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("count", "dim"), [(7, 7), (5, 9)])
def test_orthogonal_vectors_are_exactly_so(count: int, dim: int) -> None:
    vectors = generate_ebv(count, dim, orthogonal=True)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(count), rtol=0, atol=1e-6)


def test_orthogonal_vectors_must_fit() -> None:
    with pytest.raises(OptionError, match="take dim=9 or more"):
        generate_ebv(9, 8, orthogonal=True)


def test_head_by_hand() -> None:
    head = EBVHead(3, 3, temperature=1.0)
    head.vectors.copy_(torch.eye(3))
    logits = head(torch.tensor([[0.6, 0.8, 0.0]]))
    torch.testing.assert_close(logits, torch.tensor([[0.6, 0.8, 0.0]]))
    assert functional.cross_entropy(logits, torch.tensor([1])).item() == pytest.approx(0.8189, abs=5e-5)
    head.temperature = 0.07
    torch.testing.assert_close(head(torch.tensor([[6.0, 8.0, 0.0]])), logits / 0.07)


def test_head_has_no_parameters_and_saves_its_vectors() -> None:
    head = EBVHead(5, 8, extra=2)
    assert sum(p.numel() for p in head.parameters()) == 0
    other = EBVHead(5, 8, extra=2, seed=1)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.vectors, head.vectors)
    assert not head(torch.ones(2, 8)).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_product_is_in_float32_under_autocast_and_for_half_embeddings(dtype: torch.dtype) -> None:
    head = EBVHead(20, 20)
    embedding = torch.randn(4, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    plain = functional.normalize(embedding.float(), dim=1) @ head.vectors.T / 0.07
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(embedding), plain)


def test_extending_adds_classes_and_leaves_the_old_logits() -> None:
    head = EBVHead(5, 8, extra=3)
    assert largest_cosine(torch.cat([head.vectors, head.spare])) < 0.0022
    embedding = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    before, waiting = head(embedding), head.spare.clone()
    head.extend(2)
    assert torch.equal(head(embedding)[:, :5], before)
    assert torch.equal(head.vectors[5:], waiting[:2])
    assert head(embedding).shape == (4, 7)
    with pytest.raises(OptionError, match="1 unused vectors"):
        head.extend(2)


@pytest.mark.parametrize(("classes", "extra", "dim"), [(3, 0, 16), (20, 0, 20), (20, 5, 25)])
def test_default_size_holds_all_vectors_nearly_orthogonal(classes: int, extra: int, dim: int) -> None:
    head = EBVHead(classes, extra=extra)
    assert head.vectors.shape == (classes, dim)
    assert largest_cosine(head.vectors) < 0.0022


@pytest.mark.parametrize(
    "options",
    [
        {"classes": 1},
        {"dim": 0},
        {"temperature": 0.0},
        {"threshold": 1.0},
        {"extra": -1},
        {"orthogonal": "yes"},
        {"seed": -1},
    ],
)
def test_bad_options_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        EBVHead(**{"classes": 4, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["num_vectors", "dim", "lr", "max_steps", "slice_size"])
def test_bad_options_of_the_generator_are_named(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}=0"):
        generate_ebv(**{"num_vectors": 4, "dim": 4, name: 0})


def test_recipe_trains_only_the_map_to_the_vectors() -> None:
    recipe = Recipe(Part("m:f"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:AdamW"))
    part = edit(recipe, dim=6, threshold=0.5).surgery[0]
    model = part.build(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 9)), outputs=9)
    assert [tuple(p.shape) for p in model.parameters()] == [(5, 4), (5,), (6, 5), (6,)]
    assert model(torch.ones(2, 4)).shape == (2, 9)


def test_replaced_classifier_keeps_the_rest_of_the_network() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    first = model[0]
    assert replace_with_ebv(model, 3) is model
    assert model[0] is first
    assert isinstance(model[2][1], EBVHead)
