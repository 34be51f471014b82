"""CogView3-Plus: joint attention, text first."""

from __future__ import annotations

from vidattn.patches.families import UNCONDITIONAL_FIRST, Family
from vidattn.patches.families._image import native_sample, read_text_first, stack_layers

FAMILY = Family(
    "cogview3",
    ("CogView3PlusTransformer2DModel",),
    "image",
    stack_layers("transformer_blocks", attention="attn1"),
    read_text_first,
    native_sample,
    guidance=UNCONDITIONAL_FIRST,
)
