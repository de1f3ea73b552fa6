r"""Watch right labels being learnt before wrong ones: how many are wrong, which, and when to stop.

## Idea
A network trained on labels of which some are wrong fits the right ones first: they agree with each other. In between
there is a time when it gives most right labels and contradicts most wrong ones; more training then only helps where
few labels are wrong. The instrument trains a copy and looks, after each epoch, at how much the network prefers another
class to each label. When these margins fall into two groups, one for and one against the label, the upper one is the
wrong labels: its size is the noise rate, its members the suspects, and the clearest moment the time to stop.

## Use it when
- you suspect wrong labels, and want to know how many, which, and of which classes;
- you have no clean held-out examples to stop by;
- you want to know from which noise rate on more training hurts with your network (`transition`).

## Do not use it when
- the task is so hard that wrong labels are learnt before most right ones are: no group then stands apart, and the rate
  reads as 0;
- a class is so rare that it is learnt last: it looks wrong; read the table of classes;
- wrong labels agree with what is seen (annotators err alike): they are learnt like right ones.

## Equations
Softmax regression from zero weights, one full step of rate $\eta$ on $K$ balanced orthonormal classes with a share
$\rho$ of wrong labels, gives the true class the lead
$$ M = \frac{\eta}{K} \Big(1 - \rho - \frac{\rho}{K - 1}\Big), \qquad \text{above } 0 \iff \rho < \frac{K - 1}{K} : $$
margins are $-M$ for right and $+M$ for wrong labels. Recorded is $g_i = \max_{j \ne y_i} z_{ij} - z_{iy_i}$; two normal
distributions fitted to it have the separation $(m_2 - m_1) / (s_1 + s_2)$, whose largest value ends phase one.

## Defaults
The paper has theorems and no released code; all numbers here are choices of this package: 30 epochs of SGD at 0.05 with
momentum 0.9 and batches of 64, `patience=5`, `stop_above=0.15`. A group counts as wrong labels from separation 1 on,
where it lies on the other side of zero, a quarter as far out as the others at least. Losses in place of margins take
the tail of hard right labels for wrong ones.

## Cost
A training of `epochs`, and a forward pass over the examples after each epoch.

## Claim
Right labels are fitted before wrong ones; how much later training hurts rises with the noise rate, from helping to
hurting; and stopping at the end of phase one keeps most of what it would cost, without a clean label.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from repertory.card import Card
from repertory.core.examples import default_criterion, examples_of
from repertory.core.randomness import generator_for
from repertory.diagnostics.noisy_label_phases.mixture import (
    TwoGroups,
    estimate_noise_rate,
    first_step_margin,
    margins,
    noise_scores,
    two_groups,
)
from repertory.diagnostics.noisy_label_phases.recorder import (
    Phase,
    PhaseRecorder,
    StoppingRule,
    phase_one_end,
    stopping_epoch,
)
from repertory.diagnostics.noisy_label_phases.report import report
from repertory.diagnostics.noisy_label_phases.transition import Transition, transition
from repertory.errors import check_number
from repertory.record import Record

CARD = Card(
    slug="noisy-label-phases",
    name="clean first, then noise",
    title="A Theoretical Analysis of Learning with Noisily Labeled Data",
    authors="Yi Xu et al.",
    year=2021,
    venue="arXiv 2021",
    link="https://arxiv.org/abs/2104.04114",
    kind="diagnostic",
    entry="NoisyLabelPhases",
    needs=("data",),
    problems=(
        "label noise",
        "finding label errors",
        "noise rate estimation",
        "early stopping",
        "memorisation",
        "sample selection",
    ),
    defaults={
        "epochs": 30,
        "lr": 0.05,
        "momentum": 0.9,
        "batch_size": 64,
        "patience": 5,
        "stop_above": 0.15,
    },
    scenarios=(),
    tags=("phase transition", "training dynamics", "mislabelled examples", "when to stop"),
)

__all__ = [
    "CARD",
    "NoisyLabelPhases",
    "Phase",
    "PhaseRecorder",
    "StoppingRule",
    "Transition",
    "TwoGroups",
    "estimate_noise_rate",
    "first_step_margin",
    "margins",
    "noise_scores",
    "phase_one_end",
    "stopping_epoch",
    "transition",
    "two_groups",
]


class NoisyLabelPhases:
    """Train a copy of a network on the labels as they are, and say which look wrong and when to stop.

    Args:
        epochs: passes over the examples.
        lr: learning rate of SGD.
        momentum: its momentum.
        batch_size: examples a step.
        patience: epochs without a clearer separation after which training ends, where many labels look wrong.
        stop_above: share of wrong labels that counts as many.

    Raises:
        OptionError: if an option is outside its range.

    >>> inputs, targets = torch.randn(40, 3), torch.arange(40) % 2
    >>> record = NoisyLabelPhases(epochs=2).measure(nn.Linear(3, 2), (inputs, targets))
    >>> sorted(record.tables)
    ['classes', 'suspects']

    Notes:
        The order of the examples is drawn from the seed; dropout draws from the global generator, as modules do, whose
        state is put back. Held-out accuracy tells what it says only as far as held-out labels are right.

    Reference: Xu et al., https://arxiv.org/abs/2104.04114.
    """

    def __init__(
        self,
        epochs: int = 30,
        lr: float = 0.05,
        momentum: float = 0.9,
        batch_size: int = 64,
        patience: int = 5,
        stop_above: float = 0.15,
    ) -> None:
        check_number("epochs", epochs, minimum=1, integer=True)
        check_number("lr", lr, above=0)
        check_number("momentum", momentum, minimum=0, below=1)
        check_number("batch_size", batch_size, minimum=1, integer=True)
        check_number("patience", patience, minimum=1, integer=True)
        check_number("stop_above", stop_above, minimum=0, maximum=1)
        self.epochs = epochs
        self.lr = lr
        self.momentum = momentum
        self.batch_size = batch_size
        self.patience = patience
        self.stop_above = stop_above

    def measure(
        self,
        model: nn.Module,
        data: Iterable[Any] | tuple[Tensor, Tensor],
        *,
        held_out: Iterable[Any] | tuple[Tensor, Tensor] | None = None,
        criterion: nn.Module | None = None,
        seed: int = 0,
        watch: Callable[[float], None] | None = None,
    ) -> Record:
        """Train a copy and say which labels look wrong.

        Args:
            model: the network to go on from; a fresh one shows the phases best.
            data: training examples with their labels, right or wrong.
            held_out: examples whose labels are right, for the record; the rule never looks at them.
            criterion: the loss.
            seed: of the order of the examples.
            watch: told the share that is done.

        Raises:
            DataError: if the labels are not classes, or the network's outputs stop being finite.
        """
        inputs, targets = examples_of(data)
        clean = None if held_out is None else examples_of(held_out)
        recorder = PhaseRecorder(inputs, targets, held_out=clean)
        rule = StoppingRule(recorder, self.patience, self.stop_above)
        network, loss = copy.deepcopy(model).train(), criterion or default_criterion(targets)
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)
        generator = generator_for(seed, CARD.slug)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for epoch in range(self.epochs):
                for rows in torch.randperm(len(inputs), generator=generator).to(inputs.device).split(self.batch_size):
                    optimizer.zero_grad()
                    loss(network(inputs[rows]), targets[rows]).mean().backward()
                    optimizer.step()
                stopped = rule.stop(network)
                if watch is not None:
                    watch(1.0 if stopped else (epoch + 1) / self.epochs)
                if stopped:
                    break
        return report(recorder, self.stop_above)
