"""Draws scene layouts and their exact captions: numpy only, no pixels (compose.py paints them).

One to four sprites on a procedural background; with ``moving=True`` one sprite with a captioned motion.
Places and sizes vary little: a small model draws far better what it has seen at about the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from .vocabulary import (
    BACKGROUND_NAMES,
    BACKGROUNDS,
    COLOUR_NAMES,
    MOTIONS,
    NUMBERS,
    RELATIONS,
    held_out,
)

MAX_SPRITES = 4
# Offsets of sprite centres from the picture's centre, in picture widths, for two, three and four of a kind.
GRIDS = {
    2: [(-0.26, 0.0), (0.26, 0.0)],
    3: [(-0.3, 0.18), (0.3, 0.18), (0.0, -0.26)],
    4: [(-0.26, -0.26), (0.26, -0.26), (-0.26, 0.26), (0.26, 0.26)],
}
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass
class Layouts:
    """N scenes as arrays. Lengths are in picture widths, angles are none (motions turn sprites over time)."""

    sprite: np.ndarray  # (N, 4) int64, index of the sprite, -1 for none
    centre: np.ndarray  # (N, 4, 2) float32, x and y from the picture's centre
    scale: np.ndarray  # (N, 4) float32
    kind: np.ndarray  # (N,) int64, index into BACKGROUND_NAMES
    colour: np.ndarray  # (N, 2) int64, indices into COLOUR_NAMES
    frequency: np.ndarray  # (N,) float32, stripes, squares or dots across
    horizon: np.ndarray  # (N,) float32, height of the horizon from the top
    motion: np.ndarray  # (N,) int64, index into MOTIONS, -1 for a still picture
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, part: slice) -> Layouts:
        return Layouts(*(getattr(self, f.name)[part] for f in fields(self)))


class SceneSampler:
    """Draws layouts for a sprite table ``meta`` (list of {"name", "style"}), keeping held-out pairs apart.

    A scene is held out when its sprite's name forms a held-out pair with the first background colour or, for
    moving scenes, with the motion.
    """

    def __init__(self, meta: Sequence[dict[str, str]], moving: bool = False) -> None:
        self.meta, self.moving = list(meta), moving
        names = sorted({m["name"] for m in self.meta})
        self.concept = np.array([names.index(m["name"]) for m in self.meta])
        self.by_colour = np.array([[held_out(m["name"], c) for c in COLOUR_NAMES] for m in self.meta])
        self.by_motion = np.array([[held_out(m["name"], w) for w in MOTIONS] for m in self.meta])
        self.words = [f"{m['style']} {m['name']}" for m in self.meta]

    def draw(self, count: int, rng: np.random.Generator, split: str = "train") -> Layouts:
        """``count`` scenes of ``split`` ("train" or "heldout"); the same ``rng`` state, the same scenes."""
        if split not in ("train", "heldout"):
            raise ValueError(f"split must be 'train' or 'heldout', got {split!r}")
        first, colour, motion = self._keys(count, rng, split)
        other = (colour + rng.integers(1, len(COLOUR_NAMES), count)) % len(COLOUR_NAMES)
        # Half of all pictures have a plain background: the plainest words should be the surest.
        kind = np.where(rng.random(count) < 0.4, 0, rng.integers(0, len(BACKGROUND_NAMES), count))
        number = np.ones(count, int) if self.moving else rng.choice([1, 1, 1, 2, 2, 2, 3, 4], count)
        related = (number == 2) & (rng.random(count) < 0.7)
        relation = rng.integers(0, len(RELATIONS), count)
        second = self._second(first, colour, rng, split)
        jitter = rng.normal(0, 0.01, (count, MAX_SPRITES, 2))
        spread, size, place = rng.random((count, 2)), rng.random((count, 2)), rng.uniform(-1, 1, (count, 2))

        sprite = np.full((count, MAX_SPRITES), -1)
        centre = np.zeros((count, MAX_SPRITES, 2))
        scale = np.ones((count, MAX_SPRITES))
        captions = []
        for i in range(count):
            n, text = int(number[i]), self.words[first[i]]
            if related[i]:
                word = RELATIONS[relation[i]]
                way, away = np.array(DIRECTIONS[word]), 0.24 + 0.02 * spread[i]
                sprite[i, :2] = first[i], second[i]
                centre[i, :2] = np.stack([way * away[0], -way * away[1]]) + jitter[i, :2]
                scale[i, :2] = 0.42 + 0.04 * size[i]
                text = f"{text} {word} {self.words[second[i]]}"
            elif n > 1:
                sprite[i, :n] = first[i]
                centre[i, :n] = GRIDS[n] + jitter[i, :n]
                scale[i, :n] = 0.40 + 0.04 * size[i, 0]
                text = f"{NUMBERS[n]} {text}"
            else:
                sprite[i, 0] = first[i]
                low, high = (0.5, 0.6) if self.moving else (0.66, 0.8)
                scale[i, 0] = low + (high - low) * size[i, 0]
                centre[i, 0] = 0.05 * place[i]
            if self.moving:
                text += f" {MOTIONS[motion[i]]}"
            ground = BACKGROUNDS[BACKGROUND_NAMES[kind[i]]]
            captions.append(f"{text} on {ground.format(a=COLOUR_NAMES[colour[i]], b=COLOUR_NAMES[other[i]])}")
        return Layouts(
            sprite,
            centre.astype(np.float32),
            scale.astype(np.float32),
            kind,
            np.stack([colour, other], 1),
            rng.integers(3, 8, count).astype(np.float32),
            rng.uniform(0.55, 0.75, count).astype(np.float32),
            motion if self.moving else np.full(count, -1),
            captions,
        )

    def _is_held_out(self, sprite: np.ndarray, colour: np.ndarray, motion: np.ndarray) -> np.ndarray:
        out = self.by_colour[sprite, colour]
        return out | self.by_motion[sprite, motion] if self.moving else out

    def _keys(
        self, count: int, rng: np.random.Generator, split: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sprite, first colour and motion of each scene, redrawn until every scene is in the split."""
        limits = (len(self.meta), len(COLOUR_NAMES), len(MOTIONS))
        keys = np.stack([rng.integers(0, n, count) for n in limits])
        for _ in range(1000):
            wrong = np.flatnonzero(self._is_held_out(*keys) != (split == "heldout"))
            if not len(wrong):
                return keys[0], keys[1], keys[2]
            keys[:, wrong] = np.stack([rng.integers(0, n, len(wrong)) for n in limits])
        raise ValueError(
            f"found no {split} scenes: the {len(self.meta)} sprites have too few pairs of that split"
        )

    def _second(
        self, first: np.ndarray, colour: np.ndarray, rng: np.random.Generator, split: str
    ) -> np.ndarray:
        """The other sprite of a relation: another concept and, in training, no held-out pair either."""
        second = rng.integers(0, len(self.meta), len(first))
        for _ in range(1000):
            wrong = self.concept[second] == self.concept[first]
            if split == "train":
                wrong |= self.by_colour[second, colour]
            wrong = np.flatnonzero(wrong)
            if not len(wrong):
                return second
            second[wrong] = rng.integers(0, len(self.meta), len(wrong))
        raise ValueError(f"the {len(self.meta)} sprites are too few for scenes with two concepts")
