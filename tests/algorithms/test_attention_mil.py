"""Attention pooling against brute force, its limits, and what a bag's size may not change."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from repertory import Part, Recipe, Step
from repertory.algorithms import AttentionMIL
from repertory.algorithms.attention_mil import edit
from repertory.core.bag_pooling import BatchBags
from repertory.core.classifier import classifier_of
from repertory.errors import ConflictError, DataError, OptionError
from repertory.layers.attention_pooling import AttentionClassifier, attention_head, attention_weights

SGD = functools.partial(torch.optim.SGD, lr=0.1)
GROUPS = torch.tensor([2, 0, 0, 1, 2, 2, 2])
LABELS = torch.tensor([1, 0, 0, 1, 1, 1, 1])


def features(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer(gated: bool = False) -> AttentionClassifier:
    made = AttentionClassifier(3, 2, width=4, gated=gated).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


@pytest.mark.parametrize("gated", [False, True])
def test_a_bag_is_classified_by_the_attended_mean_of_its_features(gated: bool) -> None:
    made, h = layer(gated), features()
    for bag, found in enumerate(made.bag_logits(h, GROUPS)):
        own = h[bag == GROUPS]
        hidden = (own @ made.hidden[0].T + made.hidden_bias[0]).tanh()
        if gated:
            hidden = hidden * (own @ made.hidden[1].T + made.hidden_bias[1]).sigmoid()
        attention = (hidden @ made.score).softmax(0)
        torch.testing.assert_close(found, made.weight @ (attention @ own) + made.bias)


def test_without_scores_a_bag_is_the_plain_mean_and_a_single_instance_is_itself() -> None:
    made, h = layer(), features()
    nn.init.zeros_(made.score)
    found = made.bag_logits(h, GROUPS)
    torch.testing.assert_close(found[2], made(h[GROUPS == 2].mean(0)))
    torch.testing.assert_close(layer().bag_logits(h, GROUPS)[1], layer()(h[3]))


def test_weights_sum_to_one_in_every_bag_and_do_not_overflow() -> None:
    weights = attention_weights(torch.tensor([1e4, 0.0, 1.0, -1e4, 1e4, 0.0, 0.0]), GROUPS)
    torch.testing.assert_close(torch.zeros(3).index_add_(0, GROUPS, weights), torch.ones(3))
    assert weights.isfinite().all()


def test_the_order_of_instances_does_not_matter() -> None:
    made, h, order = layer(), features(), torch.randperm(7, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(made.bag_logits(h[order], GROUPS[order]), made.bag_logits(h, GROUPS))


def test_pooling_in_a_batch_equals_pooling_of_bags() -> None:
    made, h = layer(), features()
    pooled = BatchBags.of(GROUPS).attended(made(h), made.attention(h))
    torch.testing.assert_close(pooled, made.bag_logits(h, GROUPS)[GROUPS])
    torch.testing.assert_close(BatchBags.of(GROUPS).mean(h)[4], h[GROUPS == 2].mean(0))


def test_the_gradient_of_attention_is_right() -> None:
    made, h = layer(gated=True), features().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: made.bag_logits(x, GROUPS), h)


def model_and_batch() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    return model, {"input": features(dtype=torch.float32), "target": LABELS, "group": GROUPS}


def test_the_loss_is_the_mean_over_bags_whatever_their_sizes() -> None:
    model, batch = model_and_batch()
    step = Step(model, SGD, nn.CrossEntropyLoss(), methods=[AttentionMIL(width=4)], classes=2)
    with torch.no_grad():
        logits = step.run.model[2].bag_logits(model[:2](batch["input"]), GROUPS)
    expected = functional.cross_entropy(logits, torch.tensor([0, 1, 1]))
    assert step(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_bags_may_be_numbered_in_any_way() -> None:
    losses = []
    for shift in (0, 1000):
        model, batch = model_and_batch()
        step = Step(model, SGD, nn.CrossEntropyLoss(), methods=[AttentionMIL()], classes=2)
        losses.append(step({**batch, "group": GROUPS * 7 + shift}).item())
    assert losses[0] == losses[1]


def test_what_the_classifier_has_learnt_stays_and_instances_are_classified_as_before() -> None:
    model, batch = model_and_batch()
    before = model(batch["input"])
    attention_head(model, outputs=2, width=4)
    torch.testing.assert_close(model(batch["input"]), before)
    assert attention_head(model, outputs=2) is model
    assert classifier_of(model)[1].hidden.shape == (1, 4, 5)


def test_attention_learns_which_instance_decides() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = 0.3 * torch.randn(40, 5, 3, generator=generator)
    target = torch.arange(40) % 2
    inputs[target == 1, 0, 0] += 2.0
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = functools.partial(torch.optim.Adam, lr=0.01)
    step = Step(model, optimizer, nn.CrossEntropyLoss(), methods=[AttentionMIL(width=8)], classes=2)
    groups = torch.arange(40).repeat_interleave(5)
    batch = {"input": inputs.flatten(0, 1), "target": target.repeat_interleave(5), "group": groups}
    for _ in range(60):
        step(batch)
    hidden = model[:2](batch["input"])
    weights = attention_weights(model[2].attention(hidden), groups).view(40, 5)
    assert weights[target == 1].argmax(1).eq(0).float().mean() > 0.9


def test_half_precision_gives_the_losses_of_full_precision() -> None:
    losses = []
    for precision in ("32", "bf16"):
        model, batch = model_and_batch()
        step = Step(model, SGD, nn.CrossEntropyLoss(), methods=[AttentionMIL(width=4)], classes=2, precision=precision)
        losses.append(step(batch).item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_the_recipe_gets_a_head_batches_of_bags_and_the_method() -> None:
    recipe = edit(Recipe(model=Part("a:b"), criterion=Part("c:d"), optimizer=Part("e:f")), gated=True)
    assert recipe.sampler is not None
    assert recipe.sampler.factory.endswith("BagBatches")
    assert [part.options for part in (*recipe.surgery, *recipe.methods)] == [{"gated": True}] * 2


@pytest.mark.parametrize("options", [{"width": 0}, {"gated": "yes"}])
def test_bad_options_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        AttentionMIL(**options)
    with pytest.raises(OptionError, match=next(iter(options))):
        AttentionClassifier(3, 2, **options)


def test_batches_without_groups_and_groups_of_another_length_are_refused() -> None:
    model, batch = model_and_batch()
    step = Step(model, SGD, nn.CrossEntropyLoss(), methods=[AttentionMIL()], classes=2)
    with pytest.raises(ConflictError, match="needs 'group'"):
        step({"input": batch["input"], "target": LABELS})
    with pytest.raises(DataError, match="one bag for each of 7 instances"):
        layer().bag_logits(features(), GROUPS[:3])
    with pytest.raises(DataError, match="give the number of its bag"):
        BatchBags.of(GROUPS.float())
