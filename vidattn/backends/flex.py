"""The ``flex`` backend: PyTorch's FlexAttention with the pattern as its mask, for comparison.

Tokens are brought into tile order, so that a mask's 128 x 128 blocks are boxes of the grid; in raster order
FlexAttention visits several times as many. On a GPU it compiles for every shape (seconds); on a CPU it holds
the n x n scores and has no backward.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vidattn.backends.problem import Problem
from vidattn.layout import Grid, TokenLayout
from vidattn.lists import box_numbers
from vidattn.patterns.base import GridPattern, coordinates

BLOCK = 128
MOST_TOKENS = 1 << 18  # the block mask is made from every pair: minutes beyond
_PAIRS = {"cpu": 1 << 22, "cuda": 1 << 26}  # that are looked at at a time


def missing(device: torch.device) -> list[str]:
    """What keeps FlexAttention from running on a device."""
    if device.type not in ("cpu", "cuda"):
        return [f"FlexAttention runs on CPUs and CUDA, not on {device.type}"]
    return []


def reasons(problem: Problem, query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    """What keeps it from running a call."""
    found = missing(query.device)
    if problem.lists is not None:
        found.append("the pattern was chosen from the data, not by a rule")
    elif not isinstance(problem.pattern, GridPattern):
        found.append(f"{problem.pattern} is no rule for two places of the grid")
    elif problem.extra and problem.layout.text_tokens and not problem.pattern.text_sees_extra:
        found.append("additional keys that text does not see")
    if problem.layout.tokens > MOST_TOKENS:
        found.append(f"{problem.layout.tokens} tokens: its block mask takes minutes beyond {MOST_TOKENS}")
    if torch.compiler.is_compiling():
        found.append("torch.compile around it: its block mask is made at run time")
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    if query.device.type == "cpu" and needs_grad:
        found.append("it has no backward on CPUs")
    if query.device.type == "cuda" and query.dtype == torch.float64:
        found.append("float64 on CUDA")
    return found


def forward(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Output and, where asked for, log-sum-exp; PyTorch differentiates both."""
    from torch.nn.attention.flex_attention import AuxRequest

    assert isinstance(problem.pattern, GridPattern)
    mask = _mask(problem.pattern, problem.layout, problem.extra, query.device)
    if problem.head_scale is not None:
        query = query * problem.head_scale[:, None].to(query.dtype)
    batch = (
        _heads_first(query, mask.order),
        _heads_first(key, mask.key_order),
        _heads_first(value, mask.key_order),
    )
    out, extras = _run(query.device)(
        *batch,
        score_mod=_hide_padding(problem, mask.key_order),
        block_mask=mask.blocks,
        scale=problem.scale,
        enable_gqa=query.shape[2] != key.shape[2],
        return_aux=AuxRequest(lse=True) if return_lse else AuxRequest(),
    )
    out = out.transpose(1, 2).index_select(1, mask.back)
    lse = extras.lse.transpose(1, 2).index_select(1, mask.back) if return_lse else None
    return out, lse


def _heads_first(tensor: Tensor, order: Tensor) -> Tensor:
    return tensor.index_select(1, order).transpose(1, 2)


def _hide_padding(problem: Problem, order: Tensor) -> Callable | None:
    """A score modification that hides the text from ``text_valid`` on, or None where all is real."""
    real = problem.key_valid(order.device)
    if real is None:
        return None
    real = real[:, order]

    def modify(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.where(real[b, k], score, float("-inf"))

    return modify


@dataclass(frozen=True, eq=False)
class _Mask:
    """Where each token goes, where it came from, and the blocks in that order."""

    order: Tensor
    key_order: Tensor
    back: Tensor
    blocks: Any


@functools.lru_cache(maxsize=32)
def _mask(pattern: GridPattern, layout: TokenLayout, extra: int, device: torch.device) -> _Mask:
    """The block mask of a pattern on a layout, made without the n x n matrix."""
    from torch.nn.attention.flex_attention import BlockMask

    order = _tile_order(pattern, layout).to(device)
    extras = torch.arange(layout.tokens, layout.tokens + extra, device=device)
    key_order = torch.cat([order, extras])
    sees = _rule(pattern, layout, key_order)
    partial, full = _block_table(sees, len(order), len(key_order), device)
    blocks = BlockMask.from_kv_blocks(
        *_ordered(partial),
        *_ordered(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda b, h, q, k: sees(q, k),
        seq_lengths=(len(order), len(key_order)),
    )
    return _Mask(order, key_order, order.argsort(), blocks)


def _tile_order(pattern: GridPattern, layout: TokenLayout) -> Tensor:
    """Text, then the grid's tokens box by box: new place to old place."""
    grid, count = layout.grid, layout.grid_tokens
    box: Grid = (1, 8, 16) if pattern.default_tile(grid)[0] == 1 else (2, 8, 8)
    if grid[1] == 1:
        box = (1, 1, BLOCK)
    inside = torch.argsort(box_numbers(grid, box), stable=True) + layout.text_before
    return torch.cat([layout.text_index(), inside]) if count < layout.tokens else inside


def _rule(pattern: GridPattern, layout: TokenLayout, key_order: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Whether the query at a new place sees the key at a new place."""
    grid, count = layout.grid, layout.grid_tokens
    number = key_order - layout.text_before
    on_grid = (number >= 0) & (number < count)
    # text and extra tokens get some place; their answer is overruled
    t, y, x = coordinates(number.clamp(0, count - 1), grid)

    def sees(q: Tensor, k: Tensor) -> Tensor:
        allowed = pattern.allowed((t[q], y[q], x[q]), (t[k], y[k], x[k]), grid)
        return allowed | ~on_grid[q] | ~on_grid[k]

    return sees


def _block_table(
    sees: Callable[[Tensor, Tensor], Tensor], rows: int, columns: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """bool (query blocks, key blocks): those that need the mask, and those that do not."""
    height, width = -(-rows // BLOCK), -(-columns // BLOCK)
    partial, full = torch.zeros(2, height, width, dtype=torch.bool, device=device)
    # places behind the end repeat the last token: they make no block fuller or emptier
    keys = torch.arange(width * BLOCK, device=device).clamp(max=columns - 1)
    step = max(1, _PAIRS[device.type] // (BLOCK * len(keys)))
    for first in range(0, height, step):
        queries = torch.arange(first * BLOCK, min(first + step, height) * BLOCK, device=device)
        seen = sees(queries.clamp(max=rows - 1)[:, None], keys[None])
        seen = seen.view(-1, BLOCK, width, BLOCK).transpose(1, 2).flatten(2)
        full[first : first + step] = seen.all(-1)
        partial[first : first + step] = seen.any(-1)
    return partial & ~full, full


def _ordered(table: Tensor) -> tuple[Tensor, Tensor]:
    """A table as counts (1, 1, rows) and column numbers (1, 1, rows, columns), those in use first."""
    count = table.sum(-1, dtype=torch.int32)
    index = table.to(torch.int32).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return count[None, None], index[None, None]


def _run(device: torch.device) -> Callable[..., Any]:
    return _compiled if device.type == "cuda" else _eager


def _eager(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    with warnings.catch_warnings():  # that it is slow without torch.compile is said in our documentation
        warnings.simplefilter("ignore")
        return flex_attention(query, key, value, **options)


def _compiled(*tensors: Tensor, **options: Any) -> Any:
    # every pattern and size is a new graph; past the limit Dynamo would run the n x n form
    with torch._dynamo.config.patch(recompile_limit=1024):
        return _compile()(*tensors, **options)


@functools.cache
def _compile() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, fullgraph=True)
