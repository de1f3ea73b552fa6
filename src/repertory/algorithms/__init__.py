"""Training algorithms: `core.Method`s that wrap the calls of a training step."""

from repertory.algorithms.adadagrad import AdAdaGrad
from repertory.algorithms.attention_mil import AttentionMIL
from repertory.algorithms.bo_rep import BOREPCleaning
from repertory.algorithms.coins import CoIns
from repertory.algorithms.coke import CoKe, OnlineConstrainedKMeans
from repertory.algorithms.dash import Dash
from repertory.algorithms.ecaml import ECAML, EnergyConfusion
from repertory.algorithms.esam import ESAM
from repertory.algorithms.ferkd import FerKD, LabelBank
from repertory.algorithms.fixmatch import FixMatch
from repertory.algorithms.grokking_stability import OrthoGrad
from repertory.algorithms.grow_and_merge import GM, GrowMerge
from repertory.algorithms.guidance import Guidance
from repertory.algorithms.instance_classifier import InstanceClassifier, chunked_softmax_loss
from repertory.algorithms.instance_mil import INS
from repertory.algorithms.kd import KD, distillation_loss
from repertory.algorithms.l2r_gnn import L2RGNN
from repertory.algorithms.look import LOOK, look_accuracy, look_loss
from repertory.algorithms.lv_hba import LVHBACleaning
from repertory.algorithms.mdcs import MDCS
from repertory.algorithms.ngame import NGAME, ClusterBatches, NGAMELoss
from repertory.algorithms.pixel_hardness import HardnessLevel, hardness_head
from repertory.algorithms.ps_kd import PSKD
from repertory.algorithms.rcal import RCAL
from repertory.algorithms.saf import MESA, SAF
from repertory.algorithms.sam import SAM
from repertory.algorithms.sie import SIE
from repertory.algorithms.simclr import SimCLR, nt_xent
from repertory.algorithms.solider import SOLIDER
from repertory.algorithms.stationary_representations import HOC

__all__ = [
    "ECAML",
    "ESAM",
    "GM",
    "HOC",
    "INS",
    "KD",
    "L2RGNN",
    "LOOK",
    "MDCS",
    "MESA",
    "NGAME",
    "PSKD",
    "RCAL",
    "SAF",
    "SAM",
    "SIE",
    "SOLIDER",
    "AdAdaGrad",
    "AttentionMIL",
    "BOREPCleaning",
    "ClusterBatches",
    "CoIns",
    "CoKe",
    "Dash",
    "EnergyConfusion",
    "FerKD",
    "FixMatch",
    "GrowMerge",
    "Guidance",
    "HardnessLevel",
    "InstanceClassifier",
    "LVHBACleaning",
    "LabelBank",
    "NGAMELoss",
    "OnlineConstrainedKMeans",
    "OrthoGrad",
    "SimCLR",
    "chunked_softmax_loss",
    "distillation_loss",
    "hardness_head",
    "look_accuracy",
    "look_loss",
    "nt_xent",
]
