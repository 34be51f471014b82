"""The words of the demo captions: concepts, styles, colours, backgrounds, relations and motions."""

from __future__ import annotations

import zlib
from pathlib import Path

STYLES = ("noto", "flat", "3d")
COLOURS = {
    "white": (245, 245, 245), "black": (25, 25, 28), "red": (205, 45, 45), "green": (60, 160, 75),
    "blue": (55, 95, 205), "yellow": (250, 215, 70), "pink": (250, 165, 195), "purple": (125, 70, 170),
    "orange": (245, 145, 50), "gray": (135, 135, 140),
}  # fmt: skip
COLOUR_NAMES = tuple(COLOURS)
BACKGROUNDS = {
    "plain": "a {a} background",
    "gradient": "a {a} to {b} gradient",
    "striped": "{a} and {b} stripes",
    "checkered": "a {a} and {b} checkerboard",
    "horizon": "{b} ground under a {a} sky",
    "dotted": "a {a} background with {b} dots",
}
BACKGROUND_NAMES = tuple(BACKGROUNDS)
RELATIONS = ("left of", "right of", "above", "below")
MOTIONS = (
    "moving left", "moving right", "moving up", "moving down", "spinning", "growing", "shrinking", "bouncing",
    "standing still",
)  # fmt: skip
NUMBERS = {2: "two", 3: "three", 4: "four"}
HELD_OUT_ONE_IN = 10


def held_out(name: str, key: str) -> bool:
    """Whether the pair (concept name, colour or motion) is kept out of training: one in ten, the same for
    every process and machine because it hangs on nothing but the CRC-32 of the two words."""
    return zlib.crc32(f"{name}|{key}".encode()) % HELD_OUT_ONE_IN == 0


def concepts(moving_only: bool = False) -> dict[str, str]:
    """Concept name -> group, read from ``concepts.txt``; ``moving_only`` keeps the emoji-wan subset."""
    out: dict[str, str] = {}
    for line in (Path(__file__).parent / "concepts.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        group, names = line.split(":", 1)
        for name in names.split(","):
            if name.strip().endswith("*") or not moving_only:
                out[name.strip().rstrip("*")] = group
    return out
