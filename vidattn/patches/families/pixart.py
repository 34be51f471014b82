"""PixArt-Alpha and Sigma: self-attention over the image in ``attn1``; the text comes by cross-attention."""

from __future__ import annotations

from vidattn.patches.families import UNCONDITIONAL_FIRST, Family
from vidattn.patches.families._image import native_sample, read_image_only, stack_layers

FAMILY = Family(
    "pixart",
    ("PixArtTransformer2DModel",),
    "image",
    stack_layers("transformer_blocks", attention="attn1"),
    read_image_only,
    native_sample,
    guidance=UNCONDITIONAL_FIRST,
)
