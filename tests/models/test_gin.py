"""The graph isomorphism network: its layers by hand, sizes and orders that do not matter, and what is missing."""

from __future__ import annotations

import builtins
import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from repertory.core.graphs import pack
from repertory.errors import OptionError, UserError
from repertory.models import GIN
from repertory.models.gin import Readout
from repertory.recipe import Part
from repertory.training.build import build_network


def network(**options: Any) -> GIN:
    torch.manual_seed(0)
    made = GIN((9, 2), 3, **{"hidden": 4, "layers": 2, **options})
    for convolution in made.convolutions:
        assert convolution.eps.requires_grad
        torch.nn.init.constant_(convolution.eps, 0.5)
    return made


def graphs() -> tuple[Tensor, Tensor, Tensor]:
    """A triangle and a path of four nodes."""
    features = torch.randn(7, 2, generator=torch.Generator().manual_seed(1))
    one_way = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 5, 6]])
    return features, torch.cat([one_way, one_way.flip(0)], 1), torch.tensor([0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize("training", [True, False])
def test_layers_by_hand_with_an_adjacency_matrix(training: bool) -> None:
    """A node becomes perceptron((1 + eps) x + sum of its neighbours), normalised, ReLU; graphs are sums over layers."""
    model = network().train(training)
    by_hand = copy.deepcopy(model)
    features, edges, graph = graphs()
    adjacency = torch.zeros(7, 7)
    adjacency[edges[1], edges[0]] = 1.0
    nodes, total = features, torch.zeros(2, 4)
    for convolution, norm in zip(by_hand.convolutions, by_hand.norms):
        nodes = norm(convolution.nn((1.5 * torch.eye(7) + adjacency) @ nodes)).relu()
        total = total + torch.stack([nodes[graph == number].sum(0) for number in range(2)])
    rows = pack(features, edges, graph, 2, lines=20)
    expected = total @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(rows), expected)
    if not training:
        torch.testing.assert_close(model.forward_features(rows), total)


def test_neither_padding_nor_neighbours_in_the_batch_nor_the_numbers_of_nodes_matter() -> None:
    model = network().eval()
    features, edges, graph = graphs()
    rows = pack(features, edges, graph, 2)
    torch.testing.assert_close(model(pack(features, edges, graph, 2, lines=50)), model(rows))
    torch.testing.assert_close(model(rows[1:]), model(rows)[1:])
    order = torch.tensor([2, 0, 1, 6, 4, 3, 5])
    rank = order.argsort()
    torch.testing.assert_close(model(pack(features[order], rank[edges], graph, 2)), model(rows))


def test_the_mean_over_nodes_is_their_sum_over_their_number() -> None:
    features, edges, graph = graphs()
    rows = pack(features, edges, graph, 2)
    summed, mean = (network(pooling=how).eval().forward_features(rows) for how in ("sum", "mean"))
    torch.testing.assert_close(mean, summed / torch.tensor([[3.0], [4.0]]))
    assert Readout("mean")(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), 3).eq(0).all()


def test_half_precision_sums_as_many_digits_as_full() -> None:
    ones = torch.full((1000, 1), 1.01).bfloat16()
    found = Readout()(ones, torch.zeros(1000, dtype=torch.int64), 1)
    assert found.dtype == torch.bfloat16
    assert float(found) == pytest.approx(1000 * float(ones[0]), rel=0.005)


def test_dropout_acts_in_training_only_and_the_classifier_is_replaced() -> None:
    model = network(dropout=0.5)
    rows = pack(*graphs(), 2)
    assert model.train().forward_features(rows).eq(0).any()
    torch.testing.assert_close(model.eval()(rows), model(rows))
    assert model.get_classifier() is model.classifier
    model.reset_classifier(5)
    assert model(rows).shape == (2, 5)


def test_a_recipe_builds_it_and_other_inputs_are_refused() -> None:
    part = Part("repertory.models:GIN", {"hidden": 4})
    assert build_network(part, (9, 2), 3)(torch.zeros(2, 9, 2)).shape == (2, 3)
    with pytest.raises(OptionError, match=r"in_shape=\(6,\).*--data motif-graphs"):
        build_network(part, (6,), 3)


@pytest.mark.parametrize("options", [{"hidden": 0}, {"layers": 0}, {"dropout": 1.0}, {"pooling": "max"}])
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        network(**options)


def test_without_the_package_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def refuse(name: str, *given: Any) -> Any:
        if name.startswith("torch_geometric"):
            raise ImportError(name)
        return usual(name, *given)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r'pip install "repertory\[graphs\]"'):
        network()
