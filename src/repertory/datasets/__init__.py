"""Data by name or by path, with stated corruptions and seeded, stratified splits."""

from __future__ import annotations

from repertory.datasets.builtin import BUILTIN
from repertory.datasets.dataset import Dataset
from repertory.datasets.encoder import Encoder
from repertory.datasets.spec import load
from repertory.datasets.splits import Examples, Normaliser, Splits

__all__ = ["BUILTIN", "Dataset", "Encoder", "Examples", "Normaliser", "Splits", "load"]
