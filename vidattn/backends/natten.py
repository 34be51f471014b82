"""The ``natten`` backend: NATTEN's own kernels for neighborhood patterns, for those who have it.

Text is what NATTEN calls additional keys; queries of text run through PyTorch's attention.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidattn.backends.problem import Problem
from vidattn.patterns import Neighborhood, SlidingWindow
from vidattn.patterns.axis import AxisRule


def missing(device: torch.device) -> list[str]:
    """What keeps NATTEN from running on a device."""
    if importlib.util.find_spec("natten") is None:
        return ["natten is not installed (https://natten.org)"]
    if device.type not in ("cpu", "cuda"):
        return [f"NATTEN runs on CPUs and CUDA, not on {device.type}"]
    return []


def reasons(problem: Problem, query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    """What keeps it from running a call."""
    found = missing(query.device)
    pattern = problem.pattern
    if problem.lists is not None or not isinstance(pattern, (Neighborhood, SlidingWindow)):
        return [*found, f"NATTEN has no pattern {pattern.name!r}"]
    small = [rule.window for rule in _axes(problem) if rule.window < 2]
    if small or not _axes(problem):
        found.append("NATTEN has no window of 1 on an axis")
    if problem.text_valid is not None:
        found.append("NATTEN cannot hide padded text")
    if query.dtype == torch.float64:
        found.append("float64")
    if query.device.type == "cpu" and not found:
        found += _cpu_reasons(query, key, value)
    return found


def _cpu_reasons(query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    """NATTEN on a CPU is FlexAttention without compilation, with its limits."""
    found = []
    size = query.shape[3]
    if size != value.shape[3] or size < 8 or size & (size - 1):
        found.append(f"on CPUs NATTEN needs equal head sizes that are powers of two from 8 on, not {size}")
    if torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
        found.append("on CPUs NATTEN has no backward")
    return found


def _axes(problem: Problem) -> list[AxisRule]:
    """The rules of the axes that NATTEN gets: those behind the leading ones of length 1."""
    pattern = problem.pattern
    assert isinstance(pattern, (Neighborhood, SlidingWindow))
    rules = list(pattern.rules(problem.layout.grid))
    while rules and rules[0].length == 1:
        rules.pop(0)
    return rules


def forward(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Output and, where asked for, log-sum-exp; NATTEN differentiates what it can."""
    if problem.head_scale is not None:
        query = query * problem.head_scale[:, None].to(query.dtype)
    layout = problem.layout
    first, stop = layout.text_before, layout.text_before + layout.grid_tokens
    axes = _axes(problem)
    shape = [rule.length for rule in axes]
    text = [torch.cat([t[:, :first], t[:, stop:]], 1) for t in (key, value)]
    extra: dict[str, Any] = {}
    if text[0].shape[1]:
        extra = {"additional_keys": text[0].contiguous(), "additional_values": text[1].contiguous()}
    # contiguous: NATTEN refuses views into a longer sequence
    grid = [t[:, first:stop].unflatten(1, shape).contiguous() for t in (query, key, value)]
    out, lse = _call(axes, grid, problem.scale, extra)
    outs, lses = [out.flatten(1, len(axes))], [lse.flatten(1, len(axes))]
    if layout.text_tokens:
        rows = torch.cat([query[:, :first], query[:, stop : layout.tokens]], 1)
        text_out, text_lse = _text_rows(rows, key, value, problem.scale, return_lse)
        outs = [text_out[:, :first], outs[0], text_out[:, first:]]
        lses = [text_lse[:, :first], lses[0], text_lse[:, first:]]
    return torch.cat(outs, 1), torch.cat(lses, 1) if return_lse else None


def _call(
    axes: list[AxisRule], grid: list[Tensor], scale: float, extra: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    import natten

    function = (natten.na1d, natten.na2d, natten.na3d)[len(axes) - 1]
    out, lse = function(
        *grid,
        kernel_size=tuple(rule.window for rule in axes),
        stride=tuple(rule.stride for rule in axes),
        dilation=tuple(rule.dilation for rule in axes),
        is_causal=tuple(rule.causal for rule in axes),
        scale=scale,
        return_lse=True,
        **extra,
    )
    return out, lse


def _text_rows(
    rows: Tensor, key: Tensor, value: Tensor, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor]:
    """Text queries see every key; the log-sum-exp is zeros unless asked for."""
    q, k, v = (t.transpose(1, 2) for t in (rows, key, value))
    shared = q.shape[1] // k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=shared > 1).transpose(1, 2)
    if not return_lse:
        return out, out.new_zeros(out.shape[:3], dtype=torch.float32)
    scores = q.float() @ k.repeat_interleave(shared, 1).float().transpose(2, 3) * scale
    return out, scores.logsumexp(-1).transpose(1, 2)
