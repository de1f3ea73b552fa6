"""Curation: choosing, scoring and condensing training examples."""

from repertory.curation.data_diet import DataDiet
from repertory.curation.dc import DatasetCondensation
from repertory.curation.dcc import DCC
from repertory.curation.mtt import MTT
from repertory.curation.simple_propagation import SimPLe, extreme_points, initial_mask
from repertory.curation.smooth_trajectories import AST
from repertory.curation.transreid_ssl import CFS

__all__ = ["AST", "CFS", "DCC", "MTT", "DataDiet", "DatasetCondensation", "SimPLe", "extreme_points", "initial_mask"]
