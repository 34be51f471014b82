"""When sparse attention pays: the cost model's prediction for the sparse call against the dense one."""

from __future__ import annotations

import torch

from vidattn.backends.cost import Shape, Times, Work
from vidattn.layout import TokenLayout
from vidattn.patterns import Pattern

LEAST_GAIN = 1.05
"""How many times as fast a sparse call must be predicted: under it the model's own attention stays."""


def why_dense(
    pattern: Pattern,
    layout: TokenLayout,
    device: torch.device,
    shape: Shape | None = None,
    backend: str = "torch",
) -> str:
    """Why dense attention would be as fast as the pattern on this grid, or "".

    Args:
        pattern: who sees whom.
        layout: where the tokens are.
        device: where the call will run.
        shape: batch, heads, head size and dtype; 16 heads of 64 numbers in bfloat16 (float32 on a CPU) when
            None.
        backend: who will compute the pattern. Of one that the cost table does not know nothing is said.
    """
    if pattern.covers(layout.grid):
        return "every query sees every key"
    if shape is None:
        shape = Shape(dtype=torch.float32 if device.type == "cpu" else torch.bfloat16)
    times = Times.on(device)
    sparse = times.seconds(backend, Work.sparse(pattern, layout, shape), shape.dtype)
    dense = times.seconds("dense", Work.dense(layout, shape), shape.dtype)
    if backend == "dense" or sparse is None or dense is None or sparse * LEAST_GAIN <= dense:
        return ""
    where = f"{times.device}, {times.source('dense', backend)}"
    return (
        f"dense is as fast: predicted {duration(dense)} a call, {pattern} {duration(sparse)} by {backend}"
        f" ({where})"
    )


def duration(seconds: float) -> str:
    """A time with a fitting unit, three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
