"""What a dynamic pattern reads off its inputs, as a ``torch.library`` custom op: opaque to
``torch.compile``, so that one graph serves every size, and without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vidattn.backends.problem import Problem
from vidattn.layout import TokenLayout
from vidattn.ops import decode_pattern
from vidattn.patterns.dynamic import Choice, DynamicPattern


def choose(problem: Problem, pattern: DynamicPattern, query: Tensor, key: Tensor, value: Tensor) -> Choice:
    """The pattern's choice for a call, without gradients."""
    layout = problem.layout
    text = (layout.text_before, layout.text_after)
    inputs = (t.detach() for t in (query, key, value))
    scale = None if problem.head_scale is None else problem.head_scale.detach()
    measured = measure_op(
        *inputs, scale, problem.text_valid, pattern.encoded, layout.grid, text, problem.scale
    )
    return pattern.arrange(measured, layout)


@torch.library.custom_op("vidattn::measure", mutates_args=())
def measure_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_scale: Tensor | None,
    text_valid: Tensor | None,
    pattern: str,
    grid: Sequence[int],
    text: Sequence[int],
    scale: float,
) -> list[Tensor]:
    """What the dynamic pattern with this text form measures."""
    layout = TokenLayout((grid[0], grid[1], grid[2]), text[0], text[1])
    factor = scale if head_scale is None else scale * head_scale
    with torch.autocast(query.device.type, enabled=False):  # choices are made in float32
        return _dynamic(pattern).measure(query, key, value, layout, factor, text_valid)


@measure_op.register_fake
def _(query, key, value, head_scale, text_valid, pattern, grid, text, scale):  # type: ignore[no-untyped-def]
    shapes = _dynamic(pattern).measured(query.shape[0], query.shape[2], (grid[0], grid[1], grid[2]))
    return [query.new_empty(shape, dtype=dtype) for shape, dtype in shapes]


def _dynamic(text: str) -> DynamicPattern:
    pattern = decode_pattern(text)
    assert isinstance(pattern, DynamicPattern)
    return pattern
