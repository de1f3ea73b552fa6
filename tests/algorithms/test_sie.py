"""SIE's terms in closed form and against the authors' numbers, its predictor, its step, and turned views."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms import SIE
from repertory.algorithms.sie import HyperPredictor, covariance_loss, split_loss, variance_loss
from repertory.core.state import Run
from repertory.datasets import load
from repertory.errors import ConflictError, DataError, OptionError, UserError
from repertory.scenarios import self_supervised
from repertory.scenarios.methods import arm
from repertory.training import BatchLoader, Budget, augment
from repertory.training.augment import turned_view

RELEASED = json.loads((Path(__file__).parent / "sie_released.json").read_text())


def wave(*shape: int, shift: float) -> Tensor:
    return torch.sin(1.7 * torch.arange(math.prod(shape), dtype=torch.float64) + shift).view(*shape)


def released_predictor(kind: str) -> HyperPredictor:
    predictor = HyperPredictor(4, 2, deep=kind == "deep").double()
    predictor.matrices.data = wave(2, 4, 4, shift=0.3)
    if kind == "deep":
        layers = predictor.coefficients
        assert isinstance(layers, nn.Sequential)
        layers[0].weight.data, layers[2].weight.data = wave(2, 2, shift=0.9), wave(2, 2, shift=2.2)
    return predictor


@pytest.mark.parametrize("kind", ["linear", "deep"])
def test_terms_and_gradients_are_those_of_the_authors(kind: str) -> None:
    expected = RELEASED[kind]
    invariant = torch.stack([wave(7, 3, shift=0.1), wave(7, 3, shift=0.7)]).requires_grad_()
    moving = torch.stack([wave(7, 4, shift=1.1), wave(7, 4, shift=1.9)]).requires_grad_()
    predicted = released_predictor(kind)(moving[0], wave(7, 2, shift=0.5))
    joined = torch.cat([invariant, moving], 2)
    found = {
        "prediction": predicted.tolist(),
        "variance": sum(variance_loss(rows).item() for rows in joined),
        "predicted_variance": variance_loss(predicted).item(),
        "covariance": sum(covariance_loss(rows).item() for rows in joined),
    }
    loss = split_loss(invariant, moving, predicted)
    loss.backward()
    assert invariant.grad is not None
    assert moving.grad is not None
    found |= {"loss": loss.item(), "x_eq_grad": moving.grad[0].tolist(), "y_inv_grad": invariant.grad[1].tolist()}
    for name, value in found.items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(expected[name]), rtol=1e-6, atol=1e-8)


def test_the_linear_predictor_is_the_matrix_of_each_change() -> None:
    predictor = HyperPredictor(5, 3).double()
    embedding, change = wave(6, 5, shift=0.0), wave(6, 3, shift=1.0)
    expected = torch.einsum("bk,kij,bj->bi", change, predictor.matrices, embedding)
    torch.testing.assert_close(predictor(embedding, change), expected)
    assert not bool(predictor(embedding, torch.zeros(6, 3)).any())


def test_a_planted_rotation_is_found_by_least_squares_in_the_matrices() -> None:
    angle, first = wave(40, shift=0.2) * 3, wave(40, 2, shift=0.9)
    cos, sin = angle.cos(), angle.sin()
    second = torch.stack([cos * first[:, 0] - sin * first[:, 1], sin * first[:, 0] + cos * first[:, 1]], 1)
    predictor = HyperPredictor(2, 2).double()
    optimizer = torch.optim.LBFGS(predictor.parameters(), max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (predictor(first, torch.stack([cos, sin], 1)) - second).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [1.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(predictor.matrices.data, expected, atol=1e-5, rtol=0)


def test_spread_of_collapsed_and_of_wide_embeddings() -> None:
    assert float(variance_loss(torch.ones(9, 4, dtype=torch.float64))) == pytest.approx((1 - 0.01) / 2)
    assert float(variance_loss(3 * wave(50, 4, shift=0.0))) == 0.0
    assert float(variance_loss(torch.ones(1, 4))) == pytest.approx(0.495)


def test_two_equal_columns_of_unit_variance_have_covariance_one() -> None:
    column = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64) * math.sqrt(3) / 2
    assert float(covariance_loss(torch.stack([column, column], 1))) == pytest.approx(1.0)
    assert float(covariance_loss(column[:, None])) == pytest.approx(0.0)


def test_gradients_by_finite_differences() -> None:
    # Deviations below 1, where the spread has a slope.
    parts = [0.5 * wave(2, 5, size, shift=0.4).requires_grad_() for size in (2, 3)]
    predicted = 0.4 * wave(5, 3, shift=1.0).requires_grad_()
    leaves = tuple(part.detach().requires_grad_() for part in (*parts, predicted))
    assert torch.autograd.gradcheck(split_loss, leaves)


def test_half_precision_is_that_of_its_own_inputs() -> None:
    parts = [wave(2, 64, size, shift=0.3).bfloat16() for size in (8, 6)]
    predicted = wave(64, 6, shift=0.8).bfloat16()
    found = split_loss(parts[0].float(), parts[1].float(), predicted.float())
    for rows in (parts[0][0], predicted):
        assert variance_loss(rows).dtype == torch.float32
        torch.testing.assert_close(variance_loss(rows).double(), variance_loss(rows.double()), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(covariance_loss(rows).double(), covariance_loss(rows.double()), rtol=1e-4, atol=1e-5)
    assert bool(found.isfinite())


def network(width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).double()


def batch(change: int = 2) -> dict[str, object]:
    return {
        "input": wave(8, 5, shift=0.1),
        "views": [wave(8, 5, shift=0.1), wave(8, 5, shift=0.6)],
        "change": wave(8, change, shift=0.2),
    }


def stepped(method: SIE, model: nn.Module) -> Step:
    return Step(model, lambda groups: torch.optim.SGD(groups, lr=0.05), nn.CrossEntropyLoss(), methods=[method])


def test_a_step_is_that_of_a_plain_loop() -> None:
    method, model, plain = SIE(equivariant=1 / 3, width=9), network(), network()
    step = stepped(method, model)
    for head in (method.invariant_head, method.equivariant_head, method.predictor_head):
        assert head is not None
        head.double()
    twin = SIE(equivariant=1 / 3, width=9)
    twin.setup(Run(network(), nn.CrossEntropyLoss()))
    twin.double()
    twin.load_state_dict(method.state_dict())
    assert [head[-1].weight.shape for head in (twin.invariant_head, twin.equivariant_head)] == [(6, 6), (3, 3)]
    parameters = [*plain[:2].parameters(), *(p for p in twin.parameters() if p.requires_grad)]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    given = batch()
    for _ in range(3):
        step(given)
        features = plain[:2](torch.cat(given["views"]))
        kept = twin.invariant_head(features[:, :4]).view(2, 8, 6)
        moved = twin.equivariant_head(features[:, 4:]).view(2, 8, 3)
        matrices = torch.einsum("bk,kij->bij", given["change"], twin.predictor_head.matrices)
        predicted = torch.bmm(matrices, moved[0][:, :, None])[:, :, 0]
        loss = 10 * (kept[0] - kept[1]).square().mean() + 4.5 * (predicted - moved[1]).square().mean()
        for rows in (predicted, torch.cat([kept[0], moved[0]], 1), torch.cat([kept[1], moved[1]], 1)):
            loss = loss + 5 * (1 - (rows.var(0) + 1e-4).sqrt()).clamp(min=0).mean()
        for version in (0, 1):
            covariance = torch.cov(torch.cat([kept[version], moved[version]], 1).T)
            loss = loss + (covariance - covariance.diag().diag()).square().sum() / 9
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("equivariant", "made"), [(0.0, "invariant_head"), (1.0, "equivariant_head")])
def test_either_part_alone_is_written_out(equivariant: float, made: str) -> None:
    method = SIE(equivariant=equivariant, width=8)
    model = network().float()
    step = stepped(method, model)
    twin, given = copy.deepcopy(model), {k: _single(v) for k, v in batch().items()}
    head = copy.deepcopy(method.invariant_head if equivariant == 0.0 else method.equivariant_head)
    predictor = copy.deepcopy(method.predictor_head)
    loss = step(given)
    rows = head(twin[:2](torch.cat(given["views"]))).unflatten(0, (2, -1))
    predicted = rows[0] if predictor is None else predictor(rows[0], given["change"])
    expected = (10 if predictor is None else 4.5) * (predicted - rows[1]).square().mean()
    judged = [*rows] if predictor is None else [*rows, predicted]
    expected = expected + sum(5 * (1 - (part.var(0) + 1e-4).sqrt()).clamp(min=0).mean() for part in judged)
    for version in rows:
        covariance = torch.cov(version.T)
        expected = expected + (covariance - covariance.diag().diag()).square().sum() / 8
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    heads = {name: getattr(method, name) for name in ("invariant_head", "equivariant_head")}
    assert [name for name, head in heads.items() if head is not None] == [made]
    assert (method.predictor_head is None) == (equivariant == 0.0)


def _single(value: object) -> object:
    return [v.float() for v in value] if isinstance(value, list) else value.float()  # type: ignore[attr-defined]


def test_without_the_part_that_moves_it_does_not_look_at_the_change() -> None:
    losses = []
    for scale in (1.0, 5.0):
        given = {k: _single(v) for k, v in batch().items()}
        given["change"] = scale * given["change"]
        losses.append(float(stepped(SIE(equivariant=0.0), network().float())(given)))
    assert losses[0] == losses[1]


def test_a_missing_or_wrong_change_is_refused() -> None:
    given = {k: _single(v) for k, v in batch().items()}
    with pytest.raises(ConflictError, match="sie needs 'change'"):
        stepped(SIE(), network().float())({k: v for k, v in given.items() if k != "change"})
    with pytest.raises(DataError, match=r"batch\['change'\] has the shape \(8, 2\).*\(8, 4\)"):
        stepped(SIE(parameters=4), network().float())(given)


def test_a_share_that_leaves_a_part_empty_is_refused() -> None:
    with pytest.raises(OptionError, match=r"equivariant=0.01 leaves a part of 6 features empty"):
        stepped(SIE(equivariant=0.01), network())


@pytest.mark.parametrize(
    ("invariant", "moving", "predicted"),
    [(None, None, None), (torch.ones(3, 4, 2), None, None),
     (torch.ones(2, 4, 2), torch.ones(2, 5, 2), torch.ones(5, 2)),
     (None, torch.ones(2, 4, 2), None), (None, torch.ones(2, 4, 2), torch.ones(4, 3))],
)  # fmt: skip
def test_embeddings_that_do_not_belong_together_are_refused(
    invariant: Tensor | None, moving: Tensor | None, predicted: Tensor | None
) -> None:
    with pytest.raises(DataError):
        split_loss(invariant, moving, predicted)


def disc() -> Tensor:
    """A bright spot to the right of the middle."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 21), torch.linspace(-1, 1, 21), indexing="ij")
    return torch.exp(-((x - 0.5).square() + y.square()) / 0.02)[None, None]


