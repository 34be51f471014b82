"""Chroma: FLUX.1's tokens and attention, with a prompt mask.

The mask arrives as floating-point numbers, and its products are added to the scores: real tokens weigh more,
padding is not hidden. No layout says that, so such calls are dense, unless the mask is 1 everywhere.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from vidattn.patches.families import Arguments, Family, Reading
from vidattn.patches.families.flux import joint_layers, native, read_ids
from vidattn.patches.values import all_ones


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    plain = all_ones(arguments.get("attention_mask"))
    reason = "" if plain else "the prompt mask is added to the scores"
    return replace(read_ids(model, arguments), mask_reason=reason)


FAMILY = Family(
    "chroma", ("ChromaTransformer2DModel",), "image", joint_layers, _read, native, timestep_scale=1000.0
)
