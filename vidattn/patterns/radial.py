"""Radial attention: a band inside each pair of frames that narrows as the frames lie further apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vidattn.layout import Grid
from vidattn.patterns.bands import band_pairs
from vidattn.patterns.base import Coordinates, GridPattern, split_box, tile_bounds
from vidattn.patterns.sizes import is_int
from vidattn.plan import KeyBox, Plan, Tile


def _power_below(n: int) -> int:
    return 1 << (n.bit_length() - 1)


@dataclass(frozen=True)
class Radial(GridPattern):
    """Radial attention (Li et al., arXiv 2506.19852), for video.

    Let d be the distance of two frames of s tokens, k and l places in them (raster order), g the largest
    power of two that is at most max(d, 1).

    ``variant="paper"``: frames with d <= 1 see each other wholly; then |k - l| + 1 <= decay * s / g, or k = l
    where d is a multiple of ceil(g / s). The paper has no decay (1.0).

    ``variant="release"``: the released code's rule on blocks of ``block`` tokens. Frames with d <= 1 wholly;
    further apart the half-width is max(block, decay * P / g) tokens with P the largest power of two at most
    s, and only every n-th distance is kept once P / g falls below 128. A block of a frame pair is kept when
    over 60 % of its columns have over a third of their rows inside. Wherever a frame is a multiple of the
    block this equals the released mask; elsewhere the released code lays blocks across frame borders and
    loses tokens there, while here blocks start anew in each frame.

    Args:
        decay: scales the widths beyond neighbouring frames; greater than 0, at most 1.
        variant: "paper" or "release".
        sink: every query sees the whole first frame (the released code: Wan only; the paper's figures: all
            models).
        block: tokens of a block, for "release".

    Raises:
        ValueError: any other value.
    """

    name = "radial"
    decay: float = 1.0
    variant: str = "paper"
    sink: bool = True
    block: int = 128

    def __post_init__(self) -> None:
        if (
            isinstance(self.decay, bool)
            or not isinstance(self.decay, (int, float))
            or not 0 < self.decay <= 1
        ):
            raise ValueError(f"decay={self.decay!r}: must be a number in (0, 1]")
        object.__setattr__(self, "decay", float(self.decay))
        if self.variant not in ("paper", "release"):
            raise ValueError(f"variant={self.variant!r}: must be 'paper' or 'release'")
        if not isinstance(self.sink, bool):
            raise ValueError(f"sink={self.sink!r}: must be True or False")
        if not is_int(self.block) or self.block < 1:
            raise ValueError(f"block={self.block!r}: must be an integer of at least 1")
        super().__post_init__()

    @property
    def _unit(self) -> int:
        """Tokens that stand or fall together: the rule compares k // unit with l // unit."""
        return self.block if self.variant == "release" else 1

    def half_widths(self, frames: int, tokens: int) -> tuple[int, ...]:
        """For each frame distance the greatest |k // unit - l // unit| that is kept, -1 where nothing is."""
        return _half_widths(self.variant, self.decay, self.block, frames, tokens)

    def allowed(self, query: Coordinates, key: Coordinates, grid: Grid) -> Tensor:
        (qt, qy, qx), (kt, ky, kx) = query, key
        unit = self._unit
        width = torch.tensor(self.half_widths(grid[0], grid[1] * grid[2]), device=qt.device)
        place, other = (
            torch.div(y * grid[2] + x, unit, rounding_mode="floor") for y, x in ((qy, qx), (ky, kx))
        )
        inside = (place - other).abs() <= width[(qt - kt).abs()]
        return inside | (kt == 0) if self.sink else inside

    def grid_pairs(self, grid: Grid) -> int:
        frames, tokens = grid[0], grid[1] * grid[2]
        total = 0
        for d, width in enumerate(self.half_widths(frames, tokens)):
            pairs = self._frame_pairs(width, tokens)
            total += pairs * (frames - d) * (1 if d == 0 else 2)
            if self.sink and d > 0:  # query frame d against key frame 0
                total += tokens * tokens - pairs
        return total

    def _frame_pairs(self, width: int, tokens: int) -> int:
        """Pairs of one frame pair with the given half-width."""
        if width < 0:
            return 0
        blocks, rest = divmod(tokens, self._unit)
        # whole blocks among themselves, the smaller last one with those near it, and with itself
        pairs = self._unit**2 * band_pairs(blocks, width)
        return pairs + 2 * self._unit * rest * min(width, blocks) + rest * rest

    def covers(self, grid: Grid) -> bool:
        # frames at a distance of up to 1 see each other wholly in both variants
        return grid[0] <= 2

    def default_tile(self, grid: Grid) -> Grid:
        return 1, 1, 128

    def make_plan(self, grid: Grid, tile: Grid, key_tile: Grid | None) -> Plan:
        view = (grid[0], 1, grid[1] * grid[2])  # a frame as one row: same token order
        tile = (1, 1, min(tile[0] * tile[1] * tile[2], view[2]))
        widths = self.half_widths(view[0], view[2])
        tiles = []
        for start, stop in tile_bounds(view, tile):
            runs = self._runs(start, stop, view, widths)
            boxes: list[KeyBox] = []
            for t0, t1, x0, x1, full in runs:
                boxes += split_box((t0, 0, x0), (t1, 1, x1), key_tile, full)
            tiles.append(Tile(start, (1, 1, stop[2] - start[2]), tuple(boxes)))
        return Plan(view, tile, (1, 1, 1), tuple(tiles))

    def _runs(self, start: Grid, stop: Grid, view: Grid, widths: tuple[int, ...]) -> list[list]:
        """[first frame, last frame + 1, first key, last key + 1, full]; neighbouring frames with equal runs
        are joined.
        """
        unit = self._unit
        low, high = start[2] // unit, (stop[2] - 1) // unit
        runs: list[list] = []
        for frame in range(view[0]):
            width = widths[abs(frame - start[0])]
            if self.sink and frame == 0:
                x0, x1, full = 0, view[2], True
            elif width < 0:
                continue
            else:
                x0, x1 = max(0, (low - width) * unit), min(view[2], (high + width + 1) * unit)
                full = (x1 - 1) // unit - low <= width and high - x0 // unit <= width
            if runs and runs[-1][1:] == [frame, x0, x1, full]:
                runs[-1][1] = frame + 1
            else:
                runs.append([frame, frame + 1, x0, x1, full])
        return runs


