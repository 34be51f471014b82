"""Validation pictures: teacher above, student below, from the same noise, and how far they are apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidattn import metrics
from vidattn.distill.config import Distillation
from vidattn.distill.data import quiet, seeded
from vidattn.distill.student import Student


class Validation:
    """Pictures for the prompts of ``config.validation_prompts``.

    Args:
        student: teacher and student.
        config: of the distillation.
    """

    def __init__(self, student: Student, config: Distillation) -> None:
        self.student, self.config = student, config
        self._teacher: Tensor | None = None

    def run(self, step: int) -> dict[str, float]:
        """Draw, save ``validation/step-NNNNNN.png``, and measure; {} without prompts."""
        if not self.config.validation_prompts:
            return {}
        if self._teacher is None:
            with self.student.teacher():
                self._teacher = self._draw()
        theirs, ours = self._teacher, self._draw()
        folder = Path(self.config.output) / "validation"
        folder.mkdir(exist_ok=True)
        _save(torch.stack([theirs, ours]), folder / f"step-{step:06d}.png")
        found = {"psnr": float(metrics.psnr(ours, theirs).clamp(max=100).mean())}
        if min(ours.shape[-2:]) >= metrics.WINDOW:
            found["ssim"] = float(metrics.ssim(ours, theirs).mean())
        return found

    def _draw(self) -> Tensor:
        """(pictures, 3, H, W) in [0, 1]; of a clip, the frame in the middle."""
        config, pipe = self.config, self.student.pipe
        call = dict(config.call) | {"height": config.height, "width": config.width, "output_type": "np"}
        if hasattr(pipe, "vae_scale_factor_temporal"):
            call["num_frames"] = config.frames
        kind = next(self.student.model.parameters()).device.type
        mixed = torch.autocast(kind, torch.bfloat16, enabled=config.precision == "bf16")
        pictures = []
        with torch.no_grad(), quiet(pipe), mixed:
            for number, prompt in enumerate(config.validation_prompts):
                made = pipe(prompt=prompt, generator=seeded(config.seed, 11, number), **call)
                frames = made.frames[0] if hasattr(made, "frames") else made.images[:1]
                pictures.append(torch.from_numpy(np.asarray(frames[len(frames) // 2])).float())
        return torch.stack(pictures).permute(0, 3, 1, 2)


def _save(rows: Tensor, path: Path) -> None:
    """(rows, columns, 3, H, W) as one PNG."""
    from PIL import Image

    sheet = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().numpy()).save(path)
