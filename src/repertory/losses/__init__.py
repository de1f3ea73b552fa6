"""Losses: modules with a value an example where the maths allows."""

from repertory.losses.binomial_deviance import BinomialDevianceLoss
from repertory.losses.cfcd import GeM, LocalTriplet, MadaCos, TupleSampler
from repertory.losses.contrastive import ContrastiveLoss
from repertory.losses.dexml import DecoupledSoftmaxLoss, DEXMLLoss, SoftTopKLoss
from repertory.losses.info_nce import InfoNCELoss
from repertory.losses.kalm_embedding import FocalInfoNCE
from repertory.losses.matryoshka import AdaptiveRetrieval, MatryoshkaLoss, MRLHead, MRLLoss
from repertory.losses.normalised_softmax import NormalisedSoftmaxLoss
from repertory.losses.sinkhorn_newton import LabelTransportLoss, SinkhornLoss
from repertory.losses.softtriple import SoftTripleLoss
from repertory.losses.stablemax import StableMaxCrossEntropy

__all__ = [
    "AdaptiveRetrieval",
    "BinomialDevianceLoss",
    "ContrastiveLoss",
    "DEXMLLoss",
    "DecoupledSoftmaxLoss",
    "FocalInfoNCE",
    "GeM",
    "InfoNCELoss",
    "LabelTransportLoss",
    "LocalTriplet",
    "MRLHead",
    "MRLLoss",
    "MadaCos",
    "MatryoshkaLoss",
    "NormalisedSoftmaxLoss",
    "SinkhornLoss",
    "SoftTopKLoss",
    "SoftTripleLoss",
    "StableMaxCrossEntropy",
    "TupleSampler",
]
