"""Layers, and the surgery that puts them into a network."""

from repertory.layers.batchformer import BatchFormer
from repertory.layers.conv_stem import IBN, ConvStem, replace_patch_embed
from repertory.layers.cosine_classifier import CosineClassifier
from repertory.layers.ebv import EBVHead
from repertory.layers.experts import MultiExpertNetwork, split_into_experts
from repertory.layers.fake_quantisation import FakeQuantise, fake_quantise, quantise_weights
from repertory.layers.key_value_bottleneck import KeyValueBottleneck
from repertory.layers.projection_head import FixedReweightingHead, ProjectionHead
from repertory.layers.relationship_batch import RBI
from repertory.layers.simplex import DSimplexClassifier

__all__ = [
    "IBN",
    "RBI",
    "BatchFormer",
    "ConvStem",
    "CosineClassifier",
    "DSimplexClassifier",
    "EBVHead",
    "FakeQuantise",
    "FixedReweightingHead",
    "KeyValueBottleneck",
    "MultiExpertNetwork",
    "ProjectionHead",
    "fake_quantise",
    "quantise_weights",
    "replace_patch_embed",
    "split_into_experts",
]
