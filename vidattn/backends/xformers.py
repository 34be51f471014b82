"""The ``xformers`` backend: xFormers' memory-efficient attention, for those who have it and for comparison.

It knows no pattern. Where every query sees all it runs without a mask, else with the n x n mask, so only on
small grids.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from vidattn.backends import dense
from vidattn.backends.problem import Problem

MOST_MASKED = 1 << 13
"""Tokens up to which the n x n mask is made."""
_ALIGNMENT = 8  # elements: xFormers wants rows of a mask to start at multiples


def missing(device: torch.device) -> list[str]:
    """What keeps xFormers from running on a device."""
    if importlib.util.find_spec("xformers") is None:
        return ["xformers is not installed (extra: xformers)"]
    if device.type != "cuda":
        return [f"xFormers' kernels run on CUDA, not on {device.type}"]
    return []


def reasons(problem: Problem, query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    """What keeps it from running a call."""
    found = missing(query.device)
    if problem.lists is not None:
        found.append("the pattern was chosen from the data, not by a rule")
    elif not problem.pattern.covers(problem.layout.grid) and problem.layout.tokens > MOST_MASKED:
        found.append(f"{problem.layout.tokens} tokens: its n x n mask is made for at most {MOST_MASKED}")
    if query.shape[2] != key.shape[2]:
        found.append(f"{key.shape[2]} key heads for {query.shape[2]} query heads")
    if query.dtype == torch.float64:
        found.append("float64")
    return found


def forward(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Output, which xFormers differentiates; the log-sum-exp is PyTorch's, through the n x n scores."""
    from xformers.ops import memory_efficient_attention

    if return_lse and problem.layout.tokens > MOST_MASKED:
        raise NotImplementedError(
            f"backend='xformers' cannot run this call: the log-sum-exp takes the n x n scores, made for at"
            f" most {MOST_MASKED} tokens, not {problem.layout.tokens}"
        )
    lse = dense.log_sum_exp(problem, query, key) if return_lse else None
    if problem.head_scale is not None:
        query = query * problem.head_scale[:, None].to(query.dtype)
    bias = _bias(problem, query)
    return memory_efficient_attention(query, key, value, attn_bias=bias, scale=problem.scale), lse


def _bias(problem: Problem, query: Tensor) -> Tensor | None:
    """(B, H, S, S + extra): 0 where the query sees the key, else -inf; None where it always does."""
    mask = dense.mask_of(problem, query.device)
    if mask is None:
        return None
    batch, tokens, heads = query.shape[:3]
    keys = mask.shape[-1]
    room = -(-keys // _ALIGNMENT) * _ALIGNMENT
    full = query.new_full((batch, 1, tokens, room), float("-inf"))
    full[..., :keys].masked_fill_(mask, 0.0)
    return full[..., :keys].expand(batch, heads, tokens, keys)
