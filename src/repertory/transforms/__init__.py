"""Transforms: what is done to a trained model, or to several."""

from repertory.transforms.model_soups import ModelSoup

__all__ = ["ModelSoup"]
