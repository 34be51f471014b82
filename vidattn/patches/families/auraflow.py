"""AuraFlow: joint attention, in front of the image eight learned registers and the text."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import UNCONDITIONAL_FIRST, Arguments, Family, Reading
from vidattn.patches.families._image import latent_grid, native_of, stack_layers, text_length


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    registers: int = cast(Any, model).register_tokens.shape[1]
    return Reading(
        {0: TokenLayout(latent_grid(model, arguments), text_before=registers + text_length(arguments))}
    )


FAMILY = Family(
    "auraflow",
    ("AuraFlowTransformer2DModel",),
    "image",
    stack_layers("joint_transformer_blocks", "single_transformer_blocks"),
    _read,
    native_of(64, 64),  # 1024 px; config.sample_size is not that
    timestep_scale=1000.0,
    guidance=UNCONDITIONAL_FIRST,
)