def test_turned_views_say_by_which_angle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "random_view", lambda images, generator: (images, {}))
    images, angles = turned_view(disc().expand(40, 1, 21, 21), torch.Generator().manual_seed(0))
    weights = images[:, 0].clamp(min=0.5) - 0.5
    places = torch.linspace(-1, 1, 21)
    x, y = (weights.sum(axis) @ places / weights.sum((1, 2)) for axis in (1, 2))
    # The vertical axis of images points down.
    found = torch.atan2(-y, x)
    assert float((found - angles + math.pi).remainder(2 * math.pi).sub(math.pi).abs().max()) < 0.15
    assert float(angles.max() - angles.min()) > 5


def test_a_loader_of_turned_views_gives_the_change_between_them() -> None:
    loader = BatchLoader(disc().expand(12, 1, 21, 21), torch.zeros(12), batch_size=6, views="turned")
    batches = list(loader)
    for made in batches:
        between = made["angle"][:, 1] - made["angle"][:, 0]
        torch.testing.assert_close(made["change"], torch.stack([between.cos(), between.sin()], 1))
        assert [tuple(view.shape) for view in made["views"]] == [(6, 1, 21, 21)] * 2
    assert not torch.equal(batches[0]["angle"], batches[1]["angle"])


def test_inputs_that_cannot_be_turned_are_refused() -> None:
    with pytest.raises(UserError, match=r"inputs of shape \(4,\) cannot be turned"):
        next(iter(BatchLoader(torch.zeros(6, 4), torch.zeros(6), batch_size=3, views="turned")))


def test_by_name_in_the_scenario_and_with_another_optimizer() -> None:
    dataset = load("digits?labels=40")
    recipe = self_supervised.baseline(dataset, self_supervised.default_model(dataset)[0], epochs=1)
    edited = arm("sie:width=32+lion", recipe, dataset.task, "self_supervised").recipe
    outcome = self_supervised.run(edited, dataset, seed=0, budget=Budget("steps", 2))
    assert 0 < outcome.metrics["test"]["probe_accuracy"] <= 1
