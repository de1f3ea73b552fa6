"""From what the user typed to a recipe, and one line with the fix for what cannot be one."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import nn

from repertory import Method, Recipe
from repertory.errors import ConflictError, UserError
from repertory.recipe import Part, parse_options
from repertory.scenarios.choices import Source, check_arm, chosen_recipe
from repertory.scenarios.methods import arm, parse

BASE = Recipe(
    Part("repertory.models.small:mlp"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:AdamW", {"lr": 1e-3})
)


class Mine(Method):
    """A method of the user's own."""

    slug = "mine"

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength


@pytest.fixture(autouse=True)
def mypkg(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("mypkg")
    module.Mine = Mine  # type: ignore[attr-defined]
    module.Optimizer = type("Optimizer", (torch.optim.SGD,), {})  # type: ignore[attr-defined]
    module.Loss = type("Loss", (nn.CrossEntropyLoss,), {})  # type: ignore[attr-defined]
    module.Other = type("Other", (), {"__init__": lambda self: None})  # type: ignore[attr-defined]
    module.function = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mypkg", module)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("esam", [("esam", {})]),
        ("esam+lion", [("esam", {}), ("lion", {})]),
        ("esam:rho = 0.1 + lion", [("esam", {"rho": 0.1}), ("lion", {})]),
        ("esam:rho=0.1,beta=0.5+lion", [("esam", {"rho": 0.1, "beta": 0.5}), ("lion", {})]),
        ("lion:lr=1e+3+esam", [("lion", {"lr": 1000.0}), ("esam", {})]),
        ("lion:lr=1E-3", [("lion", {"lr": 0.001})]),
        ("lion:betas=[0.9,0.99],lr=1", [("lion", {"betas": [0.9, 0.99], "lr": 1})]),
        ("a.b:C:x=1+a.b:D", [("a.b:C", {"x": 1}), ("a.b:D", {})]),
        ("ps-kd+saf:lag=-2", [("ps-kd", {}), ("saf", {"lag": -2})]),
    ],
)
def test_names_and_options_are_read(text: str, expected: list[tuple[str, dict[str, Any]]]) -> None:
    assert parse(text) == expected


