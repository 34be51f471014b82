"""Models that have nothing to patch, and why: ``patch`` says so when it refuses them."""

from __future__ import annotations

_LINEAR = "its self-attention is linear already, without a softmax that a pattern could restrict"
_BLOCKS = "its text and pictures attend in several calls, each block to those before it"
_CACHED = "its frames attend to cached tokens of a reference under a block mask"

UNFIT = {
    "QwenImage21Transformer2DModel": _BLOCKS,
    "WanAnimate2Transformer3DModel": _CACHED,
    "SanaTransformer2DModel": _LINEAR,
    "SanaControlNetModel": _LINEAR,
    "SanaVideoTransformer3DModel": _LINEAR,
}
"""Reasons by class name."""
