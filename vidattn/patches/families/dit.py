"""DiT: classes instead of text, self-attention over the image in ``attn1``. It takes square images only."""

from __future__ import annotations

from vidattn.patches.families import CONDITIONAL_FIRST, Family
from vidattn.patches.families._image import native_sample, read_image_only, stack_layers

FAMILY = Family(
    "dit",
    ("DiTTransformer2DModel",),
    "image",
    stack_layers("transformer_blocks", attention="attn1"),
    read_image_only,
    native_sample,
    guidance=CONDITIONAL_FIRST,
)
