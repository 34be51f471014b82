"""Patterns that are more than one plan: how each is put together from calls that are.

``attention.compute`` asks :func:`handler` first; what a handler computes it computes through ``compute`` again, or
through operators of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidattn.backends import check_backend
from vidattn.backends.problem import Problem
from vidattn.patterns import Pattern, Segments

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


_HANDLERS: tuple[tuple[type[Pattern], Callable[..., Result | None]], ...] = ((Segments, _segments),)
