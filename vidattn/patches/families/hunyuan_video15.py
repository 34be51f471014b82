"""HunyuanVideo 1.5: joint attention, text last (picture, ByT5 and Qwen tokens; the real ones first).

The model's mask has rows for the padding as well, which see nothing. Patched they see the real tokens; either
way nobody sees them, and their output is thrown away.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, Family, GridUnreadable, Reading
from vidattn.patches.families._video import config_patch, latent, patched_grid, stacks, text_tokens
from vidattn.patches.families.hunyuan_video import real_tokens


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    grid = patched_grid(latent(arguments).shape[2:], config_patch(model))
    picture = arguments.get("image_embeds")
    if not isinstance(picture, Tensor):
        raise GridUnreadable("image_embeds is needed to count the tokens of the prompt")
    text = text_tokens(arguments, "encoder_hidden_states", "encoder_hidden_states_2", "image_embeds")
    real = real_tokens(arguments) + real_tokens(arguments, "encoder_attention_mask_2")
    # a picture of zeros stands for none
    real = real + picture.any() * picture.shape[1]
    return Reading({0: TokenLayout(grid, text_after=text, text_valid=real)}, mask_reason="")


def _native(model: Any, group: Hashable) -> tuple[int, int]:
    return (30, 53) if model.config.target_size <= 640 else (45, 80)  # 480 x 848, 720 x 1280


FAMILY = Family(
    "hunyuan_video15",
    ("HunyuanVideo15Transformer3DModel",),
    "video",
    stacks("transformer_blocks", attention="attn"),
    _read,
    _native,
)
