"""SOLIDER: parts and self-distillation against the authors' code, the controller, and what a step learns from."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Part, Recipe, Step
from repertory.algorithms.solider import (
    SOLIDER,
    ControlledStage,
    DistillationHead,
    SemanticController,
    add_semantic_control,
    distillation_loss,
    edit,
    foreground,
    part_labels,
)
from repertory.core.classifier import classifier_of, features_and_output
from repertory.core.randomness import seeded
from repertory.errors import ConflictError, DataError, OptionError, UserError

# By `get_mask` of the authors' code for `people()` and four parts: images 0 and 2 have a foreground.
AUTHORS_PARTS = [
    [[1, 1, 3], [1, 2, 3], [2, 2, 3], [2, 4, 4], [3, 4, 3], [0, 0, 0]],
    [[0, 0, 0], [2, 1, 2], [3, 1, 1], [3, 3, 2], [4, 3, 2], [4, 4, 2]],
]
# By their `DINOLoss` for the student wave(6, 5, 0.9, 0.4), the teacher wave(6, 5, 1.3, 0.7), two views of three images,
# and the centre 0.1 wave(1, 5, 1.1, 0.2): the loss, and the length of its gradient.
AUTHORS_LOSS, AUTHORS_LENGTH = 10.369305140951521, 5.355031597026993


def wave(*shape: int, frequency: float = 0.7, phase: float = 0.1) -> Tensor:
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return (frequency * count + phase).sin().reshape(shape)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def people() -> Tensor:
    """Three maps of four colours and a faint background; the second mostly faint, the third on its head."""
    bands = torch.tensor([[0, 0, 1], [0, 2, 1], [2, 2, 1], [2, 3, 3], [1, 3, 1], [4, 4, 4]])
    colours = torch.tensor([[2.0, 0, 0, 1], [0, 3, 0, 0], [-2, 0, 1, 0], [0, 0, -3, 1], [0.1, 0, 0, 0]]).double()
    upright = colours[bands].permute(2, 0, 1)
    faint = upright.clone()
    faint[:, :4] *= 0.02
    return torch.stack([upright, faint, colours[bands.flip(0)].permute(2, 0, 1)]) + 0.15 * wave(3, 4, 6, 3)


def test_parts_are_those_of_the_authors_code() -> None:
    labels, used = part_labels(people(), parts=4)
    assert used.tolist() == [True, False, True]
    assert labels[used].tolist() == AUTHORS_PARTS
    assert not labels[1].any()


def test_parts_of_two_bands_by_hand() -> None:
    features = torch.zeros(1, 2, 8, 4)
    features[0, 0, :2] = 3.0
    features[0, 1, 2:6] = 3.0
    labels, used = part_labels(features, parts=2)
    assert used.all()
    assert labels[0, :, 0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0]
    features[0, 1, 2:6] = 0.0
    assert not part_labels(features, parts=2)[1].any()


def test_parts_are_numbered_from_top_to_bottom_whatever_is_found_first() -> None:
    lengths = torch.tensor([3.0, 6.0, 4.0])
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]):
        features = torch.full((1, 3, 7, 2), 0.01)
        for band, colour in enumerate(order):
            features[0, :, 2 * band : 2 * band + 2] = 0
            features[0, colour, 2 * band : 2 * band + 2] = lengths[colour]
        assert part_labels(features, parts=3)[0][0, :, 0].tolist() == [1, 1, 2, 2, 3, 3, 0]


def test_clusters_are_about_as_tight_as_those_of_scikit_learn() -> None:
    from sklearn.cluster import KMeans

    features = draw(6, 5, 8, 4) + 4 * draw(6, 5, 1, 1, seed=1)
    features[:, :, :2] *= 0.01
    labels, used = part_labels(features, parts=3)
    assert used.all()
    for image, own in zip(features, labels):
        tokens = image.flatten(1).T[own.flatten() > 0]
        names = own.flatten()[own.flatten() > 0]
        spread = sum(float((tokens[names == k] - tokens[names == k].mean(0)).square().sum()) for k in (1, 2, 3))
        best = KMeans(3, n_init=10, random_state=0).fit(tokens.numpy()).inertia_
        assert spread < 1.2 * best


def test_foreground_is_the_split_of_least_variance() -> None:
    lengths = draw(4, 9).abs() + 5
    found = foreground(lengths)
    for row, mask in zip(lengths, found):
        ordered = row.sort().values
        costs = [part.var(unbiased=False) * len(part) for k in range(1, 9) for part in (ordered[:k], ordered[k:])]
        totals = [float(costs[2 * k] + costs[2 * k + 1]) for k in range(8)]
        assert int(mask.sum()) == 9 - (1 + totals.index(min(totals)))
        assert row[mask].min() > row[~mask].max()


def test_equal_tokens_have_no_foreground_and_empty_clusters_come_last() -> None:
    labels, used = part_labels(torch.ones(2, 3, 4, 4), parts=2)
    assert not used.any()
    assert not labels.any()
    features = torch.ones(1, 3, 4, 4)
    features[:, :, 3] = 0.1
    labels, used = part_labels(features, parts=3)
    assert used.all()
    assert sorted(labels.unique().tolist()) == [0, 1]


def test_parts_do_not_depend_on_other_images() -> None:
    together = part_labels(people(), parts=3)[0]
    assert torch.equal(torch.cat([part_labels(image[None], parts=3)[0] for image in people()]), together)


@pytest.mark.parametrize("features", [torch.zeros(2, 3, 1, 2), torch.zeros(2, 3, 9)])
def test_maps_without_places_for_the_parts_are_refused(features: Tensor) -> None:
    with pytest.raises(DataError, match="features"):
        part_labels(features, parts=2)


def test_self_distillation_is_that_of_the_authors_code() -> None:
    student = wave(6, 5, frequency=0.9, phase=0.4).requires_grad_()
    teacher = wave(6, 5, frequency=1.3, phase=0.7)
    centre = 0.1 * wave(5, frequency=1.1, phase=0.2)
    loss = distillation_loss(student.view(2, 3, 5), teacher.view(2, 3, 5), centre).mean()
    loss.backward()
    assert student.grad is not None
    assert loss.item() == pytest.approx(AUTHORS_LOSS, rel=1e-12)
    assert student.grad.norm().item() == pytest.approx(AUTHORS_LENGTH, rel=1e-9)


def test_self_distillation_of_further_views_equals_a_loop_over_pairs() -> None:
    student, teacher = draw(5, 3, 4), draw(2, 3, 4, seed=1)
    pairs = [
        -((teacher[t] / 0.04).softmax(-1) * (student[v] / 0.1).log_softmax(-1)).sum(-1)
        for t in range(2)
        for v in range(5)
        if v != t
    ]
    torch.testing.assert_close(distillation_loss(student, teacher), torch.stack(pairs).mean(0))


def test_gradients_of_self_distillation_are_those_of_finite_differences() -> None:
    student, teacher = wave(3, 2, 4).requires_grad_(), wave(2, 2, 4, phase=1.0)
    assert torch.autograd.gradcheck(lambda s: distillation_loss(s, teacher), student)


def test_views_that_do_not_match_are_refused() -> None:
    with pytest.raises(DataError, match="at least two views"):
        distillation_loss(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))


def test_head_gives_cosines_and_stands_still_where_asked() -> None:
    with seeded(0, "head"):
        head = DistillationHead(4, outputs=6, width=3)
    output = head(draw(5, 4), still=True)
    assert output.abs().max() <= 1 + 1e-6
    output.square().sum().backward()
    assert head.directions.grad is not None
    assert not head.directions.grad.any()
    head(draw(5, 4)).square().sum().backward()
    assert head.directions.grad.any()


def network(**options: Any) -> Any:
    with seeded(0, "network"):
        model = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        )
        return add_semantic_control(model, in_shape=(1, 12, 8), **options)


def test_stage_is_scaled_by_the_logarithm_of_2_where_nothing_is_learnt() -> None:
    stage = ControlledStage(nn.Identity(), channels=2)
    with torch.no_grad():
        stage.scale.zero_()
        stage.shift.zero_()
    images = draw(3, 2, 4, 4)
    torch.testing.assert_close(stage(images), math.log(2) * images)


def test_stage_follows_its_formula_on_maps_and_tokens() -> None:
    ratios = torch.tensor([0.0, 0.3, 1.0])
    for axis, shape in ((1, (3, 5, 4, 2)), (-1, (3, 4, 2, 5)), (-1, (3, 7, 5))):
        stage = ControlledStage(nn.Identity(), channels=5, axis=axis)
        stage.images = ratios
        output = draw(*shape)
        for image, ratio, found in zip(output, ratios, stage(output)):
            condition = torch.stack([ratio, 1 - ratio])
            scale = functional.softplus(stage.scale @ condition + stage.scale_bias)
            shift = stage.shift @ condition + stage.shift_bias
            moved = image.movedim(0 if axis == 1 else -1, -1) * scale + shift
            torch.testing.assert_close(found, moved.movedim(-1, 0 if axis == 1 else -1))


def test_ratio_of_an_image_enters_through_the_controller_alone() -> None:
    model = network(ratio=0.3)
    images = draw(4, 1, 12, 8)
    default = model(images)
    with model.controller.images(torch.tensor([0.3, 0.0, 1.0, 0.3])):
        mixed = model(images)
    torch.testing.assert_close(mixed[[0, 3]], default[[0, 3]])
    assert (mixed[[1, 2]] - default[[1, 2]]).abs().min() > 0
    torch.testing.assert_close(model(images), default)
    model.controller.ratio = 1.0
    torch.testing.assert_close(model(images)[2], mixed[2])


def test_ratio_is_saved_with_the_network_and_copied_with_it() -> None:
    model, other = network(ratio=0.7), network()
    other.load_state_dict(model.state_dict())
    assert other.controller.ratio == pytest.approx(0.7)
    twin = copy.deepcopy(model)
    twin.controller.ratio = 0.1
    assert model.controller.ratio == pytest.approx(0.7)
    assert twin.controller.stages[0] is not model.controller.stages[0]
    assert any(module is twin.controller.stages[0] for module in twin.modules())


def test_stages_of_a_convolutional_network_are_where_its_map_changes() -> None:
    model = network()
    names = [name for name, part in model.named_modules() if isinstance(part, ControlledStage)]
    assert names == ["1", "2", "4"]
    assert [stage.channels for stage in model.controller.stages] == [4, 4, 6]
    assert classifier_of(model)[0] == "7"


def timm_model(name: str, **options: Any) -> nn.Module:
    import timm

    with seeded(0, "timm"):
        return timm.create_model(name, num_classes=3, **options)


@pytest.mark.parametrize(
    ("name", "options", "stages", "grid"),
    [
        ("vit_tiny_patch16_224", {"img_size": (64, 32), "depth": 6, "embed_dim": 12}, 4, (4, 2)),
        ("vit_tiny_patch16_224", {"img_size": (64, 32), "depth": 3, "embed_dim": 12, "reg_tokens": 2}, 3, (4, 2)),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": (64, 32), "embed_dim": 6, "depths": (1, 1), "num_heads": (1, 1), "window_size": 4},
            2,
            (8, 4),
        ),
        ("resnet10t", {}, 4, (2, 1)),
        ("convnext_atto", {"dims": (4, 6, 8, 10), "depths": (1, 1, 1, 1)}, 4, (2, 1)),
    ],
)
def test_networks_of_timm_get_a_controller_and_give_maps(
    name: str, options: dict[str, Any], stages: int, grid: tuple[int, int]
) -> None:
    model: Any = add_semantic_control(timm_model(name, **options), in_shape=(3, 64, 32))
    assert len(model.controller.stages) == stages
    assert model.controller.stages[-1].grid == grid
    if math.prod(grid) > 2:
        images, method = draw(4, 3, 64, 32), SOLIDER(parts=2, prototypes=8, width=4)
        step = Step(model, lambda groups: torch.optim.SGD(groups, 0.01), nn.CrossEntropyLoss(), methods=[method])
        assert step({"input": images, "target": torch.arange(4) % 3, "views": [images, images + 0.1]}).isfinite()


def test_networks_without_maps_and_inputs_that_are_no_images_are_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(UserError, match="no feature map"):
        add_semantic_control(flat, in_shape=(1, 4, 3))
    with pytest.raises(UserError, match="images"):
        add_semantic_control(flat, in_shape=(12,))
    with pytest.raises(OptionError, match="layers names 'nine'"):
        add_semantic_control(flat, in_shape=(1, 4, 3), layers=["nine"])
    with pytest.raises(OptionError, match="layers names '1'"):
        add_semantic_control(flat, in_shape=(1, 4, 3), layers=["1"])
    with pytest.raises(UserError, match="already"):
        add_semantic_control(network(), in_shape=(1, 12, 8))
    with pytest.raises(OptionError, match="ratio=2"):
        add_semantic_control(flat, in_shape=(1, 4, 3), ratio=2)
    with pytest.raises(ConflictError, match="add_semantic_control"):
        Step(flat, torch.optim.SGD(flat.parameters(), 0.1), nn.CrossEntropyLoss(), methods=[SOLIDER()])


def build(seed: int = 0, lr: float = 0.1, **options: Any) -> tuple[Step, Any]:
    method = SOLIDER(**{"parts": 2, "prototypes": 8, "width": 4, **options})
    model = network(layers=["1", "4"])
    step = Step(
        model, lambda groups: torch.optim.SGD(groups, lr), nn.CrossEntropyLoss(), methods=[method], seed=seed, epochs=4
    )
    return step, method


def batch(size: int = 6) -> dict[str, Any]:
    images = draw(size, 1, 12, 8)
    images[:, :, 9:] = 0
    views = [images + 0.1 * draw(size, 1, 12, 8, seed=seed) for seed in (1, 2)]
    return {"input": images, "target": torch.arange(size) % 3, "views": views}


def expected(
    step: Step, method: Any, entries: dict[str, Any], ratios: Tensor, erased: int
) -> tuple[Tensor, int, Tensor]:
    """Without any of the savings, all passes, copies of all images with parts and plain means.

    Returns:
        The loss, the number of views that have parts and a ratio of 1, and the mean output of the teacher.
    """
    model, teacher = step.run.model, method.teacher.model
    size = len(ratios)
    views, both = torch.cat(entries["views"]), ratios.repeat(2)

    def seen(net: Any, images: Tensor, ratios: Tensor) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        handle = net.controller.stages[-1].register_forward_hook(lambda module, args, output: kept.append(output))
        with net.controller.images(ratios):
            features, _ = features_and_output(net, images)
        handle.remove()
        return features, kept[0]

    _, maps = seen(teacher, views, torch.ones(2 * size))
    labels, used = part_labels(maps, method.parts)
    aims = method.teacher_head(seen(teacher, views, both)[0])
    total = functional.cross_entropy(model(entries["input"]), entries["target"])
    features, tokens = seen(model, views, both)
    total = total + distillation_loss(method.head(features).view(2, size, -1), aims.view(2, size, -1)).mean()
    if used.any():
        shown = functional.interpolate((labels[used] != erased).float()[:, None], size=views.shape[2:])
        _, copied = seen(model, views[used] * shown, both[used])
        told = method.part_head(torch.cat([copied, tokens[used]]).flatten(2).transpose(1, 2)).transpose(1, 2)
        losses = functional.cross_entropy(told, labels[used].flatten(1).repeat(2, 1), reduction="none")
        total = total + (losses * both[used].repeat(2)[:, None]).mean()
    return total, int((used & (both > 0)).sum()), aims.mean(0)


def drawn_by(step: Step, size: int = 6) -> tuple[Tensor, int]:
    """What the method draws in the next step: ratios of the images, and the part that is erased."""
    generator = torch.Generator()
    generator.set_state(step.run.generator("solider").get_state())
    erased = int(torch.randint(1, 3, (), generator=generator))
    return torch.randint(2, (size,), generator=generator).float(), erased


def test_a_step_has_the_loss_of_the_paper_at_fewer_passes() -> None:
    step, method = build()
    ratios, erased = drawn_by(step)
    entries = batch()
    with torch.no_grad():
        value, copies, centre = expected(step, method, entries, ratios, erased)
    assert 0 < copies < 12
    torch.testing.assert_close(step(entries), value)
    assert step.run.counts.backward == 6 + 12 + copies
    assert step.run.counts.forward == 6 + 12 + 2 * int((1 - ratios).sum()) + 12 + copies
    torch.testing.assert_close(method.centre, 0.1 * centre)


def test_images_seen_as_appearance_alone_teach_no_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    step, method = build()

    def none(self: SOLIDER, state: Any, size: int) -> tuple[Tensor, int]:
        state.memo["solider"] = {"outputs": []}
        return torch.zeros(size), 1

    monkeypatch.setattr(SOLIDER, "_draws", none)
    before = copy.deepcopy(method.part_head.state_dict())
    step(batch())
    assert all(torch.equal(value, before[name]) for name, value in method.part_head.state_dict().items())
    assert step.run.counts.backward == 6 + 12


def test_without_a_foreground_self_distillation_is_all_there_is() -> None:
    step, method = build()
    for net in (step.run.model, method.teacher.model):
        # All tokens alike.
        nn.init.zeros_(net.get_submodule("3").weight)
        nn.init.ones_(net.get_submodule("3").bias)
    entries = batch()
    with torch.no_grad():
        value, copies, _ = expected(step, method, entries, *drawn_by(step))
    assert copies == 0
    torch.testing.assert_close(step(entries), value)
    assert step.run.counts.backward == 6 + 12


def test_teacher_has_no_gradient_and_follows_with_its_controller_along_a_cosine() -> None:
    step, method = build(momentum=0.9)
    step.run.progress = 0.5
    old = copy.deepcopy(method.teacher.model.state_dict())
    step(batch())
    # Half way the teacher keeps 0.95.
    for name, value in method.teacher.model.state_dict().items():
        torch.testing.assert_close(value, old[name].lerp(step.run.model.state_dict()[name], 0.05))
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert all(p.grad is None for p in method.teacher_head.parameters())
    assert any("scale" in name for name in old)


def test_part_head_and_controller_are_trained() -> None:
    step, method = build()
    before = copy.deepcopy({**method.part_head.state_dict(), **step.run.model.controller.stages[-1].state_dict()})
    for _ in range(3):
        step(batch())
    after = {**method.part_head.state_dict(), **step.run.model.controller.stages[-1].state_dict()}
    assert not torch.equal(after["layers.0.weight"], before["layers.0.weight"])
    assert not torch.equal(after["scale"], before["scale"])
    assert not torch.equal(after["shift"], before["shift"])


def test_pre_training_without_labels_needs_none_and_leaves_the_last_layer() -> None:
    step, method = build(supervised=False)
    last = step.run.model[-1].weight.clone()
    entries = batch()
    with torch.no_grad():
        value, _, _ = expected(step, method, entries, *drawn_by(step))
        value = value - functional.cross_entropy(step.run.model(entries["input"]), entries["target"])
    del entries["target"]
    torch.testing.assert_close(step(entries), value)
    assert torch.equal(step.run.model[-1].weight, last)
    assert step.run.counts.backward >= 12


def test_last_layer_of_the_head_stands_still_in_the_first_epoch() -> None:
    step, method = build()
    before = method.head.directions.clone()
    step(batch())
    assert torch.equal(method.head.directions, before)
    step.end_epoch()
    step(batch())
    assert not torch.equal(method.head.directions, before)


def test_semantic_weight_of_nothing_passes_no_copies() -> None:
    step, method = build(semantic_weight=0.0)
    step(batch())
    assert method.part_head is None
    assert step.run.counts.backward == 6 + 12


@pytest.mark.parametrize(
    "options",
    [
        {"parts": 1},
        {"weight": -1.0},
        {"semantic_weight": -1.0},
        {"momentum": 1.5},
        {"prototypes": 1},
        {"width": 0},
        {"supervised": 2},
        {"supervised": False, "weight": 0.0},
    ],
)
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))}="):
        SOLIDER(**options)


def test_recipe_gives_the_network_its_controller_unless_nothing_is_to_be_learnt() -> None:
    recipe = Recipe(
        Part(f"{__name__}:network"), Part("torch.nn:CrossEntropyLoss"), Part("torch.optim:SGD", {"lr": 1.0})
    )
    edited = edit(recipe, ratio=0.4, layers=["0"], parts=2)
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(120, 3))
    model = edited.surgery[0].build(plain, outputs=3, in_shape=(1, 12, 8))
    assert isinstance(model.controller, SemanticController)
    assert model.controller.ratio == pytest.approx(0.4)
    assert edited.methods[0].build().parts == 2
    assert edit(recipe, weight=0.0).surgery == ()
