"""Linear attention and the modules that stand in for softmax attention."""

from vidattn.linear.functional import FEATURE_MAPS, linear_attention
from vidattn.linear.linfusion import LinFusionAttention, LinFusionBranch

__all__ = ["FEATURE_MAPS", "LinFusionAttention", "LinFusionBranch", "linear_attention"]
