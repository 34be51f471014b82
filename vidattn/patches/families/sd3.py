"""Stable Diffusion 3 and 3.5 and their ControlNets: joint attention, text last. 3.5 medium has blocks with a
second attention, over the image alone. ControlNets of 3.5 large have no text, and get the image as tokens; a
condition is always a latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import UNCONDITIONAL_FIRST, Arguments, Family, Layer, Reading
from vidattn.patches.families._image import latent_grid, native_sample, text_length


def _layers(model: nn.Module) -> Iterator[Layer]:
    for i, block in enumerate(cast(Any, model).transformer_blocks):
        yield Layer(f"transformer_blocks.{i}.attn", block.attn, "joint")
        if getattr(block, "attn2", None) is not None:
            yield Layer(f"transformer_blocks.{i}.attn2", block.attn2, "image")


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    grid = latent_grid(
        model, arguments, "controlnet_cond" if "controlnet_cond" in arguments else "hidden_states"
    )
    joint = TokenLayout(grid, text_after=text_length(arguments))
    return Reading({"joint": joint, "image": TokenLayout(grid)})


FAMILY = Family(
    "sd3",
    ("SD3Transformer2DModel", "SD3ControlNetModel"),
    "image",
    _layers,
    _read,
    native_sample,
    guidance=UNCONDITIONAL_FIRST,
)
