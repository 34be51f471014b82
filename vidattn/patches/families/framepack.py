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

_PATCHES = {"latents_clean": (1, 2, 2), "latents_history_2x": (2, 4, 4), "latents_history_4x": (4, 8, 8)}


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    video = latent(arguments)
    grid = patched_grid(video.shape[2:], config_patch(model))
    history = 0
    for name, patch in _PATCHES.items():
        part = arguments.get(name)
        if isinstance(part, Tensor):
            history += prod(-(-n // p) for n, p in zip(part.shape[2:], patch, strict=True))
    picture = arguments.get("image_embeds")
    if not isinstance(picture, Tensor):
        raise GridUnreadable("image_embeds is needed to find the grid in the sequence")
    note = f"{history} history tokens see all and are seen by all" if history else ""
    after = picture.shape[1] + text_tokens(arguments)
    if len(video) == 1:
        return Reading({0: TokenLayout(grid, history, after)}, note, trimmed=True)
    real = history + picture.shape[1] + real_tokens(arguments)
    return Reading({0: TokenLayout(grid, history, after, real)}, note, mask_reason="")


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
