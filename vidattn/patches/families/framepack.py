"""Framepack on HunyuanVideo: history in front of the video, text behind it (a picture's and the prompt's).

The history's tokens, fewer the older they are, see all and are seen by all, like text. A batch of one drops
the prompt's padding; larger ones mask it.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import prod

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, Family, GridUnreadable, Reading
from vidattn.patches.families._video import config_patch, latent, patched_grid, text_tokens
from vidattn.patches.families.hunyuan_video import FAMILY as HUNYUAN_VIDEO
from vidattn.patches.families.hunyuan_video import real_tokens
from vidattn.patches.values import once_per_tensor

_PATCHES = {"latents_clean": (1, 2, 2), "latents_history_2x": (2, 4, 4), "latents_history_4x": (4, 8, 8)}


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    video = latent(arguments)
    grid = patched_grid(video.shape[2:], config_patch(model))
    history = 0
    for name, patch in _PATCHES.items():
        part = arguments.get(name)
        if isinstance(part, Tensor):
            history += prod(-(-n // p) for n, p in zip(part.shape[2:], patch, strict=True))
    picture, mask = arguments.get("image_embeds"), arguments.get("encoder_attention_mask")
    if not isinstance(picture, Tensor) or not isinstance(mask, Tensor):
        raise GridUnreadable("image_embeds and encoder_attention_mask are needed to count the text tokens")
    note = f"{history} history tokens see all and are seen by all" if history else ""
    if len(video) == 1:
        layout = TokenLayout(grid, text_before=history, text_after=picture.shape[1] + _count(mask))
        return Reading({0: layout}, note)
    after = picture.shape[1] + text_tokens(arguments)
    real = history + picture.shape[1] + real_tokens(arguments)
    return Reading({0: TokenLayout(grid, history, after, real)}, note, mask_reason="")


@once_per_tensor
def _count(mask: Tensor) -> int:
    return int(mask.sum())


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    return 40, 40  # 640 x 640


FAMILY = Family(
    "framepack",
    ("HunyuanVideoFramepackTransformer3DModel",),
    "video",
    HUNYUAN_VIDEO.layers,
    _read,
    _native,
)
