r"""Teach a small network what a trained one says of each input, not only which class is right.

## Idea
A trained network gives wrong classes probabilities too, and which of them it finds likelier tells how it
generalises. Dividing the logits of both networks by a temperature makes these small numbers large enough to be
learnt from. The student's loss is a mixture of the divergence from the softened teacher and its ordinary loss.

## Use it when
- a network that is good enough is too slow or too large to be used;
- an ensemble is to become one network;
- labels are few or noisy, and a teacher from elsewhere knows the classes.

## Do not use it when
- no teacher is better than the student by itself;
- the teacher saw other classes or other inputs than the student gets;
- teacher and student see different augmentations of an input: both must get the same one, as here;
- SGD is near its largest stable rate: early gradients are up to `temperature` times those of the labels' loss.

## Equations
With logits $z$ of the student, $v$ of the teacher, and temperature $T$,
$$ L = (1 - \alpha)\, \mathrm{CE}(z, y) + \alpha\, T^2\, \mathrm{KL}\big(\mathrm{softmax}(v / T) \,\|\,
   \mathrm{softmax}(z / T)\big). $$
Gradients through softened outputs shrink as $1 / T^2$; the factor makes up for it.

## Defaults
`temperature=4` and `alpha=0.9` are what most later work compares with (Tian et al. 2020). The paper gives none: it used
temperatures from 1 to 20, the lower the smaller the student, and says that labels should weigh considerably less than
the teacher.

## Cost
One forward pass of the teacher for each batch, without gradient.

## Claim
On MNIST a network of two layers of 800 units makes 146 test errors by itself and 74 with a teacher of 1200 units, which
makes 67.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from repertory.algorithms.saf import trajectory_loss
from repertory.card import Card
from repertory.core.consistency import wide
from repertory.core.method import Inner, Method
from repertory.core.state import State, batch_size
from repertory.errors import ConflictError, OptionError, check_number
from repertory.recipe import Part, Recipe

CARD = Card(
    slug="kd",
    name="KD",
    title="Distilling the Knowledge in a Neural Network",
    authors="Geoffrey Hinton, Oriol Vinyals, Jeff Dean",
    year=2015,
    venue="NIPS 2014 Deep Learning Workshop",
    link="https://arxiv.org/abs/1503.02531",
    kind="algorithm",
    entry="KD",
    problems=("knowledge distillation", "compress a network", "learn from a teacher", "soft targets"),
    defaults={"temperature": 4.0, "alpha": 0.9},
    scenarios=("distillation",),
    needs=("teacher",),
    neutral={"alpha": 0.0},
    search={"temperature": (1.0, 20.0), "alpha": (0.1, 1.0)},
    tags=("teacher", "student", "soft labels", "smaller model"),
    baseline=True,
)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    r"""Return $T^2\, \mathrm{KL}(\mathrm{softmax}(v / T) \,\|\, \mathrm{softmax}(z / T))$ of each example.

    Computed in float32 or wider.

    Args:
        student: logits $z$, `(batch, classes)`.
        teacher: logits $v$, `(batch, classes)`; no gradient goes to them.
        temperature: $T$, above 0.

    Returns:
        `(batch,)`, in nats times $T^2$.

    Raises:
        OptionError: if the shapes differ, or the temperature is not above 0.

    >>> import torch
    >>> distillation_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.])
    """
    check_number("temperature", temperature, above=0)
    if student.shape != teacher.shape or student.ndim != 2:
        raise OptionError(
            f"student of shape {tuple(student.shape)} and teacher of shape {tuple(teacher.shape)} must both be logits "
            "(batch, classes) of the same classes"
        )
    return trajectory_loss(wide(student), wide(teacher), temperature)


class KD(Method):
    """Knowledge distillation from the softened outputs of a teacher.

    The teacher is `run.teacher`: pass it to `Step`. It sees the inputs that the student sees in every evaluation.

    Args:
        temperature: softens both outputs (T), above 0.
        alpha: share of the teacher in the loss, in [0, 1]; 0 is the base loss.

    Raises:
        OptionError: if an option is outside its range.

    >>> import torch
    >>> from repertory import Step
    >>> student, teacher = torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Linear(8, 3))
    >>> optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    >>> step = Step(student, optimizer, torch.nn.CrossEntropyLoss(), methods=[KD()], teacher=teacher)
    >>> _ = step((torch.randn(4, 2), torch.tensor([0, 1, 2, 0])))
    >>> step.run.counts.forward
    8

    Notes:
        A pass of the teacher counts as one of the student, though a wider network takes longer; the seconds of a
        comparison tell.

    Reference: Hinton, Vinyals, Dean, https://arxiv.org/abs/1503.02531.
    """

    slug = "kd"
    needs = frozenset({"teacher"})

    def __init__(self, temperature: float = 4.0, alpha: float = 0.9) -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        check_number("alpha", alpha, minimum=0, maximum=1)
        self.temperature = temperature
        self.alpha = alpha

    def loss(self, state: State, inner: Inner) -> Tensor:
        """Mix the inner loss with the divergence from the teacher on the same inputs."""
        loss = inner(state)
        if self.alpha == 0:
            return loss
        teacher, output = state.run.teacher, state.output
        assert teacher is not None
        said = teacher(state.batch["input"])
        if said.shape != output.shape:
            raise ConflictError(
                f"the teacher gives {tuple(said.shape)}, the network {tuple(output.shape)}; kd needs logits "
                "(batch, classes) of the same classes from both"
            )
        state.run.counts.forward += batch_size(state.batch)
        divergence = distillation_loss(output, said, self.temperature)
        return (1 - self.alpha) * loss + self.alpha * (divergence if loss.ndim else divergence.mean())


def edit(recipe: Recipe, **options: Any) -> Recipe:
    """Add KD to the recipe's methods."""
    return recipe.add("methods", Part("repertory.algorithms.kd:KD", options, "kd"))
