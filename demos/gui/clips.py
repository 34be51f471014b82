"""Clips for the page: moving ones that live in their own address, and single frames."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

RATE = 8
"""Frames a second."""


def frame_of(kept: list[tuple[Image.Image, Image.Image]] | None, number: float) -> Any:
    """The dense and the patched picture of one frame, counted from 1."""
    return kept[min(max(int(number), 1), len(kept)) - 1] if kept else None


def clip_url(frames: list[Image.Image]) -> str:
    """A looping clip as an address that holds it: nothing is written anywhere."""
    written = io.BytesIO()
    options: dict[str, Any] = {
        "save_all": True,
        "append_images": frames[1:],
        "loop": 0,
        "duration": 1000 // RATE,
    }
    frames[0].save(written, format="WEBP", quality=90, **options)
    return "data:image/webp;base64," + base64.b64encode(written.getvalue()).decode()
