"""What a recorded run says about wrong labels: numbers, tables, sentences and plots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from repertory.diagnostics.noisy_label_phases.recorder import Phase, PhaseRecorder, phase_one_end
from repertory.record import Curves, Panel, Record, Value

_SUSPECTS = 50
_BARS = 30


def report(recorder: PhaseRecorder, stop_above: float) -> Record:
    """Put what was seen into words, tables and plots.

    Args:
        recorder: after at least one epoch.
        stop_above: share of wrong labels from which training should stop at the end of phase one.
    """
    phases = recorder.phases
    end = phase_one_end(phases, known=False)
    at = len(phases) - 1 if end is None else end
    scores, held_out = recorder.noise_scores(), [phase.held_out for phase in phases]
    seen = [value for value in held_out if value is not None]
    values: dict[str, Value] = {
        "epochs": len(phases),
        "phase one ends after epoch": None if end is None else end + 1,
        "noise rate": recorder.noise_rate(),
        "separation": phases[at].separation,
        "labels fitted there": phases[at].fit,
        "labels fitted at end": phases[-1].fit,
        "held-out accuracy there": phases[at].held_out,
        "held-out accuracy at end": phases[-1].held_out,
        "held-out accuracy at best": max(seen) if seen else None,
        "right labels fitted there": phases[at].fit_right,
        "wrong labels fitted there": phases[at].fit_wrong,
        "area under ROC curve there": phases[at].found,
    }
    margins = recorder.margins()[at]
    tables = {"suspects": _suspects(scores, margins, recorder.targets.cpu()), "classes": _classes(scores, recorder)}
    return Record(
        "noisy-label-phases", values, _findings(values, end, stop_above), tables, _panels(phases, margins, at)
    )


def _suspects(scores: Tensor, margins: Tensor, targets: Tensor) -> dict[str, list[Value]]:
    # Probabilities are often equal near 1; the margin goes on where they end.
    order = sorted(range(len(scores)), key=lambda row: (-float(scores[row]), -float(margins[row])))[:_SUSPECTS]
    return {
        "index": list(order),
        "label": [int(targets[row]) for row in order],
        "wrong": [float(scores[row]) for row in order],
        "margin": [float(margins[row]) for row in order],
    }


def _classes(scores: Tensor, recorder: PhaseRecorder) -> dict[str, list[Value]]:
    targets = recorder.targets.cpu()
    labels, place, counts = targets.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(labels)).index_add_(0, place, scores)
    share = sums / counts if recorder.noise_rate() > 0 else torch.zeros_like(sums)
    return {"class": labels.tolist(), "examples": counts.tolist(), "noise rate": share.tolist()}


def _findings(values: dict[str, Value], end: int | None, stop_above: float) -> list[str]:
    if end is None:
        return [
            "No group of labels stands apart as wrong: there are few wrong ones, or the network learns none before the "
            "others. Go by held-out examples to stop."
        ]
    rate = float(values["noise rate"] or 0.0)
    said = [
        f"About {100 * rate:.0f} % of the labels look wrong: after epoch {end + 1} the network clearly prefers another "
        "class for them, and the label for the others. The table of suspects begins with the likeliest."
    ]
    if rate > stop_above:
        said.append(
            f"Training should stop after epoch {end + 1}: what comes after is mostly the learning of wrong labels."
        )
    else:
        said.append(f"That is at most {100 * stop_above:.0f} %: more training is expected to help in spite of them.")
    there, last = values["held-out accuracy there"], values["held-out accuracy at end"]
    if isinstance(there, float) and isinstance(last, float):
        said.append(
            f"On held-out examples accuracy is {100 * there:.1f} % there and {100 * last:.1f} % at the end; if their "
            "labels are no cleaner than those of training, it counts the learning of wrong ones as right."
        )
    return said


def _panels(phases: Sequence[Phase], margins: Tensor, at: int) -> list[Panel]:
    epochs = list(range(1, len(phases) + 1))

    def line(name: str) -> tuple[list[float], list[float]]:
        found = [(epoch, getattr(phase, name)) for epoch, phase in zip(epochs, phases)]
        return [float(e) for e, v in found if v is not None], [float(v) for _, v in found if v is not None]

    shares = {"labels fitted": "fit", "right labels": "fit_right", "wrong labels": "fit_wrong", "held out": "held_out"}
    lines = {label: line(name) for label, name in shares.items()}
    counts, edges = margins.double().histogram(_BARS)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    return [
        Curves("What is fitted", "epoch", "share", {name: xy for name, xy in lines.items() if xy[0]}),
        Curves(
            "Separation of the two groups",
            "epoch",
            "distance of means / sum of deviations",
            {"separation": line("separation"), "share that looks wrong": line("rate")},
        ),
        Curves(
            f"Margins after epoch {at + 1}",
            "preference of another class over the label",
            "examples",
            {"examples": (middles, counts.tolist())},
        ),
    ]
