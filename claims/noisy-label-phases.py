"""Are right labels learnt first, when does more training hurt, and does the stopping rule know?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from repertory.compare.claim import Claim, Statement
from repertory.core.randomness import generator_for
from repertory.core.ranking import roc_auc
from repertory.curation.data_diet import el2n
from repertory.diagnostics.noisy_label_phases import (
    PhaseRecorder,
    noise_scores,
    phase_one_end,
    stopping_epoch,
    transition,
)
from repertory.testing.worlds import digits, mlp, noisy_labels, predict


def recorded(
    rate: float, seed: int, sizes: list[int], batch_size: int, epochs: int, momentum: float
) -> tuple[PhaseRecorder, list[Tensor]]:
    """Train on labels of which a share is wrong; return what was seen, and the outputs after each epoch."""
    world = digits(seed)
    labels = noisy_labels(world.targets, rate, seed)
    held_out = (world.test_inputs, world.test_targets)
    recorder = PhaseRecorder(world.inputs, labels, clean_targets=world.targets, held_out=held_out)
    model = mlp(sizes, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)
    generator = generator_for(seed, "order")
    outputs = []
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(model(world.inputs[rows]), labels[rows]).backward()
            optimizer.step()
        recorder.observe(model)
        outputs.append(predict(model, world.inputs))
    return recorder, outputs


def turning(rate: float, seed: int) -> tuple[list[float], int]:
    """Train for the transition; return test accuracies and the end of phase one, told by the known wrong labels."""
    recorder, _ = recorded(rate, seed, [64, 256, 256, 10], batch_size=8, epochs=30, momentum=0.0)
    end = phase_one_end(recorder.phases)
    assert end is not None
    return [float(phase.held_out or 0.0) for phase in recorder.phases], end


def run(seed: int) -> dict[str, float]:
    """Record trainings at several noise rates; return what was fitted, found, kept and lost."""
    values = {"zero": 0.0}
    for rate in (0.1, 0.2, 0.4):
        recorder, outputs = recorded(rate, seed, [64, 128, 128, 10], batch_size=64, epochs=40, momentum=0.9)
        phases = recorder.phases
        accuracies = [float(phase.held_out or 0.0) for phase in phases]
        best, last = max(accuracies), accuracies[-1]
        stops = (stopping_epoch(phases[: epoch + 1]) for epoch in range(len(phases)))
        kept = next((epoch for epoch in stops if epoch is not None), len(phases) - 1)
        end = phase_one_end(phases, known=False)
        estimated = 0.0 if end is None else phases[end].rate
        values |= {
            f"{rate}/right fitted in the first epoch": float(phases[0].fit_right or 0.0),
            f"{rate}/wrong fitted in the first epoch": float(phases[0].fit_wrong or 0.0),
            f"{rate}/best less last": best - last,
            f"{rate}/kept": accuracies[kept],
            f"{rate}/halfway": (best + last) / 2,
            f"{rate}/error of the rate": abs(estimated - rate),
        }
        at, labels = len(phases) - 1 if end is None else end, recorder.targets
        wrong, confidence = recorder.wrong, outputs[at].softmax(1)[torch.arange(len(labels)), labels]
        values |= {
            f"{rate}/found by scores": roc_auc(noise_scores(recorder.margins()[at]), wrong),
            f"{rate}/found by self-confidence": roc_auc(-confidence, wrong),
            f"{rate}/found by EL2N": roc_auc(el2n(outputs[at], labels), wrong),
        }
    rates = (0.05, 0.1, 0.2, 0.3, 0.5)
    found = transition(turning, rates, [seed])
    values |= {f"change after phase one at {rate}": float(change) for rate, change in zip(rates, found.changes[:, 0])}
    values["crossing"] = -1.0 if found.crossing is None else found.crossing
    return values


CLAIM = Claim(
    slug="noisy-label-phases",
    claim="Right labels are fitted before wrong ones; later training helps at low noise rates and hurts at high ones; "
    "and a rule that sees no clean label stops in time.",
    paper="Two theorems on gradient descent on noisy labels: clean data first, and a transition in the noise rate "
    "beyond which more training raises the test error. The rule and the estimates are of this package.",
    experiment="scikit-learn digits, half for training, labels moved to any other class. Phases: perceptron "
    "64-128-128-10, SGD 0.05 with momentum 0.9, batches of 64, 40 epochs, rates 0.1, 0.2 and 0.4. Transition: "
    "perceptron 64-256-256-10, SGD 0.05, batches of 8, 30 epochs, rates from 0.05 to 0.5, phase one ended where most "
    "right and fewest wrong labels are fitted. Constant learning rates, 5 seeds. Scores and rates are those of the "
    "clearest separation of margins, told without knowing wrong labels; thresholds of the rule were set on seed 100.",
    statements=(
        Statement(
            "0.4: the first epoch fits more of the right labels than of the wrong ones",
            left="0.4/right fitted in the first epoch",
            right="0.4/wrong fitted in the first epoch",
            above=0.0,
        ),
        Statement(
            "Later training costs more accuracy at rate 0.4 than at 0.1",
            left="0.4/best less last",
            right="0.1/best less last",
            above=0.0,
        ),
        Statement(
            "Transition: at rate 0.05 training after phase one costs less than 1 point",
            left="change after phase one at 0.05",
            right="zero",
            above=-0.01,
        ),
        Statement(
            "Transition: at rate 0.5 it costs more than 5 points",
            left="change after phase one at 0.5",
            right="zero",
            below=-0.05,
        ),
        Statement(
            "0.4: the stopping rule keeps more than half of what the best epoch is above the last",
            left="0.4/kept",
            right="0.4/halfway",
            above=0.0,
        ),
        Statement("0.2: the noise rate is told within 0.1", left="0.2/error of the rate", right="zero", below=0.1),
        Statement("0.4: the noise rate is told within 0.1", left="0.4/error of the rate", right="zero", below=0.1),
        Statement(
            "0.4: scores find wrong labels as well as self-confidence does, within 0.02 of the area under the curve",
            left="0.4/found by scores",
            right="0.4/found by self-confidence",
            above=-0.02,
        ),
    ),
    run=run,
    seeds=5,
)
