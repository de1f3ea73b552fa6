"""SimCLR's loss by brute force and against pytorch-metric-learning, and its step against a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms import SimCLR, nt_xent
from repertory.core.state import Run
from repertory.errors import ConflictError, DataError


def versions(count: int = 2, batch: int = 5, dim: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, batch, dim, generator=torch.Generator().manual_seed(0), dtype=dtype)


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def views(number: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(7, 6, generator=generator)
    return [inputs + 0.3 * torch.randn(7, 6, generator=generator) for _ in range(2)]


def step_of(method: SimCLR, model: nn.Module) -> Step:
    return Step(model, lambda groups: torch.optim.SGD(groups, lr=0.1), nn.CrossEntropyLoss(), methods=[method])


def test_equals_the_definition_written_out() -> None:
    embeddings = versions(dtype=torch.float64)
    rows = nn.functional.normalize(embeddings, dim=2).flatten(0, 1).tolist()
    size = len(rows) // 2
    values = []
    for i, row in enumerate(rows):
        weights = [math.exp(sum(a * b for a, b in zip(row, other)) / 0.3) for other in rows]
        values.append(-math.log(weights[(i + size) % (2 * size)] / (sum(weights) - weights[i])))
    expected = [(values[i] + values[i + size]) / 2 for i in range(size)]
    assert nt_xent(embeddings, 0.3).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_pytorch_metric_learning(temperature: float) -> None:
    embeddings = versions(batch=9)
    expected = NTXentLoss(temperature)(embeddings.flatten(0, 1), torch.arange(9).repeat(2))
    torch.testing.assert_close(nt_xent(embeddings, temperature).mean(), expected)


def test_gradient_by_finite_differences() -> None:
    embeddings = versions(batch=3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: nt_xent(z, 0.4), embeddings)


def test_order_of_versions_and_length_of_vectors_do_not_matter() -> None:
    embeddings, lengths = versions(), torch.rand(2, 5, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    torch.testing.assert_close(nt_xent(embeddings.flip(0)), nt_xent(embeddings))
    torch.testing.assert_close(nt_xent(embeddings * lengths), nt_xent(embeddings))
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(nt_xent(embeddings[:, order]), nt_xent(embeddings)[order])


def test_one_example_has_nothing_to_be_told_from() -> None:
    assert nt_xent(versions(batch=1)).item() == 0.0


def test_half_precision_at_a_low_temperature_is_that_of_its_own_inputs() -> None:
    half = versions(batch=8, dim=16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = nt_xent(half, 0.01)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), nt_xent(half.double(), 0.01), rtol=1e-4, atol=1e-4)


def test_a_step_is_that_of_a_plain_loop_in_which_both_versions_share_a_batch() -> None:
    method, model, plain = SimCLR(temperature=0.3, dim=5), network(), network()
    step = step_of(method, model)
    assert method.projection is not None
    head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    head.load_state_dict(method.projection.state_dict())
    optimizer = torch.optim.SGD([*plain[:3].parameters(), *head.parameters()], lr=0.1)
    for number in range(3):
        step({"input": views(number)[0], "views": views(number)})
        unit = nn.functional.normalize(head(plain[:3](torch.cat(views(number)))), dim=1)
        logits = (unit @ unit.T / 0.3).masked_fill(torch.eye(14, dtype=torch.bool), -math.inf)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, (torch.arange(14) + 7) % 14).backward()
        optimizer.step()
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dict(method.projection.state_dict()), dict(head.state_dict()), rtol=1e-4, atol=1e-6)


def test_both_versions_are_counted_and_only_those_that_are_differentiated() -> None:
    step = step_of(SimCLR(), network())
    batch = {"input": views()[0], "views": views()}
    step(batch)
    assert (step.run.counts.forward, step.run.counts.backward) == (14, 14)


def test_a_second_step_goes_on_with_the_same_projection() -> None:
    method = SimCLR()
    step_of(method, network())
    first = method.projection
    step_of(method, network())
    assert method.projection is first


def test_batches_without_versions_are_refused_before_the_first_update() -> None:
    with pytest.raises(ConflictError, match=r"simclr needs 'views'.*views=2"):
        step_of(SimCLR(), network())({"input": views()[0]})


def test_versions_of_one_kind_only_are_refused() -> None:
    with pytest.raises(DataError, match=r"embeddings \(1, 5, 4\) must be \(versions, batch, dim\)"):
        nt_xent(versions(1))


def test_without_a_step_there_is_no_network_to_encode_with() -> None:
    from repertory.core.state import State

    with pytest.raises(RuntimeError, match="give it to a Step"):
        SimCLR().encode(State(Run(network(), nn.CrossEntropyLoss()), {}), views())
