"""The ``dense`` backend: PyTorch's own attention, so that its fast kernels and the user's choice among them
stay in use.

Where the pattern hides something the n x n mask is built, so beyond a few thousand tokens this is for
comparison only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vidattn.backends.problem import Problem


def forward(
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    return_lse: bool,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Output (B, S, H, Dv) and, where asked for, log-sum-exp; keys beyond S are the extra tokens. ``mask``,
    bool and broadcastable to (B, H, S, S + extra), stands for the pattern's own.
    """
    lse = log_sum_exp(problem, query, key, mask) if return_lse else None
    if problem.head_scale is not None:
        query = query * problem.head_scale[:, None].to(query.dtype)
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    shared = q.shape[1] != k.shape[1]
    mask = mask_of(problem, query.device) if mask is None else mask
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=problem.scale, enable_gqa=shared)
    return out.transpose(1, 2), lse


def log_sum_exp(problem: Problem, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Log-sum-exp (B, S, H) of the scaled scores, through the whole n x n matrix, in float32 (float64 for
    float64). ``mask`` as for :func:`forward`.
    """
    accum = torch.promote_types(query.dtype, torch.float32)
    factor = problem.scale
    rows = query.to(accum) * factor
    if problem.head_scale is not None:
        rows = rows * problem.head_scale[:, None].to(accum)
    keys = key.to(accum).repeat_interleave(query.shape[2] // key.shape[2], 2)
    scores = rows.transpose(1, 2) @ keys.permute(0, 2, 3, 1)
    mask = mask_of(problem, query.device) if mask is None else mask
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.logsumexp(-1).transpose(1, 2)


def mask_of(problem: Problem, device: torch.device) -> Tensor | None:
    """bool, broadcastable to (B, 1, S, S + extra), or None when every query sees every key."""
    mask = None
    if not problem.pattern.covers(problem.layout.grid):
        everywhere = torch.ones(problem.layout.tokens, problem.extra, dtype=torch.bool)
        mask = torch.cat([problem.pattern.mask(problem.layout), everywhere], 1).to(device)[None, None]
    real = problem.key_valid(device)
    if real is None:
        return mask
    return real[:, None, None] if mask is None else mask & real[:, None, None]
