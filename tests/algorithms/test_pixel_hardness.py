"""Learnt hardness of pixels in a training step: the two gradients, networks of any kind, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repertory import Step, datasets
from repertory.algorithms import HardnessLevel
from repertory.core.dense import IGNORED
from repertory.core.features import DenseFeatures
from repertory.errors import ConflictError, OptionError, UserError
from repertory.losses import PixelCrossEntropyLoss, hardness_weighted
from repertory.models import TorchvisionSegmenter, small_unet
from repertory.recipe import Part
from repertory.scenarios import segmentation
from repertory.scenarios.methods import arm
from repertory.training.budget import Budget


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(3, (4, 8, 8), generator=generator)
    target[0, :4] = IGNORED
    return {"input": torch.randn(4, 1, 8, 8, generator=generator), "target": target}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))


def step_of(model: nn.Module, method: HardnessLevel | None, criterion: Any = None, lr: float = 0.1) -> Step:
    methods = [] if method is None else [method]
    return Step(model, lambda groups: torch.optim.SGD(groups, lr=lr), criterion or PixelCrossEntropyLoss(), methods)


@pytest.mark.parametrize("count_ignored", [True, False])
def test_a_step_is_the_gradient_of_the_weighted_mean(count_ignored: bool) -> None:
    model, data = network(), batch()
    step = step_of(model, method := HardnessLevel(count_ignored=count_ignored), lr=1.0)
    assert method.weighted is not None
    before = [p.detach().clone() for p in (*model.parameters(), *method.weighted.head.parameters())]
    features = model[:2](data["input"])
    logits = model[2](features)
    losses = nn.functional.cross_entropy(logits, data["target"], reduction="none", ignore_index=IGNORED)
    raw = method.weighted.head(features.detach())[:, 0]
    hardness = raw.sigmoid() + 0.1
    if not count_ignored:
        hardness = hardness * (data["target"] != IGNORED)
    weights = hardness / hardness.sum()
    task, own = (weights.detach() * losses).sum(), -0.01 * (weights * losses.detach()).sum()
    parameters = [*model.parameters(), *method.weighted.head.parameters()]
    gradients = torch.autograd.grad(task + own, parameters)
    loss = step(data)
    torch.testing.assert_close(loss, (task + own).detach())
    for parameter, old, gradient in zip(parameters, before, gradients):
        torch.testing.assert_close(parameter.detach(), old - gradient)


def test_a_head_that_is_not_trained_and_flat_is_the_baseline() -> None:
    data = batch()
    data["target"] = data["target"].clamp(max=2)
    plain, model = network(), network()
    step = step_of(model, method := HardnessLevel(weight=0.0))
    assert method.weighted is not None
    for parameter in method.weighted.head.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(step(data), step_of(plain, None)(data))
    for mine, other in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(mine, other)


def test_hardness_rises_where_the_loss_stays_high() -> None:
    """The right half has random classes, which nothing can learn; the hardness finds it from the input."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.zeros(8, 1, 8, 8)
    inputs[..., 4:] = 1.0
    target = torch.zeros(8, 8, 8, dtype=torch.int64)
    target[..., 4:] = torch.randint(3, (8, 8, 4), generator=generator)
    model = network()
    step = step_of(model, method := HardnessLevel(weight=1.0), lr=1.0)
    for _ in range(100):
        step({"input": inputs, "target": target})
    assert method.weighted is not None
    raw = method.weighted.hardness(model[:2](inputs), (8, 8))
    assert raw[..., 5:].mean() > raw[..., :3].mean() + 1


def test_only_the_head_of_training_is_added() -> None:
    model = network()
    names = set(model.state_dict())
    method = HardnessLevel(width=5)
    step = step_of(model, method)
    assert set(model.state_dict()) == names
    assert method.weighted is not None
    assert [tuple(p.shape) for p in method.weighted.head.parameters()] == [(5, 4, 3, 3), (5,), (1, 5, 3, 3), (1,)]
    assert [group["name"] for group in step.optimizer.param_groups] == ["model", "pixel-hardness"]


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50"])
def test_networks_of_torchvision_have_features_to_read(name: str) -> None:
    # On this device tensors have shapes and no values, so that large networks cost nothing.
    with torch.device("meta"):
        features = DenseFeatures(network := TorchvisionSegmenter((1, 32, 32), 3, name).eval(), 3)
        with torch.no_grad(), features.recorded() as seen:
            network(torch.zeros(1, 1, 32, 32))
    assert seen[-1].shape[:2] == (1, features.dim)
    assert features.layer is network.get_classifier()


def test_a_network_of_torchvision_learns_with_it() -> None:
    model = TorchvisionSegmenter((1, 32, 32), 3, "lraspp_mobilenet_v3_large")
    data = batch()
    data = {name: values.repeat_interleave(4, -1).repeat_interleave(4, -2) for name, values in data.items()}
    step = step_of(model, method := HardnessLevel(width=8), lr=0.05)
    assert method.weighted is not None
    before = [p.detach().clone() for p in method.weighted.head.parameters()]
    losses = [float(step(data)) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert any(bool((p != old).any()) for p, old in zip(method.weighted.head.parameters(), before))


def test_whole_inputs_are_elements_where_they_have_one_class() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    step = step_of(model, method := HardnessLevel(), nn.CrossEntropyLoss())
    inputs, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    assert method.weighted is not None
    values = nn.functional.cross_entropy(model(inputs), target, reduction="none")
    found = hardness_weighted(values, method.weighted.head(model[:2](inputs)).squeeze(1))
    torch.testing.assert_close(step((inputs, target)), (found.task + found.hardness).mean().detach())


def test_it_plays_by_name_in_the_scenario_and_together_with_others() -> None:
    data = datasets.load("shapes?examples=20&side=16")
    recipe = segmentation.baseline(data, Part("repertory.models.unet:UNet", {"widths": [4, 8]}), epochs=1)
    for text in ("pixel-hardness:eps=0.2,width=3", "pixel-hardness:count_ignored=false+sam"):
        edited = arm(text, recipe, data.task, "segmentation").recipe
        outcome = segmentation.run(edited, data, seed=0, budget=Budget("steps", 2))
        assert 0 <= outcome.metrics["test"]["mean_iou"] <= 1


def test_what_it_cannot_work_with_is_named() -> None:
    with pytest.raises(ConflictError, match=r"needs a loss for each pixel.*CrossEntropyLoss.*PixelCrossEntropyLoss"):
        step_of(network(), HardnessLevel(), nn.CrossEntropyLoss(ignore_index=IGNORED))(batch())
    with pytest.raises(UserError, match="has no convolution and no linear layer"):
        DenseFeatures(nn.Sequential(nn.ReLU()), 3)
    for options in ({"eps": 0.0}, {"weight": -0.1}, {"width": 0}):
        with pytest.raises(OptionError, match=next(iter(options))):
            HardnessLevel(**options)


def test_the_classifier_is_the_one_with_as_many_outputs_as_classes() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 7, 1))
    assert DenseFeatures(model, 3).layer is model[0]
    assert DenseFeatures(model, 5).layer is model[1]
    unet = small_unet((1, 8, 8), 3)
    assert DenseFeatures(unet, 3).layer is unet.classifier
