"""KD against torch's own divergence, the released code of RepDistiller, the limit of high temperatures, and a loop."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repertory import Step
from repertory.algorithms import KD, PSKD, SAM, distillation_loss
from repertory.errors import ConflictError, OptionError

RELEASED = json.loads((Path(__file__).parent / "kd_released.json").read_text())


def logits(seed: int, *shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int, width: int = 8) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def batch() -> dict[str, Tensor]:
    return {"input": logits(9, 8, 4).float(), "target": torch.arange(8) % 3}


def stepper(model: nn.Module, *methods: object, teacher: nn.Module | None = None, **more: object) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Step(model, optimizer, nn.CrossEntropyLoss(), methods=list(methods), teacher=teacher, **more)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_is_torchs_divergence_of_the_softened_outputs_times_the_square_of_the_temperature(temperature: float) -> None:
    student, teacher = logits(0, 5, 7), logits(1, 5, 7)
    expected = F.kl_div(
        F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1), reduction="batchmean"
    )
    torch.testing.assert_close(distillation_loss(student, teacher, temperature).mean(), expected * temperature**2)


@pytest.mark.parametrize("case", RELEASED["cases"], ids=lambda case: f"T={case['temperature']}")
def test_agrees_with_a_released_implementation(case: dict[str, object]) -> None:
    student, teacher = torch.tensor(RELEASED["student"]), torch.tensor(RELEASED["teacher"])
    found = distillation_loss(student, teacher, case["temperature"]).mean()
    torch.testing.assert_close(found, torch.tensor(case["loss"]), rtol=1e-5, atol=1e-6)


def test_high_temperatures_match_centred_logits() -> None:
    student, teacher = (logits(seed, 6, 5) for seed in (0, 1))
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    torch.testing.assert_close(
        distillation_loss(student, teacher, 1e5), centred.square().sum(1) / (2 * 5), rtol=1e-3, atol=1e-6
    )


def test_the_gradient_is_the_difference_of_the_softened_outputs_times_the_temperature() -> None:
    student, teacher = logits(0, 6, 5).requires_grad_(), logits(1, 6, 5).requires_grad_()
    distillation_loss(student, teacher, 2.5).sum().backward()
    expected = 2.5 * ((student.detach() / 2.5).softmax(1) - (teacher.detach() / 2.5).softmax(1))
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None
    fixed = teacher.detach()
    assert torch.autograd.gradcheck(lambda z: distillation_loss(z, fixed, 2.5), student)


def test_constants_added_to_either_networks_logits_change_nothing_and_equal_logits_give_nothing() -> None:
    student, teacher = logits(0, 6, 5), logits(1, 6, 5)
    torch.testing.assert_close(distillation_loss(student + 3, teacher - 2), distillation_loss(student, teacher))
    assert float(distillation_loss(student, student).abs().max()) < 1e-12
    assert bool((distillation_loss(student, teacher) > 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (logits(seed, 6, 5).to(dtype) for seed in (0, 1))
    found = distillation_loss(student, teacher, 0.01)
    assert found.dtype == torch.float32
    exact = distillation_loss(student.double(), teacher.double(), 0.01)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_step_is_that_of_the_mixture_written_out() -> None:
    model, teacher = network(0), network(1, width=16)
    plain = copy.deepcopy(model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    step = stepper(model, KD(temperature=3.0, alpha=0.7), teacher=teacher)
    for _ in range(4):
        loss = step(batch())
        inputs, target = batch()["input"], batch()["target"]
        output, said = plain(inputs), teacher(inputs)
        soft = F.cross_entropy(output / 3, (said / 3).softmax(1)) - F.cross_entropy(said / 3, (said / 3).softmax(1))
        expected = 0.3 * F.cross_entropy(output, target) + 0.7 * 9 * soft
        torch.testing.assert_close(loss, expected.detach())
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()))
    assert (step.run.counts.forward, step.run.counts.backward) == (4 * 16, 4 * 8)


def test_micro_batches_and_a_criterion_without_values_an_example_make_the_same_step() -> None:
    def whole(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    ends = []
    for criterion, accumulate in ((nn.CrossEntropyLoss(), 1), (nn.CrossEntropyLoss(), 4), (whole, 1)):
        model = network(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        Step(model, optimizer, criterion, methods=[KD()], teacher=network(1), accumulate=accumulate)(batch())
        ends.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2])


def test_the_teacher_is_asked_about_the_perturbed_evaluation_of_sam_too() -> None:
    step = stepper(network(0), SAM(rho=0.1), KD(), teacher=network(1))
    step(batch())
    assert (step.run.counts.forward, step.run.counts.backward) == (4 * 8, 2 * 8)


def test_it_works_around_softened_targets() -> None:
    step = stepper(network(0), KD(), PSKD(), teacher=network(1), epochs=3, classes=3)
    assert float(step({**batch(), "index": torch.arange(8)})) > 0


def test_at_alpha_zero_the_teacher_is_not_evaluated() -> None:
    step = stepper(network(0), KD(alpha=0.0), teacher=network(1))
    step(batch())
    assert step.run.counts.forward == 8


def test_bad_input_is_refused_with_its_shapes() -> None:
    with pytest.raises(OptionError, match="temperature=0"):
        KD(temperature=0)
    with pytest.raises(OptionError, match=r"alpha=1\.5"):
        KD(alpha=1.5)
    with pytest.raises(OptionError, match=r"\(2, 3\) and teacher of shape \(2, 4\)"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    other = nn.Linear(4, 5)
    with pytest.raises(ConflictError, match=r"the teacher gives \(8, 5\), the network \(8, 3\)"):
        stepper(network(0), KD(), teacher=other)(batch())
    with pytest.raises(ConflictError, match="pass teacher=module"):
        stepper(network(0), KD())
