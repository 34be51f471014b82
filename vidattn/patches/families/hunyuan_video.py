"""HunyuanVideo, text to video and image to video: joint attention, text last.

The model masks the text behind as many tokens as the prompt mask has ones, whether any is padding or not.
"""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, Family, GridUnreadable, Reading
from vidattn.patches.families._video import config_patch, latent, patched_grid, stacks, text_tokens


def real_tokens(arguments: Arguments, name: str = "encoder_attention_mask") -> Tensor:
    """How many tokens of each prompt are real, as a tensor (B,): nothing waits for the device."""
    mask = arguments.get(name)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise GridUnreadable(f"{name} is no mask of (batch, tokens)")
    return (mask != 0).sum(1)


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    grid = patched_grid(latent(arguments).shape[2:], config_patch(model))
    text, real = text_tokens(arguments), real_tokens(arguments)
    return Reading({0: TokenLayout(grid, text_after=text, text_valid=real)}, mask_reason="")


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    return 45, 80  # 720 x 1280


FAMILY = Family(
    "hunyuan_video",
    ("HunyuanVideoTransformer3DModel",),
    "video",
    stacks("transformer_blocks", "single_transformer_blocks", attention="attn"),
    _read,
    _native,
)
