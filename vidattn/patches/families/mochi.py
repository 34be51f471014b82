"""Mochi: joint attention, text last; every item of a batch attends on its own, without its text's padding."""

from __future__ import annotations

from collections.abc import Hashable

from torch import nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import UNCONDITIONAL_FIRST, Arguments, Family, Reading
from vidattn.patches.families._video import config_patch, latent, patched_grid, stacks, text_tokens


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    grid = patched_grid(latent(arguments).shape[2:], config_patch(model))
    return Reading({0: TokenLayout(grid, text_after=text_tokens(arguments))}, trimmed=True)


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    return 30, 53  # 480 x 848


FAMILY = Family(
    "mochi",
    ("MochiTransformer3DModel",),
    "video",
    stacks("transformer_blocks"),
    _read,
    _native,
    timestep_scale=-1.0,  # counts up from 0; runs begin at the least
    guidance=UNCONDITIONAL_FIRST,
)
