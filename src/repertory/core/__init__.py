"""The training step: an onion of three calls, `step > gradient > loss`, each of which a method may wrap."""

from repertory.core.classifier import classifier_of, features_and_output, replace_classifier
from repertory.core.method import Method
from repertory.core.perturbation import frozen_norm_statistics, perturbed, total_norm
from repertory.core.randomness import generator_for
from repertory.core.state import Run, State
from repertory.core.step import Step
from repertory.core.tables import ExampleTable
from repertory.core.top_k import TopKTable

__all__ = [
    "ExampleTable",
    "Method",
    "Run",
    "State",
    "Step",
    "TopKTable",
    "classifier_of",
    "features_and_output",
    "frozen_norm_statistics",
    "generator_for",
    "perturbed",
    "replace_classifier",
    "total_norm",
]
