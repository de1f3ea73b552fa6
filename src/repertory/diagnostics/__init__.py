"""Diagnostics: instruments that measure a model and data, each with a plot."""

from repertory.diagnostics.batch_size_lr import BatchSizeLR, LanczosTuner
from repertory.diagnostics.criticality import Criticality, critical_, critical_init
from repertory.diagnostics.icl_newton import ICLNewton
from repertory.diagnostics.multi_epoch import MultiEpoch
from repertory.diagnostics.noisy_label_phases import NoisyLabelPhases, PhaseRecorder, StoppingRule
from repertory.diagnostics.opposing_signals import OpposingSignals, Recorder
from repertory.diagnostics.provable_pretraining import ProvablePretraining
from repertory.diagnostics.sgd_stability import SGDStability

__all__ = [
    "BatchSizeLR",
    "Criticality",
    "ICLNewton",
    "LanczosTuner",
    "MultiEpoch",
    "NoisyLabelPhases",
    "OpposingSignals",
    "PhaseRecorder",
    "ProvablePretraining",
    "Recorder",
    "SGDStability",
    "StoppingRule",
    "critical_",
    "critical_init",
]
