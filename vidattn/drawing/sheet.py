"""Panels of pixels with a caption, put side by side on a sheet with a heading and a legend."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidattn.drawing.colors import FAINT, INK, PAPER, Color

MARGIN = 24
_HEADING, _TITLE, _SMALL = 24, 17, 14


@dataclass
class Panel:
    """One picture of the sheet.

    Args:
        image: the drawing.
        title: a line above it.
        caption: lines below it.
        legend: (colour, meaning) for each colour that it uses.
    """

    image: Image.Image
    title: str
    caption: list[str] = field(default_factory=list)
    legend: list[tuple[Color, str]] = field(default_factory=list)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that drawings look the same everywhere."""
    return ImageFont.load_default(size)


def cells(colors: np.ndarray, cell: int) -> Image.Image:
    """A (H, W, 3) array of cell colours at ``cell`` pixels a cell, with gaps between large cells."""
    image = Image.fromarray(colors.astype(np.uint8))
    image = image.resize((colors.shape[1] * cell, colors.shape[0] * cell), Image.Resampling.NEAREST)
    if cell >= 6:
        draw = ImageDraw.Draw(image)
        for x in range(0, image.width + 1, cell):
            draw.line([(x, 0), (x, image.height)], fill=PAPER)
        for y in range(0, image.height + 1, cell):
            draw.line([(0, y), (image.width, y)], fill=PAPER)
    return image


def compose(heading: str, facts: list[str], panels: list[Panel]) -> Image.Image:
    """The sheet: heading and facts on top, the panels in a row, each with its title, caption and legend."""
    widths = [max(panel.image.width, _text_width(panel)) for panel in panels]
    top = MARGIN + _HEADING + 10 + len(facts) * (_SMALL + 6) + 14
    picture = max(panel.image.height for panel in panels)
    below = max(len(panel.caption) + len(panel.legend) for panel in panels)
    facts_width = max(_width(heading, _HEADING), *(_width(fact, _SMALL) for fact in facts))
    width = max(sum(widths) + MARGIN * (len(panels) + 1), int(facts_width) + 2 * MARGIN)
    height = top + _TITLE + 10 + picture + 14 + below * (_SMALL + 8) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), heading, fill=INK, font=font(_HEADING))
    for i, fact in enumerate(facts):
        draw.text((MARGIN, MARGIN + _HEADING + 10 + i * (_SMALL + 6)), fact, fill=FAINT, font=font(_SMALL))
    x = MARGIN
    for panel, panel_width in zip(panels, widths, strict=True):
        _place(sheet, draw, panel, x, top)
        x += panel_width + MARGIN
    return sheet


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, panel: Panel, x: int, top: int) -> None:
    draw.text((x, top), panel.title, fill=INK, font=font(_TITLE))
    sheet.paste(panel.image, (x, top + _TITLE + 10))
    y = top + _TITLE + 10 + panel.image.height + 14
    for color, meaning in panel.legend:
        draw.rectangle([x, y + 1, x + _SMALL, y + 1 + _SMALL], fill=color, outline=FAINT)
        draw.text((x + _SMALL + 8, y), meaning, fill=INK, font=font(_SMALL))
        y += _SMALL + 8
    for line in panel.caption:
        draw.text((x, y), line, fill=FAINT, font=font(_SMALL))
        y += _SMALL + 8


def _width(text: str, size: int) -> float:
    return font(size).getlength(text)


def _text_width(panel: Panel) -> int:
    lines = [_width(line, _SMALL) for line in panel.caption]
    lines += [_width(meaning, _SMALL) + _SMALL + 8 for _, meaning in panel.legend]
    return int(max([_width(panel.title, _TITLE), *lines])) + 1
