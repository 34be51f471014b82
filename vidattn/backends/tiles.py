"""The ``torch`` backend: runs a plan with plain tensor operations on any device, memory linear in tokens.

Tiles of one shape are gathered into a batch, a bounded number at a time; the n x n matrix never exists. On a
CPU a batch goes through PyTorch's fused attention, elsewhere through two matrix products and a softmax in
float32 (float64 for float64 inputs). The backward recomputes the scores from the log-sum-exp.

Letters: c tiles, M queries and K keys of a tile, R = (H / Hkv) * M rows that share a key head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vidattn.backends.batches import Batch, batches
from vidattn.backends.problem import Problem

# Elements that a batch gathers. On a CPU at most an eighth of the query's, so that peak memory stays under
# that of PyTorch's fused attention, but no less and no more than these, for the cache's sake; on a GPU enough
# to fill the chip.
_CPU_BUDGET = 1 << 17, 1 << 20
_GPU_BUDGET = 1 << 25
# Rows of scores against all keys (text rows) are bounded by the number of scores instead.
_SCORES = {"cpu": 1 << 20, "cuda": 1 << 27}


def forward(problem: Problem, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, S, H, Dv) in the query's dtype and log-sum-exp (B, S, H).

    ``key`` (B, S + extra, Hkv, D) and ``value`` (B, S + extra, Hkv, Dv) include the extra tokens.
    """
    accum = accumulation_dtype(query.dtype)
    batch, tokens, heads, _ = query.shape
    out = query.new_empty(batch, tokens, heads, value.shape[-1])
    lse = torch.empty(batch, tokens, heads, dtype=accum, device=query.device)
    if batch:
        dtype = query.dtype if _is_fused(query, value) else accum
        attend(problem, _batches(problem, query, key, value, dtype), query, key, value, (out, lse))
    return out, lse


def attend(
    problem: Problem,
    parts: Iterable[Batch],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    into: tuple[Tensor, Tensor],
) -> None:
    """Run some batches, and write their rows of output and log-sum-exp into ``into``."""
    out, lse = into
    batch, _, heads, _ = query.shape
    run = fused if _is_fused(query, value) else explicit
    for part in parts:
        rows = _fold(_gather(query, part.queries), key.shape[2])
        columns = [_gather(t, part.keys) for t in (key, value)]
        result, logs = run(rows, columns[0], columns[1], problem, part.bias, lse.dtype)
        where = part.queries.flatten()
        out.index_copy_(1, where, _unfold(result, batch, heads).to(out.dtype))
        lse.index_copy_(1, where, _unfold(logs[..., None], batch, heads)[..., 0])


def _is_fused(query: Tensor, value: Tensor) -> bool:
    """PyTorch's fused attention for the CPU can be asked for these."""
    return query.device.type == "cpu" and query.shape[-1] == value.shape[-1]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Where sums over keys are held: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _batches(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype
) -> Iterator[Batch]:
    """The call's batches; text rows, which see every key, are cut so that their scores stay bounded."""
    cost = query.shape[0] * max(
        query.shape[2] * query.shape[3], key.shape[2] * (key.shape[3] + value.shape[3])
    )
    for part in batches(problem, query.device, dtype, cost, budget(query)):
        if part.keys is not None:
            yield part
        else:
            yield from cut(part, query, key)


