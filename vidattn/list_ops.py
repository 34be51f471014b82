"""Attention over block lists as ``torch.library`` custom ops, with fakes and autograd.

The lists are inputs: made once before the forward, the backward gets the very same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vidattn.backends import blocks
from vidattn.backends.problem import Problem
from vidattn.layout import Grid, TokenLayout
from vidattn.lists import BlockLists
from vidattn.patterns.full import Full


def block_attention(
    problem: Problem, lists: BlockLists, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Output (B, S, H, Dv) and log-sum-exp (B, S, H) of attention over block lists; the problem's pattern
    is not read.
    """
    boxes = (*lists.grid, *lists.tile, *lists.block)
    text = (problem.layout.text_before, problem.layout.text_after)
    return block_attention_op(
        query,
        key,
        value,
        problem.head_scale,
        problem.text_valid,
        lists.index,
        lists.count,
        boxes,
        text,
        problem.scale,
    )


def _call(
    index: Tensor,
    count: Tensor,
    boxes: Sequence[int],
    text: Sequence[int],
    scale: float,
    head_scale: Tensor | None,
    text_valid: Tensor | None,
    extra: int,
) -> tuple[Problem, BlockLists]:
    grid, tile, block = (_triple(boxes[i : i + 3]) for i in (0, 3, 6))
    layout = TokenLayout(grid, text[0], text[1])
    problem = Problem(Full(), layout, scale, head_scale, text_valid, extra)
    return problem, BlockLists(grid, tile, block, index, count)


def _triple(numbers: Sequence[int]) -> Grid:
    return numbers[0], numbers[1], numbers[2]


@torch.library.custom_op("vidattn::block_attention", mutates_args=())
def block_attention_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_scale: Tensor | None,
    text_valid: Tensor | None,
    index: Tensor,
    count: Tensor,
    boxes: Sequence[int],
    text: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """``boxes``: grid, query tile and key block, nine numbers. Keys beyond S are extra: every query sees
    them.
    """
    extra = key.shape[1] - query.shape[1]
    problem, lists = _call(index, count, boxes, text, scale, head_scale, text_valid, extra)
    return blocks.forward(problem, lists, query, key, value)


@block_attention_op.register_fake
def _(query, key, value, *rest):  # type: ignore[no-untyped-def]
    out = query.new_empty(*query.shape[:3], value.shape[3])
    accum = torch.float64 if query.dtype == torch.float64 else torch.float32
    return out, query.new_empty(query.shape[:3], dtype=accum)


@torch.library.custom_op("vidattn::block_attention_backward", mutates_args=())
def block_attention_backward_op(
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    head_scale: Tensor | None,
    text_valid: Tensor | None,
    index: Tensor,
    count: Tensor,
    boxes: Sequence[int],
    text: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    extra = key.shape[1] - query.shape[1]
    problem, lists = _call(index, count, boxes, text, scale, head_scale, text_valid, extra)
    grads = blocks.backward(problem, lists, (query, key, value, out, lse), grad_out, grad_lse)
    return grads[0].contiguous(), grads[1].contiguous(), grads[2].contiguous()


@block_attention_backward_op.register_fake
def _(grad_out, grad_lse, query, key, value, *rest):  # type: ignore[no-untyped-def]
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    query, key, value, head_scale, text_valid, index, count, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, *output, head_scale, text_valid, index, count)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple:
    query, key, value, out, lse, head_scale, *rest = ctx.saved_tensors
    grads = block_attention_backward_op(
        grad_out, grad_lse, query, key, value, out, lse, head_scale, *rest, *ctx.options
    )
    grad_scale = None
    if head_scale is not None and ctx.needs_input_grad[3]:
        # scores are linear in query and in scale alike, so sum(q * dq) = scale * d scale for each head
        grad_scale = ((query * grads[0]).sum((0, 1, 3), dtype=lse.dtype) / head_scale).to(head_scale.dtype)
    return (*grads, grad_scale, None, None, None, None, None, None)


block_attention_op.register_autograd(_backward, setup_context=_setup_context)
