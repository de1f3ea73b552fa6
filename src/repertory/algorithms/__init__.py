"""Training algorithms: `core.Method`s that wrap the calls of a training step."""

from repertory.algorithms.esam import ESAM
from repertory.algorithms.ps_kd import PSKD
from repertory.algorithms.saf import MESA, SAF
from repertory.algorithms.sam import SAM

__all__ = ["ESAM", "MESA", "PSKD", "SAF", "SAM"]
