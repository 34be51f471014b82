"""Patterns that are more than one plan: how each is put together from calls that are.

``attention.compute`` asks :func:`handler` first; what a handler computes it computes through ``compute``
again, or through operators of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vidattn.backends import check_backend, dense
from vidattn.backends.problem import Problem
from vidattn.layout import Grid, TokenLayout
from vidattn.lists import BlockLists
from vidattn.measure import choose
from vidattn.ops import attention_op
from vidattn.patterns import Disc, Full, Hierarchical, Pattern, Segments
from vidattn.patterns.boxes import box_means
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
    parts: dict[int, Tensor] = {}
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
        return compute(replace(problem, pattern=Full()), query, key, value, return_lse, backend)
    choice = choose(problem, pattern, query, key, value)
    if check_backend(backend) == "dense":
        mask = choice.mask(layout, query.shape[0], query.shape[2])
        return _with_mask(problem, mask, query, key, value, return_lse)
    if choice.key_order is not None and query.shape[2] != key.shape[2]:
        # heads that share keys order them apart
        key, value = (t.repeat_interleave(query.shape[2] // key.shape[2], 2) for t in (key, value))
    query = _moved(query, choice.query_order, layout.text_before)
    key, value = (_moved(t, choice.key_order, layout.text_before) for t in (key, value))
    if isinstance(choice.rule, BlockLists):
        # the lists may live on a grid of their own, such as the ordered tokens in a row
        own = replace(layout, grid=choice.rule.grid)
        inner = replace(problem, pattern=Full(), layout=own, lists=choice.rule)
    else:
        inner = replace(problem, pattern=choice.rule)
    result = compute(inner, query, key, value, return_lse, backend)
    back = None if choice.query_order is None else choice.query_order.argsort(-1)
    if isinstance(result, Tensor):
        return _moved(result, back, layout.text_before)
    out = _moved(result[0], back, layout.text_before)
    return (out, _moved(result[1][..., None], back, layout.text_before)[..., 0]) if return_lse else out


def _pooled_disc(
    compute: Compute,
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    return_lse: bool,
    backend: str,
) -> Result | None:
    """A disc with its pooled keys behind the sequence, as extra keys that text does not see."""
    pattern: Any = problem.pattern
    if not pattern.pooled:
        return None
    layout = problem.layout
    pooled = [pattern.pool(t, layout) for t in (key, value)]
    return _with_pooled(compute, problem, query, (key, value), pooled, return_lse, backend)


def _with_pooled(
    compute: Compute,
    problem: Problem,
    query: Tensor,
    sequence: Sequence[Tensor],
    pooled: Sequence[Tensor],
    return_lse: bool,
    backend: str,
) -> Result:
    """A disc over keys and values, ``sequence``, and their pooled ones."""
    pattern: Any = problem.pattern
    layout = problem.layout
    key, value = (torch.cat(pair, 1) for pair in zip(sequence, pooled, strict=True))
    problem = replace(problem, extra=pattern.pooled_keys(layout.grid))
    if not layout.text_tokens:  # the extra keys are then seen by all, which every backend knows
        bare = replace(problem, pattern=pattern.bare)
        return compute(bare, query, key, value, return_lse, backend)
    if check_backend(backend) == "dense":
        mask = pattern.mask(layout).to(query.device)[None, None]
        return _with_mask(problem, mask, query, key, value, return_lse)
    if backend not in ("auto", "torch"):
        raise NotImplementedError(
            f"backend={backend!r} cannot run this call: {pattern} has keys that text does not see, which only"
            " 'torch' and 'dense' know"
        )
    result = attention_op(
        query,
        key,
        value,
        problem.head_scale,
        problem.text_valid,
        None,
        None,
        pattern.encoded,
        layout.grid,
        (layout.text_before, layout.text_after),
        (),
        problem.scale,
        "torch",
    )
    return (result[0], result[1]) if return_lse else result[0]


def attention_with_pooled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Disc,
    layout: TokenLayout,
    weight: Tensor,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attention with ``Disc(radius, pooled=f)`` whose pooled keys and values are weighted sums over the cells
    instead of means, as CLEAR's down-sampled checkpoints have them.

    Args:
        query: (B, S, H, D).
        key: as the query.
        value: as the query.
        pattern: with ``pooled``.
        layout: of the tokens.
        weight: (f, f), of a cell's tokens; 1/f^2 for the mean. Cells at the far borders, which hold fewer
            tokens, count theirs the more.
        scale: as for ``vidattn.attention``.
        backend: as for ``vidattn.attention``.
    """
    from vidattn.attention import compute, split_scale

    f = pattern.pooled
    frames, height, width = layout.grid
    rows, columns = (torch.arange(n, device=weight.device) % f for n in (height, width))
    cell = (weight * f * f).to(key.dtype)[rows][:, columns].expand(frames, -1, -1).flatten()
    factor = F.pad(cell, (layout.text_before, layout.text_after))[None, :, None, None]
    pooled = [pattern.pool(t * factor, layout) for t in (key, value)]
    number, per_head = split_scale(scale, query)
    valid = layout.text_valid_tensor(query.shape[0], query.device)
    bare = TokenLayout(layout.grid, layout.text_before, layout.text_after)
    problem = Problem(pattern, bare, number, per_head, valid)
    result = _with_pooled(compute, problem, query, (key, value), pooled, False, backend)
    assert isinstance(result, Tensor)
    return result


