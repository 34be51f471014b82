"""Hunyuan-DiT and ControlNets: self-attention over the image in ``attn1``, cross-attention to the text."""

from __future__ import annotations

from vidattn.patches.families import UNCONDITIONAL_FIRST, Family
from vidattn.patches.families._image import native_sample, read_image_only, stack_layers

FAMILY = Family(
    "hunyuan_dit",
    ("HunyuanDiT2DModel", "HunyuanDiT2DControlNetModel"),
    "image",
    stack_layers("blocks", attention="attn1"),
    read_image_only,
    native_sample,
    guidance=UNCONDITIONAL_FIRST,
)
