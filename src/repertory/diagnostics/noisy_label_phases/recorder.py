"""Watch the labels being learnt, epoch by epoch, and stop where only wrong ones are left to learn."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repertory.core.examples import examples_of
from repertory.core.modes import evaluating
from repertory.core.ranking import roc_auc
from repertory.diagnostics.noisy_label_phases.mixture import TwoGroups, margins, noise_scores, two_groups
from repertory.errors import DataError, check_number

_CHUNK = 1024


@dataclass(frozen=True)
class Phase:
    """What was seen after one epoch.

    Args:
        separation: of the two groups of margins.
        rate: share of labels that look wrong; 0 where no group stands apart.
        loss: mean cross-entropy with the labels as they are.
        fit: share of the labels that the network gives.
        fit_right: the same of the labels that are right, None where that is unknown.
        fit_wrong: of those that are wrong.
        found: area under the ROC curve of the margins, of wrong labels against right ones.
        held_out: accuracy on examples that are not trained on, None without such.
    """

    separation: float
    rate: float
    loss: float
    fit: float
    fit_right: float | None = None
    fit_wrong: float | None = None
    found: float | None = None
    held_out: float | None = None


class PhaseRecorder:
    """Record how a network learns labels of which some may be wrong, in a loop of your own.

    Call `observe` after each epoch. The network is evaluated in evaluation mode on inputs without augmentation; its
    mode, gradients and buffers stay as they are.

    Args:
        inputs: training inputs `(examples, ...)`, as the network takes them.
        targets: their labels `(examples,)`, int64, right or wrong.
        clean_targets: the true labels, where they are known.
        held_out: inputs and true labels that are not trained on.

    Attributes:
        phases: what was seen after each epoch.

    Raises:
        DataError: if the data cannot be used.

    >>> inputs, targets = torch.tensor([[2.0], [3.0], [-2.0], [-3.0]]), torch.tensor([0, 0, 1, 0])
    >>> recorder = PhaseRecorder(inputs, targets, clean_targets=torch.tensor([0, 0, 1, 1]))
    >>> _ = recorder.observe(nn.Linear(1, 2))
    >>> len(recorder.phases), recorder.margins().shape
    (1, torch.Size([1, 4]))
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        clean_targets: Tensor | None = None,
        held_out: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.inputs, self.targets = examples_of((inputs, targets))
        if len(self.inputs) < 2 or self.targets.is_floating_point() or self.targets.ndim != 1:
            raise DataError(
                f"labels are {self.targets.dtype} of shape {tuple(self.targets.shape)}; phases are those of at least 2 "
                "examples with a class each, int64"
            )
        if clean_targets is not None and clean_targets.shape != self.targets.shape:
            raise DataError(
                f"clean_targets {tuple(clean_targets.shape)} must be one for each of {len(self.targets)} labels"
            )
        self.wrong = None if clean_targets is None else (clean_targets.to(self.targets) != self.targets).cpu()
        self.held_out = None if held_out is None else examples_of(held_out)
        self.phases: list[Phase] = []
        self._margins: list[Tensor] = []

    def observe(self, model: nn.Module) -> Phase:
        """Take down what the network makes of the labels, and return it."""
        logits = _logits(model, self.inputs)
        targets = self.targets.cpu()
        values = margins(logits, targets)
        if not bool(values.isfinite().all()):
            raise DataError("the network's outputs are not finite; a smaller learning rate helps most")
        self._margins.append(values)
        groups = two_groups(values)
        wrong = self.wrong if self.wrong is not None and 0 < int(self.wrong.sum()) < len(self.wrong) else None
        fitted = values < 0
        accuracy = None
        if self.held_out is not None:
            accuracy = float((_logits(model, self.held_out[0]).argmax(1) == self.held_out[1].cpu()).double().mean())
        seen = Phase(
            separation=groups.separation,
            rate=float(groups.weights[1]) if groups.wrong_apart else 0.0,
            loss=float(nn.functional.cross_entropy(logits, targets)),
            fit=float(fitted.double().mean()),
            fit_right=None if wrong is None else float(fitted[~wrong].double().mean()),
            fit_wrong=None if wrong is None else float(fitted[wrong].double().mean()),
            found=None if wrong is None else roc_auc(values, wrong),
            held_out=accuracy,
        )
        self.phases.append(seen)
        return seen

    def margins(self) -> Tensor:
        """Return the margins after each epoch `(epochs, examples)`."""
        if not self._margins:
            raise DataError("nothing was observed yet; call observe(model) after each epoch")
        return torch.stack(self._margins)

    def phase_one_end(self) -> int | None:
        """Return the epoch, from 0, at which `phase_one_end` sees the end of phase one; None where no phase is seen."""
        return phase_one_end(self.phases)

    def noise_rate(self) -> float:
        """Return the share of labels that look wrong at the end of phase one, 0 where none is seen."""
        end = phase_one_end(self.phases, known=False)
        return 0.0 if end is None else self.phases[end].rate

    def noise_scores(self) -> Tensor:
        """Return how likely each label is wrong `(examples,)`, at the end of phase one, or by now without one."""
        end = phase_one_end(self.phases, known=False)
        return noise_scores(self.margins()[-1 if end is None else end])

    def groups(self, epoch: int) -> TwoGroups:
        """Return the two groups of margins after an epoch, counted from 0."""
        return two_groups(self.margins()[epoch])


