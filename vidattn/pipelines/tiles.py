"""Running part of a convolutional network by tiles, with group norms of the whole map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Reached(Exception):
    """The norm whose statistics are gathered was reached."""


class WholeNorms:
    """Group norms with statistics of a whole map that is seen tile by tile."""

    def __init__(self, norms: list[nn.GroupNorm]) -> None:
        self.norms = norms
        self.known: dict[int, tuple[Tensor, Tensor]] = {}
        self.order: list[int] = []  # of the norms that were met, by their place in the run
        self.sums: list[Tensor] = []
        self.inside: Callable[[Tensor], Tensor] = lambda values: values

    def forward(self, number: int, x: Tensor) -> Tensor:
        norm = self.norms[number]
        batch, channels = x.shape[:2]
        if number not in self.known:
            part = self.inside(x).double().reshape(batch, norm.num_groups, -1)
            count = torch.full_like(part[..., 0], part.shape[-1])
            self.sums.append(torch.stack([part.sum(-1), part.square().sum(-1), count]))
            self.order.append(number)
            raise Reached
        mean, inverse = (v.repeat_interleave(channels // norm.num_groups, 1) for v in self.known[number])
        shape = (batch, channels, *[1] * (x.ndim - 2))
        made = (x.float() - mean.view(shape).float()) * inverse.view(shape).float()
        if norm.affine:
            each = (1, channels, *[1] * (x.ndim - 2))
            made = made * norm.weight.float().view(each) + norm.bias.float().view(each)
        return made.to(x.dtype)

    def learn(self) -> None:
        """Turn the sums of one pass into the statistics of its norm."""
        number = self.order[-1]
        total, squares, count = torch.stack(self.sums).sum(0)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        self.known[number] = mean, (variance + self.norms[number].eps).rsqrt()
        self.sums, self.order = [], []

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The norms' ``forward`` is this one's for the length of a ``with`` block."""
        old = [norm.__dict__.get("forward") for norm in self.norms]
        try:
            for i, norm in enumerate(self.norms):
                norm.forward = lambda x, i=i: self.forward(i, x)  # type: ignore[method-assign, misc]
            yield
        finally:
            for norm, before in zip(self.norms, old, strict=True):
                norm.__dict__.pop("forward", None)
                if before is not None:
                    norm.forward = before  # type: ignore[method-assign]


Span = tuple[int, int]


@dataclass(frozen=True)
class Tile:
    """A part of a map.

    Args:
        inner: (start, stop) along height and width: the part that the tile is for.
        outer: the same with the margin, cut at the map's borders.
    """

    inner: tuple[Span, Span]
    outer: tuple[Span, Span]

    def cut(self, values: Tensor) -> Tensor:
        """The tile with its margin."""
        (top, bottom), (left, right) = self.outer
        return values[..., top:bottom, left:right]

    def inside(self, part: Tensor) -> Tensor:
        """What lies within the margin, of a map of any scale that was made from :meth:`cut`."""
        for axis, (a, b), (start, stop) in zip((-2, -1), self.inner, self.outer, strict=True):
            size = part.shape[axis]
            first, last = ((end - start) * size // (stop - start) for end in (a, b))
            part = part.narrow(axis, first, last - first)
        return part


def _spans(length: int, tile: int) -> list[Span]:
    return [(start, min(length, start + tile)) for start in range(0, length, tile)]


def _tile(y: Span, x: Span, size: tuple[int, int], margin: int) -> Tile:
    outer = [(max(0, a - margin), min(n, b + margin)) for (a, b), n in zip((y, x), size, strict=True)]
    return Tile((y, x), (outer[0], outer[1]))


def run_exactly(
    stage: Callable[[Tensor], Tensor], norms: list[nn.GroupNorm], values: Tensor, tile: int, margin: int
) -> tuple[Tensor, int]:
    """``stage(values)`` by tiles.

    Args:
        stage: convolutions, resizing and pointwise functions, and ``norms``.
        norms: its group norms.
        values: (batch, channels, height, width).
        tile: side of a tile.
        margin: at least the receptive field.

    Returns:
        The result, and the number of tiles.
    """
    height, width = values.shape[-2:]
    grid = [[_tile(y, x, (height, width), margin) for x in _spans(width, tile)] for y in _spans(height, tile)]
    whole = WholeNorms(norms)
    with whole.installed():
        while len(whole.known) < len(norms):
            for each in (each for row in grid for each in row):
                whole.inside = each.inside
                try:
                    stage(each.cut(values))
                except Reached:
                    continue
            if not whole.sums:  # the stage meets no more of them
                break
            whole.learn()
        rows = [torch.cat([each.inside(stage(each.cut(values))) for each in row], -1) for row in grid]
    return torch.cat(rows, -2), sum(len(row) for row in grid)
