"""SoftTriple against hand calculation, limits, a maintained package, and the authors' formula for the regulariser."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from repertory import Part, Recipe, Step
from repertory.errors import ConflictError, OptionError
from repertory.losses import SoftTripleLoss
from repertory.losses.softtriple import center_spread, edit, relaxed_similarity

CLASSES, CENTERS, DIM, BATCH = 4, 3, 5, 6


def criterion(seed: int = 0, **options: object) -> SoftTripleLoss:
    made = SoftTripleLoss(CLASSES, **{"dim": DIM, "centers": CENTERS, **options}).double()
    generator = torch.Generator().manual_seed(seed)
    made.centers.data = torch.randn(made.centers.shape, generator=generator, dtype=torch.float64)
    return made


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)
    return functional.normalize(embedding, dim=1), torch.randint(CLASSES, (BATCH,), generator=generator)


def test_two_classes_of_two_centres_by_hand() -> None:
    made = SoftTripleLoss(2, dim=2, centers=2, scale=1.0, gamma=1.0, tau=0.0, margin=0.0)
    made.centers.data = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, -1.0]]])
    embedding = torch.tensor([[1.0, 0.0]])
    # S = (e / (e + 1), -1 / (e + 1)), one apart.
    torch.testing.assert_close(made.logits(embedding), torch.tensor([[0.731059, -0.268941]]), rtol=0, atol=1e-6)
    assert made(embedding, torch.tensor([0])).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)


def test_one_centre_is_softmax_on_cosines_with_a_margin() -> None:
    made = criterion(centers=1, tau=0.7, margin=0.2, scale=9.0)
    embedding, target = batch()
    cosines = embedding @ functional.normalize(made.centers[:, 0], dim=1).T
    expected = functional.cross_entropy(9.0 * (cosines - 0.2 * functional.one_hot(target, CLASSES)), target)
    torch.testing.assert_close(made(embedding, target), expected)


def test_small_gamma_takes_the_nearest_centre_and_large_gamma_their_mean() -> None:
    similarities = torch.randn(BATCH, CLASSES, CENTERS, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(relaxed_similarity(similarities, 1e-5), similarities.amax(-1))
    torch.testing.assert_close(relaxed_similarity(similarities, 1e6), similarities.mean(-1))


def test_equals_pytorch_metric_learning_without_the_regulariser() -> None:
    from pytorch_metric_learning.losses import SoftTripleLoss as Theirs

    ours = criterion(tau=0.0)
    theirs = Theirs(CLASSES, DIM, centers_per_class=CENTERS, la=20, gamma=0.1, margin=0.01).double()
    theirs.fc.data = ours.centers.detach().reshape(-1, DIM).T.clone()
    embedding, target = batch()
    left, right = (embedding.clone().requires_grad_() for _ in range(2))
    ours_loss, theirs_loss = ours(left, target), theirs(right, target)
    torch.testing.assert_close(ours_loss, theirs_loss)
    ours_loss.backward()
    theirs_loss.backward()
    torch.testing.assert_close(left.grad, right.grad)
    assert theirs.fc.grad is not None
    torch.testing.assert_close(ours.centers.grad, theirs.fc.grad.T.reshape(ours.centers.shape))


def test_regulariser_equals_a_sum_over_pairs() -> None:
    centers = functional.normalize(criterion().centers.detach(), dim=-1)
    total = 0.0
    for c in range(CLASSES):
        for k in range(CENTERS):
            for other in range(k + 1, CENTERS):
                total += math.sqrt(2 + 1e-5 - 2 * float(centers[c, k] @ centers[c, other]))
    expected = total / (CLASSES * CENTERS * (CENTERS - 1))
    assert center_spread(centers).item() == pytest.approx(expected, rel=1e-9)


def test_loss_is_classification_plus_the_weighted_regulariser() -> None:
    embedding, target = batch()
    with_it, without = criterion(tau=0.3), criterion(tau=0.0)
    spread = center_spread(functional.normalize(with_it.centers, dim=-1))
    torch.testing.assert_close(with_it(embedding, target), without(embedding, target) + 0.3 * spread)


def test_merged_centres_have_no_spread_and_the_gradient_of_one_centre() -> None:
    made = criterion()
    made.centers.data = made.centers.data[:, :1].repeat(1, CENTERS, 1)
    # Each of the 3 pairs of a class counts sqrt(1e-5), divided by 3 * 2.
    assert center_spread(functional.normalize(made.centers, dim=-1)).item() == pytest.approx(
        0.5e-5**0.5 / 2**0.5, rel=1e-3
    )
    embedding, target = batch()
    made(embedding, target).backward()
    assert made.centers.grad is not None
    # The regulariser has no direction there; the rest is the loss of one centre, spread evenly over the three.
    one = criterion(centers=1)
    one.centers.data = made.centers.data[:, :1].clone()
    one(embedding, target).backward()
    assert one.centers.grad is not None
    torch.testing.assert_close(made.centers.grad.sum(1, keepdim=True), one.centers.grad)


def test_the_order_of_a_class_centres_does_not_matter() -> None:
    made, shuffled = criterion(), criterion()
    shuffled.centers.data = shuffled.centers.data[:, [2, 0, 1]]
    torch.testing.assert_close(made(*batch()), shuffled(*batch()))


def test_the_length_of_embeddings_and_centres_does_not_matter() -> None:
    made, longer = criterion(), criterion()
    longer.centers.data *= 7.0
    embedding, target = batch()
    torch.testing.assert_close(made(embedding, target), longer(3.0 * embedding, target))


def test_gradients_are_those_of_finite_differences() -> None:
    made = criterion(scale=3.0)
    embedding, target = batch()

    def loss(embedding: Tensor, centers: Tensor) -> Tensor:
        return torch.func.functional_call(made, {"centers": centers}, (embedding, target))

    assert torch.autograd.gradcheck(loss, (embedding.requires_grad_(), made.centers.detach().requires_grad_()))


def test_reductions_agree() -> None:
    embedding, target = batch()
    values = criterion(reduction="none")(embedding, target)
    assert values.shape == (BATCH,)
    torch.testing.assert_close(values.mean(), criterion()(embedding, target))
    torch.testing.assert_close(values.sum(), criterion(reduction="sum")(embedding, target))
    torch.testing.assert_close(values[2:3].mean(), criterion()(embedding[2:3], target[2:3]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_float64_where_scales_are_large(dtype: torch.dtype, as_float64: Any) -> None:
    made = criterion(scale=1000.0, gamma=1e-3)
    embedding, target = batch()
    rows, centers = embedding.to(dtype), made.centers.detach().to(dtype)
    as_float64(lambda near, far: functional_call(made, {"centers": far}, (near, target)), rows, centers)
    # The square of a length overflows float16; a loss of cosines does not see it.
    near, far = (functional_call(made, {"centers": centers}, (scale * rows, target)) for scale in (1.0, 8192.0))
    torch.testing.assert_close(far, near)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near_float64_where_centres_merge(dtype: torch.dtype, as_float64: Any) -> None:
    made = criterion()
    merged = made.centers.detach()[:, :1].repeat(1, CENTERS, 1).to(dtype)
    embedding, target = batch()
    as_float64(lambda near, far: functional_call(made, {"centers": far}, (near, target)), embedding.to(dtype), merged)


def test_autocast_does_not_change_the_loss() -> None:
    made = criterion().float()
    embedding, target = batch()
    plain = made(embedding.float(), target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(embedding.float(), target), plain)
        assert torch.equal(made.logits(embedding.float()), made.logits(embedding.float()).float())


@pytest.mark.parametrize(
    "options",
    [
        {"outputs": 1},
        {"dim": 0},
        {"centers": 0},
        {"scale": 0.0},
        {"gamma": 0.0},
        {"tau": -1.0},
        {"margin": -0.1},
        {"lr_scale": -1.0},
        {"reduction": "max"},
    ],
)
def test_bad_options_are_named(options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=f"{name}="):
        SoftTripleLoss(**{"outputs": 3, **options})  # type: ignore[arg-type]


def test_embeddings_of_another_size_are_refused() -> None:
    with pytest.raises(OptionError, match=r"dim=5 .*\(6, 7\)"):
        criterion()(torch.zeros(6, 7), torch.zeros(6, dtype=torch.int64))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def recipe(optimizer: Part) -> Recipe:
    return Recipe(Part(f"{__name__}:network"), Part("torch.nn:CrossEntropyLoss"), optimizer)


def test_recipe_embeds_on_the_sphere_and_predicts_from_the_centres() -> None:
    edited = edit(recipe(Part("torch.optim:AdamW", {"lr": 1e-3})), dim=DIM, centers=2)
    model = edited.surgery[0].build(network(), outputs=CLASSES)
    made = edited.criterion.build(outputs=CLASSES)
    embedding = model(torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(BATCH))
    assert embedding.shape == (BATCH, DIM)
    assert made.centers.shape == (CLASSES, 2, DIM)
    assert made.logits(embedding).shape == (BATCH, CLASSES)


def test_centres_learn_at_the_authors_rate_in_a_recipe_and_a_hundredfold_by_default() -> None:
    edited = edit(recipe(Part("torch.optim:AdamW", {"lr": 4e-3})), dim=DIM)
    model = edited.surgery[0].build(network(), outputs=CLASSES)
    for made, rate in ((edited.criterion.build(outputs=CLASSES), 1e-2), (SoftTripleLoss(CLASSES, dim=DIM), 0.4)):
        step = Step(model, edited.optimizer.build, made)
        assert step.optimizer.param_groups[1]["params"][0] is made.centers
        assert [group["lr"] for group in step.optimizer.param_groups] == pytest.approx([4e-3, rate])


def test_refuses_soft_targets_when_a_step_is_built() -> None:
    from repertory.core import Method

    class Softener(Method):
        slug = "softener"
        gives = {"target": "soft"}

    with pytest.raises(ConflictError, match="SoftTripleLoss takes a hard target"):
        Step(network(), torch.optim.SGD(network().parameters(), 0.1), criterion(), methods=[Softener()])
