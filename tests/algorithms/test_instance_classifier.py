"""The softmax over instances: in blocks, over processes, from raw features, with targets over the hardest classes."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms.instance_classifier import (
    InstanceClassifier,
    chunked_softmax_loss,
    sharded_softmax_loss,
    smoothed_targets,
)
from repertory.errors import ConflictError, DataError, OptionError

EXAMPLES = 9

SHARDED = """
import os, sys
import torch
from torch import distributed
from repertory.algorithms.instance_classifier import sharded_softmax_loss

folder = sys.argv[1]
rank = 1 if os.fork() == 0 else 0
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
world = torch.load(f"{folder}/world.pt", weights_only=True)
mine = slice(0, 3) if rank == 0 else slice(3, 6)
rows = slice(0, 4) if rank == 0 else slice(4, 11)
inputs, labels, shares = (world[name][mine] for name in ("inputs", "labels", "shares"))
encoder, weight = world["encoder"].requires_grad_(), world["weight"][rows].clone().requires_grad_()
for _ in range(2):
    values = sharded_softmax_loss(inputs @ encoder, weight, labels, shares, 0.15, chunk=3)
    gradients = torch.autograd.grad(values.mean(), (encoder, weight))
    mean = gradients[0].clone()
    distributed.all_reduce(mean)
    with torch.no_grad():
        encoder -= 0.1 * mean / 2
        weight -= 0.1 * gradients[1]
torch.save({"values": values.detach(), "encoder": encoder.detach(), "weight": weight.detach()}, f"{folder}/{rank}.pt")
distributed.barrier()
if rank == 0:
    os.wait()
