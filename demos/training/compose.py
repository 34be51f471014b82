"""Paints layouts in batches with torch, on any device, at any resolution and number of frames."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from .scenes import MAX_SPRITES, Layouts
from .vocabulary import BACKGROUND_NAMES, COLOURS, MOTIONS


class Painter:
    """Holds the sprites, (N, S, S, 4) uint8, on ``device`` at several resolutions."""

    def __init__(self, rgba: np.ndarray, device: torch.device | str) -> None:
        self.device = torch.device(device)
        pixels = torch.from_numpy(np.ascontiguousarray(rgba)).to(self.device).permute(0, 3, 1, 2)
        self.levels: dict[int, torch.Tensor] = {}
        edge, stop = pixels.shape[-1], min(32, pixels.shape[-1])
        while edge >= stop:
            self.levels[edge] = torch.cat([self._shrink(part, edge) for part in pixels.split(128)])
            edge //= 2
        self.palette = torch.tensor(list(COLOURS.values()), device=self.device, dtype=torch.float32) / 255

    @staticmethod
    def _shrink(rgba: torch.Tensor, edge: int) -> torch.Tensor:
        """Premultiplied RGBA (N, 4, edge, edge) uint8 by area averaging."""
        x = rgba.float() / 255
        x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)
        return (F.adaptive_avg_pool2d(x, edge) * 255).round().to(torch.uint8)

    @torch.no_grad()
    def paint(self, scenes: Layouts, size: int, frames: int = 1) -> torch.Tensor:
        """Pixels (N, frames, 3, size, size) in [-1, 1]."""
        # Twice the size and averaged: smooth edges. At 512 px and above the sprites are enlarged anyway.
        fine = 2 * size if size <= 256 else size
        n = len(scenes)
        image = self._background(scenes, fine)[:, None].expand(n, frames, 3, fine, fine).contiguous()
        table = self.levels[max(min(self.levels), min(max(self.levels), 1 << (fine // 2).bit_length() - 1))]
        for k in range(MAX_SPRITES):
            rows = np.flatnonzero(scenes.sprite[:, k] >= 0)
            if not len(rows):
                continue
            row = torch.as_tensor(rows, device=self.device)
            grid = self._grid(scenes, rows, k, fine, frames)
            sprite = table[torch.as_tensor(scenes.sprite[rows, k], device=self.device)].float() / 255
            sprite = sprite.repeat_interleave(frames, 0)
            layer = F.grid_sample(sprite, grid, align_corners=False).view(len(rows), frames, 4, fine, fine)
            image[row] = image[row] * (1 - layer[:, :, 3:]) + layer[:, :, :3]
        if fine != size:
            image = F.avg_pool2d(image.flatten(0, 1), fine // size).unflatten(0, (n, frames))
        return image.clamp(0, 1) * 2 - 1

    def _grid(self, scenes: Layouts, rows: np.ndarray, k: int, size: int, frames: int) -> torch.Tensor:
        """Sampling grid (rows * frames, size, size, 2) of each scene's k-th sprite."""
        centre = torch.as_tensor(scenes.centre[rows, k], device=self.device)[:, None].repeat(1, frames, 1)
        scale = torch.as_tensor(scenes.scale[rows, k], device=self.device)[:, None].repeat(1, frames)
        angle = torch.zeros_like(scale)
        if (scenes.motion[rows] >= 0).any():
            time = torch.linspace(0, 1, frames, device=self.device)
            for i, word in enumerate(MOTIONS):
                on = torch.as_tensor(scenes.motion[rows] == i, device=self.device).float()[:, None]
                if word.startswith("moving"):
                    x, y = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[word.split()[1]]
                    path = on * 0.45 * (time - 0.5)
                    centre = centre + torch.stack([path * x, path * y], -1)
                elif word == "spinning":
                    angle = angle + on * math.pi * time
                elif word == "growing":
                    scale = scale * (1 + on * (0.6 * time - 0.5))
                elif word == "shrinking":
                    scale = scale * (1 + on * (0.1 - 0.6 * time))
                elif word == "bouncing":
                    hop = on * (0.1 - 0.22 * torch.sin(2 * math.pi * time).abs())
                    centre = centre + torch.stack([torch.zeros_like(hop), hop], -1)
        centre, scale, angle = centre.flatten(0, 1), scale.flatten(), angle.flatten()
        cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
        x, y = centre.unbind(-1)
        theta = torch.stack(
            [
                torch.stack([cos, sin, -2 * (cos * x + sin * y)], 1),
                torch.stack([-sin, cos, -2 * (cos * y - sin * x)], 1),
            ],
            1,
        )
        return F.affine_grid(theta, [len(theta), 4, size, size], align_corners=False)

    def _background(self, scenes: Layouts, size: int) -> torch.Tensor:
        """(N, 3, size, size) in [0, 1]: the two colours mixed by the kind's mask."""
        line = (torch.arange(size, device=self.device) + 0.5) / size
        y, x = line[None, :, None], line[None, None, :]
        f = torch.as_tensor(scenes.frequency, device=self.device).view(-1, 1, 1)
        horizon = torch.as_tensor(scenes.horizon, device=self.device).view(-1, 1, 1)
        u, v = (1.5 * f * x) % 1 - 0.5, (1.5 * f * y) % 1 - 0.5
        masks = {
            "plain": torch.zeros_like(f + x + y),
            "gradient": y + 0 * (f + x),
            "striped": (2 * f * x).floor() % 2 + 0 * y,
            "checkered": ((f * x).floor() + (f * y).floor()) % 2,
            "horizon": (y > horizon).float() + 0 * x,
            "dotted": (u * u + v * v < 0.06).float(),
        }
        kind = torch.as_tensor(scenes.kind, device=self.device)
        mask = torch.stack([masks[k] for k in BACKGROUND_NAMES], 1)[
            torch.arange(len(kind), device=self.device), kind
        ]
        mask = mask[:, None]
        a, b = self.palette[torch.as_tensor(scenes.colour, device=self.device)].unbind(1)
        return a[:, :, None, None] * (1 - mask) + b[:, :, None, None] * mask
