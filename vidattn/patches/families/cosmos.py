"""Cosmos 1, 2 and 2.5: self-attention without text over (T, H, W), read from the latent's shape."""

from __future__ import annotations

from collections.abc import Hashable

from torch import nn

from vidattn.patches.families import Family
from vidattn.patches.families._video import stacks
from vidattn.patches.families.wan import FAMILY as WAN


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    return 44, 80  # 704 x 1280


FAMILY = Family(
    "cosmos",
    ("CosmosTransformer3DModel",),
    "video",
    stacks("transformer_blocks"),
    WAN.read,
    _native,
    timestep_scale=1e6,  # 2.0's is no multiple of the scheduler's; this finds the greatest, where runs begin
)