def _with_mask(
    problem: Problem, mask: Tensor, query: Tensor, key: Tensor, value: Tensor, return_lse: bool
) -> Result:
    """PyTorch's attention with the whole mask, (1 | B, 1 | H, S, S + extra)."""
    real = problem.key_valid(query.device)
    mask = mask if real is None else mask & real[:, None, None]
    out, lse = dense.forward(problem, query, key, value, return_lse, mask)
    return out if lse is None else (out, lse)


def _sum(
    compute: Compute,
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    return_lse: bool,
    backend: str,
) -> Result | None:
    """A weighted sum of attentions, some among the means of cells."""
    pattern: Any = problem.pattern
    if not pattern.is_sum:
        return None
    if return_lse:
        raise ValueError(f"return_lse: {pattern} is a sum of attentions, which has no log-sum-exp")
    before = problem.layout.text_before
    total: Any = 0
    texts = []
    for branch in pattern.parted:
        layout = branch.layout(problem.layout)
        inputs = [_cells(t, problem.layout, branch.pool) for t in (query, key, value)]
        inner = replace(problem, pattern=branch.pattern, layout=layout)
        part: Any = compute(inner, inputs[0], inputs[1], inputs[2], False, backend)
        head, grid, tail = part.split([before, layout.grid_tokens, layout.text_after], 1)
        total = total + branch.weight * _resized(grid, layout.grid, problem.layout.grid)
        texts.append((head, tail))
    head, tail = texts[0]
    return torch.cat([head, total.to(query.dtype), tail], 1)


def _cells(tensor: Tensor, layout: TokenLayout, pool: int) -> Tensor:
    """(B, S, H, D) with the grid's tokens as means of cells of ``pool`` x ``pool``."""
    if pool == 1:
        return tensor
    head, grid, tail = tensor.split([layout.text_before, layout.grid_tokens, layout.text_after], 1)
    accum = torch.promote_types(tensor.dtype, torch.float32)
    means = box_means(grid, layout.grid, (1, pool, pool), accum).to(tensor.dtype)
    return torch.cat([head, means, tail], 1)


def _resized(tokens: Tensor, cells: Grid, grid: Grid) -> Tensor:
    """(B, cells, H, D) as (B, N, H, D), bilinear in each frame."""
    if cells == grid:
        return tokens
    accum = torch.promote_types(tokens.dtype, torch.float32)
    planes = tokens.to(accum).flatten(2).unflatten(1, cells).flatten(0, 1).permute(0, 3, 1, 2)
    planes = F.interpolate(planes, grid[1:], mode="bilinear")
    shaped = planes.permute(0, 2, 3, 1).unflatten(0, (tokens.shape[0], -1)).flatten(1, 3)
    return shaped.unflatten(2, tokens.shape[2:])


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
    (Disc, _pooled_disc),
    (Hierarchical, _sum),
)