def budget(query: Tensor) -> int:
    """Elements that a batch may gather."""
    least, most = _CPU_BUDGET
    return min(max(query.numel() // 8, least), most) if query.device.type == "cpu" else _GPU_BUDGET


def cut(part: Batch, query: Tensor, key: Tensor) -> Iterator[Batch]:
    """Rows against every key, in pieces whose scores stay bounded."""
    most = _SCORES["cpu" if query.device.type == "cpu" else "cuda"]
    count = max(1, most // max(1, query.shape[0] * query.shape[2] * key.shape[1]))
    for rows in part.queries.split(count, 1):
        yield Batch(rows, None, part.bias)


def _gather(tensor: Tensor, numbers: Tensor | None) -> Tensor:
    """Tokens (c, M) of (B, S, H, D) as (B * c, H, M, D); every token where ``numbers`` is None."""
    if numbers is None:
        return tensor.transpose(1, 2)
    picked = tensor.index_select(1, numbers.flatten())
    return picked.unflatten(1, numbers.shape).flatten(0, 1).transpose(1, 2)


def _fold(rows: Tensor, key_heads: int) -> Tensor:
    """(B * c, H, M, D) to (B * c, Hkv, R, D): query heads that share a key head lie side by side."""
    if rows.shape[1] == key_heads:
        return rows
    return rows.unflatten(1, (key_heads, -1)).flatten(2, 3)


def _unfold(rows: Tensor, batch: int, heads: int) -> Tensor:
    """(B * c, Hkv, R, D) to (B, c * M, H, D)."""
    if rows.shape[1] != heads:
        rows = rows.unflatten(2, (heads // rows.shape[1], -1)).flatten(1, 2)
    return rows.transpose(1, 2).unflatten(0, (batch, -1)).flatten(1, 2)


def _row_bias(bias: Tensor, rows: Tensor) -> Tensor:
    """(1 | B, 1 | c, 1 | M, K) as (1 | B * c, 1, 1 | R, K)."""
    flat = bias.flatten(0, 1)[:, None]
    shared = rows.shape[2] // flat.shape[2]
    return flat.repeat(1, 1, shared, 1) if flat.shape[2] > 1 and shared > 1 else flat


def _factor(problem: Problem, rows: Tensor, heads: int) -> float | Tensor:
    """The scale of the scores, per row where it differs by head: broadcasts to (B * c, Hkv, R, D)."""
    if problem.head_scale is None:
        return problem.scale
    per_row = (
        problem.head_scale.to(torch.float64 if rows.dtype == torch.float64 else torch.float32) * problem.scale
    )
    queries = rows.shape[1] * rows.shape[2] // heads
    return per_row.view(rows.shape[1], -1).repeat_interleave(queries, 1)[..., None]


def fused(
    rows: Tensor, keys: Tensor, values: Tensor, problem: Problem, bias: Tensor | None, accum: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rows (B * c, Hkv, R, D) against their keys, through PyTorch's fused attention: output, log-sum-exp."""
    scale = problem.scale
    if problem.head_scale is not None:
        rows = (rows * _factor(problem, rows, len(problem.head_scale))).to(rows.dtype)
        scale = 1.0
    result = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        rows, keys, values, 0.0, False, attn_mask=None if bias is None else _row_bias(bias, rows), scale=scale
    )
    return result[0], result[1].to(accum)


def explicit(
    rows: Tensor, keys: Tensor, values: Tensor, problem: Problem, bias: Tensor | None, accum: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same through two matrix products and a softmax in ``accum``."""
    heads = rows.shape[1] if problem.head_scale is None else len(problem.head_scale)
    scores = _scores(rows.to(accum) * _factor(problem, rows, heads), keys.to(accum), bias)
    top = scores.amax(-1, keepdim=True)
    scores.sub_(top).exp_()
    total = scores.sum(-1, keepdim=True)
    result = (scores @ values.to(accum)).div_(total)
    return result, top.add_(total.log_())[..., 0]


def _scores(rows: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    scores = rows @ keys.transpose(-1, -2)
    return scores if bias is None else scores.add_(_row_bias(bias, rows))


def backward(
    problem: Problem,
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    grad_out: Tensor,
    grad_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from ``saved`` = (query, key, value, out, lse)."""
    query, key, value = saved[:3]
    accum = accumulation_dtype(query.dtype)
    if query.shape[0] == 0:
        return query.clone(), key.clone(), value.clone()
    grads = [torch.zeros(t.shape, dtype=accum, device=t.device) for t in (query, key, value)]
    parts = _batches(problem, query, key, value, accum)
    add_gradients(problem, parts, saved, grad_out, grad_lse, grads)
    return grads[0].to(query.dtype), grads[1].to(key.dtype), grads[2].to(value.dtype)


def row_drop(out: Tensor, grad_out: Tensor, grad_lse: Tensor) -> Tensor:
    """(B, S, H): d score = p * (dp - drop); what the row's softmax takes back, less what the log-sum-exp asks
    for.
    """
    accum = accumulation_dtype(out.dtype)
    return (out.to(accum) * grad_out.to(accum)).sum(-1) - grad_lse.to(accum)


def add_gradients(
    problem: Problem,
    parts: Iterable[Batch],
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    grad_out: Tensor,
    grad_lse: Tensor,
    grads: list[Tensor],
) -> None:
    """Add what some batches give to the gradients of query, key and value, held in accumulation dtype."""
    query, key, value, out, lse = saved
    accum = accumulation_dtype(query.dtype)
    batch, _, heads, _ = query.shape
    delta = row_drop(out, grad_out, grad_lse)
    for part in parts:
        sides = [query, grad_out, lse[..., None], delta[..., None]]
        rows, slopes, logs, drop = (_fold(_gather(t, part.queries), key.shape[2]).to(accum) for t in sides)
        keys, values = (_gather(t, part.keys).to(accum) for t in (key, value))
        factor = _factor(problem, rows, heads)
        rows = rows * factor
        share = _scores(rows, keys, part.bias).sub_(logs).exp_()
        _add(grads[2], part.keys, share.transpose(-1, -2) @ slopes)
        slope = (slopes @ values.transpose(-1, -2)).sub_(drop).mul_(share)
        _add(grads[1], part.keys, slope.transpose(-1, -2) @ rows)
        grads[0].index_copy_(1, part.queries.flatten(), _unfold((slope @ keys).mul_(factor), batch, heads))


def _add(total: Tensor, numbers: Tensor | None, part: Tensor) -> None:
    """Add (B * c, Hkv, K, D) to the tokens (c, K) of (B, S, Hkv, D)."""
    part = part.transpose(1, 2).unflatten(0, (total.shape[0], -1)).flatten(1, 2)
    if numbers is None:
        total += part
    else:
        total.index_add_(1, numbers.flatten(), part)
