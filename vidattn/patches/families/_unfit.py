"""Models that have nothing to patch, and why: ``patch`` says so when it refuses them."""

from __future__ import annotations

_LINEAR = "its self-attention is linear already, without a softmax that a pattern could restrict"
_CAUSAL = "its text tokens do not see the picture (a causal mask), which no token layout says"

UNFIT = {
    "OmniGenTransformer2DModel": _CAUSAL,
    "SanaTransformer2DModel": _LINEAR,
    "SanaControlNetModel": _LINEAR,
    "SanaVideoTransformer3DModel": _LINEAR,
}
"""Reasons by class name."""
