"""Cosmos 1, 2 and 2.5 and Transfer's ControlNets: self-attention without text over (T, H, W), read from the
latent's shape.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

from torch import nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, Family, Reading
from vidattn.patches.families._video import latent, patched_grid, stacks


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    name = "controls_latents" if "controls_latents" in arguments else "hidden_states"
    patch = cast(tuple[int, int, int], model.config.patch_size)  # type: ignore[union-attr]
    return Reading({0: TokenLayout(patched_grid(latent(arguments, name).shape[2:], patch))})


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    return 44, 80  # 704 x 1280


FAMILY = Family(
    "cosmos",
    ("CosmosTransformer3DModel", "CosmosControlNetModel"),
    "video",
    stacks("control_blocks", "transformer_blocks"),
    _read,
    _native,
    timestep_scale=1e6,  # 2.0's is no multiple of the scheduler's; this finds the greatest, where runs begin
)
