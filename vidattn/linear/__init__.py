"""Linear attention and the modules that stand in for softmax attention."""

from vidattn.linear.chunks import FEATURE_MAPS
from vidattn.linear.feature_maps import FeatureMap
from vidattn.linear.functional import linear_attention
from vidattn.linear.linfusion import LinFusionAttention, LinFusionBranch
from vidattn.linear.mixers import (
    FeatureMapAttention,
    GatedAttention,
    HybridLinearAttention,
    SoftmaxAttention,
    SparseLinearAttention,
)

__all__ = [
    "FEATURE_MAPS",
    "FeatureMap",
    "FeatureMapAttention",
    "GatedAttention",
    "HybridLinearAttention",
    "LinFusionAttention",
    "LinFusionBranch",
    "SoftmaxAttention",
    "SparseLinearAttention",
    "linear_attention",
]
