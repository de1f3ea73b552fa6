"""From a recipe to a network: the same weights for all methods, and early word of what does not fit."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import Tensor, nn

from repertory.errors import UserError
from repertory.recipe import Part, Recipe
from repertory.training.build import build_learner, build_network, build_part


class Batched(nn.Module):
    """Wants images."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean((2, 3))


class Pair(nn.Linear):
    """Gives a tuple."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return inputs, inputs


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("mypkg")
    module.network = lambda in_shape, outputs, width=4: nn.Sequential(  # type: ignore[attr-defined]
        nn.Linear(in_shape[0], width), nn.BatchNorm1d(width), nn.Dropout(0.5), nn.Linear(width, outputs)
    )
    module.fixed = lambda: nn.Linear(3, 7)  # type: ignore[attr-defined]
    module.images = Batched  # type: ignore[attr-defined]
    module.pair = lambda: Pair(3, 2)  # type: ignore[attr-defined]
    module.number = lambda: 3  # type: ignore[attr-defined]
    module.widen = lambda model, outputs: nn.Sequential(model, nn.Linear(outputs, outputs))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mypkg", module)


def recipe(model: str = "mypkg:network", **slots: object) -> Recipe:
    base = Recipe(Part(model), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD", {"lr": 0.1}))
    return base.replace(**slots)


def weights(seed: int = 0, name: str = "model", **slots: object) -> list[Tensor]:
    return list(build_learner(recipe(**slots), (3,), 2, seed, name=name).network.parameters())


def test_weights_depend_on_seed_and_name_alone() -> None:
    torch.manual_seed(1)
    first = weights()
    torch.manual_seed(2)
    assert all(map(torch.equal, first, weights()))
    assert not torch.equal(first[0], weights(seed=1)[0])
    assert not torch.equal(first[0], weights(name="other")[0])


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    weights()
    assert torch.equal(torch.get_rng_state(), before)


def test_surgery_leaves_the_other_weights_as_the_baseline_has_them() -> None:
    plain, changed = weights(), weights(surgery=(Part("mypkg:widen"),))
    assert len(changed) == len(plain) + 2
    assert all(map(torch.equal, plain, changed))


def test_looking_at_the_output_changes_neither_statistics_nor_mode() -> None:
    network = build_learner(recipe(), (3,), 2, 0).network
    assert network.training
    assert torch.equal(network[1].running_mean, torch.zeros(4))  # type: ignore[index]


def test_options_of_the_part_reach_the_factory_and_unknown_context_does_not() -> None:
    assert build_part(Part("mypkg:network", {"width": 9}), in_shape=(3,), outputs=2, other=1)[0].out_features == 9
    assert build_part(Part("torch.nn:Linear", {"in_features": 3, "out_features": 1}), outputs=2).out_features == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "mypkg:fixed",
            r"model 'mypkg:fixed' gives \(2, 7\) for 2 inputs, but this data needs \(2, 2\); give its factory",
        ),
        ("mypkg:pair", r"model 'mypkg:pair' gives tuple for 2 inputs, but this data needs \(2, 2\)"),
        ("mypkg:images", r"model 'mypkg:images' cannot take inputs of shape \(3,\): .*; choose another --model"),
        ("mypkg:number", r"model 'mypkg:number' made a int; it must return a torch.nn.Module"),
        ("mypkg:netwrk", r"'mypkg:netwrk': module 'mypkg' has no 'netwrk'; did you mean network\?"),
        ("nopkg:network", r"there is no module 'nopkg'; install it"),
        ("network", r"'network' is not of the form package.module:name"),
    ],
)
def test_a_model_that_does_not_fit_is_one_line_with_the_fix(model: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        build_learner(recipe(model), (3,), 2, 0)
    assert "\n" not in str(told.value)


def test_a_network_is_made_for_the_shape_and_classes_of_the_data() -> None:
    network = build_network(Part("mypkg:network"), (5,), 3)
    assert network(torch.zeros(2, 5)).shape == (2, 3)
