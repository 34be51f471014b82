"""Saving pictures and clips with their settings inside."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin


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


def save_mp4(frames: list[Image.Image], path: Path, settings: Mapping[str, Any], rate: float) -> None:
    """Save a clip as H.264, and beside it a .json with the settings.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        ValueError: an odd height or width, which H.264 with colour at half the size cannot hold.
    """
    width, height = frames[0].size
    if width % 2 or height % 2:
        raise ValueError(f"{path.name}: height and width must be even in an mp4, not {height}x{width}")
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("mp4 needs PyAV: pip install av, or save a .gif") from error

    def write(target: Path) -> None:
        with av.open(str(target), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": "14"}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_image(frame.convert("RGB"))))
            container.mux(stream.encode())

    _replace(path, write)
    text = json.dumps(dict(settings), indent=1, default=str)
    _replace(path.with_suffix(".json"), lambda target: target.write_text(text, encoding="utf-8"))


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
