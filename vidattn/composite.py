"""Patterns that are more than one plan: how each is put together from calls that are.

``attention.compute`` asks :func:`handler` first; what a handler computes it computes through ``compute`` again, or
through operators of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidattn.backends import check_backend, dense
from vidattn.backends.problem import Problem
from vidattn.list_ops import block_attention
from vidattn.lists import BlockLists
from vidattn.patterns import Pattern, Segments
from vidattn.patterns.dynamic import DynamicPattern

Result = Tensor | tuple[Tensor, Tensor]
Compute = Callable[[Problem, Tensor, Tensor, Tensor, bool, str], Result]


def handler(pattern: Pattern) -> Callable[..., Result | None] | None:
    """The function that computes a pattern of this kind, or None where a backend does.

    It takes (compute, problem, query, key, value, return_lse, backend), and returns None when a backend shall
    compute the call after all.
    """
    return next((function for kind, function in _HANDLERS if isinstance(pattern, kind)), None)


def _segments(
    compute: Compute,
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    return_lse: bool,
    backend: str,
) -> Result | None:
    """PyTorch's own attention once for each group of segments: no mask, and its fast kernels."""
    pattern: Any = problem.pattern
    if check_backend(backend) not in ("auto", "dense") or return_lse or pattern.covers(problem.layout.grid):
        return None
    if problem.head_scale is not None:
        query = query * problem.head_scale[:, None].to(query.dtype)
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    real = problem.key_valid(query.device)
    shared = q.shape[1] != k.shape[1]
    parts = {}
    for queries, keys in pattern.groups(problem.layout):
        rows, columns, values = (_runs(t, runs) for t, runs in ((q, queries), (k, keys), (v, keys)))
        mask = None if real is None else _runs(real[:, None, :, None], keys)[:, :, None, :, 0]
        out = F.scaled_dot_product_attention(
            rows, columns, values, attn_mask=mask, scale=problem.scale, enable_gqa=shared
        )
        pieces = out.split([stop - start for start, stop in queries], 2)
        parts |= {start: piece for (start, _), piece in zip(queries, pieces, strict=True)}
    return torch.cat([parts[start] for start in sorted(parts)], 2).transpose(1, 2)


def _runs(tensor: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """The runs of axis 2, one behind the other."""
    pieces = [tensor[:, :, start:stop] for start, stop in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def _dynamic(
    compute: Compute,
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    return_lse: bool,
    backend: str,
) -> Result | None:
    """The data's own choice: tokens put in its order, then its rule, then all in place again."""
    pattern: Any = problem.pattern
    layout = problem.layout
    if pattern.covers(layout.grid):
        return None
    scale = problem.scale if problem.head_scale is None else problem.scale * problem.head_scale
    choice = pattern.choose(query, key, value, layout, scale, problem.text_valid)
    if check_backend(backend) == "dense":
        mask = choice.mask(layout, query.shape[0], query.shape[2])
        real = problem.key_valid(query.device)
        mask = mask if real is None else mask & real[:, None, None]
        out = dense.forward(problem, query, key, value, mask)
        return (out, dense.log_sum_exp(problem, query, key, mask)) if return_lse else out
    if (
        choice.key_order is not None and query.shape[2] != key.shape[2]
    ):  # heads that share keys order them apart
        key, value = (t.repeat_interleave(query.shape[2] // key.shape[2], 2) for t in (key, value))
    query = _moved(query, choice.query_order, layout.text_before)
    key, value = (_moved(t, choice.key_order, layout.text_before) for t in (key, value))
    if isinstance(choice.rule, BlockLists):
        result: Result = block_attention(problem, choice.rule, query, key, value)
    else:
        result = compute(replace(problem, pattern=choice.rule), query, key, value, return_lse, backend)
    back = None if choice.query_order is None else choice.query_order.argsort(-1)
    if isinstance(result, Tensor):
        return _moved(result, back, layout.text_before)
    out = _moved(result[0], back, layout.text_before)
    return (out, _moved(result[1][..., None], back, layout.text_before)[..., 0]) if return_lse else out


def _moved(tensor: Tensor, order: Tensor | None, before: int) -> Tensor:
    """(B, S, H, D) with the grid's tokens in the order (B, H, N), which differs by item and head."""
    if order is None:
        return tensor
    count = order.shape[-1]
    head, grid, tail = tensor[:, :before], tensor[:, before : before + count], tensor[:, before + count :]
    index = order.transpose(1, 2)[..., None].expand(-1, -1, -1, tensor.shape[-1])
    return torch.cat([head, grid.gather(1, index), tail], 1)


_HANDLERS: tuple[tuple[type[Pattern], Callable[..., Result | None]], ...] = (
    (Segments, _segments),
    (DynamicPattern, _dynamic),
)
