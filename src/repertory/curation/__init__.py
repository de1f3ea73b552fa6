"""Curation: choosing, scoring and condensing training examples."""

from repertory.curation.data_diet import DataDiet

__all__ = ["DataDiet"]
