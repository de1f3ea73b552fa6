"""What condensers share: the condensed set, real examples by class, augmentation, networks as functions."""

from repertory.curation.condensing.augmentation import STRATEGY, draw_augmentation
from repertory.curation.condensing.functional import frozen_network, sgd_passes
from repertory.curation.condensing.real import RULES, RealClasses, RealExamples, herding, k_center
from repertory.curation.condensing.synthetic import Condensed, condensed_by, synthetic_start, to_raw

__all__ = [
    "RULES",
    "STRATEGY",
    "Condensed",
    "RealClasses",
    "RealExamples",
    "condensed_by",
    "draw_augmentation",
    "frozen_network",
    "herding",
    "k_center",
    "sgd_passes",
    "synthetic_start",
    "to_raw",
]
