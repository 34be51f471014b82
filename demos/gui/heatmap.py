"""Drawings of the attention tab: a cell for each layer and head, and what one head looks at."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from vidattn.drawing.colors import FAINT, INK, PAPER, QUERY, SEEN
from vidattn.drawing.sheet import font

from .attention import RADII, REACH, Energy

MEASURES = {
    **{f"in {2 * radius + 1}x{2 * radius + 1}": radius for radius in RADII},
    "spread": "spread",
    "to text": "text",
}
"""Name on the page: radius of a window, or field of ``HeadStats``."""
_LEFT, _TOP, _ROW = 200, 26, 30


def values_of(energy: Energy, measure: str) -> list[np.ndarray]:
    """The measure of every head, a row for each layer.

    Raises:
        ValueError: an unknown measure.
    """
    if measure not in MEASURES:
        raise ValueError(f"measure={measure!r}: choose one of {', '.join(MEASURES)}")
    what = MEASURES[measure]
    if isinstance(what, str):
        return [getattr(layer, what).numpy() for layer in energy.layers]
    return [layer.mass[RADII.index(what)].numpy() for layer in energy.layers]


def draw(energy: Energy, measure: str, chosen: tuple[int, int] | None = None) -> Image.Image:
    """Layers down, heads across; darker is more. The chosen (layer, head) has a frame."""
    rows = values_of(energy, measure)
    cell = _cell(rows)
    width = _LEFT + cell * max(len(row) for row in rows)
    image = Image.new("RGB", (width + 1, _TOP + _ROW * len(rows) + 1), PAPER)
    pen = ImageDraw.Draw(image)
    for head in range(max(len(row) for row in rows)):
        pen.text((_LEFT + cell * (head + 0.5), 6), str(head), fill=FAINT, font=font(13), anchor="mt")
    for i, row in enumerate(rows):
        top = _TOP + _ROW * i
        pen.text((_LEFT - 8, top + _ROW / 2), _short(energy.layers[i].layer), INK, font(12), anchor="rm")
        for head, value in enumerate(row):
            left = _LEFT + cell * head
            color = tuple(
                round(p + (s - p) * min(1.0, float(value))) for p, s in zip(PAPER, SEEN, strict=True)
            )
            pen.rectangle((left, top, left + cell, top + _ROW), fill=color, outline=(225, 228, 232))
            if cell >= 40:
                pen.text((left + cell / 2, top + _ROW / 2), f"{value:.0%}", INK, font(12), anchor="mm")
    if chosen is not None:
        left, top = _LEFT + cell * chosen[1], _TOP + _ROW * chosen[0]
        pen.rectangle((left, top, left + cell, top + _ROW), outline=QUERY, width=3)
    return image


def cell_at(pixel: tuple[int, int], energy: Energy) -> tuple[int, int]:
    """(layer, head) under a pixel (x, y) of the drawing, or the nearest."""
    rows = [layer.text for layer in energy.layers]
    layer = min(max((pixel[1] - _TOP) // _ROW, 0), len(rows) - 1)
    return layer, min(max((pixel[0] - _LEFT) // _cell(rows), 0), len(rows[layer]) - 1)


def draw_head(energy: Energy, chosen: tuple[int, int], side: int = 392) -> Image.Image:
    """What a head looks at around the query, by offset; the query is in the middle, its place framed."""
    values = energy.layers[chosen[0]].around[chosen[1]].numpy()
    share = np.sqrt(values / max(float(values.max()), 1e-30))  # weak attention would not be seen otherwise
    colors = np.rint(np.array(PAPER) + (np.array(SEEN) - np.array(PAPER)) * share[..., None])
    cell = max(1, side // (2 * REACH + 1))
    image = Image.fromarray(colors.astype(np.uint8))
    image = image.resize((cell * (2 * REACH + 1),) * 2, Image.Resampling.NEAREST)
    start = cell * REACH
    ImageDraw.Draw(image).rectangle((start, start, start + cell - 1, start + cell - 1), outline=QUERY)
    return image


def sentence(energy: Energy, measure: str) -> str:
    """What the drawing says, in words."""
    mean = float(np.mean([value for row in values_of(energy, measure) for value in row]))
    what = MEASURES[measure]
    if what == "spread":
        return f"On average a head looks at {mean:.0%} of the tokens (exp of its entropy; 100% is even)."
    if what == "text":
        return f"On average {mean:.0%} of the attention goes to the text."
    area = float(np.mean([layer.area[RADII.index(int(what))] for layer in energy.layers]))
    side = f"{2 * int(what) + 1}x{2 * int(what) + 1}"
    return (
        f"On average {mean:.0%} of the attention to the picture is in the {side} window ({area:.0%} of it)."
    )


def _cell(rows: list[object]) -> int:
    most = max(len(row) for row in rows)  # type: ignore[arg-type]
    return max(10, min(64, 640 // most))


def _short(name: str) -> str:
    return name.replace("transformer_blocks", "blocks").removesuffix(".attn").removesuffix(".attn1")[-28:]
