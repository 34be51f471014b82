"""Latte: the spatial blocks attend within each frame, so every frame is a picture of a batch of B * T.

The temporal blocks have a sequence of frames at each place of the picture, and stay dense.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import UNCONDITIONAL_FIRST, Arguments, Family, Reading
from vidattn.patches.families._video import config_patch, latent, patched_grid, stacks


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    _, height, width = patched_grid(latent(arguments).shape[2:], config_patch(model))
    return Reading({0: TokenLayout((1, height, width))})


def _native(model: Any, group: Hashable) -> tuple[int, int]:
    side = model.config.sample_size // model.config.patch_size
    return side, side


# "image": presets for videos have nothing to do within a frame
FAMILY = Family(
    "latte",
    ("LatteTransformer3DModel",),
    "image",
    stacks("transformer_blocks"),
    _read,
    _native,
    guidance=UNCONDITIONAL_FIRST,
)
