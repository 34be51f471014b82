"""What ``vidattn generate`` saves and prints: pictures, their difference, and a summary of what ran."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vidattn
from vidattn import metrics
from vidattn.cli import pictures
from vidattn.cli.arguments import check_output
from vidattn.cli.generation import Loaded, Run

_GAIN = 4
"""The difference picture shows differences this many times enlarged: most are too small to be seen."""


def check_path(output: Path | None, moving: bool) -> Path:
    """The file to write: checked before minutes are spent on what goes into it."""
    default = Path("clip.gif" if moving else "image.png")
    return check_output(output or default, pictures.MOVING if moving else pictures.STILL)


@dataclass
class Outcome:
    """All that one command did.

    Args:
        arguments: of the command line.
        model: the pipeline.
        call: arguments of its call.
        place: device and dtype, as text.
        sparse: the patched run, or None.
        dense: the run without a patch, or None.
        facts: (name, text) lines about what ran in the patched run.
    """

    arguments: argparse.Namespace
    model: Loaded
    call: dict[str, Any]
    place: str
    sparse: Run | None = None
    dense: Run | None = None
    facts: list[tuple[str, str]] = field(default_factory=list)

    def quality(self) -> dict[str, float]:
        """PSNR and SSIM of the patched run against the dense one, mean over frames; empty without both."""
        if self.sparse is None or self.dense is None:
            return {}
        a, b = (torch.from_numpy(run.frames).movedim(-1, -3) for run in (self.sparse, self.dense))
        measured = {"psnr": metrics.psnr(a, b).mean().item()}
        if min(a.shape[-2:]) >= metrics.WINDOW:
            measured["ssim"] = metrics.ssim(a, b).mean().item()
        return measured

    def settings(self) -> dict[str, Any]:
        """Everything that makes the picture again, and what was measured."""
        given = vars(self.arguments)
        chosen = {key: given[key] for key in ("seed", "pattern", "backend") if given[key] is not None}
        for key in ("dense_steps", "dense_last_steps", "dense_layers", "min_tokens", "weights", "upscale"):
            chosen |= {key: given[key]} if given[key] else {}
        about = {"software": f"vidattn {vidattn.__version__}", "model": self.model.name}
        about |= {"pipeline": type(self.model.pipe).__name__, "place": self.place}
        runs = {"patched": self.sparse, "dense": self.dense}
        seconds = {name: round(run.seconds, 3) for name, run in runs.items() if run is not None}
        return (
            about
            | self.call
            | chosen
            | {"ran": [text for _, text in self.facts], "seconds": seconds}
            | self.quality()
        )

    def save(self, path: Path) -> list[Path]:
        """Write the pictures; returns their paths, the one asked for first."""
        first = self.sparse or self.dense
        assert first is not None, "one of the two always runs"
        contents = [(path, first.frames, "patched" if self.sparse else "dense")]
        if self.sparse is not None and self.dense is not None:
            gap = np.clip(np.abs(self.sparse.frames - self.dense.frames) * _GAIN, 0, 1)
            contents.append((_beside(path, "dense"), self.dense.frames, "dense"))
            contents.append(
                (_beside(path, "difference"), gap, f"absolute difference, {_GAIN} times enlarged")
            )
        settings = self.settings()
        for file, frames, content in contents:
            _write(file, frames, settings | {"content": content}, self.arguments.fps)
        return [file for file, _, _ in contents]

    def summary(self, files: list[Path]) -> list[tuple[str, str]]:
        """(name, text) lines that say what ran."""
        lines = [("model", f"{self.model.name} ({type(self.model.pipe).__name__}) on {self.place}")]
        lines.append(("prompt", self.arguments.prompt))
        lines.append(("picture", self._picture()))
        lines += [] if self.sparse else [("pattern", "none: the model as it is")]
        lines += self.facts
        seconds = [f"{run.seconds:.1f} patched" for run in (self.sparse,) if run]
        seconds += [f"{run.seconds:.1f} dense" for run in (self.dense,) if run]
        lines.append(("seconds", ", ".join(seconds)))
        quality = self.quality()
        if quality:
            ssim = f", SSIM {quality['ssim']:.4f}" if "ssim" in quality else ""
            lines.append(("quality", f"PSNR {quality['psnr']:.2f} dB{ssim}, against dense at the same seed"))
        return lines + [("files" if i == 0 else "", str(file)) for i, file in enumerate(files)]

    def _picture(self) -> str:
        run = self.sparse or self.dense
        assert run is not None, "one of the two always runs"
        frames, height, width = run.frames.shape[:3]
        parts = [f"{height}x{width} pixels (height x width)"]
        parts += [f"{frames} frames"] if frames > 1 else []
        steps = self.call.get("num_inference_steps")
        parts += [f"{steps} steps"] if steps else []
        guidance = self.call.get("true_cfg_scale", self.call.get("guidance_scale"))
        parts += [f"guidance {guidance:g}"] if guidance is not None else []
        return ", ".join([*parts, f"seed {self.arguments.seed}"])


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.stem}-{suffix}{path.suffix}")


def _write(path: Path, values: np.ndarray, settings: dict[str, Any], rate: float) -> None:
    frames = [Image.fromarray(frame) for frame in np.rint(values * 255).astype(np.uint8)]
    if len(frames) == 1 and path.suffix.lower() == ".png":
        pictures.save_png(frames[0], path, settings)
    elif path.suffix.lower() == ".mp4":
        pictures.save_mp4(frames, path, settings, rate)
    else:
        pictures.save_clip(frames, path, settings, rate)
