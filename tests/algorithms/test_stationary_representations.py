"""The simplex against its geometry, HOC against hand calculation and the authors' code, and versions along tasks."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repertory import Part, Recipe, Step
from repertory.algorithms import ESAM, HOC, PSKD
from repertory.algorithms.stationary_representations import DENOMINATORS, edit, hoc_loss
from repertory.errors import ConflictError, DataError, OptionError
from repertory.layers import DSimplexClassifier
from repertory.layers.simplex import SimplexNetwork, replace_with_simplex

RELEASED = json.loads((Path(__file__).parent / "stationary_representations_released.json").read_text(encoding="utf-8"))
EVERY = pytest.mark.parametrize("denominator", DENOMINATORS)


def released(name: str) -> Tensor:
    return torch.tensor(RELEASED[name])


def network(seed: int = 0) -> SimplexNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))
        return replace_with_simplex(body, 3, preallocated=6)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 4, generator=generator), torch.arange(8) % 3


def step_of(model: nn.Module, *methods: Any, **more: Any) -> Step:
    return Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), methods=methods, **more)


@pytest.mark.parametrize("count", [2, 3, 16, 1024])
def test_vertices_are_those_of_a_regular_simplex(count: int) -> None:
    vertices = DSimplexClassifier(2, count).vertices()
    wanted = torch.full((count, count), -1 / (count - 1)).fill_diagonal_(1.0)
    torch.testing.assert_close(vertices @ vertices.T, wanted, rtol=0, atol=5e-6)
    torch.testing.assert_close(vertices.sum(0), torch.zeros(count - 1), rtol=0, atol=1e-4)
    assert torch.linalg.matrix_rank(vertices) == count - 1


def test_two_vertices_are_plus_and_minus_one() -> None:
    torch.testing.assert_close(DSimplexClassifier(2, 2, from_end=False).vertices(), torch.tensor([[1.0], [-1.0]]))


def test_vertices_are_the_authors_and_classes_take_them_from_the_end() -> None:
    torch.testing.assert_close(DSimplexClassifier(5, 5, from_end=False).vertices(), released("vertices_of_5"))
    torch.testing.assert_close(DSimplexClassifier(5, 5).vertices(), released("vertices_of_5").flip(0))


@pytest.mark.parametrize("from_end", [True, False])
def test_structured_product_equals_the_dense_one(from_end: bool) -> None:
    head = DSimplexClassifier(3, 17, from_end)
    features = 5 * torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(features), features @ head.vertices().T)
    assert torch.equal(head.eval()(features), head.train()(features)[:, :3])
    half = features.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(half), head(half.float()))


def test_classes_that_come_later_leave_the_logits_of_the_others_alone() -> None:
    head = DSimplexClassifier(2, 8).eval()
    features = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    before = head(features)
    head.outputs = 5
    assert torch.equal(head(features)[:, :2], before)
    assert head(features).shape == (4, 5)


def test_network_keeps_its_body_and_gives_its_features_to_searches() -> None:
    body = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    first = body[0]
    model = replace_with_simplex(body, 3, preallocated=9)
    assert next(model.body.children()) is first
    assert [tuple(p.shape) for p in model.parameters()] == [(5, 4), (5,), (8, 5)]
    inputs = torch.ones(2, 4)
    assert torch.equal(model(inputs), model.classifier(model.encode(inputs)))
    assert not list(replace_with_simplex(nn.Sequential(nn.Linear(4, 3)), 3, preallocated=5).parameters())


def test_loss_and_gradient_are_the_authors() -> None:
    new = released("new").requires_grad_()
    values = hoc_loss(new, released("old"), released("targets"))
    values.mean().backward()
    assert values.mean().item() == pytest.approx(RELEASED["loss"], rel=1e-6)
    torch.testing.assert_close(new.grad, released("gradient"), rtol=1e-5, atol=1e-6)


def test_mixture_is_the_authors() -> None:
    model = SimplexNetwork(nn.Linear(4, 4, bias=False), DSimplexClassifier(3, 5))
    nn.init.eye_(model.body.weight)  # type: ignore[arg-type]
    old = SimplexNetwork(nn.Linear(4, 4, bias=False), DSimplexClassifier(3, 5))
    # A map that takes each new feature to its old one, by least squares on all of them but three.
    rows = slice(0, 4)
    solution = torch.linalg.solve(released("new")[rows], released("old")[rows])
    old.body.weight.data = solution.T
    step = step_of(model, HOC(previous=old))
    inputs, targets = released("new")[rows], released("targets")[rows]
    loss = step((inputs, targets))
    cross_entropy = nn.functional.cross_entropy(inputs @ released("vertices_of_5").T, 4 - targets)
    contrast = hoc_loss(inputs, released("old")[rows], targets).mean()
    torch.testing.assert_close(loss, 0.1 * cross_entropy + 0.9 * contrast, rtol=1e-4, atol=1e-4)
    whole = 0.1 * nn.functional.cross_entropy(released("new") @ released("vertices_of_5").T, 4 - released("targets"))
    whole += 0.9 * hoc_loss(released("new"), released("old"), released("targets")).mean()
    assert whole.item() == pytest.approx(RELEASED["total"], rel=1e-6)


@pytest.mark.parametrize(
    ("denominator", "value"),
    [("official", math.log(2) - 10), ("negatives", -10.0), ("infonce", math.log1p(math.exp(-10)))],
)
def test_two_orthogonal_examples_by_hand(denominator: str, value: float) -> None:
    eye = torch.eye(2)
    found = hoc_loss(eye, 3 * eye, torch.tensor([0, 1]), denominator=denominator)
    torch.testing.assert_close(found, torch.full((2,), value), rtol=1e-5, atol=1e-6)


@EVERY
def test_loss_by_brute_force(denominator: str) -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 1, 0, 2, 1, 0])
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (new, old)]
    wanted = []
    for i in range(6):
        total = 0.0
        for j in range(6):
            similarity = 10 * float(unit[1][i] @ unit[0][j])
            if targets[i] != targets[j] or (denominator == "infonce" and i == j):
                total += math.exp(similarity)
            elif denominator == "official":
                total += 1.0
        wanted.append(math.log(total) - 10 * float(unit[1][i] @ unit[0][i]))
    found = hoc_loss(new, old, targets, denominator=denominator)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_rows_are_old_features_and_columns_new_ones() -> None:
    new, old, targets = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    # The second old feature is at the first new one, so it has a negative that the first has not.
    found = hoc_loss(new, old, targets, denominator="negatives")
    torch.testing.assert_close(found, torch.tensor([-10.0, 10.0]))


@pytest.mark.parametrize(("denominator", "rest"), [("official", math.log(4)), ("negatives", 0.0), ("infonce", None)])
def test_a_batch_of_one_class_has_a_value(denominator: str, rest: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 4, 3, generator=generator)
    new.requires_grad_()
    found = hoc_loss(new, old, torch.zeros(4, dtype=torch.int64), denominator=denominator)
    pull = 10 * nn.functional.cosine_similarity(new, old)
    torch.testing.assert_close(found, torch.zeros(4) if rest is None else rest - pull)
    (gradient,) = torch.autograd.grad(found.sum(), new)
    wanted = torch.zeros_like(new) if rest is None else torch.autograd.grad(-pull.sum(), new)[0]
    torch.testing.assert_close(gradient, wanted)


@EVERY
def test_gradients_are_right(denominator: str) -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 1, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda x: hoc_loss(x, old, targets, 10.0, denominator), new.requires_grad_())
    old.requires_grad_()
    assert torch.autograd.grad(hoc_loss(new, old, targets).sum(), old, allow_unused=True) == (None,)


def test_half_precision_is_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 5, 3, generator=generator).half()
    targets = torch.tensor([0, 1, 0, 2, 1])
    with torch.autocast("cpu", torch.bfloat16):
        found = hoc_loss(new, old, targets, mu=100.0)
    torch.testing.assert_close(found, hoc_loss(new.float(), old.float(), targets, mu=100.0))
    zeros = torch.zeros(5, 3, requires_grad=True)
    nothing = hoc_loss(zeros, old.float(), targets)
    # All cosines are 0, so that each of the five is as likely.
    torch.testing.assert_close(nothing, torch.full((5,), math.log(5)))
    assert not torch.autograd.grad(nothing.sum(), zeros)[0].any()


def test_the_first_task_is_plain_training_and_the_next_ones_are_not() -> None:
    plain, tied = step_of(network()), step_of(network(), HOC())
    for number in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            first = plain(batch(number))
        with torch.random.fork_rng():
            torch.manual_seed(number)
            assert tied(batch(number)) == first
    assert plain.run.counts.passes == tied.run.counts.passes == 3 * 24
    tied.end_task()
    tied(batch(3))
    assert tied.run.counts.forward == 4 * 8 + 8


def test_the_version_before_is_frozen_and_in_evaluation_mode_until_the_task_ends() -> None:
    method = HOC()
    step = step_of(network(), method)
    step(batch())
    step.end_task()
    assert method.previous is not None
    kept = {name: value.clone() for name, value in method.previous.state_dict().items()}
    step.run.model.train()
    inputs, targets = batch(1)
    old = method.previous.model.encode(inputs)  # type: ignore[operator]
    with torch.no_grad():
        wanted = step.run.model.eval().encode(inputs)  # type: ignore[operator]
    assert torch.equal(old, wanted)
    step.run.model.train()
    step((inputs, targets))
    assert not any(p.requires_grad for p in method.previous.parameters())
    assert not method.previous.model.training
    for name, value in method.previous.state_dict().items():
        assert torch.equal(value, kept[name])
    step.end_task()
    weights = dict(step.run.model.named_parameters())
    for name, value in method.previous.model.named_parameters():
        assert torch.equal(value, weights[name])


def test_with_all_the_weight_on_cross_entropy_hoc_is_left_out() -> None:
    model = network().eval()
    step = step_of(model, HOC(weight=1.0, from_start=True))
    inputs, targets = batch()
    model.train()
    for module in model.modules():
        module.training = isinstance(module, (SimplexNetwork, DSimplexClassifier))
    features = model.encode(inputs)
    wanted = nn.functional.cross_entropy(features @ model.classifier.vertices().T, targets)
    torch.testing.assert_close(step((inputs, targets)), wanted.detach())
    assert step.run.counts.forward == 8


def test_a_new_version_stays_nearer_to_the_old_one_than_without() -> None:
    moved = {}
    for weight in (0.1, 1.0):
        model = network().eval()
        step = step_of(model, HOC(weight=weight, from_start=True))
        inputs, _ = batch()
        before = model.encode(inputs).detach()
        for _ in range(20):
            step((inputs, torch.tensor([2, 0, 1, 2, 0, 1, 2, 0])))
        moved[weight] = nn.functional.cosine_similarity(before, model.encode(inputs)).mean().item()
    assert moved[0.1] > moved[1.0] + 0.2


def test_a_replacement_is_the_version_before_and_is_left_alone() -> None:
    given = network(1)
    method = HOC(previous=given)
    step = step_of(network(), method)
    step(batch())
    assert method.previous is not None
    assert method.previous.model is not given
    assert all(p.requires_grad for p in given.parameters())
    inputs, _ = batch()
    torch.testing.assert_close(method.previous.model.encode(inputs), given.eval().encode(inputs))  # type: ignore[operator]


def test_state_knows_whether_there_is_a_version_before() -> None:
    first, second = step_of(network(), HOC()), step_of(network(1), HOC())
    first(batch())
    first.end_task()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in (first, second):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            step(batch(1))
    assert second.run.counts.forward == first.run.counts.forward == 3 * 8
    for mine, other in zip(first.run.model.parameters(), second.run.model.parameters()):
        assert torch.equal(mine, other)


def test_combines_with_a_method_that_takes_part_of_the_batch() -> None:
    methods = ([HOC(from_start=True)], [ESAM(gamma=0.5), HOC(from_start=True)])
    alone, both = (step_of(network(), *each) for each in methods)
    for step in (alone, both):
        next(module for module in step.run.model.modules() if isinstance(module, nn.Dropout)).p = 0.0
    # The loss that is told is that of the whole batch, before the weights move; the update is another one.
    torch.testing.assert_close(both(batch()), alone(batch()))
    assert not torch.equal(*(next(step.run.model.parameters()) for step in (alone, both)))


def test_a_network_without_the_simplex_is_refused() -> None:
    with pytest.raises(ConflictError, match="replace_with_simplex"):
        step_of(nn.Linear(4, 3), HOC())


def test_methods_that_soften_targets_are_refused() -> None:
    with pytest.raises(ConflictError, match="slot 'target'"):
        step_of(network(), PSKD(), HOC(), epochs=2, classes=3)


@pytest.mark.parametrize(
    ("shapes", "said"), [(((3, 2), (2, 2), (3,)), r"\(2, 2\)"), (((3, 2), (3, 2), (2,)), "targets")]
)
def test_batches_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...], said: str) -> None:
    new, old, targets = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(DataError, match=said):
        hoc_loss(new, old, targets)


def test_features_of_another_size_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(batch, 4\)"):
        DSimplexClassifier(3, 5)(torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (HOC, {"weight": 1.1}),
        (HOC, {"mu": 0.0}),
        (HOC, {"denominator": "all"}),
        (HOC, {"from_start": "yes"}),
        (DSimplexClassifier, {"outputs": 0}),
        (DSimplexClassifier, {"outputs": 2, "preallocated": 1}),
        (DSimplexClassifier, {"outputs": 9, "preallocated": 8}),
        (DSimplexClassifier, {"outputs": 2, "from_end": "no"}),
    ],
)
def test_bad_options_are_named(make: Any, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{list(options)[-1]}="):
        make(**options)


def test_recipe_has_the_fixed_classifier_and_the_method() -> None:
    recipe = Recipe(Part("m:f"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:AdamW"))
    edited = edit(recipe, preallocated=8, mu=5.0)
    model = edited.surgery[0].build(nn.Linear(4, 3), outputs=3)
    assert model.classifier.preallocated == 8
    assert edited.methods[0].build().mu == 5.0
