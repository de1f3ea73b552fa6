"""L2R-GNN: dependence and weights by hand, against autograd and the released code, clusters, and what a step does."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms import L2RGNN, SAM
from repertory.algorithms.l2r_gnn import (
    cross_covariance,
    dependence,
    dissimilarity,
    edit,
    effective_size,
    group_correlations,
    learn_weights,
    random_functions,
    standardised,
    tempered,
    variable_clusters,
)
from repertory.algorithms.l2r_gnn.clusters import CorrelationSpread, PartFeatures
from repertory.algorithms.l2r_gnn.memory import MomentumGroups
from repertory.errors import ConflictError, DataError, OptionError
from repertory.models import GIN
from repertory.recipe import Part, Recipe

SGD = functools.partial(torch.optim.SGD, lr=0.1)
RELEASED = json.loads((Path(__file__).parent / "l2r_gnn_released.json").read_text(encoding="utf-8"))
ALL = ~torch.eye(4, dtype=torch.bool)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def functions_of(features: Tensor, count: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (features.shape[1], count)
    frequencies = torch.randn(shape, generator=generator).to(features.dtype)
    phases = 2 * math.pi * torch.rand(shape, generator=generator).to(features.dtype)
    return random_functions(standardised(features), frequencies, phases)


# The dependence.


def test_random_functions_by_hand() -> None:
    found = random_functions(torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, math.pi]]))
    expected = math.sqrt(2) * torch.tensor([[[1.0, -1.0]], [[math.cos(2.0), -1.0]]])
    torch.testing.assert_close(found, expected)


def test_even_weights_give_numpys_covariance_of_the_functions() -> None:
    functions, even = functions_of(drawn(30, 3)), torch.ones(30, dtype=torch.float64)
    flat = functions.flatten(1).numpy()
    for covariance, degrees in (("probability", 0), ("paper", 1)):
        expected = np.cov(flat, rowvar=False, ddof=degrees)
        np.testing.assert_allclose(cross_covariance(functions, even, covariance).reshape(15, 15), expected, atol=1e-12)


@pytest.mark.parametrize("covariance", ["probability", "paper"])
def test_the_weighted_covariance_and_the_dependence_by_brute_force(covariance: str) -> None:
    functions, weights = functions_of(drawn(7, 3), 2), drawn(7, seed=1).abs()
    apart = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)
    mean_one = 7 * weights / weights.sum()
    total = 0.0
    for i, j in [(0, 1), (1, 2)]:
        u, v = functions[:, i], functions[:, j]
        if covariance == "probability":
            p = mean_one / 7
            found = sum(p[n] * torch.outer(u[n], v[n]) for n in range(7)) - torch.outer(p @ u, p @ v)
        else:
            wu, wv = mean_one[:, None] * u, mean_one[:, None] * v
            found = sum(torch.outer(wu[n] - wu.mean(0), wv[n] - wv.mean(0)) for n in range(7)) / 6
        torch.testing.assert_close(cross_covariance(functions, weights, covariance)[i, :, j], found)
        total += float(found.square().sum())
    assert float(dependence(functions, weights, apart, covariance)) == pytest.approx(total)


def test_the_covariance_of_probabilities_is_that_of_repeated_rows() -> None:
    """The paper's form is not: there a weight counts twice."""
    functions, times = functions_of(drawn(5, 2), 2), torch.tensor([1, 2, 1, 3, 1])
    repeated = functions.repeat_interleave(times, 0)
    even = torch.ones(len(repeated), dtype=torch.float64)
    torch.testing.assert_close(cross_covariance(functions, times.double()), cross_covariance(repeated, even))
    paper = cross_covariance(functions, times.double(), "paper"), cross_covariance(repeated, even, "paper")
    assert not torch.allclose(*paper, atol=0.05)