@lru_cache(maxsize=256)
def _half_widths(variant: str, decay: float, block: int, frames: int, tokens: int) -> tuple[int, ...]:
    rule = _paper_width if variant == "paper" else _release_width
    return tuple(rule(d, tokens, decay, block) for d in range(frames))


def _paper_width(d: int, tokens: int, decay: float, block: int) -> int:
    if d <= 1:
        return tokens - 1
    g = _power_below(d)
    if g > tokens:
        return 0 if d % math.ceil(g / tokens) == 0 else -1
    return max(0, math.floor(decay * tokens / g) - 1)


def _release_width(d: int, tokens: int, decay: float, block: int) -> int:
    blocks = -(-tokens // block)
    if d <= 1:
        return blocks - 1
    power, g = _power_below(tokens), _power_below(d)
    share = power / g
    if share < 128:  # the released code has 128 here whatever the block
        return _kept_offset(block, block) if d % int(128 / share) == 0 else -1
    return _kept_offset(max(float(block), decay * share), block)


def _kept_offset(width: float, block: int) -> int:
    """The furthest block off the diagonal that the released code keeps for a token band |k - l| <= width."""
    offset = 0
    while _is_kept(width, block, offset + 1):
        offset += 1
    return offset


def _is_kept(width: float, block: int, offset: int) -> bool:
    rows = torch.arange(block)
    inside = (rows[:, None] - rows[None, :] - offset * block).abs() <= width
    filled = inside.sum(0)
    columns = int((filled > 0).sum())
    return columns > 0 and int((filled > block / 3).sum()) > 0.6 * columns
