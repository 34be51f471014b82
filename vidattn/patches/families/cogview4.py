"""CogView4: joint attention, text first.

A prompt mask, which the pipelines do not give, is added to the scores rather than hiding padding: dense,
unless it is 1 everywhere.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from vidattn.patches.families import Arguments, Family, Reading
from vidattn.patches.families._image import native_sample, read_text_first, stack_layers
from vidattn.patches.values import all_ones


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    plain = all_ones(arguments.get("attention_mask"))
    reason = "" if plain else "the prompt mask is added to the scores"
    return replace(read_text_first(model, arguments), mask_reason=reason)


FAMILY = Family(
    "cogview4",
    ("CogView4Transformer2DModel",),
    "image",
    stack_layers("transformer_blocks", attention="attn1"),
    _read,
    native_sample,
)