def test_the_dependence_does_not_hang_on_the_order_of_examples() -> None:
    functions, weights, order = functions_of(drawn(9, 4)), drawn(9, seed=1).exp(), torch.arange(8, -1, -1)
    torch.testing.assert_close(dependence(functions[order], weights[order], ALL), dependence(functions, weights, ALL))
    learn = functools.partial(learn_weights, apart=ALL, strength=5.0)
    torch.testing.assert_close(learn(functions[order]), learn(functions)[order])


def test_curved_dependence_is_seen_where_the_correlation_is_none() -> None:
    x = torch.linspace(-2, 2, 101, dtype=torch.float64)
    pair, mask = torch.stack([x, x.square()], 1), ~torch.eye(2, dtype=torch.bool)
    assert abs(float(torch.corrcoef(pair.T)[0, 1])) < 1e-12
    even = torch.ones(101, dtype=torch.float64)
    independent = torch.stack(torch.meshgrid(x[::10], x[::10], indexing="ij"), 2).view(-1, 2)
    assert float(dependence(functions_of(pair), even, mask)) > 0.1
    assert float(dependence(functions_of(independent), torch.ones(121, dtype=torch.float64), mask)) < 1e-20


def test_constant_features_are_zero_and_depend_on_nothing() -> None:
    features = torch.stack([drawn(20), torch.full((20,), 0.1, dtype=torch.float64)], 1)
    assert standardised(features)[:, 1].eq(0).all()
    weights = drawn(20, seed=1).exp()
    assert float(dependence(functions_of(features), weights, ~torch.eye(2, dtype=torch.bool))) < 1e-28


# The weights.


@pytest.mark.parametrize("covariance", ["probability", "paper"])
def test_weights_are_those_of_autograd_and_torchs_sgd(covariance: str) -> None:
    functions, past = functions_of(drawn(9, 4), 2), drawn(4, seed=2)
    theta = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=0.5, momentum=0.8)
    for number in range(5):
        optimizer.param_groups[0]["lr"] = 0.5 * (1.0 if number < 2.5 else 0.1)
        optimizer.zero_grad()
        shares = torch.cat([theta, past]).softmax(0)
        (3.0 * dependence(functions, shares, ALL, covariance) + theta.softmax(0).pow(3).sum()).backward()
        optimizer.step()
    options: dict[str, Any] = {"strength": 3.0, "steps": 5, "lr": 0.5, "momentum": 0.8, "power": 3.0}
    found = learn_weights(functions, ALL, past, covariance=covariance, **options)
    torch.testing.assert_close(found, theta.detach())
    assert found.std() > 1e-3


def test_dependence_is_differentiable_by_weights_and_functions() -> None:
    functions, weights = functions_of(drawn(5, 4), 2).requires_grad_(), drawn(5, seed=1).exp().requires_grad_()
    for covariance in ("probability", "paper"):
        call = functools.partial(dependence, apart=ALL, covariance=covariance)
        assert torch.autograd.gradcheck(call, (functions, weights))


