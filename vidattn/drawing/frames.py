"""Lays the frames of a token grid out on a plane: one frame as it is, several in rows, numbered."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from vidattn.drawing.colors import FAINT, PAPER
from vidattn.drawing.sheet import cells, font
from vidattn.layout import Grid

_LABEL = 13


class FrameView:
    """Draws colours per token, (T, H, W, 3), in a square of about ``side`` pixels.

    Args:
        grid: (T, H, W) in tokens.
        frame: the frame that must be shown when there are too many for all.
        side: wished width in pixels.
        most: frames shown at most; others are left out evenly.
    """

    def __init__(self, grid: Grid, frame: int, side: int = 440, most: int = 16) -> None:
        self.grid = grid
        self.shown = _choose(grid[0], frame, most)
        # the number of columns that makes the sheet of frames nearest to a square
        self.columns = min(len(self.shown), max(1, round(math.sqrt(len(self.shown) * grid[1] / grid[2]))))
        room = side // self.columns - (6 if len(self.shown) > 1 else 0)
        # tokens too many for a pixel each are drawn as every n-th
        self.skip = max(1, -(-max(grid[2], math.ceil(grid[1] / 2)) // room))
        self.cell = max(1, room // -(-grid[2] // self.skip))

    def draw(self, colors: np.ndarray) -> Image.Image:
        """The frames with their numbers; a single frame goes without."""
        pictures = [cells(colors[t, :: self.skip, :: self.skip], self.cell) for t in self.shown]
        if self.grid[0] == 1:
            return pictures[0]
        width, height = self._pitch()
        rows = -(-len(pictures) // self.columns)
        sheet = Image.new("RGB", (width * self.columns, height * rows), PAPER)
        draw = ImageDraw.Draw(sheet)
        for i, (frame, picture) in enumerate(zip(self.shown, pictures, strict=True)):
            x, y = i % self.columns * width, i // self.columns * height
            draw.text((x, y), f"t={frame}", fill=FAINT, font=font(_LABEL))
            sheet.paste(picture, (x, y + _LABEL + 3))
        return sheet

    def token_at(self, pixel: tuple[int, int]) -> Grid:
        """(t, y, x) of the token drawn at pixel (x, y); a pixel between tokens gives one that is near."""
        x, y = pixel
        frame = self.shown[0]
        if self.grid[0] > 1:
            width, height = self._pitch()
            number = y // height * self.columns + min(x // width, self.columns - 1)
            frame = self.shown[min(number, len(self.shown) - 1)]
            x, y = x % width, max(0, y % height - _LABEL - 3)
        row, column = y // self.cell * self.skip, x // self.cell * self.skip
        return frame, min(row, self.grid[1] - 1), min(column, self.grid[2] - 1)

    def _pitch(self) -> tuple[int, int]:
        """Pixels from one frame's corner to the next one's, (x, y)."""
        rows, columns = (-(-n // self.skip) for n in self.grid[1:])
        return columns * self.cell + 6, rows * self.cell + _LABEL + 8

    def note(self) -> list[str]:
        """What the drawing leaves out, in words."""
        notes = []
        if len(self.shown) < self.grid[0]:
            notes.append(f"{len(self.shown)} of {self.grid[0]} frames are shown")
        if self.skip > 1:
            notes.append(f"every {self.skip}th row and column is shown")
        return notes


def _choose(frames: int, frame: int, most: int) -> list[int]:
    if frames <= most:
        return list(range(frames))
    even = {round(i * (frames - 1) / (most - 2)) for i in range(most - 1)}
    return sorted(even | {frame})
