"""The ``torch`` backend for block lists: each query tile with its own keys, on any device, memory linear in
tokens.

Every batch item and head may have its own lists, so rows of the computation are (item, head, tile) triples;
as many of them run together as a budget of elements allows. Text rows go the way of all plans.

Letters: r rows, M queries of a tile, K keys of a row (slots times tokens of a block, then the text).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vidattn.backends import tiles
from vidattn.backends.batches import Batch, as_bias, seen_by_all
from vidattn.backends.problem import Problem
from vidattn.lists import BlockLists
from vidattn.patterns.boxes import box_tokens


@dataclass(frozen=True)
class _Rows:
    """Some rows: flat numbers into (B, S, H) of queries (r, M) and into (B, S + extra, Hkv) of keys (r, K).

    ``real`` (r, M): which queries are; ``bias`` (r, 1, 1, K); ``head`` (r,).
    """

    queries: Tensor
    real: Tensor
    keys: Tensor
    bias: Tensor
    head: Tensor


def forward(
    problem: Problem, lists: BlockLists, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (B, S, H, Dv) in the query's dtype and log-sum-exp (B, S, H)."""
    accum = tiles.accumulation_dtype(query.dtype)
    batch, tokens, heads, _ = query.shape
    count = batch * tokens * heads
    # one more row takes what queries behind the grid's end give
    out = query.new_empty(count + 1, value.shape[-1])
    lse = torch.empty(count + 1, dtype=accum, device=query.device)
    fused = query.device.type == "cpu" and query.shape[-1] == value.shape[-1]
    run = tiles.fused if fused else tiles.explicit
    plain = replace(problem, head_scale=None)
    flat = [_flat(t) for t in (query, key, value)]
    for rows in _rows(problem, lists, query, key, value, query.dtype if fused else accum):
        mine = _take(flat[0], rows.queries)
        if problem.head_scale is not None:
            mine = (mine.to(accum) * problem.head_scale.to(accum)[rows.head, None, None, None]).to(mine.dtype)
        result, logs = run(
            mine, _take(flat[1], rows.keys), _take(flat[2], rows.keys), plain, rows.bias, accum
        )
        where = torch.where(rows.real, rows.queries, count).flatten()
        out.index_copy_(0, where, result.flatten(0, 2).to(out.dtype))
        lse.index_copy_(0, where, logs.flatten().to(accum))
    whole = out[:-1].view(batch, tokens, heads, -1), lse[:-1].view(batch, tokens, heads)
    tiles.attend(problem, _text_rows(problem, query, key), query, key, value, whole)
    return whole


