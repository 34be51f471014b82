"""Linear attention and the modules that stand in for softmax attention."""

from vidattn.linear.functional import FEATURE_MAPS, linear_attention

__all__ = ["FEATURE_MAPS", "linear_attention"]
