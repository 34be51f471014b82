"""LTX-Video, and LTX-2's video stream: self-attention without text over packed tokens.

The grid is in the arguments ``num_frames``, ``height`` and ``width``, or, in LTX-Video's condition pipeline,
in the values of ``video_coords``. LTX-Video puts conditions in front of the video, LTX-2 behind it: those
tokens see all and are seen by all, like text. Of LTX-2's six attentions per block, ``attn1`` is the video's.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import prod

from torch import Tensor, nn

from vidattn.layout import Grid, TokenLayout
from vidattn.patches.families import UNCONDITIONAL_FIRST, Arguments, Family, GridUnreadable, Reading
from vidattn.patches.families._video import stacks
from vidattn.patches.values import once_per_tensor


def _read(model: nn.Module, arguments: Arguments) -> Reading:
    tokens, coords = arguments.get("hidden_states"), arguments.get("video_coords")
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        raise GridUnreadable("hidden_states is no (batch, tokens, channels) latent")
    in_front = False
    if isinstance(coords, Tensor) and coords.ndim == 3:  # LTX-2's have two ends, and so four dimensions
        if coords.shape[2] != tokens.shape[1]:
            raise GridUnreadable(f"video_coords has {coords.shape[2]} places for {tokens.shape[1]} tokens")
        in_front, grid = True, _last_raster(coords)
    else:
        grid = _sizes(arguments)
    if isinstance(grid, str):
        raise GridUnreadable(grid)
    more = tokens.shape[1] - prod(grid)
    if more < 0:
        raise GridUnreadable(f"{tokens.shape[1]} tokens are no grid of {grid[0]} x {grid[1]} x {grid[2]}")
    layout = TokenLayout(grid, *((more, 0) if in_front else (0, more)))
    return Reading({0: layout}, f"{more} condition tokens see all and are seen by all" if more else "")


def _sizes(arguments: Arguments) -> Grid | str:
    frames, height, width = (arguments.get(name) for name in ("num_frames", "height", "width"))
    if frames is None or height is None or width is None:
        return "neither sizes nor coordinates of the video are given"
    return frames, height, width


@once_per_tensor
def _last_raster(coords: Tensor) -> Grid | str:
    """The raster at the end of (B, 3, N) coordinates (t, y, x): its frames look alike, and t rises."""
    if coords.is_meta:
        return "video_coords holds no values (meta device)"
    table = coords[0].detach().cpu().double()
    if (coords != coords[:1]).any():
        return "video_coords differs within the batch"
    frame = _run(table[0])
    width = _run(table[1, -frame:])
    if frame % width:
        return "video_coords ends in no raster"
    frames = table[:, table.shape[1] % frame :].reshape(3, -1, frame)
    y, x = frames[1:, -1].reshape(2, -1, width)
    if (y != y[:, :1]).any() or (x != x[:1]).any() or (y.diff(dim=0) <= 0).any() or (x.diff() <= 0).any():
        return "video_coords ends in no raster"
    time = frames[0, :, 0]
    alike = (frames[0] == time[:, None]).all(1) & (frames[1:] == frames[1:, -1:]).all(2).all(0)
    alike[:-1] &= time.diff() > 0  # a condition in front may hold the same places, at times of its own
    if frame == 1 and not alike.all():
        return "video_coords ends in no raster"
    return _run(alike), frame // width, width


def _run(values: Tensor) -> int:
    """How many entries at the end equal the last one."""
    other = (values != values[-1]).nonzero()
    return len(values) - 1 - int(other[-1]) if len(other) else len(values)


def _native(model: nn.Module, group: Hashable) -> tuple[int, int]:
    return 16, 24  # 512 x 768


FAMILY = Family(
    "ltx",
    ("LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"),
    "video",
    stacks("transformer_blocks"),
    _read,
    _native,
    guidance=UNCONDITIONAL_FIRST,
)
