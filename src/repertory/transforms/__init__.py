"""Transforms: what is done to a trained model, or to several."""

from repertory.transforms.dfu_ensemble import Ensemble, ExtendAndEnsemble, extend_and_ensemble
from repertory.transforms.model_soups import ModelSoup

__all__ = ["Ensemble", "ExtendAndEnsemble", "ModelSoup", "extend_and_ensemble"]
