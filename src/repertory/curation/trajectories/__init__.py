"""Trajectory matching: experts and their snapshots, students whose training is differentiated, and what they miss."""

from repertory.curation.trajectories.condenser import TrajectoryCondenser, representatives
from repertory.curation.trajectories.experts import ExpertTraining, ExpertTrajectories, gradient_penalty
from repertory.curation.trajectories.matching import balance, matching_loss, unrolled
from repertory.curation.trajectories.network import FlatNetwork

__all__ = [
    "ExpertTraining",
    "ExpertTrajectories",
    "FlatNetwork",
    "TrajectoryCondenser",
    "balance",
    "gradient_penalty",
    "matching_loss",
    "representatives",
    "unrolled",
]