"""


def world() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shares = draw(6, 3).softmax(1)
    labels = torch.stack([torch.randperm(11, generator=generator)[:3] for _ in range(6)])
    return {"inputs": draw(6, 5), "encoder": draw(5, 4), "weight": draw(11, 4), "labels": labels, "shares": shares}


def reference(features: Tensor, weight: Tensor, labels: Tensor, shares: Tensor, temperature: float) -> Tensor:
    target = torch.zeros(len(labels), len(weight), dtype=shares.dtype).scatter_add(1, labels, shares)
    logits = F.normalize(features, dim=1) @ F.normalize(weight, dim=1).T / temperature
    return F.cross_entropy(logits, target, reduction="none")


def network(norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 3))


def everything() -> dict[str, Tensor]:
    inputs = 3 * torch.randn(EXAMPLES, 6, generator=torch.Generator().manual_seed(0)) + 1
    order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(1))
    return {"input": inputs[order], "index": order}


def step_of(method: InstanceClassifier, norm: bool = False, **options: Any) -> Step:
    given = {"examples": EXAMPLES, "training": [everything()], **options}
    return Step(network(norm), lambda groups: torch.optim.SGD(groups, lr=0.1), nn.CrossEntropyLoss(), [method], **given)


def batch(noise: float = 0.1) -> dict[str, Any]:
    made = everything()
    changed = made["input"] + noise * torch.randn(2, EXAMPLES, 6, generator=torch.Generator().manual_seed(2))
    return {**made, "views": list(changed)}


@pytest.mark.parametrize("chunk", [None, 1, 4, 11, 50])
def test_blocks_give_value_and_gradients_of_the_whole_softmax(chunk: int | None) -> None:
    made = world()
    leaves = [(made["inputs"] @ made["encoder"]).requires_grad_(), made["weight"].requires_grad_()]
    found = chunked_softmax_loss(*leaves, made["labels"], made["shares"], 0.15, chunk)
    expected = reference(*leaves, made["labels"], made["shares"], 0.15)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pull = torch.arange(1.0, 7.0, dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad((each * pull).sum(), leaves) for each in (found, expected))):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_gradient_by_finite_differences() -> None:
    made = world()
    leaves = (made["inputs"][:2, :4].clone().requires_grad_(), made["weight"][:5].clone().requires_grad_())
    labels = torch.tensor([[0, 2], [4, 1]])
    assert torch.autograd.gradcheck(
        lambda f, w: chunked_softmax_loss(f, w, labels, made["shares"][:2, :2], 0.3, 2), leaves
    )


def test_orthogonal_rows_have_a_closed_form_and_lengths_do_not_matter() -> None:
    rows = torch.eye(1000, dtype=torch.float64)
    lengths = torch.linspace(0.1, 5, 1000, dtype=torch.float64)[:, None]
    found = chunked_softmax_loss(7 * rows[:3], lengths * rows, torch.tensor([0, 1, 5]), temperature=0.15, chunk=300)
    expected = [math.log(1 + 999 * math.exp(-1 / 0.15))] * 2
    assert found[:2].tolist() == pytest.approx(expected, rel=1e-12)
    assert found[2].item() == pytest.approx(expected[0] + 1 / 0.15, rel=1e-12)


def test_memory_of_the_logits_is_that_of_a_block() -> None:
    made = world()
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                sizes.append(result.numel())
            return result

    features = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(500, 2, dtype=torch.float64, requires_grad=True)
    with Watch():
        chunked_softmax_loss(features, weight, made["labels"], made["shares"], 0.15, chunk=10).sum().backward()
    assert max(sizes) <= 500 * 2  # the table itself; all logits would be 6 x 500


def test_half_precision_at_a_low_temperature_is_that_of_its_own_inputs() -> None:
    made = world()
    half = [(made["inputs"] @ made["encoder"]).bfloat16(), made["weight"].bfloat16()]
    with torch.autocast("cpu", torch.bfloat16):
        found = chunked_softmax_loss(half[0], half[1], made["labels"], made["shares"].float(), 0.01, 4)
    expected = reference(half[0].double(), half[1].double(), made["labels"], made["shares"], 0.01)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_two_processes_with_half_of_the_classes_each_make_the_updates_of_one(tmp_path: Path) -> None:
    made = world()
    torch.save(made, tmp_path / "world.pt")
    run = [sys.executable, "-c", SHARDED, str(tmp_path)]
    subprocess.run(run, check=True, timeout=300, stderr=subprocess.DEVNULL)
    encoder, weight = made["encoder"].clone().requires_grad_(), made["weight"].clone().requires_grad_()
    for _ in range(2):
        values = reference(made["inputs"] @ encoder, weight, made["labels"], made["shares"], 0.15)
        slopes = torch.autograd.grad(values.mean(), (encoder, weight))
        with torch.no_grad():
            encoder -= 0.1 * slopes[0]
            weight -= 0.1 * slopes[1]
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for part in parts:
        torch.testing.assert_close(part["encoder"], encoder.detach(), rtol=1e-10, atol=1e-12)
    for name, whole in (("values", values), ("weight", weight)):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole.detach(), rtol=1e-10, atol=1e-12)


def test_sharded_is_chunked_in_one_process() -> None:
    made = world()
    given = (made["inputs"] @ made["encoder"], made["weight"], made["labels"], made["shares"], 0.15, 4)
    assert torch.equal(sharded_softmax_loss(*given), chunked_softmax_loss(*given))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": torch.tensor([0, 11])}, "labels go from 0 to 11, but there are rows for 11 classes"),
        ({"labels": torch.tensor([0, -1])}, "labels go from -1 to 0"),
        ({"labels": torch.tensor([0])}, r"labels \(1, 1\) and shares \(1, 1\).*features \(2, 4\)"),
        ({"weight": torch.zeros(11, 3)}, r"weight \(11, 3\).*the same dim"),
        ({"shares": torch.ones(2, 2)}, r"labels \(2, 1\) and shares \(2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Tensor], words: str) -> None:
    given = {"features": torch.ones(2, 4), "weight": torch.ones(11, 4), "labels": torch.tensor([0, 1]), **changes}
    with pytest.raises(DataError, match=words):
        chunked_softmax_loss(**given)


def test_targets_by_hand_sum_to_one() -> None:
    labels, shares = smoothed_targets(torch.tensor([0, 3]), torch.tensor([[1, 2], [2, 0]]), 0.2)
    assert labels.tolist() == [[0, 1, 2], [3, 2, 0]]
    torch.testing.assert_close(shares, torch.tensor([[0.8, 0.1, 0.1]] * 2))


@pytest.mark.parametrize("norm", [False, True])
def test_rows_start_from_the_features_of_their_own_examples(norm: bool) -> None:
    method = InstanceClassifier(hardest=2, dim=4)
    step = step_of(method, norm)
    method.step(_state(step), lambda state: torch.tensor(0.0))
    made, model = everything(), step.run.model.eval()
    assert method.projection is not None
    with torch.no_grad():
        found = F.normalize(method.projection(model[:2](made["input"])), dim=1)
    torch.testing.assert_close(method.weight[made["index"]].detach(), found, rtol=1e-5, atol=1e-6)
    logits = found @ method.weight.detach().T
    assert torch.equal(logits.argmax(1), made["index"])
    assert (step.run.counts.forward, step.run.counts.backward) == ((1 + norm) * EXAMPLES, 0)


def test_centred_rows_have_no_common_direction() -> None:
    lengths = {}
    for center in (False, True):
        method = InstanceClassifier(hardest=2, dim=4, center=center)
        method.step(_state(step_of(method)), lambda state: torch.tensor(0.0))
        lengths[center] = float(method.weight.detach().mean(0).norm())
    assert lengths[True] < lengths[False] / 2


def test_the_hardest_classes_are_the_nearest_rows_at_the_epochs_start_and_never_ones_own() -> None:
    method = InstanceClassifier(hardest=3, dim=4)
    step = step_of(method)
    step(batch())
    before = method.neighbours.clone()
    step(batch())
    assert torch.equal(method.neighbours, before)
    step.end_epoch()
    rows = F.normalize(method.weight.detach(), dim=1)
    cosines = (rows @ rows.T).fill_diagonal_(-2)
    assert [set(row) for row in method.neighbours.tolist()] == [set(row) for row in cosines.topk(3).indices.tolist()]


def test_a_step_is_that_of_a_plain_loop() -> None:
    method = InstanceClassifier(hardest=2, dim=4, views=2, temperature=0.3)
    step = step_of(method)
    method.step(_state(step), lambda state: torch.tensor(0.0))
    plain, head = network(), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    assert method.projection is not None
    head.load_state_dict(method.projection.state_dict())
    weight, near = method.weight.detach().clone().requires_grad_(), method.neighbours.clone()
    leaves = [*plain[:2].parameters(), *head.parameters(), weight]
    made = batch()
    for _ in range(2):
        found = step(made)
        target = torch.zeros(EXAMPLES, EXAMPLES)
        for row, own in enumerate(made["index"].tolist()):
            target[row, own] = 0.8
            target[row, near[own]] = 0.1
        unit = F.normalize(weight, dim=1)
        losses = [
            F.cross_entropy(F.normalize(head(plain[:2](view)), dim=1) @ unit.T / 0.3, target) for view in made["views"]
        ]
        loss = (losses[0] + losses[1]) / 2
        assert float(found) == pytest.approx(float(loss.detach()), rel=1e-5)
        for leaf, slope in zip(leaves, torch.autograd.grad(loss, leaves)):
            leaf.data -= 0.1 * slope
    torch.testing.assert_close(method.weight.detach(), weight.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(step.run.model[0].weight.detach(), plain[0].weight.detach(), rtol=1e-4, atol=1e-6)


def test_without_smoothing_the_target_is_the_example_alone() -> None:
    method = InstanceClassifier(alpha=0.0, dim=4, temperature=0.3)
    step = step_of(method)
    outputs: list[Tensor] = []
    assert method.projection is not None
    method.projection.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
    made = batch()
    found = step(made)
    # The last forward pass is that of the step; the rows are what they started from.
    again = InstanceClassifier(alpha=0.0, dim=4, temperature=0.3)
    again.step(_state(step_of(again)), lambda state: torch.tensor(0.0))
    logits = F.normalize(outputs[-1].flatten(0, 1), dim=1) @ again.weight.detach().T / 0.3
    assert float(found) == pytest.approx(float(F.cross_entropy(logits, made["index"])), rel=1e-5)


def test_a_resumed_run_does_not_start_the_rows_anew() -> None:
    method, other = InstanceClassifier(hardest=2, dim=4), InstanceClassifier(hardest=2, dim=4)
    step, again = step_of(method), step_of(other)
    for _ in range(2):
        step(batch())
    step.end_epoch()
    step(batch())
    again.load_state_dict(step.state_dict())
    assert float(again(batch())) == float(step(batch()))
    assert torch.equal(other.weight, method.weight)


@pytest.mark.parametrize(
    ("options", "given", "error", "words"),
    [
        ({"hardest": 2}, {"examples": None}, OptionError, "pass examples="),
        ({"hardest": 9}, {}, OptionError, "hardest=9 must be below the number of examples, 9"),
        ({"hardest": 2}, {"training": None}, ConflictError, "needs 'training'"),
        ({"hardest": 2}, {"training": []}, DataError, "run.training gave no examples"),
        ({"hardest": 2}, {"examples": 5}, DataError, "index goes from 0 to 8.*5 examples"),
    ],
)
def test_runs_that_cannot_work_say_what_to_do(
    options: dict[str, Any], given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        step_of(InstanceClassifier(**options), **given)(batch())


def _state(step: Step) -> Any:
    from repertory.core.state import State

    return State(step.run, batch())


def test_every_option_of_the_rows_start_leads_to_other_rows() -> None:
    rows = []
    for options in ({"start": "features"}, {"start": "random"}, {"center": True}):
        method = InstanceClassifier(hardest=2, dim=4, **options)  # type: ignore[arg-type]
        method.step(_state(step_of(method)), lambda state: torch.tensor(0.0))
        rows.append(method.weight.detach())
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(rows, 2))
