"""Networks split into experts, against the whole ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repertory.core.classifier import features_and_output
from repertory.errors import OptionError, UserError
from repertory.layers import CosineClassifier, MultiExpertNetwork, split_into_experts
from repertory.models import conv1d, mlp, small_cnn

NETWORKS = {
    "mlp": (lambda: mlp((5,), 4), (5,), 3),
    "small_cnn": (lambda: small_cnn((1, 8, 8), 4, width=4), (1, 8, 8), 3),
    "conv1d": (lambda: conv1d((1, 40), 4, width=4), (1, 40), 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_built_in_networks_share_their_first_stage(name: str) -> None:
    build, in_shape, shared = NETWORKS[name]
    model = build().eval()
    split = split_into_experts(model, 4, in_shape, experts=2, fresh=False).eval()
    _same_features(model, split, in_shape)
    assert len(split.stem) == shared
    assert split(torch.zeros(2, *in_shape)).shape == (2, 4)


@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_resnets_share_the_first_two_of_four_stages(source: str) -> None:
    import timm
    import torchvision

    model = (
        timm.create_model("resnet10t", num_classes=4)
        if source == "timm"
        else torchvision.models.resnet18(num_classes=4)
    ).eval()
    split = split_into_experts(model, 4, (3, 32, 32), experts=2, fresh=False).eval()
    _same_features(model, split, (3, 32, 32))
    names = {name for name, _ in split.experts[0].named_parameters()}
    assert {name.split(".")[0] for name in names} == {"layer3", "layer4", "fc"}
    assert model.layer1 is not split.stem[-2]
    assert isinstance(model.fc, nn.Linear)
    assert not isinstance(model.fc, CosineClassifier)


def test_networks_with_stages_split_in_the_middle_and_others_where_they_are_told() -> None:
    import timm

    stages = timm.create_model("convnext_atto", num_classes=4, depths=(1, 1, 1, 1), dims=(4, 4, 8, 8)).eval()
    split = split_into_experts(stages, 4, (3, 32, 32), experts=1).eval()
    _same_features(stages, split, (3, 32, 32))
    assert not any(name.startswith("stages.1") for name, _ in split.experts[0].named_parameters())
    told = split_into_experts(mlp((5,), 4), 4, (5,), split="3")
    assert len(told.stem) == 3


def _same_features(model: nn.Module, split: MultiExpertNetwork, in_shape: tuple[int, ...]) -> None:
    inputs = torch.randn(2, *in_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected, _ = features_and_output(model, inputs)
        for expert in split.experts:
            found, _ = features_and_output(expert, split.stem(inputs))
            torch.testing.assert_close(found, expected)


def test_experts_begin_with_other_weights_of_the_same_distribution_unless_they_are_kept() -> None:
    fresh, kept = (split_into_experts(mlp((50,), 4, width=200), 4, (50,), fresh=fresh) for fresh in (True, False))
    first, second = (expert[3].weight for expert in list(fresh.experts)[:2])
    assert not torch.equal(first, second)
    assert first.std().item() == pytest.approx(second.std().item(), rel=0.05)
    assert torch.isin(second, first).all()
    assert torch.equal(*(expert[3].weight for expert in list(kept.experts)[:2]))
    classifiers = [expert[-1].weight for expert in kept.experts]
    assert not torch.equal(*classifiers[:2])


def test_a_network_that_cannot_be_split_is_refused_and_left_as_it_was() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(self.second(self.first(inputs)) + inputs)

    model = Residual()
    before = model(torch.ones(2, 4))
    with pytest.raises(UserError, match=r"where to split a Residual.*first, second, last"):
        split_into_experts(model, 3, (4,))
    with pytest.raises(UserError, match=r"cannot be split at 'second'.*computes something else"):
        split_into_experts(model, 3, (4,), split="second")
    with pytest.raises(OptionError, match=r"split='sekond' names no module.*did you mean second"):
        split_into_experts(model, 3, (4,), split="sekond")
    with pytest.raises(UserError, match="one layer with weights"):
        split_into_experts(mlp((4,), 3, depth=0), 3, (4,))
    assert torch.equal(model(torch.ones(2, 4)), before)


def test_a_classifier_that_would_be_shared_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.Identity())
    with pytest.raises(OptionError, match="split='2' leaves the classifier"):
        split_into_experts(model, 3, (4,), split="2")


@pytest.mark.parametrize("options", [{"experts": 0}, {"scale": 0.0}, {"outputs": 0}, {"fresh": 1}])
def test_bad_options_of_the_split_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        split_into_experts(mlp((4,), 3), **{"outputs": 3, "in_shape": (4,), **options})


def test_a_network_without_an_expert_is_refused() -> None:
    with pytest.raises(OptionError, match="experts="):
        MultiExpertNetwork(nn.Identity(), [])
