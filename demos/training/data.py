"""Scenes as training data: encoded once by a frozen VAE, kept on the device with their caption tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .compose import Painter
from .prepare import load_sprites
from .scenes import SceneSampler
from .vocabulary import concepts

Encode = Callable[[torch.Tensor], torch.Tensor]
Tokenize = Callable[[Sequence[str]], list[torch.Tensor]]
# loss per sample of (latents, tokens, noise level in 0..1, generator)
LossPerSample = Callable[[torch.Tensor, list[torch.Tensor], torch.Tensor, torch.Generator], torch.Tensor]


@dataclass
class Pool:
    """N encoded scenes: ``latents`` (N, C, ...) bfloat16, ``tokens`` a list of (N, length) ids."""

    latents: torch.Tensor
    tokens: list[torch.Tensor]
    captions: list[str]

    def batch(self, size: int, generator: torch.Generator) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """``size`` random scenes: float32 latents and their token ids."""
        pick = torch.randint(len(self.latents), (size,), device=self.latents.device, generator=generator)
        return self.latents[pick].float(), [t[pick] for t in self.tokens]


class Studio:
    """Sprites, sampler and painter of a phase."""

    def __init__(self, path: Path, device: torch.device | str, moving: bool = False) -> None:
        rgba, meta = load_sprites(path)
        if moving:
            names = concepts(moving_only=True)
            keep = [i for i, m in enumerate(meta) if m["name"] in names]
            rgba, meta = rgba[keep], [meta[i] for i in keep]
        self.device = torch.device(device)
        self.sampler, self.painter = SceneSampler(meta, moving), Painter(rgba, device)

    def corpus(self, count: int = 20_000) -> list[str]:
        """Captions of both splits for the tokenizers, with every sprite named at least once."""
        rng = np.random.default_rng(7)
        return self.sampler.draw(count, rng).captions + [
            f"{w} on a white background" for w in self.sampler.words
        ]

    def pool(
        self,
        count: int,
        size: int,
        encode: Encode,
        tokenize: Tokenize,
        seed: int,
        split: str = "train",
        frames: int = 1,
        batch: int = 256,
    ) -> Pool:
        """``count`` scenes at ``size`` px (and ``frames``), a function of ``seed`` alone."""
        began = time.monotonic()
        scenes = self.sampler.draw(count, np.random.default_rng([seed, size, frames]), split)
        latents = [
            encode(self.painter.paint(scenes[i : i + batch], size, frames)).to(torch.bfloat16)
            for i in range(0, count, batch)
        ]
        tokens = [t.to(self.device) for t in tokenize(scenes.captions)]
        pool = Pool(torch.cat(latents), tokens, scenes.captions)
        if count >= 1000:
            print(
                f"{count} scenes of {size} px, {frames} frames in {time.monotonic() - began:.0f} s",
                flush=True,
            )
        return pool


def drop_captions(
    tokens: list[torch.Tensor], empty: list[torch.Tensor], generator: torch.Generator, rate: float = 0.1
) -> list[torch.Tensor]:
    """Replaces one caption in ten by the empty one (``empty``: lists of (1, length)), for guidance."""
    n = len(tokens[0])
    drop = torch.rand(n, 1, device=tokens[0].device, generator=generator) < rate
    return [torch.where(drop, e, t) for t, e in zip(tokens, empty, strict=True)]


@torch.no_grad()
def validation(pools: dict[str, Pool], loss: LossPerSample) -> dict[str, float]:
    """Losses on trained pairs, held-out pairs, and the trained scenes under each other's captions, all with
    the same noise."""
    out = {}
    with torch.compiler.set_stance("force_eager"):  # a compilation for a few forward passes would not pay
        for name in ("train", "heldout", "wrong captions"):
            pool = pools["heldout" if name == "heldout" else "train"]
            tokens = [t.roll(7, 0) for t in pool.tokens] if name == "wrong captions" else pool.tokens
            level = torch.linspace(0.05, 0.95, len(pool.latents), device=pool.latents.device)
            generator = torch.Generator(pool.latents.device).manual_seed(99)
            out[name] = round(loss(pool.latents.float(), tokens, level, generator).mean().item(), 4)
    return out