def backward(
    problem: Problem,
    lists: BlockLists,
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    grad_out: Tensor,
    grad_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from ``saved`` = (query, key, value, out, lse)."""
    query, key, value, out, lse = saved
    accum = tiles.accumulation_dtype(query.dtype)
    sides = [query, key, value, grad_out, lse, tiles.row_drop(out, grad_out, grad_lse)]
    q, k, v, slopes_of, logs_of, drop_of = (_flat(t if t.ndim == 4 else t[..., None]) for t in sides)
    # one more row of the query's takes what queries behind the grid's end give
    grads = [torch.zeros(len(t) + (t is q), t.shape[1], dtype=accum, device=t.device) for t in (q, k, v)]
    for rows in _rows(problem, lists, query, key, value, accum):
        mine, slopes, logs, drop = (
            _take(t, rows.queries).to(accum) for t in (q, slopes_of, logs_of, drop_of)
        )
        keys, values = (_take(t, rows.keys).to(accum) for t in (k, v))
        factor: float | Tensor = problem.scale
        if problem.head_scale is not None:
            factor = problem.head_scale.to(accum)[rows.head, None, None, None] * problem.scale
        # an infinite log-sum-exp makes the shares of queries that are none zero
        logs = logs.masked_fill(~rows.real[:, None, :, None], float("inf"))
        scaled = mine * factor
        share = (scaled @ keys.transpose(-1, -2)).add_(rows.bias).sub_(logs).exp_()
        grads[2].index_add_(0, rows.keys.flatten(), (share.transpose(-1, -2) @ slopes).flatten(0, 2))
        slope = (slopes @ values.transpose(-1, -2)).sub_(drop).mul_(share)
        grads[1].index_add_(0, rows.keys.flatten(), (slope.transpose(-1, -2) @ scaled).flatten(0, 2))
        where = torch.where(rows.real, rows.queries, len(q)).flatten()
        grads[0].index_copy_(0, where, (slope @ keys * factor).flatten(0, 2))
    shaped = [g[: t.shape[:3].numel()].view(t.shape) for g, t in zip(grads, (query, key, value), strict=True)]
    tiles.add_gradients(problem, _text_rows(problem, query, key), saved, grad_out, grad_lse, shaped)
    return shaped[0].to(query.dtype), shaped[1].to(key.dtype), shaped[2].to(value.dtype)


def _flat(tensor: Tensor) -> Tensor:
    """(B, S, H, D) as (B * S * H, D)."""
    return tensor.flatten(0, 2)


def _take(flat: Tensor, numbers: Tensor) -> Tensor:
    """(r, 1, numbers, D)"""
    return flat.index_select(0, numbers.flatten()).view(len(numbers), 1, -1, flat.shape[-1])


def _text_rows(problem: Problem, query: Tensor, key: Tensor) -> Iterator[Batch]:
    """The text's queries, which see every key, in pieces whose scores stay bounded."""
    text = problem.layout.text_index(query.device)
    if not len(text):
        return iter(())
    real = problem.key_valid(query.device)
    hidden = None if real is None else as_bias(real, query.dtype)[:, None, None, :]
    return tiles.cut(Batch(text[None], None, hidden), query, key)


def _rows(
    problem: Problem, lists: BlockLists, query: Tensor, key: Tensor, value: Tensor, dtype: torch.dtype
) -> Iterator[_Rows]:
    """Every (item, head, tile), as many at a time as the budget allows; biases in ``dtype``."""
    device, before = query.device, problem.layout.text_before
    batch, tokens, heads, size = query.shape
    total, key_heads = key.shape[1], key.shape[2]
    tile_tokens, tile_real = box_tokens(lists.grid, lists.tile, device)
    block_tokens, block_real = box_tokens(lists.grid, lists.block, device)
    everywhere = seen_by_all(problem, device)
    valid = problem.key_valid(device)
    slots = lists.index.shape[-1]
    width = slots * block_tokens.shape[1] + len(everywhere)
    cost = (tile_tokens.shape[1] + width) * (size + value.shape[-1]) + tile_tokens.shape[1] * width
    step = max(1, tiles.budget(query) // cost)
    for start in range(0, batch * heads * lists.tiles, step):
        row = torch.arange(start, min(start + step, batch * heads * lists.tiles), device=device)
        tile, head = row % lists.tiles, row // lists.tiles % heads
        item = torch.div(row, lists.tiles * heads, rounding_mode="floor")
        where = item % lists.index.shape[0], head % lists.index.shape[1], tile
        used = torch.arange(slots, device=device) < lists.count[where][:, None]
        blocks = torch.where(used, lists.index[where].long(), 0)
        keys = block_tokens[blocks].flatten(1) + before
        seen = (block_real[blocks] & used[..., None]).flatten(1)
        if len(everywhere):
            keys = torch.cat([keys, everywhere.expand(len(row), -1)], 1)
            seen = torch.cat([seen, seen.new_ones(len(row), len(everywhere))], 1)
        if valid is not None:
            seen = seen & valid[item[:, None], keys]
        queries = (item[:, None] * tokens + tile_tokens[tile] + before) * heads + head[:, None]
        kv_head = torch.div(head, heads // key_heads, rounding_mode="floor")
        numbers = (item[:, None] * total + keys) * key_heads + kv_head[:, None]
        yield _Rows(queries, tile_real[tile], numbers, as_bias(seen, dtype)[:, None, None], head)