def test_values_become_plain_values_of_their_own_type() -> None:
    text = "a=1,b=1.0,c=true,d=False,e=none,f=ks,g=[1,x],h=(2,3),i=-1e-2"
    assert parse_options(text, text) == {
        "a": 1, "b": 1.0, "c": True, "d": False, "e": None, "f": "ks", "g": [1, "x"], "h": [2, 3], "i": -0.01
    }  # fmt: skip
    assert isinstance(parse_options("a=1", "")["a"], int)
    assert parse_options("a='query: ',b=\"1\",c='", "") == {"a": "query: ", "b": "1", "c": "'"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("esam:rho", r"'rho' in 'esam:rho' is not of the form option=value, as in esam:rho=0.1"),
        ("esam:=1", r"'=1' in 'esam:=1' is not of the form option=value"),
        ("esam:rho=1,rho=2", r"rho is given twice in 'esam:rho=1,rho=2'"),
        ("esam++lion", r"'esam\+\+lion' names no method beside a '\+'; write for example esam\+lion"),
        ("esam+", r"names no method beside a '\+'"),
        ("", r"'' names no method"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_an_example(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(text)


def test_each_kind_of_method_fills_its_slot() -> None:
    edited = arm("esam:rho=0.1+lion", BASE, "classification", "supervised")
    assert edited.slugs == ("esam", "lion")
    assert [part.slug for part in edited.recipe.methods] == ["esam"]
    assert edited.recipe.methods[0].options == {"rho": 0.1}
    assert edited.recipe.optimizer.factory == "repertory.optim.lion:Lion"
    assert edited.recipe.criterion == BASE.criterion
    assert BASE.methods == ()


def test_an_optimizer_that_is_named_gets_those_of_the_baselines_options_that_it_takes() -> None:
    edited = arm("torch.optim:LBFGS:lr=1", BASE, "classification", "supervised").recipe
    assert edited.optimizer.options == {"lr": 1}
    edited = arm("torch.optim:SGD:momentum=0.9", BASE, "classification", "supervised").recipe
    assert edited.optimizer.options == {**BASE.optimizer.options, "momentum": 0.9}


def test_order_of_methods_is_the_order_typed() -> None:
    edited = arm("ps-kd+esam+saf", BASE, "classification", "supervised").recipe
    assert [part.slug for part in edited.methods] == ["ps-kd", "esam", "saf"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("esma", r"there is no method 'esma'; did you mean esam\?"),
        ("lion:lrr=1", r"lion has no option 'lrr'; it has betas, .*lr.*; did you mean lr\?"),
        ("esam+saf:wieght=1", r"saf has no option 'wieght'; it has .*; did you mean weight\?"),
        ("model-soups:ingredients=0", r"model-soups: ingredients=0 is not allowed: ingredients must be a whole number"),
        ("mypkg:Nine", r"'mypkg:Nine': module 'mypkg' has no 'Nine'; did you mean Mine\?"),
        ("nopkg.part:Method", r"'nopkg.part:Method': there is no module 'nopkg'; install it, or add its folder"),
        ("mypkg:function", r"'mypkg:function' is not a class; name a core.Method, an optimizer or a loss module"),
        ("mypkg:Other", r"'mypkg:Other' is a Other; name a core.Method, an optimizer or a loss module"),
        ("mypkg:Mine:strngth=2", r"mypkg:Mine has no option 'strngth'; it has strength; did you mean strength\?"),
    ],
)
def test_unknown_names_come_with_the_nearest_known(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as told:
        arm(text, BASE, "classification", "supervised")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("softtriple+ebv", "softtriple and ebv both replace the head .* side by side instead: softtriple ebv"),
        ("gda-clip+softtriple", "gda-clip and softtriple both replace the head"),
        ("torch.optim:SGD+lion", "torch.optim:SGD and lion both replace the optimizer"),
        ("lion+lion", r"lion\+lion: lion is named twice; name it once"),
        ("softtriple+mypkg:Loss", "softtriple and mypkg:Loss both replace the criterion"),
    ],
)
def test_two_methods_for_one_slot_name_each_other_and_a_way_out(text: str, message: str) -> None:
    with pytest.raises(ConflictError, match=message):
        arm(text, BASE, "classification", "supervised")


def test_a_method_that_needs_classes_is_refused_for_a_number() -> None:
    with pytest.raises(ConflictError, match=r"ps-kd needs classes, but the target is a number \(regression\)"):
        arm("ps-kd", BASE, "regression", "supervised")


def test_another_scenario_is_refused() -> None:
    with pytest.raises(UserError, match=r"esam plays in the scenario supervised or .*, not in few_shot; leave it out"):
        arm("esam", BASE, "classification", "few_shot")


def test_a_class_of_ones_own_goes_where_it_belongs() -> None:
    edited = arm("mypkg:Mine:strength=2+mypkg:Optimizer:momentum=0.9+mypkg:Loss", BASE, "classification", "supervised")
    assert edited.slugs == ("mine", "mypkg:Optimizer", "mypkg:Loss")
    assert edited.recipe.methods == (Part("mypkg:Mine", {"strength": 2}, "mine"),)
    assert edited.recipe.optimizer == Part("mypkg:Optimizer", {"lr": 1e-3, "momentum": 0.9}, "mypkg:Optimizer")
    assert edited.recipe.criterion == Part("mypkg:Loss", {}, "mypkg:Loss")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sam+esam", r"sam\+esam: sam and esam both own the slot 'ascent' .*use one of the two"),
        ("softtriple+ps-kd", r"SoftTripleLoss takes a hard target, but ps-kd gives a soft one"),
        ("esam:rho=-1", r"esam:rho=-1: rho=-1 is not allowed: rho must be a number, at least 0"),
        ("lion:lr=abc", r"lr='abc' is not allowed: lr must be a number"),
        ("lion:foreach=maybe", r"foreach='maybe' is not allowed: foreach must be one of None, True, False"),
        ("data-diet:keep=2", r"keep=2 is not allowed: keep must be a number, above 0 and at most 1"),
        ("torch.nn:Linear", r"torch.nn:Linear: .*missing 2 required positional arguments"),
        ("poolformer", r"takes images"),
    ],
)
def test_what_cannot_run_is_said_before_any_run(text: str, message: str) -> None:
    dataset = Source("iris").load()
    recipe, _ = chosen_recipe(dataset)
    with pytest.raises(UserError, match=message) as told:
        check_arm(arm(text, recipe, dataset.task, "supervised"), dataset)
    assert "\n" not in str(told.value)
