"""Allegro: self-attention without text over (T, H, W), read from the latent's shape."""

from __future__ import annotations

from vidattn.patches.families import UNCONDITIONAL_FIRST, Family
from vidattn.patches.families._video import read_latent, sample_size, stacks

FAMILY = Family(
    "allegro",
    ("AllegroTransformer3DModel",),
    "video",
    stacks("transformer_blocks"),
    read_latent,
    sample_size,
    guidance=UNCONDITIONAL_FIRST,
)
