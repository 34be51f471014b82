"""Segments of the sequence, text included, and which of them see which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidattn.layout import Grid, TokenLayout
from vidattn.patterns.base import Pattern, hide_padding
from vidattn.patterns.sizes import is_int
from vidattn.plan import Plan

Run = tuple[int, int]
"""Sequence positions [start, stop)."""


@dataclass(frozen=True)
class Segments(Pattern):
    """Whole segments of the sequence that see whole segments: text takes part like everything else.

    ShotAdapter (arXiv 2505.07652) and DRA-Ctrl (NeurIPS 2025) attend like this; :meth:`shots` and
    :meth:`control` make their tables. Text form: ``segments:lengths=4x4x77x77,allowed=1110x1101x1010x0101``.

    Args:
        lengths: of each segment, in sequence order (text before, grid, text after). They add up either to the
            layout's tokens, or to its text tokens and its frames: then segments of the grid are counted in
            frames, which serves every height and width, and the grid begins and ends with a segment.
        allowed: for each segment, as a query, which segments it sees, in their order: text such as "1001", or
            booleans. Every segment must see at least one (and one with a real token, where text is padded).

    Raises:
        ValueError: lengths that are no positive integers, or a table of another shape.

    Example:
        >>> pattern = Segments((1, 3, 8), ("101", "111", "011"))  # frames 0 and 1 to 3, then text
        >>> pattern.mask(TokenLayout((4, 2, 2), text_after=8)).shape
        torch.Size([24, 24])
    """

    name = "segments"
    lengths: tuple[int, ...]
    allowed: tuple[str, ...]

    def __post_init__(self) -> None:
        given: Any = (self.lengths,) if is_int(self.lengths) else self.lengths
        if not isinstance(given, (tuple, list)) or not given or not all(is_int(n) and n > 0 for n in given):
            raise ValueError(
                f"lengths={self.lengths!r}: give the length of each segment, integers of at least 1"
            )
        object.__setattr__(self, "lengths", tuple(given))
        object.__setattr__(self, "allowed", _table(self.allowed, len(given)))
        super().__post_init__()

    @classmethod
    def shots(cls, frames: Sequence[int], text: Sequence[int], transitions: bool = True) -> Segments:
        """ShotAdapter: all frames see each other, each shot's text and frames see each other and no other
        shot's.

        The sequence is the video, the texts of the shots, and with ``transitions`` one token for each cut,
        which sees and is seen by the two frames at its cut. The paper does not say whom text and transition
        tokens see among themselves; here each sees itself only.

        Args:
            frames: latent frames of each shot.
            text: text tokens of each shot.
            transitions: whether there are transition tokens.

        Raises:
            ValueError: not as many texts as shots, or counts under 1.
        """
        if len(frames) != len(text):
            raise ValueError(f"frames has {len(frames)} shots and text {len(text)}: give as many of each")
        cuts = len(frames) - 1 if transitions else 0
        pieces = [piece for shot, count in enumerate(frames) for piece in _shot(shot, count, cuts)]
        # (length, shot, cuts beside it) of the frames; a text has a shot, a transition a cut
        kinds = [("frames", *p) for p in pieces] + [("text", n, s, ()) for s, n in enumerate(text)]
        kinds += [("cut", 1, -1, (c,)) for c in range(cuts)]

        def sees(a: tuple, b: tuple) -> bool:
            if a[0] == b[0]:
                return a[0] == "frames" or a[2:] == b[2:]
            if "cut" in (a[0], b[0]):
                return "text" not in (a[0], b[0]) and bool(set(a[3]) & set(b[3]))
            return bool(a[2] == b[2])

        table = ["".join("01"[sees(a, b)] for b in kinds) for a in kinds]
        return cls(tuple(k[1] for k in kinds), tuple(table))

    @classmethod
    def control(cls, condition_text: int, text: int, condition: int = 1, frames: int = 3) -> Segments:
        """DRA-Ctrl: a condition image, the generated frames, the target's text, and the condition's own text.

        Args:
            condition_text: text tokens of the condition; 0 when it has none.
            text: text tokens of the target.
            condition: latent frames of the condition, in front.
            frames: generated latent frames.

        Raises:
            ValueError: counts under 1.
        """
        if not condition_text:
            return cls((condition, frames, text), ("100", "111", "011"))
        return cls((condition, frames, text, condition_text), ("1001", "1110", "0110", "1001"))

    # ------------------------------------------------------------------ in a sequence
    def sizes(self, layout: TokenLayout) -> tuple[int, ...]:
        """Tokens of each segment in this layout.

        Raises:
            ValueError: the lengths do not add up, or a segment crosses the grid's border.
        """
        total, frame = sum(self.lengths), layout.grid[1] * layout.grid[2]
        if total == layout.tokens:
            return self.lengths
        if total != layout.text_tokens + layout.grid[0]:
            raise ValueError(
                f"lengths={self.lengths} add up to {total}: must be the layout's {layout.tokens} tokens, or"
                f" {layout.text_tokens + layout.grid[0]} with segments of the grid counted in frames"
            )
        sizes, place = [], 0
        first, last = layout.text_before, layout.text_before + layout.grid[0]
        for length in self.lengths:
            inside = place >= first and place + length <= last
            if not inside and not (place + length <= first or place >= last):
                raise ValueError(f"lengths={self.lengths}: a segment of {length} crosses the grid's border")
            sizes.append(length * frame if inside else length)
            place += length
        return tuple(sizes)

    def groups(self, layout: TokenLayout) -> list[tuple[list[Run], list[Run]]]:
        """(query runs, key runs) of the segments that see the same keys; every position in one query run."""
        places, start = [], 0
        for size in self.sizes(layout):
            places.append((start, start + size))
            start += size
        rows: dict[str, list[Run]] = {}
        for row, place in zip(self.allowed, places, strict=True):
            rows.setdefault(row, []).append(place)
        return [
            (_joined(queries), _joined([p for p, seen in zip(places, row, strict=True) if seen == "1"]))
            for row, queries in rows.items()
        ]

    def mask(self, layout: TokenLayout) -> Tensor:
        owner = torch.repeat_interleave(torch.tensor(self.sizes(layout)))
        return hide_padding(self._truth()[owner[:, None], owner], layout)

    def density(self, layout: TokenLayout) -> float:
        sizes = torch.tensor(self.sizes(layout), dtype=torch.float64)
        real, valid = sizes, layout.key_valid()
        if valid is not None:
            real = torch.stack([part.sum() for part in valid.double().mean(0).split(self.sizes(layout))])
        return float(sizes @ self._truth().double() @ real) / layout.tokens**2

    def covers(self, grid: Grid) -> bool:
        return not any("0" in row for row in self.allowed)

    def visited(self, layout: TokenLayout) -> float:
        """Share of all pairs, text included: no pair is computed for nothing."""
        return self.density(layout)

    def plan(
        self, layout: TokenLayout, tile: Iterable[int] | None = None, key_tile: Iterable[int] | None = None
    ) -> Plan:
        """There is none.

        Raises:
            ValueError: always.
        """
        raise ValueError("segments have no plan of the grid, since text takes part: ask groups(layout)")

    def _truth(self) -> Tensor:
        return torch.tensor([[seen == "1" for seen in row] for row in self.allowed])


def _table(given: Any, count: int) -> tuple[str, ...]:
    """The truth table as rows of 0 and 1. Text forms come as integers, which lost the zeros in front."""
    rows: Any = [given] if isinstance(given, (str, int)) else given
    table = []
    for row in rows:
        if is_int(row):
            text = str(row).zfill(count)
        elif isinstance(row, str):
            text = row
        else:  # booleans, or a row of a tensor
            text = "".join(str(int(seen)) for seen in row)
        table.append(text)
    if len(table) != count or not all(len(row) == count and set(row) <= {"0", "1"} for row in table):
        raise ValueError(f"allowed={given!r}: give {count} rows of {count} zeros and ones")
    if not all("1" in row for row in table):
        raise ValueError(f"allowed={given!r}: every segment must see at least one")
    return tuple(table)


def _joined(runs: list[Run]) -> list[Run]:
    """Neighbouring runs as one."""
    joined: list[Run] = []
    for start, stop in runs:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _shot(shot: int, frames: int, cuts: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """(frames, shot, cuts beside them): a shot's first and last frame stand alone where a cut is beside
    them.
    """
    before, after = (shot - 1,) * (0 < shot <= cuts), (shot,) * (shot < cuts)
    if frames == 1 or not (before or after):
        return [(frames, shot, before + after)]
    middle = frames - len(before) - len(after)
    parts = [(1, shot, before)] * len(before) + [(middle, shot, ())] + [(1, shot, after)] * len(after)
    return [part for part in parts if part[0] > 0]
