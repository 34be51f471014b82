"""Stable Video Diffusion: the spatial blocks' ``attn1`` within each frame, with one group per level.

Every frame is a picture of a batch of B * T. The temporal blocks stay dense.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from torch import nn

from vidattn.patches.families import UNCONDITIONAL_FIRST, Family, Layer
from vidattn.patches.families.animatediff import read_levels
from vidattn.patches.families.unet import _blocks, _size


def _layers(model: nn.Module) -> Iterator[Layer]:
    for name, block, level in _blocks(model):
        for i, spatial in enumerate(getattr(block, "attentions", ())):
            for j, layer in enumerate(spatial.transformer_blocks):
                yield Layer(f"{name}.attentions.{i}.transformer_blocks.{j}.attn1", layer.attn1, level)


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    return _size(72, 128, group)  # type: ignore[arg-type]  # 576 x 1024


# "image": presets for videos have nothing to do within a frame
FAMILY = Family(
    "svd",
    ("UNetSpatioTemporalConditionModel",),
    "image",
    _layers,
    read_levels,
    _native,
    guidance=UNCONDITIONAL_FIRST,
)
