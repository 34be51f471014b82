"""CogVideoX 1.0 and 1.5, and ConsisID: joint attention, text first; the latent is (B, T, C, H, W).

1.5 puts ``patch_size_t`` frames into a token; its pipelines pad the frames to a multiple.
"""

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
    frames, _, height, width = latent(arguments).shape[1:]
    grid = patched_grid((frames, height, width), config_patch(model))
    return Reading({0: TokenLayout(grid, text_before=text_tokens(arguments))})


FAMILY = Family(
    "cogvideox",
    ("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"),
    "video",
    stacks("transformer_blocks"),
    _read,
    sample_size,
    guidance=UNCONDITIONAL_FIRST,
)