def test_two_planted_variables_become_independent_at_the_known_weights() -> None:
    """Cells of mass .4, .4, .1, .1 need a mass of .25 each: weights .625 and 2.5, which leave 64 % of the examples."""
    cells = torch.tensor([[1.0, 1.0]] * 4 + [[-1.0, -1.0]] * 4 + [[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    functions, apart = functions_of(cells), ~torch.eye(2, dtype=torch.bool)
    logits = learn_weights(functions, apart, strength=20.0, steps=600, lr=0.02)
    weights = 10 * logits.softmax(0)
    before = float(dependence(functions, torch.ones(10, dtype=torch.float64), apart))
    assert before > 0.1
    assert float(dependence(functions, weights, apart)) < 1e-4
    torch.testing.assert_close(weights[:8], torch.full((8,), 0.625, dtype=torch.float64), rtol=0.05, atol=0)
    torch.testing.assert_close(weights[8:], torch.full((2,), 2.5, dtype=torch.float64), rtol=0.05, atol=0)
    assert float(effective_size(weights)) == pytest.approx(0.64, abs=0.02)
    assert float(effective_size(torch.tensor([0.625] * 8 + [2.5] * 2))) == pytest.approx(0.64)


def test_the_defaults_of_the_method_go_most_of_the_way_in_the_planted_case() -> None:
    cells = torch.tensor([[1.0, 1.0]] * 4 + [[-1.0, -1.0]] * 4 + [[1.0, -1.0], [-1.0, 1.0]]).repeat(10, 1)
    model = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    method = L2RGNN(clusters=0, warmup=0, functions=5, momenta=())
    step = Step(model, SGD, nn.CrossEntropyLoss(), methods=[method])
    step((cells, torch.arange(100) % 2))
    weights = 100 * method.weigh(cells).softmax(0)
    functions, apart = random_functions(standardised(cells), *method._drawn), ~torch.eye(2, dtype=torch.bool)
    assert float(dependence(functions, weights, apart)) < 0.25 * float(dependence(functions, torch.ones(100), apart))
    assert 0.6 < float(effective_size(weights)) < 0.95


def test_with_one_cluster_there_is_nothing_to_remove_and_weights_stay_even() -> None:
    functions, apart = functions_of(drawn(8, 4)), torch.zeros(4, 4, dtype=torch.bool)
    assert float(dependence(functions, drawn(8, seed=1).exp(), apart)) == 0
    even = torch.full((8,), 0.125, dtype=torch.float64)
    torch.testing.assert_close(learn_weights(functions, apart, strength=100.0).softmax(0), even)


def test_weights_are_positive_and_sum_to_one_however_strong_the_pull() -> None:
    shares = learn_weights(functions_of(drawn(8, 4)), ALL, strength=1e6).softmax(0)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert bool((shares >= 0).all())


def test_fewer_pairs_to_part_leave_more_of_the_examples() -> None:
    cause = drawn(200, 2)
    features = torch.cat([cause, cause + 0.5 * drawn(200, 2, seed=1)], 1)
    functions, pairs = functions_of(features), torch.arange(4) % 2
    found = [
        float(effective_size(learn_weights(functions, apart, strength=0.01, lr=400.0).softmax(0)))
        for apart in (ALL, pairs[:, None] != pairs)
    ]
    assert found[0] < 0.5
    assert 0.8 < found[1] < 1


def test_under_selection_bias_a_regression_leans_less_on_the_companion_of_the_cause() -> None:
    """Causes c and companions s are independent, but a draw is kept the likelier the nearer s_1 is to f(c)."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40_000, 8, generator=generator, dtype=torch.float64)
    truth = inputs[:, :4] @ torch.tensor([1 / 3, -2 / 3, 1.0, -1 / 3]).double() + inputs[:, 0] * inputs[:, 1]
    kept = torch.rand(40_000, generator=generator) < 1.5 ** (-5 * (truth - inputs[:, 4]).abs())
    inputs, truth = inputs[kept][:1000], truth[kept][:1000]
    target, functions, halves = truth + 0.3 * drawn(1000, seed=1), functions_of(inputs), torch.arange(8) // 4
    coefficients, sizes = [], []
    for apart in (torch.zeros(8, 8, dtype=torch.bool), ~torch.eye(8, dtype=torch.bool), halves[:, None] != halves):
        weights = learn_weights(functions, apart, strength=0.04, steps=60, lr=3000.0).softmax(0)
        scale = weights.sqrt()[:, None]
        design = torch.cat([inputs, torch.ones(1000, 1, dtype=torch.float64)], 1)
        found = torch.linalg.lstsq(design * scale, target[:, None] * scale).solution[:, 0]
        coefficients.append(float(found[4]))
        sizes.append(float(effective_size(weights)))
    assert coefficients[0] > 0.45
    assert coefficients[1] < coefficients[0] - 0.05
    assert coefficients[2] < coefficients[0] - 0.02
    assert sizes[1] + 0.1 < sizes[2] < 1


def test_weights_that_leave_too_little_are_drawn_to_even_ones_and_others_stay() -> None:
    logits = torch.tensor([6.0, 2.0, 0.0, -1.0])
    assert float(effective_size(logits.softmax(0))) < 0.3
    found = tempered(logits, 0.6)
    assert float(effective_size(found.softmax(0))) == pytest.approx(0.6, abs=1e-4)
    torch.testing.assert_close(found / logits.where(logits != 0, 1.0), (found[0] / 6 * (logits != 0)).float())
    assert torch.equal(tempered(logits, 0.2), logits)


# The released code.


def released_functions(count: int) -> Tensor:
    return torch.tensor(RELEASED["functions"][str(count)], dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2])
def test_the_dependence_is_half_the_released_loss(count: int) -> None:
    """That one counts each pair twice, and pairs only functions of one number."""
    functions, weights = released_functions(count), torch.tensor(RELEASED["weights"], dtype=torch.float64)
    found = sum(2 * dependence(functions[:, :, k : k + 1], weights, ALL) for k in range(count))
    assert float(found) == pytest.approx(RELEASED["lossb_expect"][str(count)], rel=5e-3)


@pytest.mark.parametrize("learnt", RELEASED["learnt"], ids=["lambda=70", "lambda=1e-6"])
def test_weights_and_memory_are_those_of_the_released_code(learnt: dict[str, Any]) -> None:
    # Its logits begin at 1, ours at 0.
    past = torch.tensor(RELEASED["past_logits"], dtype=torch.float64) - 1
    found = learn_weights(released_functions(1), ALL, past, strength=2 / learnt["lambda"], lr=1.0)
    expected = torch.tensor(learnt["softmax"], dtype=torch.float64)
    torch.testing.assert_close(found.softmax(0), expected, rtol=2e-3, atol=0)
    memory = MomentumGroups([0.9])
    memory.push(torch.tensor(RELEASED["past"], dtype=torch.float64), past)
    memory.push(torch.tensor(RELEASED["features"], dtype=torch.float64), found)
    features, logits = memory.entries() or ()
    torch.testing.assert_close(features, torch.tensor(learnt["past"], dtype=torch.float64), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits + 1, torch.tensor(learnt["past_logits"]).double(), rtol=1e-3, atol=1e-3)


# Clusters.


def test_correlations_within_groups_are_numpys() -> None:
    values, owner = drawn(12, 3), torch.tensor([0, 1, 0, 1, 1, 2, 0, 1, 2, 2, 2, 0])
    found = group_correlations(values, owner, 3)
    for group in range(3):
        np.testing.assert_allclose(found[group], np.corrcoef(values[owner == group].numpy(), rowvar=False), atol=1e-12)


def test_dimensions_that_do_not_vary_in_a_group_are_uncorrelated_there() -> None:
    values = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0], [1.0, 1.0], [2.0, 2.0]])
    found = group_correlations(values, torch.tensor([0, 0, 0, 1, 1]), 3)
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(found[1], torch.ones(2, 2))
    assert found[2].eq(0).all()


def test_the_spread_over_batches_is_that_over_all_groups() -> None:
    values, owner = drawn(40, 3).float(), torch.arange(40) // 5
    spread = CorrelationSpread(3)
    for rows in (slice(0, 15), slice(15, 40)):
        spread.update(values[rows], owner[rows] + 100)
    expected = group_correlations(values, owner, 8).std(0, correction=0)
    torch.testing.assert_close(spread.dissimilarity(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dissimilarity(group_correlations(values, owner, 8)), expected)
    assert spread.alive().all()


def test_groups_of_one_or_two_parts_count_as_one_together() -> None:
    values, spread = drawn(7, 2).float(), CorrelationSpread(2)
    spread.update(values, torch.tensor([0, 0, 1, 2, 2, 2, 2]))
    assert float(spread.count) == 2
    expected = torch.stack([torch.corrcoef(values[rows].T) for rows in (slice(0, 3), slice(3, 7))]).sum(0)
    torch.testing.assert_close(spread.sums, expected)
    spread.update(values[:2], torch.tensor([5, 5]))
    assert float(spread.count) == 2


def test_dimensions_with_a_stable_relation_share_a_cluster() -> None:
    """Dimension 1 follows 0 in every graph and 3 follows 2; between the pairs the sign changes from graph to graph."""
    causes, signs = drawn(20, 30, 2), torch.ones(20, 1).double()
    signs[::2] = -1
    other = signs[:, :, None] * causes[:, :, :1] + 0.3 * causes[:, :, 1:]
    noise = 0.1 * drawn(20, 30, 2, seed=1)
    values = torch.cat([causes[:, :, :1], causes[:, :, :1] + noise[:, :, :1], other, other + noise[:, :, 1:]], 2)
    spread = dissimilarity(group_correlations(values.flatten(0, 1), torch.arange(600) // 30, 20))
    assert variable_clusters(spread, 2).tolist() == [0, 0, 1, 1]
    assert variable_clusters(spread, 9).tolist() == [0, 1, 2, 3]
    assert variable_clusters(spread, 1).tolist() == [0, 0, 0, 0]


def test_clusters_are_joined_by_the_average_over_their_pairs() -> None:
    """By the nearest pair the last point would be alone, by the farthest or the average one it is not."""
    places = torch.tensor([0.0, 1.0, 2.1, 3.3])
    assert variable_clusters((places[:, None] - places).abs(), 2).tolist() == [0, 0, 1, 1]


def test_dead_dimensions_do_not_draw_clusters_together() -> None:
    spread = torch.tensor([[0.0, 0.1, 0.9, 0.0], [0.1, 0.0, 0.9, 0.0], [0.9, 0.9, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert variable_clusters(spread, 2, torch.tensor([True, True, True, False])).tolist() == [0, 0, 1, 2]


# The step.


def network(seed: int = 0, width: int = 6) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))


BATCH = {"input": drawn(24, 3).float(), "target": torch.arange(24) % 2}


def half(number: int) -> dict[str, Tensor]:
    return {name: value[12 * number : 12 * number + 12] for name, value in BATCH.items()}


def ready(method: L2RGNN) -> Step:
    """A step that has made an epoch of two batches, so that there are clusters."""
    step = Step(network(), SGD, nn.CrossEntropyLoss(), methods=[method])
    step(half(0))
    step(half(1))
    step.end_epoch()
    return step


def test_the_loss_is_the_weighted_sum_with_the_weights_of_the_batch() -> None:
    method = L2RGNN(clusters=2)
    step = ready(method)
    with torch.no_grad():
        features = step.run.model[:2](BATCH["input"])
        losses = nn.functional.cross_entropy(step.run.model(BATCH["input"]), BATCH["target"], reduction="none")
    memory = copy.deepcopy(method.memory)
    found = step(BATCH)
    method.memory = memory
    weights = method.weigh(features).softmax(0)
    torch.testing.assert_close(found, (weights * losses).sum())
    assert float(weights.std() * 24) > 0.01
    assert float(found) != pytest.approx(float(losses.mean()), rel=1e-5)


def test_weights_have_no_gradient_and_scale_that_of_each_example() -> None:
    method = L2RGNN(clusters=2)
    step = ready(method)
    model = copy.deepcopy(step.run.model)
    memory, before = copy.deepcopy(method.memory), copy.deepcopy(step.run.model.state_dict())
    step(BATCH)
    method.memory = memory
    with torch.no_grad():
        weights = method.weigh(model[:2](BATCH["input"])).softmax(0)
    losses = nn.functional.cross_entropy(model(BATCH["input"]), BATCH["target"], reduction="none")
    (weights * losses).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(step.run.model.state_dict()[name], before[name] - 0.1 * parameter.grad)


def test_weights_are_even_until_there_are_clusters_and_the_warm_up_is_over() -> None:
    plain = Step(network(), SGD, nn.CrossEntropyLoss())
    for options, epochs in (({"clusters": 2, "warmup": 0}, 1), ({"clusters": 0, "warmup": 2}, 2)):
        method = L2RGNN(**options)
        step, reference = Step(network(), SGD, nn.CrossEntropyLoss(), methods=[method]), copy.deepcopy(plain.run.model)
        baseline = Step(reference, SGD, nn.CrossEntropyLoss())
        for number in range(2 * epochs):
            assert torch.equal(step(half(number % 2)), baseline(half(number % 2)))
            if number % 2:
                step.end_epoch()
        step(BATCH)
        baseline(BATCH)
        assert not torch.equal(step.run.model[0].weight, reference[0].weight)
        step.end_epoch()
        assert len(method.effective_sizes) == 1
        assert method.effective_sizes[0] < 1


def test_the_effective_size_of_an_epoch_is_the_mean_over_its_batches() -> None:
    method = L2RGNN(clusters=0, warmup=0)
    step, sizes = Step(network(), SGD, nn.CrossEntropyLoss(), methods=[method]), []
    for batch in (half(0), half(1)):
        memory, features = copy.deepcopy(method.memory), step.run.model[:2](batch["input"]).detach()
        step(batch)
        now, method.memory = method.memory, memory
        sizes.append(float(effective_size(method.weigh(features).softmax(0))))
        method.memory = now
    step.end_epoch()
    assert method.effective_sizes == pytest.approx([sum(sizes) / 2], rel=1e-4)
    assert method.effective_sizes[0] < 1


def test_clusters_come_from_the_nodes_of_graphs_where_a_network_pools_them() -> None:
    from repertory.core.graphs import pack

    features, graph = drawn(30, 2).float(), torch.arange(30) // 10
    line = torch.arange(29)
    edges = torch.stack([line, line + 1])[:, graph[:-1] == graph[1:]]
    rows, target = pack(features, edges, graph, 3), torch.tensor([0, 1, 0])
    torch.manual_seed(0)
    model = GIN((rows.shape[1], 2), 2, hidden=5, layers=2)
    method = L2RGNN(clusters=2)
    step = Step(model, SGD, nn.CrossEntropyLoss(), methods=[method])
    seen: list[Tensor] = []
    model.readout.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    step((rows, target))
    assert float(method.spread.count) == 3
    torch.testing.assert_close(method.spread.sums, group_correlations(seen[0], graph, 3).sum(0))
    # By themselves the groups of a batch would be taken.
    plain = L2RGNN(clusters=2)
    Step(network(), SGD, nn.CrossEntropyLoss(), methods=[plain])({**BATCH, "group": torch.arange(24) // 6})
    assert float(plain.spread.count) == 4


def test_what_is_pooled_counts_only_where_it_has_the_size_of_the_features() -> None:
    parts = PartFeatures(nn.Identity())
    assert parts.last(3) is None
    parts.take(torch.zeros(4, 3), torch.zeros(4))
    assert parts.last(2) is None
    parts.take(torch.zeros(4, 3), torch.zeros(4))
    assert parts.last(3) is not None
    assert parts.last(3) is None


def test_a_network_that_was_hooked_copies_and_pickles_without_the_hook() -> None:
    torch.manual_seed(0)
    model = GIN((4, 1), 2, hidden=3, layers=1)
    parts = PartFeatures(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(torch.tensor([[[1.0], [0.0], [1.0], [0.0]]] * 2))
    assert parts.last(3) is None


def test_the_memory_starts_with_the_first_batch_and_follows_at_two_speeds() -> None:
    memory = MomentumGroups([0.5, 0.9])
    assert memory.entries() is None
    memory.push(torch.ones(3, 2), torch.zeros(3))
    memory.push(torch.full((2, 2), 3.0), torch.ones(2))
    features, logits = memory.entries() or ()
    torch.testing.assert_close(features[:, 0], torch.tensor([2.0, 2.0, 1.0, 1.2, 1.2, 1.0]))
    torch.testing.assert_close(logits, torch.tensor([0.5, 0.5, 0.0, 0.1, 0.1, 0.0]))
    memory.push(torch.zeros(5, 2), torch.zeros(5))
    assert len((memory.entries() or ())[0]) == 6
    none = MomentumGroups(())
    none.push(torch.ones(3, 2), torch.zeros(3))
    assert none.entries() is None


def test_passes_beyond_the_first_of_a_step_are_weighted_but_not_remembered() -> None:
    method = L2RGNN(clusters=0, warmup=0)
    step = Step(network(), SGD, nn.CrossEntropyLoss(), methods=[SAM(rho=0.5), method])
    features = step.run.model[:2](BATCH["input"]).detach()
    step(BATCH)
    torch.testing.assert_close((method.memory.entries() or ())[0], features)


def test_half_precision_gives_the_weights_of_float64() -> None:
    found = []
    for dtype in (torch.float64, torch.bfloat16):
        method = L2RGNN(clusters=0, warmup=0)
        step = Step(network(), SGD, nn.CrossEntropyLoss(), methods=[method])
        step(BATCH)
        rows = BATCH["input"].repeat(1, 2).bfloat16().to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            found.append(method.weigh(rows.to(torch.promote_types(dtype, torch.float32))).softmax(0).double() * 24)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
    assert found[0].std() > 0.05


def test_a_saved_run_goes_on_with_its_clusters_memory_and_sizes() -> None:
    first, second = L2RGNN(clusters=2), L2RGNN(clusters=2)
    step, other = ready(first), Step(network(1), SGD, nn.CrossEntropyLoss(), methods=[second])
    step(BATCH)
    step.end_epoch()
    other.load_state_dict(step.state_dict())
    assert torch.equal(second.clusters_found, first.clusters_found)
    assert second.effective_sizes == first.effective_sizes
    assert torch.equal(step(BATCH), other(BATCH))
    assert torch.equal(step.run.model[0].weight, other.run.model[0].weight)


def test_one_group_says_nothing_of_stability_and_waits_for_another() -> None:
    method = L2RGNN(clusters=2)
    step = Step(network(), SGD, nn.CrossEntropyLoss(), methods=[method])
    step(BATCH)
    step.end_epoch()
    assert method.clusters_found is None
    step(BATCH)
    step.end_epoch()
    assert method.clusters_found is not None


# What cannot work.


@pytest.mark.parametrize(
    "options",
    [{"clusters": -1}, {"strength": -1.0}, {"functions": 0}, {"steps": 0}, {"lr": 0.0}, {"momenta": (1.0,)},
     {"power": 1.0}, {"least": 1.5}, {"warmup": -1}, {"covariance": "sample"}],
)  # fmt: skip
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        L2RGNN(**options)


def test_a_loss_of_one_number_a_batch_is_refused() -> None:
    step = Step(network(), SGD, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])), methods=[L2RGNN()])
    with pytest.raises(ConflictError, match="gives one number for the batch"):
        step(BATCH)


def test_sizes_that_do_not_fit_are_named() -> None:
    functions = functions_of(drawn(5, 4))
    with pytest.raises(DataError, match=r"functions \(5, 4, 5\) and weights \(4,\)"):
        dependence(functions, torch.ones(4), ALL)
    with pytest.raises(DataError, match=r"apart has shape \(3, 3\).*give \(4, 4\)"):
        learn_weights(functions, ALL[:3, :3], strength=1.0)
    with pytest.raises(DataError, match="of two rows at least"):
        learn_weights(functions[:1], ALL, strength=1.0)
    with pytest.raises(OptionError, match=r"phases \(4, 1\)"):
        random_functions(drawn(5, 4), drawn(4, 2), drawn(4, 1))
    with pytest.raises(OptionError, match="clusters=0"):
        variable_clusters(torch.zeros(2, 2), 0)
    with pytest.raises(DataError, match=r"owner \(4,\)"):
        group_correlations(drawn(5, 2), torch.zeros(4, dtype=torch.int64), 1)


def test_the_recipe_gets_the_method() -> None:
    recipe = edit(Recipe(model=Part("a:b"), criterion=Part("c:d"), optimizer=Part("e:f")), clusters=3)
    assert recipe.methods[0].build().clusters == 3