def phase_one_end(phases: Sequence[Phase], known: bool = True) -> int | None:
    """Return the epoch, from 0, until which right labels are learnt before wrong ones.

    Where it is known which labels are wrong, it is the one at which most right and fewest wrong labels are fitted. Else
    it is the one at which the margins fall most clearly into two groups, one of wrong labels; None where they never do.

    Args:
        phases: what was seen after each epoch.
        known: go by what is known of the labels.

    >>> phase_one_end([Phase(0.5, 0.0, 1.0, 0.5), Phase(1.4, 0.3, 0.8, 0.6), Phase(1.2, 0.2, 0.5, 0.8)])
    1
    """
    gaps = [
        phase.fit_right - phase.fit_wrong
        for phase in phases
        if phase.fit_right is not None and phase.fit_wrong is not None
    ]
    if known and gaps and len(gaps) == len(phases):
        return max(range(len(gaps)), key=gaps.__getitem__)
    told = [number for number, phase in enumerate(phases) if phase.rate > 0]
    return max(told, key=lambda number: phases[number].separation) if told else None


def stopping_epoch(phases: Sequence[Phase], patience: int = 5, stop_above: float = 0.15) -> int | None:
    """Return the epoch, from 0, whose weights are to be kept, or None as long as training should go on.

    Training ends when the end of phase one, told without knowing which labels are wrong, lies `patience` epochs back,
    and more than `stop_above` of the labels looked wrong there.

    Args:
        phases: what was seen after each epoch so far.
        patience: epochs without a clearer separation.
        stop_above: noise rate below which more training is expected to help.
    """
    end = phase_one_end(phases, known=False)
    if end is None or len(phases) - 1 - end < patience or phases[end].rate <= stop_above:
        return None
    return end


class StoppingRule:
    """Stop a loop of your own at the end of phase one, where many labels look wrong; no true label is looked at.

    The weights of the clearest separation so far are kept aside, so the network can be put back to them.

    Args:
        recorder: what watches the network; the rule calls its `observe`.
        patience: epochs to wait for a clearer separation.
        stop_above: share of wrong labels from which training is stopped; below it more training is expected to help.

    Raises:
        OptionError: if an option is outside its range.

    >>> recorder = PhaseRecorder(torch.randn(8, 2), torch.arange(8) % 2)
    >>> model, rule = nn.Linear(2, 2), StoppingRule(recorder, patience=3)
    >>> for epoch in range(5):  # train for an epoch, then:
    ...     if rule.stop(model):
    ...         break
    >>> rule.restore(model) in (True, False)
    True
    """

    def __init__(self, recorder: PhaseRecorder, patience: int = 5, stop_above: float = 0.15) -> None:
        check_number("patience", patience, minimum=1, integer=True)
        check_number("stop_above", stop_above, minimum=0, maximum=1)
        self.recorder = recorder
        self.patience = patience
        self.stop_above = stop_above
        self._kept: dict[str, Any] | None = None

    def stop(self, model: nn.Module) -> bool:
        """Observe the network after an epoch, and return whether to stop."""
        self.recorder.observe(model)
        phases = self.recorder.phases
        if phase_one_end(phases, known=False) == len(phases) - 1:
            self._kept = copy.deepcopy(model.state_dict())
        return stopping_epoch(phases, self.patience, self.stop_above) is not None

    def restore(self, model: nn.Module) -> bool:
        """Put the network back to the end of phase one, where so many labels look wrong that it is to be stopped.

        Returns:
            Whether it was; else it is left as it is.
        """
        if self._kept is None or self.recorder.noise_rate() <= self.stop_above:
            return False
        model.load_state_dict(self._kept)
        return True


@torch.no_grad()
def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    with evaluating(model):
        return torch.cat([model(part).float().cpu() for part in inputs.split(_CHUNK)])
