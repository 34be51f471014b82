"""LTX-Video, and LTX-2's video stream: self-attention without text over packed tokens.

The grid is in the arguments ``num_frames``, ``height`` and ``width``. LTX-2 appends conditions (keyframes,
references) behind it: those tokens see all and are seen by all, like text. Of its six attentions per block,
``attn1`` is the video's own.
"""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor, nn

from vidattn.layout import TokenLayout
from vidattn.patches.families import Arguments, Family, GridUnreadable, Reading
from vidattn.patches.families._video import stacks


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    tokens = arguments.get("hidden_states")
    frames, height, width = (arguments.get(name) for name in ("num_frames", "height", "width"))
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        raise GridUnreadable("hidden_states is no (batch, tokens, channels) latent")
    if frames is None or height is None or width is None:
        raise GridUnreadable("num_frames, height and width are not given, only coordinates")
    more = tokens.shape[1] - frames * height * width
    if more < 0:
        raise GridUnreadable(f"{tokens.shape[1]} tokens are no grid of {frames} x {height} x {width}")
    layout = TokenLayout((frames, height, width), text_after=more)
    return Reading({0: layout}, f"{more} condition tokens see all and are seen by all" if more else "")


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    return 16, 24  # 512 x 768


FAMILY = Family(
    "ltx",
    ("LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"),
    "video",
    stacks("transformer_blocks"),
    _read,
    _native,
)
