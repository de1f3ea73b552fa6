"""Losses: modules with a value an example where the maths allows."""

from repertory.losses.softtriple import SoftTripleLoss

__all__ = ["SoftTripleLoss"]
