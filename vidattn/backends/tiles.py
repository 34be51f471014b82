"""The ``torch`` backend: runs a plan with plain tensor operations on any device, memory linear in tokens.

Tiles of one shape are gathered into a batch and go through two matrix products and a softmax in float32 (float64 for
float64 inputs), a bounded number of scores at a time; the n x n matrix never exists. The backward recomputes the scores
from the log-sum-exp. Letters: c tiles, R = (H / Hkv) * M rows of a tile and key head, K keys of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidattn.backends.problem import Problem
from vidattn.patterns.base import coordinates
from vidattn.plan import Bucket, Plan

# Scores that exist at one time. On a CPU they should stay in the cache; on a GPU they should fill the chip.
_SCORES = {"cpu": 1 << 18, "other": 1 << 26}


@dataclass(frozen=True)
class Batch:
    """Queries that run together: their rows, the keys of each tile, and who may not see whom.

    ``queries`` (c, M) and ``keys`` (c, K) are token numbers; ``keys`` None means every key, in order. ``mask`` is bool,
    broadcastable to (B, 1, c, M, K), True where the query sees the key; None where it always does.
    """

    queries: Tensor
    keys: Tensor | None
    mask: Tensor | None


def unsupported_reasons(problem: Problem, query: Tensor) -> list[str]:
    """Why this backend cannot run the call; empty when it can."""
    return [] if query.dtype.is_floating_point else [f"query.dtype={query.dtype} is not a floating-point type"]


def batches(problem: Problem, batch: int, heads: int, device: torch.device) -> Iterator[Batch]:
    """All queries of a call, each in exactly one batch: the plan's tiles, then the text rows, which see every key."""
    layout = problem.layout
    text = layout.text_index().to(device)
    every = torch.cat([text, torch.arange(layout.tokens, layout.tokens + problem.extra, device=device)])
    valid = problem.key_valid(device)
    budget = _SCORES["cpu" if device.type == "cpu" else "other"]
    plan = problem.pattern.plan(layout)
    for bucket in plan.buckets:
        rows = len(bucket.query_offset)
        count = max(1, budget // (batch * heads * rows * (bucket.keys + len(every))))
        for start in range(0, len(bucket.query_base), count):
            yield _tile_batch(problem, plan, bucket, slice(start, start + count), every, valid)
    if len(text):
        mask = None if valid is None else valid[:, None, None, None, :]
        rows = max(1, budget // (batch * heads * (layout.tokens + problem.extra)))
        for part in text.split(rows):
            yield Batch(part[None], None, mask)


def _tile_batch(
    problem: Problem, plan: Plan, bucket: Bucket, part: slice, every: Tensor, valid: Tensor | None
) -> Batch:
    layout, device = problem.layout, every.device
    base = bucket.query_base[part].to(device)
    queries = base[:, None] + bucket.query_offset.to(device)
    boxes = bucket.key_base[part].to(device)
    keys = torch.cat([boxes[:, i, None] + o.to(device) for i, o in enumerate(bucket.key_offset)], 1)
    seen = every.expand(len(keys), -1)
    tokens = torch.cat([keys + layout.text_before, seen], 1)
    mask = None
    if not bucket.full:
        ways = (coordinates(n, layout.grid) for n in (queries[:, :, None], keys[:, None, :]))
        mask = problem.pattern.allowed(*ways, layout.grid)
        if len(every):
            mask = torch.cat([mask, mask.new_ones(*mask.shape[:2], len(every))], 2)
        mask = mask[None, None]
    if valid is not None and layout.text_tokens:
        real = valid[:, tokens][:, None, :, None, :]
        mask = real if mask is None else mask & real
    return Batch(queries + layout.text_before, tokens, mask)


def _gather(tensor: Tensor, numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Tokens of (B, H, S, D) by (c, M) numbers, as (B, H, c, M, D) in ``dtype``, contiguous."""
    picked = tensor.index_select(2, numbers.flatten())
    return picked.unflatten(2, numbers.shape).to(dtype)


@dataclass
class _Operands:
    """Query, key and value as (B, H, S, D) views, with the sizes that all steps need."""

    query: Tensor
    key: Tensor
    value: Tensor
    factor: float | Tensor

    def __init__(self, problem: Problem, query: Tensor, key: Tensor, value: Tensor) -> None:
        self.query, self.key, self.value = (t.transpose(1, 2) for t in (query, key, value))
        self.accum = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.factor = problem.scale
        if problem.head_scale is not None:
            self.factor = problem.scale * problem.head_scale.to(self.accum)[:, None, None, None]

    def rows(self, tensor: Tensor, numbers: Tensor) -> Tensor:
        """Query-side rows (B, Hkv, c, R, D): the query heads that share a key head lie side by side."""
        picked = _gather(tensor, numbers, self.accum)
        return self.fold(picked)

    def fold(self, picked: Tensor) -> Tensor:
        """(B, H, c, M, D) to (B, Hkv, c, R, D)."""
        shared = picked.shape[1] // self.key.shape[1]
        if shared == 1:
            return picked
        return picked.unflatten(1, (-1, shared)).transpose(2, 3).flatten(3, 4)

    def unfold(self, rows: Tensor) -> Tensor:
        """(B, Hkv, c, R, ...) back to (B, H, c, M, ...)."""
        shared = self.query.shape[1] // self.key.shape[1]
        if shared == 1:
            return rows
        return rows.unflatten(3, (shared, -1)).transpose(2, 3).flatten(1, 2)

    def columns(self, tensor: Tensor, numbers: Tensor | None) -> Tensor:
        """Key-side rows (B, Hkv, c, K, D)."""
        if numbers is None:
            return tensor[:, :, None].to(self.accum)
        return _gather(tensor, numbers, self.accum)

    def scaled(self, query: Tensor) -> Tensor:
        """(B, H, c, M, D) times the scale."""
        return query.mul_(self.factor)

    def scores(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Scaled and masked scores (B, Hkv, c, R, K)."""
        scores = query @ key.transpose(-1, -2)
        if mask is not None:
            per_head = scores.unflatten(3, (-1, mask.shape[3] if mask.shape[3] > 1 else scores.shape[3]))
            # (B, Hkv, c, R/M, M, K) against (B|1, 1, c|1, 1, M|1, K)
            per_head.masked_fill_(~mask[:, :, :, None], float("-inf"))
        return scores


def forward(problem: Problem, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, S, H, Dv) in the query's dtype and log-sum-exp (B, S, H). ``key`` and ``value`` include extra tokens."""
    ops = _Operands(problem, query, key, value)
    batch, tokens, heads, _ = query.shape
    out = query.new_empty(batch, tokens, heads, value.shape[-1])
    lse = torch.empty(batch, tokens, heads, dtype=ops.accum, device=query.device)
    for part in batches(problem, batch, heads, query.device):
        rows = ops.fold(ops.scaled(_gather(ops.query, part.queries, ops.accum)))
        scores = ops.scores(rows, ops.columns(ops.key, part.keys), part.mask)
        top = scores.amax(-1, keepdim=True)
        scores.sub_(top).exp_()
        total = scores.sum(-1, keepdim=True)
        result = (scores @ ops.columns(ops.value, part.keys)).div_(total)
        where = part.queries.flatten()
        out.index_copy_(1, where, ops.unfold(result).flatten(2, 3).transpose(1, 2).to(out.dtype))
        logs = ops.unfold(top.add_(total.log_())).flatten(2, 3)
        lse.index_copy_(1, where, logs[..., 0].transpose(1, 2))
    return out, lse


def backward(
    problem: Problem,
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    grad_out: Tensor,
    grad_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from ``saved`` = (query, key, value, out, lse)."""
    query, key, value, out, lse = saved
    ops = _Operands(problem, query, key, value)
    batch, _, heads, _ = query.shape
    grads = [torch.zeros(t.shape, dtype=ops.accum, device=t.device) for t in (ops.query, ops.key, ops.value)]
    grad_query, grad_key, grad_value = grads
    # d score = p * (dp - delta), where delta collects what the row's softmax and log-sum-exp take back
    delta = (out.to(ops.accum) * grad_out.to(ops.accum)).sum(-1) - grad_lse.to(ops.accum)
    sides = [t.transpose(1, 2) for t in (grad_out, lse[..., None], delta[..., None])]
    for part in batches(problem, batch, heads, query.device):
        rows = ops.fold(ops.scaled(_gather(ops.query, part.queries, ops.accum)))
        keys, values = ops.columns(ops.key, part.keys), ops.columns(ops.value, part.keys)
        grad_rows, logs, drop = (ops.rows(t, part.queries) for t in sides)
        share = ops.scores(rows, keys, part.mask).sub_(logs).exp_()
        _add(grad_value, part.keys, share.transpose(-1, -2) @ grad_rows)
        slope = (grad_rows @ values.transpose(-1, -2)).sub_(drop).mul_(share)
        _add(grad_key, part.keys, slope.transpose(-1, -2) @ rows)
        spread = ops.scaled(ops.unfold(slope @ keys).contiguous())
        grad_query.index_copy_(2, part.queries.flatten(), spread.flatten(2, 3))
    made = (g.transpose(1, 2).to(t.dtype) for g, t in zip(grads, (query, key, value), strict=True))
    grad_q, grad_k, grad_v = made
    return grad_q, grad_k, grad_v


def _add(total: Tensor, numbers: Tensor | None, part: Tensor) -> None:
    """Add (B, Hkv, c, K, D) to the tokens (c, K) of (B, Hkv, S, D)."""
    if numbers is None:
        total += part.sum(2)
    else:
        total.index_add_(2, numbers.flatten(), part.flatten(2, 3))
