"""Weights moved for a while come back bit for bit, and running statistics hold still."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repertory.core import frozen_norm_statistics, perturbed, total_norm


def test_the_norm_is_over_all_entries_of_all_tensors() -> None:
    tensors = [
        torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate([(3, 4), (5,), ()])
    ]
    expected = torch.cat([t.flatten() for t in tensors]).norm()
    torch.testing.assert_close(total_norm(tensors), expected)


def test_the_norm_of_nothing_is_zero() -> None:
    assert total_norm([]).item() == 0.0


def test_parameters_move_by_the_offsets_inside_and_hold_the_same_memory_afterwards() -> None:
    parameters = [nn.Parameter(torch.tensor([0.1, 1e8])), nn.Parameter(torch.tensor(3.0))]
    before = [(p.data_ptr(), p.detach().clone()) for p in parameters]
    with perturbed(parameters, [torch.tensor([0.7, 3.0]), torch.tensor(-1.0)]):
        assert parameters[0].tolist() == pytest.approx([0.8, 1e8 + 3])
        assert parameters[1].item() == 2.0
    assert [p.data_ptr() for p in parameters] == [pointer for pointer, _ in before]
    assert all(torch.equal(p, old) for p, (_, old) in zip(parameters, before))


def test_parameters_come_back_after_an_error() -> None:
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(KeyError), perturbed([weight], [torch.ones(2)]):
        raise KeyError
    assert weight.tolist() == [1.0, 1.0]


def test_gradients_inside_are_those_at_the_moved_weights() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    with perturbed([weight], [torch.tensor([2.0])]):
        (weight**2).sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == 6.0


def test_nothing_to_move_is_allowed() -> None:
    with perturbed([], []):
        pass


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)])
def test_running_statistics_hold_still_and_batch_statistics_are_still_used(layer: nn.Module) -> None:
    inputs = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)) + 5
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with frozen_norm_statistics(layer):
        inside = layer(inputs)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    torch.testing.assert_close(inside, layer(inputs))
    assert not torch.equal(layer.running_mean, before["running_mean"])


def test_layers_in_evaluation_keep_using_their_running_statistics() -> None:
    layer = nn.BatchNorm1d(2).eval()
    inputs = torch.full((4, 2), 7.0)
    with frozen_norm_statistics(layer):
        torch.testing.assert_close(layer(inputs), inputs / (1 + layer.eps) ** 0.5)
