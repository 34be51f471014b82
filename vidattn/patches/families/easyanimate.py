"""EasyAnimate 5: joint attention, text first (Qwen2's tokens, then T5's where there are any)."""

from __future__ import annotations

from torch import nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import UNCONDITIONAL_FIRST, Arguments, Family, Reading
from vidattn.patches.families._video import (
    config_patch,
    latent,
    patched_grid,
    sample_size,
    stacks,
    text_tokens,
)


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    text = text_tokens(arguments, "encoder_hidden_states", "encoder_hidden_states_t5")
    grid = patched_grid(latent(arguments).shape[2:], config_patch(model))
    return Reading({0: TokenLayout(grid, text_before=text)})


FAMILY = Family(
    "easyanimate",
    ("EasyAnimateTransformer3DModel",),
    "video",
    stacks("transformer_blocks"),
    _read,
    sample_size,
    guidance=UNCONDITIONAL_FIRST,
)
