"""The two bands of Sparse VideoGen, on the grid as it is: no tokens are moved."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.layout import Grid
from vidattn.patterns.base import Coordinates, GridPattern, split_box, tile_bounds
from vidattn.plan import KeyBox, Plan, Tile


def band_pairs(total: int, width: int) -> int:
    """Pairs (i, j) of ``total`` places with |i - j| <= width."""
    width = max(0, min(width, total - 1))
    return total + 2 * (width * total - width * (width + 1) // 2)


@dataclass(frozen=True)
class _Band(GridPattern):
    """|i - j| <= width * (tokens of a frame) in some order of the tokens.

    Args:
        width: half-width of the band, in frames; greater than 0.
        sink: every query also sees the whole first frame (the authors' code: for Wan and Cosmos).
    """

    width: float = 1.0
    sink: bool = False

    def __post_init__(self) -> None:
        if (
            isinstance(self.width, bool)
            or not isinstance(self.width, (int, float))
            or not 0 < self.width < math.inf
        ):
            raise ValueError(f"width={self.width!r}: must be a number of frames greater than 0")
        object.__setattr__(self, "width", float(self.width))
        if not isinstance(self.sink, bool):
            raise ValueError(f"sink={self.sink!r}: must be True or False")
        super().__post_init__()

    def half_width(self, grid: Grid) -> int:
        """Half-width in tokens."""
        return math.floor(self.width * grid[1] * grid[2])

    def order(self, place: Coordinates, grid: Grid) -> Tensor:
        """The number of a token in the band's order."""
        raise NotImplementedError

    def allowed(self, query: Coordinates, key: Coordinates, grid: Grid) -> Tensor:
        near = (self.order(query, grid) - self.order(key, grid)).abs() <= self.half_width(grid)
        return near | (key[0] == 0) if self.sink else near

    def covers(self, grid: Grid) -> bool:
        return self.half_width(grid) >= grid[0] * grid[1] * grid[2] - 1

    def grid_pairs(self, grid: Grid) -> int:
        total, width = math.prod(grid), self.half_width(grid)
        pairs = band_pairs(total, width)
        if not self.sink:
            return pairs
        # the sink adds, for each key of frame 0, the queries beyond the band
        frame = grid[1] * grid[2]
        number = torch.arange(frame)
        places = (
            torch.zeros_like(number),
            torch.div(number, grid[2], rounding_mode="floor"),
            number % grid[2],
        )
        at = self.order(places, grid)
        inside = (at + width).clamp(max=total - 1) - (at - width).clamp(min=0) + 1
        return pairs + int((total - inside).sum())

    def default_tile(self, grid: Grid) -> Grid:
        return 1, 1, 128

    def make_plan(self, grid: Grid, tile: Grid, key_tile: Grid | None) -> Plan:
        view = (grid[0], 1, grid[1] * grid[2])  # a frame as one row: same token order
        shape = (1, 1, min(tile[0] * tile[1] * tile[2], view[2]))
        tiles = []
        for start, stop in tile_bounds(view, shape):
            boxes: list[KeyBox] = []
            for t0, t1, x0, x1, full in self._runs(start, stop, view, self.half_width(grid)):
                boxes += split_box((t0, 0, x0), (t1, 1, x1), key_tile, full)
            if self.sink:
                boxes += split_box((0, 0, 0), (1, 1, view[2]), key_tile, True)
            tiles.append(Tile(start, (1, 1, stop[2] - start[2]), tuple(boxes)))
        return Plan(view, shape, (1, 1, 1), tuple(tiles))

    def _runs(self, start: Grid, stop: Grid, view: Grid, width: int) -> list[tuple[int, int, int, int, bool]]:
        """(first frame, last + 1, first key, last + 1, full) that the tile visits beside the sink."""
        raise NotImplementedError


@dataclass(frozen=True)
class Spatial(_Band):
    """SVG's spatial heads (Xi et al., arXiv 2502.01776): a band in frame-major order, the frames near in
    time.

    Raises:
        ValueError: a width that is no positive number.
    """

    name = "spatial"

    def order(self, place: Coordinates, grid: Grid) -> Tensor:
        return (place[0] * grid[1] + place[1]) * grid[2] + place[2]

    def _runs(self, start: Grid, stop: Grid, view: Grid, width: int) -> list[tuple[int, int, int, int, bool]]:
        frame = view[2]
        first, last = start[0] * frame + start[2], start[0] * frame + stop[2] - 1
        low, high = max(0, first - width), min(view[0] * frame - 1, last + width)
        runs = []
        for t in range(1 if self.sink else 0, view[0]):
            x0, x1 = max(low - t * frame, 0), min(high - t * frame + 1, frame)
            if x0 < x1:
                near = max(abs(t * frame + x1 - 1 - first), abs(last - t * frame - x0)) <= width
                runs.append((t, t + 1, x0, x1, near))
        return runs


@dataclass(frozen=True)
class Temporal(_Band):
    """SVG's temporal heads (Xi et al., arXiv 2502.01776): a band in token-major order, the same places over
    all frames.

    The authors move the tokens into that order and back; here the order is only counted. With ``sink`` the
    first frame is seen wholly; in the authors' moved order the same columns are the first places of all
    frames.

    Raises:
        ValueError: a width that is no positive number.
    """

    name = "temporal"

    def order(self, place: Coordinates, grid: Grid) -> Tensor:
        return (place[1] * grid[2] + place[2]) * grid[0] + place[0]

    def _runs(self, start: Grid, stop: Grid, view: Grid, width: int) -> list[tuple[int, int, int, int, bool]]:
        frames, frame = view[0], view[2]
        first, last = start[2] * frames + start[0], (stop[2] - 1) * frames + start[0]
        # keys of all frames at places whose numbers can lie in the band
        low, high = max(0, (first - width - frames + 1) // frames), min(frame - 1, (last + width) // frames)
        skip = 1 if self.sink else 0
        if skip >= frames:
            return []
        # places that every query of the tile sees in every frame are one full run, what is left on both sides
        # is masked
        inner_low, inner_high = -((width - last) // frames), (first + width - frames + 1) // frames
        inner_low, inner_high = max(low, inner_low), min(high, inner_high)
        if inner_low > inner_high:
            return [(skip, frames, low, high + 1, False)]
        parts = [
            (low, inner_low, False),
            (inner_low, inner_high + 1, True),
            (inner_high + 1, high + 1, False),
        ]
        return [(skip, frames, a, b, full) for a, b, full in parts if a < b]
