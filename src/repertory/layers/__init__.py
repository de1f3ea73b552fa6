"""Layers, and the surgery that puts them into a network."""

from repertory.layers.ebv import EBVHead

__all__ = ["EBVHead"]
