"""HiDream-I1: joint attention, the image first, then T5's tokens and two runs of Llama's.

An image that is not square is filled up to the longest sequence with tokens whose keys are zero, and which no
mask hides: they see all and are seen by all here too, like text.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import UNCONDITIONAL_FIRST, Arguments, Family, GridUnreadable, Reading
from vidattn.patches.families._image import latent_grid, native_of, stack_layers, tensor


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    grid = latent_grid(model, arguments)
    tokens = grid[1] * grid[2]
    fill = 0 if grid[1] == grid[2] else max(0, cast(Any, model).max_seq - tokens)
    llama = arguments.get("encoder_hidden_states_llama3")  # a tensor, or a list of one per layer
    if llama is None or len(llama) == 0:
        raise GridUnreadable("encoder_hidden_states_llama3 is needed to read the grid")
    text = tensor(arguments, "encoder_hidden_states_t5").shape[1] + 2 * llama[0].shape[-2]
    note = f"{fill} tokens that fill up the image see all and are seen by all" if fill else ""
    return Reading({0: TokenLayout(grid, text_after=fill + text)}, note)


FAMILY = Family(
    "hidream",
    ("HiDreamImageTransformer2DModel",),
    "image",
    stack_layers("double_stream_blocks", "single_stream_blocks", attention="block.attn1"),
    _read,
    native_of(64, 64),  # 1024 px
    timestep="timesteps",
    guidance=UNCONDITIONAL_FIRST,
)
