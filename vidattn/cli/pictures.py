"""Saving pictures and clips with their settings inside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

STILL = (".png",)
MOVING = (".gif", ".png")
"""A .png of several frames is an APNG."""


def save_png(image: Image.Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Save one picture; each setting becomes a text chunk of the PNG."""
    _replace(path, lambda target: image.save(target, format="PNG", optimize=True, pnginfo=_chunks(settings)))


def save_clip(frames: list[Image.Image], path: Path, settings: Mapping[str, Any], rate: float) -> None:
    """Save a looping clip: an animated PNG with text chunks, or a GIF with the settings as its comment."""
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "loop": 0}
    options["duration"] = round(1000 / rate)
    if path.suffix.lower() == ".gif":
        options |= {"format": "GIF", "comment": json.dumps(dict(settings), default=str).encode()}
    else:
        options |= {"format": "PNG", "pnginfo": _chunks(settings)}
    _replace(path, lambda target: frames[0].save(target, **options))


def read_settings(path: Path) -> dict[str, str]:
    """The settings inside a PNG that :func:`save_png` or :func:`save_clip` wrote."""
    with Image.open(path) as image:
        image.load()
        return {str(key): value for key, value in image.info.items() if isinstance(value, str)}


def _chunks(settings: Mapping[str, Any]) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for key, value in settings.items():
        chunks.add_itxt(key, value if isinstance(value, str) else json.dumps(value, default=str))
    return chunks


def _replace(path: Path, save: Any) -> None:
    """Write beside ``path`` and move into place, so that a failure leaves no half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
