"""Losses: modules with a value an example where the maths allows."""

from repertory.losses.balanced_softmax import BalancedSoftmaxLoss
from repertory.losses.binomial_deviance import BinomialDevianceLoss
from repertory.losses.cfcd import GeM, LocalTriplet, MadaCos, TupleSampler
from repertory.losses.contrastive import ContrastiveLoss
from repertory.losses.dexml import DecoupledSoftmaxLoss, DEXMLLoss, SoftTopKLoss
from repertory.losses.hardness import HardnessWeighted, HardnessWeightedLoss, hardness_weighted
from repertory.losses.info_nce import InfoNCELoss
from repertory.losses.kalm_embedding import FocalInfoNCE
from repertory.losses.matryoshka import AdaptiveRetrieval, MatryoshkaLoss, MRLHead, MRLLoss
from repertory.losses.normalised_softmax import NormalisedSoftmaxLoss
from repertory.losses.pixel_cross_entropy import PixelCrossEntropyLoss
from repertory.losses.sinkhorn_newton import LabelTransportLoss, SinkhornLoss
from repertory.losses.softtriple import SoftTripleLoss
from repertory.losses.stablemax import StableMaxCrossEntropy

__all__ = [
    "AdaptiveRetrieval",
    "BalancedSoftmaxLoss",
    "BinomialDevianceLoss",
    "ContrastiveLoss",
    "DEXMLLoss",
    "DecoupledSoftmaxLoss",
    "FocalInfoNCE",
    "GeM",
    "HardnessWeighted",
    "HardnessWeightedLoss",
    "InfoNCELoss",
    "LabelTransportLoss",
    "LocalTriplet",
    "MRLHead",
    "MRLLoss",
    "MadaCos",
    "MatryoshkaLoss",
    "NormalisedSoftmaxLoss",
    "PixelCrossEntropyLoss",
    "SinkhornLoss",
    "SoftTopKLoss",
    "SoftTripleLoss",
    "StableMaxCrossEntropy",
    "TupleSampler",
    "hardness_weighted",
]
