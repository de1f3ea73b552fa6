"""CFCD against hand calculation, the released code, limits, and loops over tuples."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from repertory import Part, Step
from repertory.errors import ConflictError, DataError, OptionError, UserError
from repertory.losses import ContrastiveLoss, GeM, LocalTriplet, MadaCos, TupleSampler
from repertory.losses.cfcd import (
    edit,
    local_descriptors,
    local_triplets,
    madacos_scale_and_margin,
    match_descriptors,
    replace_pooling,
)
from repertory.models.small import small_cnn
from repertory.testing.tiny import baseline_recipe
from repertory.training.budget import Budget
from repertory.training.build import build_learner
from repertory.training.loaders import BatchLoader
from repertory.training.loop import train

RELEASED = json.loads((Path(__file__).parent / "cfcd_released.json").read_text(encoding="utf-8"))


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def from_cosines(cosines: Tensor, **options: Any) -> tuple[MadaCos, Tensor]:
    """A criterion and embeddings that have these cosines: directions are axes, the rest fills up one more."""
    classes = cosines.shape[1]
    made = MadaCos(classes, dim=classes + 1, **options).double()
    made.directions.data = torch.eye(classes, classes + 1, dtype=torch.float64)
    rest = (1 - cosines.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    return made, torch.cat([cosines, rest], 1)


@pytest.mark.parametrize("case", RELEASED["madacos"], ids=lambda case: f"{case['alpha']}-{case['scale']:.0f}")
def test_scale_margin_and_gradient_equal_the_released_code(case: dict[str, Any]) -> None:
    cosines, target = double(case["cosines"]).requires_grad_(), torch.tensor(case["target"])
    scale, margin = madacos_scale_and_margin(cosines, target, case["alpha"])
    assert scale.item() == pytest.approx(case["scale"], rel=1e-12)
    assert margin.item() == pytest.approx(case["margin"], rel=1e-9)
    # The gradient with respect to cosines takes both as constants.
    shifted = cosines - margin * functional.one_hot(target, cosines.shape[1])
    loss = functional.cross_entropy(scale * shifted, target)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    torch.testing.assert_close(cosines.grad, double(case["gradient"]))


def test_the_criterion_is_that_of_its_scale_and_margin() -> None:
    cosines, target = double(RELEASED["madacos"][0]["cosines"]) / 2, torch.tensor(RELEASED["madacos"][0]["target"])
    made, embedding = from_cosines(cosines)
    embedding.requires_grad_()
    loss = made(3 * embedding, target)
    loss.backward()
    scale, margin = madacos_scale_and_margin(cosines, target)
    shares = (scale * (cosines - margin * functional.one_hot(target, 4))).softmax(1)
    torch.testing.assert_close(loss, -shares.gather(1, target[:, None]).log().mean())
    by_cosines = scale * (shares - functional.one_hot(target, 4)) / len(target)
    # Embeddings have length 1, so their gradient is that by the cosines less its part along the embedding.
    along = functional.pad(by_cosines, (0, 1))
    expected = along - (along * embedding).sum(1, keepdim=True) * embedding
    torch.testing.assert_close(embedding.grad, expected.detach())


@pytest.mark.parametrize("batch", [5, 6])
def test_the_median_example_has_probability_alpha_of_its_class(batch: int) -> None:
    generator = torch.Generator().manual_seed(batch)
    cosines = (torch.rand(batch, 4, generator=generator, dtype=torch.float64) - 0.5) / 2
    target = torch.arange(batch) % 4
    cosines[torch.arange(batch), target] += 0.3
    scale, margin = madacos_scale_and_margin(cosines, target, alpha=0.05, smallest_scale=8.0)
    assert margin > 0
    right = cosines[torch.arange(batch), target]
    median = right.sort().indices[(batch - 1) // 2]
    logits = scale * (cosines[median] - margin * functional.one_hot(target[median], 4))
    assert logits.softmax(0)[target[median]].item() == pytest.approx(0.05, abs=1e-9)


def test_scale_by_hand_with_its_limits() -> None:
    target = torch.zeros(1, dtype=torch.int64)
    for right, expected in ((0.5, math.log(9999999 * 49) / 0.5), (0.0, 32.0), (0.99, 512.0), (1.0000001, 512.0)):
        scale, _ = madacos_scale_and_margin(torch.tensor([[right, 0.1]]), target)
        assert scale.item() == pytest.approx(expected, rel=1e-6)


def test_the_margin_grows_with_the_median_and_is_never_negative() -> None:
    target = torch.zeros(1, dtype=torch.int64)
    margins = [madacos_scale_and_margin(double([[m, 0.2, 0.1]]), target)[1].item() for m in (-0.5, 0.1, 0.3, 0.5, 0.7)]
    assert margins[0] == 0
    assert margins[1:] == sorted(set(margins[1:]))


def test_there_is_no_margin_in_evaluation_and_predictions_have_the_trained_scale() -> None:
    cosines, target = double(RELEASED["madacos"][2]["cosines"]) / 2, torch.tensor(RELEASED["madacos"][2]["target"])
    made, embedding = from_cosines(cosines)
    made(embedding, target)
    scale, _ = madacos_scale_and_margin(cosines, target)
    torch.testing.assert_close(made.logits(embedding), scale * cosines)
    torch.testing.assert_close(made.eval()(embedding, target), functional.cross_entropy(scale * cosines, target))
    again = MadaCos(4, dim=5).double()
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.logits(embedding), made.logits(embedding))


def test_reductions_agree() -> None:
    target = torch.arange(4)
    values = {how: from_cosines(torch.eye(4).double() * 0.6, reduction=how) for how in ("none", "mean", "sum")}
    none, mean, total = (values[how][0](values[how][1], target) for how in ("none", "mean", "sum"))
    torch.testing.assert_close(none.mean(), mean)
    torch.testing.assert_close(none.sum(), total)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cosine", [0.6, 0.99])
def test_half_precision_is_near_float64(cosine: float, dtype: torch.dtype, as_float64: Any) -> None:
    made, embedding = from_cosines(cosine * torch.eye(4, dtype=torch.float64))
    directions = made.directions.detach().to(dtype)
    as_float64(
        lambda rows, axes: functional_call(made, {"directions": axes}, (rows, torch.arange(4))),
        embedding.to(dtype),
        directions,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": 1}, "outputs=1"),
        ({"alpha": 1.0}, "alpha=1.0"),
        ({"rho": 0.5}, "rho=0.5"),
        ({"smallest_scale": 0.0}, "smallest_scale=0.0"),
        ({"largest_scale": 16.0}, "largest_scale=16.0 .* at least 32"),
        ({"reduction": "max"}, "reduction='max'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        MadaCos(**{"outputs": 3, **options})


def test_embeddings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OptionError, match=r"dim=4 does not fit embeddings of shape \(6, 5\)"):
        MadaCos(3, dim=4)(torch.zeros(6, 5), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(DataError, match=r"targets \(5,\)"):
        MadaCos(3, dim=4)(torch.zeros(6, 4), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(DataError, match="classes from 0 to 3, but outputs=3"):
        MadaCos(3, dim=4)(torch.zeros(2, 4), torch.tensor([0, 3]))


def test_gem_is_between_the_average_and_the_maximum() -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    positive = maps.clamp(min=1e-6)
    torch.testing.assert_close(GeM(p=1.0)(maps), positive.mean((2, 3), keepdim=True))
    torch.testing.assert_close(GeM(p=200.0)(maps.double()), maps.double().amax((2, 3), keepdim=True), rtol=0.02, atol=0)
    cubes = positive.pow(3).mean((2, 3), keepdim=True) ** (1 / 3)
    torch.testing.assert_close(GeM()(maps), cubes)
    # Cubes of hundreds overflow float16.
    half = (100 * maps).half()
    torch.testing.assert_close(GeM()(half).double(), GeM()(half.double()), rtol=1e-3, atol=1e-3)
    learnt = GeM(p=2.0, learn=True).double()
    leaf = maps.double().abs().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: learnt(x), leaf)
    learnt(leaf).sum().backward()
    assert learnt.p.grad is not None


def test_gem_takes_the_place_of_an_average_pooling() -> None:
    model = replace_pooling(small_cnn((1, 8, 8), 3, width=4), outputs=3)
    assert sum(isinstance(module, GeM) for module in model.modules()) == 1
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(UserError, match=r"has no nn\.AdaptiveAvgPool2d"):
        replace_pooling(nn.Sequential(nn.Linear(2, 3)), outputs=3)
    with pytest.raises(OptionError, match=r"\(2, 3\)"):
        GeM()(torch.zeros(2, 3))


def maps_of(descriptors: Any) -> Tensor:
    """Released descriptors `(images, positions, channels)` as maps of one row."""
    return double(descriptors).transpose(1, 2)[:, :, None]


@pytest.mark.parametrize("case", RELEASED["triplets"], ids=["easy", "hard"])
def test_matches_and_triplets_equal_the_released_code(case: dict[str, Any]) -> None:
    maps = maps_of(case["descriptors"]).requires_grad_()
    descriptors, attention = local_descriptors(maps.detach())
    best, kept = match_descriptors(descriptors[:1], descriptors[1:2], attention[1:2])
    assert kept[0].nonzero().flatten().tolist() == case["positives"]
    assert best[0][kept[0]].tolist() == case["anchors"]
    loss = local_triplets(maps, size=5)
    loss.sum().backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad[:, :, 0].transpose(1, 2), double(case["gradient"]))


def test_several_tuples_are_each_what_they_are_alone() -> None:
    first, second = (maps_of(case["descriptors"]) for case in RELEASED["triplets"])
    together = local_triplets(torch.cat([first, second]), size=5)
    torch.testing.assert_close(together, torch.cat([local_triplets(each, size=5) for each in (first, second)]))


def test_identical_maps_match_themselves_where_attention_is_strong() -> None:
    maps = torch.randn(1, 8, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    descriptors, attention = local_descriptors(maps)
    best, kept = match_descriptors(descriptors, descriptors, attention)
    strong = attention[0].topk(6).indices.sort().values
    assert torch.equal(kept[0].nonzero().flatten(), strong)
    assert torch.equal(best[0], torch.arange(12))
    doubled = descriptors.clone()
    doubled[:, strong[0]] = doubled[:, strong[1]]
    _, distinct = match_descriptors(doubled, doubled, attention)
    assert not distinct[0, strong[:2]].any()
    assert torch.equal(distinct[0, strong[2:]], kept[0, strong[2:]])


def test_without_other_conditions_matches_are_mutual_nearest_neighbours() -> None:
    rows = torch.randn(2, 15, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    anchor, positive = functional.normalize(rows, dim=2)
    best, kept = match_descriptors(anchor[None], positive[None], torch.ones(1, 15), ratio=1.0, share=1.0)
    distances = torch.cdist(anchor, positive)
    mutual = []
    for place in range(15):
        nearest = int(distances[:, place].argmin())
        assert int(best[0, place]) == nearest
        mutual.append(int(distances[nearest].argmin()) == place)
    assert kept[0].tolist() == mutual
    assert 0 < sum(mutual) < 15


def test_nothing_that_matches_costs_nothing_and_keeps_the_graph() -> None:
    maps = torch.ones(8, 3, 2, 2, requires_grad=True)
    loss = local_triplets(maps)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert maps.grad is not None
    assert not maps.grad.any()


def test_tuples_of_the_wrong_classes_and_negatives_of_the_right_one_do_not_count() -> None:
    maps = maps_of(RELEASED["triplets"][1]["descriptors"])
    trusted = local_triplets(maps, size=5)
    torch.testing.assert_close(local_triplets(maps, torch.tensor([0, 0, 1, 2, 3]), size=5), trusted)
    assert local_triplets(maps, torch.tensor([0, 1, 1, 2, 3]), size=5).tolist() == [0.0]
    parts = [
        local_triplets(maps, torch.tensor([0, 0, *(1 if place == other else 0 for other in range(3))]), size=5)
        for place in range(3)
    ]
    torch.testing.assert_close(sum(parts), trusted)


def test_local_gradients_are_those_of_finite_differences() -> None:
    maps = maps_of(RELEASED["triplets"][1]["descriptors"]).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: local_triplets(m, size=5), maps)


def test_what_is_no_tuple_is_refused() -> None:
    with pytest.raises(DataError, match=r"7 images .* are not tuples of 8"):
        local_triplets(torch.zeros(7, 3, 2, 2))
    with pytest.raises(DataError, match=r"shape \(8, 3\)"):
        local_triplets(torch.zeros(8, 3))


def sampled(predicted: Tensor | None, targets: Tensor, seed: int = 0, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(targets)) + 100
    known = None if predicted is None else functional.pad(predicted, (100, 0), value=-1)
    return (TupleSampler(known, size)(rows, targets, generator) - 100).view(-1, size)


def test_tuples_have_a_positive_and_negatives_and_repeat_nothing_within() -> None:
    targets = torch.arange(200) % 5
    for predicted in (None, torch.randint(5, (200,), generator=torch.Generator().manual_seed(1))):
        tuples = sampled(predicted, targets)
        classes = targets[tuples]
        assert tuples.shape == (25, 8)
        assert (classes[:, 0] == classes[:, 1]).all()
        assert not (classes[:, :1] == classes[:, 2:]).any()
        assert all(len(set(row)) == 8 for row in tuples.tolist())
        assert torch.equal(tuples, sampled(predicted, targets))
        assert not torch.equal(tuples, sampled(predicted, targets, seed=1))


def test_examples_come_once_while_there_are_enough() -> None:
    tuples = sampled(None, torch.arange(800) % 40)
    assert len(set(tuples.flatten()[:400].tolist())) == 400


def test_negatives_follow_the_confusions_of_the_classifier() -> None:
    # Half of class 1 is taken for class 0; all others are recognised.
    targets = torch.arange(4000) % 20
    predicted = targets.clone()
    confused = ((targets == 1) & (torch.arange(4000) % 40 == 1)).nonzero().flatten()
    predicted[confused] = 0
    tuples = torch.cat([sampled(predicted, targets, seed)[:25] for seed in range(40)])
    classes = targets[tuples]
    of_zero = tuples[classes[:, 0] == 0]
    # Of a recognised anchor of class 0, each negative is one of those with probability 0.5.
    share = torch.isin(of_zero[:, 2:], confused).double().mean().item()
    assert share == pytest.approx(0.5, abs=0.1)
    wrong = tuples[torch.isin(tuples[:, 0], confused)]
    # None is taken for class 1, so a negative is of class 0 in half of the other two thirds, and by chance.
    assert (targets[wrong[:, 2:]] == 0).double().mean().item() == pytest.approx(0.5, abs=0.2)
    assert (predicted[wrong[:, 1]] == 1).all()
    others = tuples[(classes[:, 0] > 1)]
    assert (targets[others[:, 2:]] == 1).double().mean().item() == pytest.approx(1 / 19, abs=0.03)


@pytest.mark.parametrize(
    "targets", [torch.zeros(20), torch.arange(20), torch.arange(6) % 2], ids=["one", "each", "few"]
)
def test_examples_without_a_tuple_are_refused(targets: Tensor) -> None:
    with pytest.raises(DataError, match=r"hold no tuple of 8|no tuple of 8"):
        sampled(None, targets.long())


def test_a_number_as_target_is_refused() -> None:
    with pytest.raises(DataError, match="the targets are numbers"):
        sampled(None, torch.zeros(20))


def images(count: int = 48, classes: int = 4) -> tuple[Tensor, Tensor]:
    targets = torch.arange(count) % classes
    means = torch.randn(classes, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return means[targets] + 0.3 * noise, targets


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
        )


def step_of(epochs: float = 4, **options: Any) -> tuple[Step, BatchLoader]:
    inputs, targets = images()
    model = network()
    method = LocalTriplet(**options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[method], epochs=epochs, classes=4, examples=48)
    return step, BatchLoader(inputs, targets, batch_size=16, seed=0)


def test_the_second_stage_has_tuples_and_their_triplets_in_the_loss() -> None:
    step, loader = step_of(epochs=2)
    orders: list[list[Tensor]] = []
    plain = nn.CrossEntropyLoss()
    loader.sampler = step.run.sampler
    for epoch in range(2):
        orders.append([])
        for batch in loader:
            orders[-1].append(batch["index"])
            model = step.run.model
            with torch.no_grad():
                maps = model[:2](batch["input"])
                expected = plain(model(batch["input"]), batch["target"])
                if epoch:
                    triplets = local_triplets(maps, batch["target"])
                    assert (triplets > 0).any()
                    expected = expected + 2 * triplets.mean()
            torch.testing.assert_close(step(batch), expected)
        step.end_epoch()
    base = [batch["index"].tolist() for batch in BatchLoader(*images(), batch_size=16, seed=0)]
    assert [index.tolist() for index in orders[0]] == base
    classes = images()[1][torch.cat(orders[1])].view(-1, 8)
    assert (classes[:, 0] == classes[:, 1]).all()
    assert not (classes[:, :1] == classes[:, 2:]).any()


def test_the_record_holds_what_the_criterion_predicts() -> None:
    inputs, targets = images(8)
    model = nn.Sequential(*list(network())[:4])
    criterion = MadaCos(4, dim=6)
    step = Step(model, torch.optim.SGD(model.parameters(), 0.0), criterion, methods=[LocalTriplet()], epochs=4)
    step({"input": inputs, "target": targets, "index": torch.arange(8) * 2})
    method = step.methods[0]
    assert isinstance(method, LocalTriplet)
    places, classes = method.predicted.entries()
    assert torch.equal(places, torch.arange(8) * 2)
    assert torch.equal(classes[:, 0].long(), criterion.logits(model(inputs)).argmax(1))


def test_without_predictions_tuples_are_drawn_at_random() -> None:
    inputs, targets = images(8)
    model = nn.Sequential(*list(network())[:4])
    step = Step(model, torch.optim.SGD(model.parameters(), 0.0), ContrastiveLoss(), methods=[LocalTriplet()], epochs=4)
    step({"input": inputs, "target": targets, "index": torch.arange(8)})
    step.run.epoch = 2
    order = step.run.sampler
    assert order is not None
    rows = order(torch.arange(48), images()[1], torch.Generator().manual_seed(0))
    assert torch.equal(rows.view(-1, 8), sampled(None, images()[1]))


def test_a_run_that_was_interrupted_ends_the_same() -> None:
    def trained(halt: float) -> dict[str, Tensor]:
        step, loader = step_of()
        train(step, loader, Budget("steps", 12), span=(0.0, halt), schedule="constant")
        if halt < 1:
            saved = step.state_dict(), loader.state_dict()
            step, loader = step_of()
            step.load_state_dict(saved[0])
            loader.load_state_dict(saved[1])
            train(step, loader, Budget("steps", 12), schedule="constant")
        return step.run.model.state_dict()

    whole = trained(1.0)
    for name, value in trained(8 / 12).items():
        assert torch.equal(value, whole[name])


def test_weight_zero_is_the_plain_step() -> None:
    step, loader = step_of(weight=0.0)
    assert step.run.sampler is None
    batch = next(iter(loader))
    torch.testing.assert_close(step(batch), nn.CrossEntropyLoss()(network()(batch["input"]), batch["target"]))


def test_what_the_second_stage_cannot_work_with_is_said() -> None:
    inputs, targets = images(8)
    batch = {"input": inputs, "target": targets, "index": torch.arange(8)}
    step, _ = step_of(epochs=1, start=0.0)
    with pytest.raises(ConflictError, match=r"needs tuples of 8 .* step.run.sampler"):
        step({**batch, "target": torch.tensor([0, 1, 0, 1, 2, 3, 2, 3])})
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ConflictError, match=r"need a network with a feature map.*Sequential"):
        Step(flat, torch.optim.SGD(flat.parameters(), 0.1), nn.CrossEntropyLoss(), methods=[LocalTriplet()], epochs=4)
    with pytest.raises(OptionError, match=r"start=0.9 leaves nothing of 2 epochs"):
        step_of(epochs=2, start=0.9)
    with pytest.raises(OptionError, match="layer names 'features'"):
        step_of(layer="features")
    step, _ = step_of(epochs=1, start=0.0, layer="4")
    with pytest.raises(OptionError, match="layer='4' gives no feature map"):
        step({**batch, "target": torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])})
    for options in ({"weight": -1.0}, {"start": 1.0}, {"size": 2}, {"ratio": 0.0}, {"share": 0.0}, {"margin": -0.1}):
        (name,) = options
        with pytest.raises(OptionError, match=f"{name}="):
            LocalTriplet(**options)  # type: ignore[arg-type]


def test_a_recipe_gets_the_criterion_and_what_is_asked_for() -> None:
    base = baseline_recipe("retrieval")
    plain = edit(base)
    assert plain.criterion.options == {"dim": 3}
    assert plain.methods == ()
    full = edit(base.replace(model=Part("repertory.models.small:small_cnn")), local=True, gem=True, dim=8, alpha=0.1)
    learner = build_learner(full, (1, 8, 8), 4, seed=0)
    assert any(isinstance(module, GeM) for module in learner.network.modules())
    assert isinstance(learner.criterion, MadaCos)
    assert learner.criterion.alpha == 0.1
    assert isinstance(full.methods[0].build(), LocalTriplet)
    assert learner.embed(torch.zeros(2, 1, 8, 8)).shape == (2, 8)
