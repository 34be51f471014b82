"""How long attention will take, dense and with a pattern, by the cost model."""

from __future__ import annotations

import torch

from vidattn.backends.cost import Shape, Times, Work
from vidattn.backends.pays import LEAST_GAIN, duration
from vidattn.cli.full_size import Denoiser
from vidattn.patterns import Pattern


def step_seconds(
    denoiser: Denoiser,
    pattern: Pattern,
    size: tuple[int, int],
    frames: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[float, float] | None:
    """Predicted seconds of all attention in one denoising step, (dense, with the pattern).

    Args:
        denoiser: layers, heads and text of the model.
        pattern: what each token sees.
        size: (height, width) in pixels.
        frames: of a clip, 1 for pictures.
        device: where it runs.
        dtype: of the model.

    Returns:
        None where the cost model knows no times.
    """
    times = Times.on(device)
    totals = [0.0, 0.0]
    for stack in denoiser.stacks:
        layout = denoiser.layout(stack, size, frames)
        shape = Shape(1, stack.heads, stack.head_dim, dtype)
        dense = times.seconds("dense", Work.dense(layout, shape), dtype)
        sparse = times.seconds(_backend(times), Work.sparse(pattern, layout, shape), dtype)
        if dense is None or sparse is None:
            return None
        if pattern.covers(layout.grid):
            sparse = dense
        for i, seconds in enumerate((dense, sparse)):
            totals[i] += seconds * stack.layers * denoiser.forwards
    return totals[0], totals[1]


def sentences(times: tuple[float, float] | None, device: torch.device) -> list[str]:
    """The prediction in words."""
    if times is None:
        return []
    dense, sparse = times
    known = Times.on(device)
    source = "measured on" if known.source("dense", _backend(known)) == "fitted" else "estimated for"
    lines = [f"Attention takes {duration(sparse)} a step, dense {duration(dense)}"]
    lines[0] += f" (predicted; {source} {known.device})."
    if sparse * LEAST_GAIN > dense:
        lines.append("So dense is as fast here: try a larger picture, or a smaller pattern.")
    return lines


def _backend(times: Times) -> str:
    return "torch" if times.device == "cpu" else "triton"
