"""Curation: choosing, scoring and condensing training examples."""

from repertory.curation.data_diet import DataDiet
from repertory.curation.transreid_ssl import CFS

__all__ = ["CFS", "DataDiet"]
