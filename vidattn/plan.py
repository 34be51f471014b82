"""What a pattern costs to run: tiles of queries, and the boxes of keys that each tile visits.

Tiles and boxes are boxes of the token grid, not runs of the raster order: at 4096 px raster blocks of 128
tokens make a disc touch 5 to 25 times too many pairs, boxes of 8x8 touch 1.5 to 3 times. A box may have a
step per axis, which is how a dilated window becomes an undilated one on a sub-lattice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vidattn.layout import Grid


@dataclass(frozen=True)
class KeyBox:
    """Keys ``start + step * i`` for ``0 <= i < size`` on every axis; ``full``: every query of the tile sees
    all of them.
    """

    start: Grid
    size: Grid
    full: bool


@dataclass(frozen=True)
class Tile:
    """Queries ``start + step * i`` for ``0 <= i < size`` on every axis, and the disjoint key boxes that they
    visit.

    ``kind``: whatever, beside the boxes' places relative to ``start``, decides the tile's element mask.
    """

    start: Grid
    size: Grid
    boxes: tuple[KeyBox, ...]
    kind: Hashable = None

    @property
    def full(self) -> bool:
        """No pair of the tile needs the element mask."""
        return all(box.full for box in self.boxes)

    def mask_kind(self) -> Hashable:
        """Tiles of one size, with boxes of the same sizes, have the same element mask when this is equal."""
        if self.full:
            return None
        return self.kind, tuple(
            tuple(b - a for a, b in zip(self.start, box.start, strict=True)) for box in self.boxes
        )


@dataclass(frozen=True)
class Bucket:
    """Tiles of one shape and one element mask, so that they run as one batch.

    Grid token numbers are ``base + offset``: queries ``query_base`` (c,) + ``query_offset`` (M,), keys
    ``key_base`` (c, K) (the start of each key's box) + ``key_offset`` (K,). ``full``: no pair of these tiles
    needs the element mask.
    """

    query_base: Tensor
    query_offset: Tensor
    key_base: Tensor
    key_offset: Tensor
    full: bool

    @property
    def keys(self) -> int:
        """Grid keys that each tile of the bucket visits."""
        return len(self.key_offset)

    def to(self, device: torch.device) -> Bucket:
        """The bucket with its tensors on ``device``."""
        return Bucket(
            query_base=self.query_base.to(device),
            query_offset=self.query_offset.to(device),
            key_base=self.key_base.to(device),
            key_offset=self.key_offset.to(device),
            full=self.full,
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """Every query of the grid is in exactly one tile; every pair that the pattern allows is in exactly one
    box.

    Args:
        grid: the grid that the boxes live on. It may be a view of the layout's grid with the same token order
            (Radial sees a frame as one row of H*W tokens).
        tile: the tile's shape where the grid leaves room.
        step: distance of neighbouring tokens of a tile or box, per axis.
        tiles: the tiles, in raster order of their lattice.
    """

    grid: Grid
    tile: Grid
    step: Grid
    tiles: tuple[Tile, ...]

    # the same as flat int32 tensors, for kernels and drawings
    @cached_property
    def query_start(self) -> Tensor:
        """(tiles, 3)"""
        return torch.tensor([t.start for t in self.tiles], dtype=torch.int32)

    @cached_property
    def query_size(self) -> Tensor:
        """(tiles, 3), counted in steps"""
        return torch.tensor([t.size for t in self.tiles], dtype=torch.int32)

    @cached_property
    def query_stop(self) -> Tensor:
        """(tiles, 3), exclusive grid coordinates"""
        return self._stop(self.query_start, self.query_size)

    @cached_property
    def box_offsets(self) -> Tensor:
        """(tiles + 1,): tile i owns the boxes ``box_offsets[i]`` to ``box_offsets[i + 1]``"""
        counts = torch.tensor([0] + [len(t.boxes) for t in self.tiles])
        return counts.cumsum(0).to(torch.int32)

    @cached_property
    def box_start(self) -> Tensor:
        """(boxes, 3)"""
        return torch.tensor([b.start for t in self.tiles for b in t.boxes], dtype=torch.int32).view(-1, 3)

    @cached_property
    def box_size(self) -> Tensor:
        """(boxes, 3), counted in steps"""
        return torch.tensor([b.size for t in self.tiles for b in t.boxes], dtype=torch.int32).view(-1, 3)

    @cached_property
    def box_stop(self) -> Tensor:
        """(boxes, 3), exclusive grid coordinates"""
        return self._stop(self.box_start, self.box_size)

    @cached_property
    def box_full(self) -> Tensor:
        """(boxes,) bool"""
        return torch.tensor([b.full for t in self.tiles for b in t.boxes], dtype=torch.bool)

    def _stop(self, start: Tensor, size: Tensor) -> Tensor:
        return start + (size - 1) * torch.tensor(self.step, dtype=torch.int32) + 1

    def tokens_of(self, box: Tile | KeyBox) -> Tensor:
        """Raster numbers of a tile's or a box's tokens."""
        return self._number(box.start) + self._offsets(box.size)

    @cached_property
    def visited_pairs(self) -> int:
        """(query, key) pairs that running the plan computes on the grid, masked ones included."""
        return sum(math.prod(t.size) * sum(math.prod(b.size) for b in t.boxes) for t in self.tiles)

    def buckets(self, device: torch.device) -> tuple[Bucket, ...]:
        """The tiles sorted into batches of equal shape, largest first, with their tensors on ``device``."""
        key = str(device)
        if key not in self._on_device:
            self._on_device[key] = tuple(bucket.to(device) for bucket in self._buckets)
        return self._on_device[key]

    @cached_property
    def _on_device(self) -> dict[str, tuple[Bucket, ...]]:
        return {}

    @cached_property
    def _buckets(self) -> tuple[Bucket, ...]:
        groups: dict[Hashable, list[Tile]] = defaultdict(list)
        for tile in self.tiles:
            groups[tile.size, tuple(b.size for b in tile.boxes), tile.mask_kind()].append(tile)
        made = [self._bucket(tiles) for tiles in groups.values()]
        return tuple(sorted(made, key=lambda b: -b.keys * len(b.query_offset)))

    def _bucket(self, tiles: list[Tile]) -> Bucket:
        offsets = [self._offsets(box.size) for box in tiles[0].boxes]
        counts = torch.tensor([len(o) for o in offsets])
        starts = torch.tensor([[self._number(box.start) for box in tile.boxes] for tile in tiles])
        return Bucket(
            query_base=torch.tensor([self._number(tile.start) for tile in tiles]),
            query_offset=self._offsets(tiles[0].size),
            key_base=starts.repeat_interleave(counts, 1),
            key_offset=torch.cat(offsets),
            full=tiles[0].full,
        )

    def _number(self, place: Grid) -> int:
        return (place[0] * self.grid[1] + place[1]) * self.grid[2] + place[2]

    def _offsets(self, size: Grid) -> Tensor:
        t, y, x = (torch.arange(n) * s for n, s in zip(size, self.step, strict=True))
        return ((t[:, None, None] * self.grid[1] + y[:, None]) * self.grid[2] + x).flatten()


def ranges(start: int, stop: int, length: int) -> list[tuple[int, int]]:
    """[start, stop) cut into pieces of at most ``length``."""
    return [(a, min(a + length, stop)) for a in range(start, stop, length)]
