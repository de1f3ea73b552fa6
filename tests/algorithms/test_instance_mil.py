"""INS against the authors' code run step by step, closed forms, brute force, and the limits of its options."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Part, Recipe, Step
from repertory.algorithms import INS
from repertory.algorithms.instance_mil import candidates, cleared_labels, contrast, edit, moved_prototypes
from repertory.errors import ConflictError, DataError, OptionError

RELEASED = json.loads(Path(__file__).with_name("instance_mil_released.json").read_text())
SGD = functools.partial(torch.optim.SGD, lr=0.1)


def network(seed: int = 0) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return made


def rows(count: int = 12, seed: int = 1, negative: bool = False) -> dict[str, Tensor]:
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    target = torch.zeros(count, dtype=torch.int64) if negative else torch.arange(count) % 2
    return {
        "input": inputs,
        "strong": inputs + 0.1,
        "target": target,
        "index": torch.arange(count),
        "group": torch.arange(count) % 4,
    }


def batch_of(everything: dict[str, Tensor], index: Any) -> dict[str, Tensor]:
    return {name: values[index] for name, values in everything.items()}


def step_with(method: INS, model: nn.Module | None = None, **more: Any) -> Step:
    given: dict[str, Any] = {"classes": 2, "epochs": 4, "examples": 12, **more}
    return Step(model or network(), SGD, nn.CrossEntropyLoss(), methods=[method], **given)


def test_makes_the_steps_of_the_authors_code() -> None:
    method = INS(**RELEASED["options"])
    model = network()
    start = {name: torch.tensor(value) for name, value in RELEASED["start"].items()}
    for name, own in (("encoder.0", "0"), ("fc", "2")):
        for part in ("weight", "bias"):
            model.get_parameter(f"{own}.{part}").data = start[f"{name}.{part}"].clone()
    step = step_with(method, model)
    for part, theirs in ((method.projection, "head"), (method.key_projection.model, "head")):
        part.load_state_dict({name.removeprefix("head."): v for name, v in start.items() if name.startswith(theirs)})
    everything = {name: torch.tensor(RELEASED[name]) for name in ("input", "strong", "target")}
    everything["index"] = torch.arange(12)
    for number, order in enumerate(RELEASED["order"]):
        classification, contrasted = RELEASED["losses"][number]
        loss = step(batch_of(everything, torch.tensor(order)))
        assert loss.item() == pytest.approx(classification + 0.5 * contrasted, abs=2e-5)
        if number == 2:
            step.end_epoch()
    index, labels = method.instance_labels()
    assert index.tolist() == list(range(12))
    torch.testing.assert_close(labels, torch.tensor(RELEASED["confidence"]), rtol=0, atol=2e-6)
    torch.testing.assert_close(method.prototypes, torch.tensor(RELEASED["prototypes"]), rtol=0, atol=2e-5)
    torch.testing.assert_close(method.queue.features, torch.tensor(RELEASED["queue"]), rtol=0, atol=2e-5)
    end = {name: torch.tensor(value) for name, value in RELEASED["end"].items()}
    torch.testing.assert_close(model.get_parameter("0.weight"), end["encoder.0.weight"], rtol=0, atol=2e-5)
    torch.testing.assert_close(method.projection.get_parameter("0.weight"), end["head.0.weight"], rtol=0, atol=2e-5)


def test_labels_clear_up_by_the_share_phi_leaves_and_negative_bags_stay_negative() -> None:
    even, scores = torch.full((2, 2), 0.5), torch.tensor([[0.1, 0.9], [0.1, 0.9]])
    allowed = candidates(torch.tensor([1, 0]), 2)
    found = cleared_labels(even, scores, allowed, 0.95)
    torch.testing.assert_close(found, torch.tensor([[0.475, 0.525], [1.0, 0.0]]))


def test_an_instance_of_a_kind_of_positive_bag_is_negative_or_of_that_kind() -> None:
    assert candidates(torch.tensor([0, 2, 1]), 3).tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]
    found = cleared_labels(torch.zeros(1, 3), torch.tensor([[0.2, 0.9, 0.3]]), candidates(torch.tensor([2]), 3), 0.0)
    assert found.tolist() == [[0, 0, 1]]


def test_prototypes_are_moved_by_one_feature_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    features = functional.normalize(torch.randn(7, 3, generator=generator, dtype=torch.float64), dim=1)
    classes = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    start = functional.normalize(torch.randn(3, 3, generator=generator, dtype=torch.float64), dim=1)
    expected = start.clone()
    for feature, label in zip(features, classes):
        expected[label] = 0.9 * expected[label] + 0.1 * feature
    members = functional.one_hot(classes, 3).double()
    torch.testing.assert_close(moved_prototypes(start, features, members, 0.9), functional.normalize(expected, dim=1))
    torch.testing.assert_close(moved_prototypes(start, features, members, 0.9)[2], start[2])


def test_contrast_of_perfect_clusters_is_the_closed_form() -> None:
    # Two orthogonal classes with n = 2 each: log(n - 1 + n exp(-1 / tau)).
    cosines = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).double()
    others = ~torch.eye(4, dtype=torch.bool)
    found = contrast(cosines, cosines.bool() & others, others, 0.5)
    torch.testing.assert_close(found, torch.full((4,), math.log(1 + 2 * math.exp(-2)), dtype=torch.float64))


def test_contrast_is_the_brute_force_mean_and_its_gradient_is_right() -> None:
    generator = torch.Generator().manual_seed(3)
    cosines = (2 * torch.rand(4, 9, generator=generator, dtype=torch.float64) - 1).requires_grad_()
    positive = torch.rand(4, 9, generator=generator) < 0.4
    positive[:, 0] = True
    counted = positive | (torch.rand(4, 9, generator=generator) < 0.7)
    for row, found in enumerate(contrast(cosines, positive, counted, 0.2)):
        exponentials = {j: math.exp(cosines[row, j].item() / 0.2) for j in range(9) if counted[row, j]}
        shares = [math.log(exponentials[j] / sum(exponentials.values())) for j in range(9) if positive[row, j]]
        assert found.item() == pytest.approx(-sum(shares) / len(shares))
    assert torch.autograd.gradcheck(lambda c: contrast(c, positive, counted, 0.2), cosines)


def test_contrast_at_a_small_temperature_does_not_overflow_in_half_precision_training() -> None:
    losses = {}
    for precision in ("32", "bf16"):
        method = INS(temperature=0.01, warmup=0, dim=4)
        step = step_with(method, precision=precision)
        losses[precision] = step(rows()).item()
    assert losses["bf16"] == pytest.approx(losses["32"], rel=0.1)


def test_without_contrast_and_in_the_warm_up_instances_take_the_label_of_the_bag() -> None:
    plain = network()
    reference = Step(plain, SGD, nn.CrossEntropyLoss())
    model = network()
    step = step_with(INS(weight=0.0, warmup=100), model)
    for _ in range(3):
        reference(rows())
        step(rows())
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters()))


def test_uniform_labels_are_even_over_both_candidates_in_the_warm_up() -> None:
    everything, model = rows(), network()
    soft = torch.tensor([[1.0, 0.0], [0.5, 0.5]])[everything["target"]]
    expected = functional.cross_entropy(model(everything["input"]), soft).item()
    assert step_with(INS(weight=0.0, warmup=100, init="uniform"), model)(everything).item() == pytest.approx(expected)


def test_only_negative_bags_leave_every_label_negative_and_the_loss_that_of_the_bags() -> None:
    method, plain = INS(warmup=0, weight=0.0, dim=4), network()
    step, reference = step_with(method), Step(plain, SGD, nn.CrossEntropyLoss())
    for _ in range(3):
        assert step(rows(negative=True)).item() == pytest.approx(reference(rows(negative=True)).item())
    assert torch.equal(method.instance_labels()[1], torch.tensor([[1.0, 0.0]]).expand(12, 2))
    assert not method.prototypes[1].any()


def test_a_class_without_prototype_takes_the_instance_that_is_liked_most() -> None:
    method = INS(dim=4, init="uniform")
    model = network()
    model.get_submodule("2").bias.data = torch.tensor([50.0, 0.0])  # the classifier never says positive
    step = step_with(method, model)
    everything = rows()
    with torch.no_grad():
        liked = model(everything["input"]).softmax(1)[:, 1] * everything["target"]
        query = functional.normalize(method.projection(model[:2](everything["input"])), dim=1)
    step(everything)
    torch.testing.assert_close(method.prototypes[1], query[liked.argmax()])


def test_labels_need_a_warm_up_to_end_and_go_by_the_schedule_of_phi() -> None:
    method = INS(phi=1.0, last_phi=0.0, warmup=1, dim=4)
    step = step_with(method, epochs=4)
    step(rows())
    assert torch.equal(method.instance_labels()[1][:, 1], rows()["target"].float())
    step.end_epoch()  # a quarter of training: phi is 0.75
    step(rows())
    positive = method.instance_labels()[1][rows()["target"] == 1]
    assert set(positive[:, 1].mul(100).round().int().tolist()) <= {75, 100}


def test_the_queue_holds_the_last_keys_where_the_batch_does_not_divide_it() -> None:
    method = INS(queue=5, dim=4)
    step = step_with(method)
    for index in (range(3), range(3, 6), range(6, 9)):
        step(batch_of(rows(), torch.tensor(list(index))))
    assert sorted(method.queue.index.tolist()) == [4, 5, 6, 7, 8]


def test_the_loss_of_bags_is_the_cross_entropy_of_their_mean_probability() -> None:
    everything, model = rows(), network()
    everything["target"] = everything["group"] % 2
    with torch.no_grad():
        probabilities = model(everything["input"]).softmax(1)
        plain = functional.cross_entropy(model(everything["input"]), everything["target"])
    bags = torch.stack([probabilities[everything["group"] == bag].mean(0) for bag in range(4)])
    expected = plain + 2.0 * functional.nll_loss(bags.log(), torch.arange(4) % 2)
    step = step_with(INS(weight=0.0, warmup=9, bag_weight=2.0), model)
    assert step(everything).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_bag_loss_needs_groups_and_the_recipe_makes_batches_of_bags() -> None:
    given = {name: values for name, values in rows().items() if name != "group"}
    with pytest.raises(ConflictError, match="needs 'group'"):
        step_with(INS(bag_weight=1.0))(given)
    recipe = Recipe(model=Part("a:b"), criterion=Part("c:d"), optimizer=Part("e:f"))
    assert edit(recipe).sampler is None
    sampler = edit(recipe, bag_weight=1.0).sampler
    assert sampler is not None
    assert sampler.factory.endswith("BagBatches")


def test_two_micro_batches_update_everything_once_a_row() -> None:
    method = INS(dim=4, queue=12)
    step = step_with(method, accumulate=2)
    step(rows())
    assert sorted(method.queue.index.tolist()) == list(range(12))
    assert len(method.instance_labels()[0]) == 12


def test_passes_of_the_copy_are_counted() -> None:
    step = step_with(INS(dim=4))
    step(rows())
    assert (step.run.counts.forward, step.run.counts.backward) == (24, 12)


@pytest.mark.parametrize(
    "options",
    [{"weight": -1}, {"init": "even"}, {"phi": 1.2}, {"temperature": 0}, {"momentum": -1}, {"queue": 0}, {"dim": 2.5}],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        INS(**options)


def test_strong_views_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match="strong views are"):
        step_with(INS())({**rows(), "strong": rows()["strong"][:, :3]})
