"""The attention operator as ``torch.library`` custom ops: opaque to ``torch.compile``, with fakes and
autograd.

A pattern crosses the border as its text form, so that one graph serves every size when shapes are dynamic,
and prompts of every length (``text_valid`` is a tensor). The backend crosses it by name, and "auto" is
decided behind it, so that the choice adds no guards and the backward runs where the forward ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from vidattn.backends import pick
from vidattn.backends.problem import Problem
from vidattn.layout import TokenLayout
from vidattn.lists import BlockLists
from vidattn.patterns import Pattern, from_text


@lru_cache(maxsize=512)
def decode_pattern(text: str) -> Pattern:
    return from_text(text)


def _problem(
    query: Tensor,
    key: Tensor,
    head_scale: Tensor | None,
    text_valid: Tensor | None,
    index: Tensor | None,
    count: Tensor | None,
    pattern: str,
    grid: Sequence[int],
    text: Sequence[int],
    boxes: Sequence[int],
    scale: float,
) -> Problem:
    extent = (grid[0], grid[1], grid[2])
    lists = None
    if index is not None and count is not None:
        t, h, w, bt, bh, bw = boxes
        lists = BlockLists(extent, (t, h, w), (bt, bh, bw), index, count)
    layout = TokenLayout(extent, text[0], text[1])
    extra = key.shape[1] - query.shape[1]
    return Problem(decode_pattern(pattern), layout, scale, head_scale, text_valid, extra, lists)


@torch.library.custom_op("vidattn::attention", mutates_args=())
def attention_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_scale: Tensor | None,
    text_valid: Tensor | None,
    index: Tensor | None,
    count: Tensor | None,
    pattern: str,
    grid: Sequence[int],
    text: Sequence[int],
    boxes: Sequence[int],
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Output (B, S, H, Dv) and log-sum-exp (B, S, H). Keys beyond S are extra: every query sees them.

    ``index``, ``count`` and ``boxes`` (tile and block, three sizes each) are a ``BlockLists``.
    """
    problem = _problem(query, key, head_scale, text_valid, index, count, pattern, grid, text, boxes, scale)
    chosen, _ = pick(backend, problem, query, key, value)
    with torch.autocast(query.device.type, enabled=False):  # it would round what is held in float32
        out, lse = chosen.forward(problem, query, key, value, True)
    return out, cast(Tensor, lse)


@attention_op.register_fake
def _(query, key, value, *rest):  # type: ignore[no-untyped-def]
    out = query.new_empty(*query.shape[:3], value.shape[3])
    accum = torch.float64 if query.dtype == torch.float64 else torch.float32
    return out, query.new_empty(query.shape[:3], dtype=accum)


@torch.library.custom_op("vidattn::attention_backward", mutates_args=())
def attention_backward_op(
    grad_out: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    head_scale: Tensor | None,
    text_valid: Tensor | None,
    index: Tensor | None,
    count: Tensor | None,
    pattern: str,
    grid: Sequence[int],
    text: Sequence[int],
    boxes: Sequence[int],
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    problem = _problem(query, key, head_scale, text_valid, index, count, pattern, grid, text, boxes, scale)
    chosen, _ = pick(backend, problem, query, key, value, backward=True)
    if chosen.backward is None:
        raise RuntimeError(f"backend {chosen.name!r} is differentiated outside this op")
    with torch.autocast(query.device.type, enabled=False):
        grads = chosen.backward(problem, (query, key, value, out, lse), grad_out, grad_lse)
    return grads[0].contiguous(), grads[1].contiguous(), grads[2].contiguous()


@attention_backward_op.register_fake
def _(grad_out, grad_lse, query, key, value, *rest):  # type: ignore[no-untyped-def]
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.options = *inputs[:7], inputs[7:]
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple:
    query, key, value, head_scale, *others, out, lse = ctx.saved_tensors
    grads = attention_backward_op(
        grad_out, grad_lse, query, key, value, out, lse, head_scale, *others, *ctx.options
    )
    grad_scale = None
    if head_scale is not None and ctx.needs_input_grad[3]:
        # scores are linear in query and in scale alike, so sum(q * dq) = scale * d scale for each head
        grad_scale = ((query * grads[0]).sum((0, 1, 3), dtype=lse.dtype) / head_scale).to(head_scale.dtype)
    return (*grads, grad_scale, *(None,) * 9)


attention_op.register_autograd(_backward, setup_context=_setup_context)
