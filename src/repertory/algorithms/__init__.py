"""Training algorithms: `core.Method`s that wrap the calls of a training step."""

from repertory.algorithms.adadagrad import AdAdaGrad
from repertory.algorithms.bo_rep import BOREPCleaning
from repertory.algorithms.coins import CoIns
from repertory.algorithms.dash import Dash
from repertory.algorithms.ecaml import ECAML, EnergyConfusion
from repertory.algorithms.esam import ESAM
from repertory.algorithms.fixmatch import FixMatch
from repertory.algorithms.grokking_stability import OrthoGrad
from repertory.algorithms.guidance import Guidance
from repertory.algorithms.look import LOOK, look_accuracy, look_loss
from repertory.algorithms.lv_hba import LVHBACleaning
from repertory.algorithms.ngame import NGAME, ClusterBatches, NGAMELoss
from repertory.algorithms.ps_kd import PSKD
from repertory.algorithms.saf import MESA, SAF
from repertory.algorithms.sam import SAM
from repertory.algorithms.solider import SOLIDER
from repertory.algorithms.stationary_representations import HOC

__all__ = [
    "ECAML",
    "ESAM",
    "HOC",
    "LOOK",
    "MESA",
    "NGAME",
    "PSKD",
    "SAF",
    "SAM",
    "SOLIDER",
    "AdAdaGrad",
    "BOREPCleaning",
    "ClusterBatches",
    "CoIns",
    "Dash",
    "EnergyConfusion",
    "FixMatch",
    "Guidance",
    "LVHBACleaning",
    "NGAMELoss",
    "OrthoGrad",
    "look_accuracy",
    "look_loss",
]
