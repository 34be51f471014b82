"""``vidattn generate --upscale``: the same command, in stages."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from vidattn.cli.arguments import BadArgument
from vidattn.cli.generation import Loaded, Run, patch_options
from vidattn.pipelines import Upscaled, upscale_generate


def check(arguments: argparse.Namespace) -> None:
    """Refuse options that belong to ``--upscale`` without it."""
    if arguments.upscale is None and arguments.checkpoint is not None:
        raise BadArgument("--checkpoint", "keeps finished stages, and needs --upscale")
    if arguments.upscale is None and arguments.stages is not None:
        raise BadArgument("--stages", "needs --upscale")


def run(
    model: Loaded, call: dict[str, Any], arguments: argparse.Namespace, patched: bool
) -> tuple[Run, list[tuple[str, str]], str]:
    """Generate in stages: the pictures, lines that say what each stage did, and the last one's report.

    Args:
        model: the pipeline.
        call: arguments of its call; their size, if any, is that of the first stage.
        arguments: of the command line.
        patched: whether stages after the first follow the pattern.
    """
    given = {k: v for k, v in call.items() if k not in ("height", "width", "prompt")}
    base = (call["height"], call["width"]) if "height" in call else None
    folder = arguments.checkpoint
    started = time.perf_counter()
    try:
        made = upscale_generate(
            model.pipe,
            call["prompt"],
            arguments.upscale,
            base,
            arguments.stages or "auto",
            pattern=arguments.pattern if patched else None,
            patch_options=patch_options(arguments) if patched else None,
            seed=arguments.seed,
            # the dense run of --compare is another run
            checkpoint=folder / ("patched" if patched else "dense") if folder else None,
            **given,
        )
    except (ValueError, TypeError) as error:
        raise BadArgument(_culprit(str(error)), str(error)) from error
    frames = made.frames[0].numpy().astype(np.float32) / 255
    return Run(frames, time.perf_counter() - started), _facts(made), made.stages[-1].report


def _culprit(message: str) -> str:
    for word, option in (("checkpoint", "--checkpoint"), ("stages", "--stages"), ("base", "--size")):
        if message.startswith(word):
            return option
    return "--upscale" if message.startswith(("size", "seed")) else "--model"


def _facts(made: Upscaled) -> list[tuple[str, str]]:
    lines = []
    for stage in made.stages:
        text = f"{stage.height}x{stage.width}, {stage.steps} steps, {stage.seconds:.1f} s"
        text += f", density {stage.density:.3f}" if stage.density is not None else ""
        lines.append((f"stage {stage.index + 1}", text + (" (from the checkpoint)" if stage.resumed else "")))
    return lines
