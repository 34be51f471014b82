"""Attention with a pattern, and exact merging of partial attentions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from vidattn import composite
from vidattn.backends import BACKENDS, check_backend, pick
from vidattn.backends.problem import Problem
from vidattn.layout import TokenLayout
from vidattn.ops import attention_op
from vidattn.patterns import Full, Pattern, PerHead


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    layout: TokenLayout,
    *,
    scale: float | Tensor | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T over the keys that the pattern lets each query see) v.

    Shapes: query (B, S, H, D), key (B, S, Hkv, D), value (B, S, Hkv, Dv), with S = ``layout.tokens`` and H a
    multiple of Hkv (query head h uses key head h // (H / Hkv)). The result is (B, S, H, Dv) in the query's
    dtype.

    Args:
        query: queries; float16, bfloat16, float32 or float64 on any device.
        key: keys.
        value: values; their head size may differ.
        pattern: who sees whom on the grid. Text tokens see all and are seen by all.
        layout: the grid, and the text before and after it.
        scale: a float, or a tensor of shape (H,) with one per head; 1 / sqrt(D) when None.
        return_lse: also return the log-sum-exp of the scaled scores, natural logarithm, (B, S, H), float32
            (float64 for float64 inputs); it can be differentiated.
        backend: "auto", or a name that ``vidattn doctor`` lists; a named one never falls back.

    Returns:
        The output, or (output, lse) with ``return_lse``.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, or an unknown backend.
        TypeError: a pattern or layout of another kind.

    Example:
        >>> q = torch.randn(1, 64, 2, 16)
        >>> attention(q, q, q, Neighborhood(5), TokenLayout((8, 8))).shape
        torch.Size([1, 64, 2, 16])
    """
    if not isinstance(pattern, Pattern):
        raise TypeError(
            f"pattern={pattern!r}: must be a vidattn.patterns.Pattern (from_text reads the text form)"
        )
    if not isinstance(layout, TokenLayout):
        raise TypeError(f"layout={layout!r}: must be a vidattn.TokenLayout")
    check_tensors(query, key, value, layout.tokens)
    number, per_head = split_scale(scale, query)
    valid = layout.text_valid_tensor(query.shape[0], query.device)
    bare = TokenLayout(layout.grid, layout.text_before, layout.text_after)
    return compute(Problem(pattern, bare, number, per_head, valid), query, key, value, return_lse, backend)


def compute(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, return_lse: bool, backend: str
) -> Tensor | tuple[Tensor, Tensor]:
    """Run a call whose arguments are checked; keys beyond the layout's tokens are the problem's extra."""
    pattern, layout = problem.pattern, problem.layout
    if isinstance(pattern, PerHead):
        return _by_head(problem, pattern, query, key, value, return_lse, backend)
    check_backend(backend)
    special = composite.handler(pattern)
    if special is not None:
        result = special(compute, problem, query, key, value, return_lse, backend)
        if result is not None:
            return result
    if problem.lists is None and pattern.covers(layout.grid):
        pattern = Full()
        if return_lse and backend == "dense":
            backend = "torch"  # PyTorch's attention does not give its log-sum-exp
        elif backend == "auto" and not return_lse:
            backend = "dense"
    if backend != "auto" and BACKENDS[backend].backward is None:
        chosen, _ = pick(backend, problem, query, key, value)
        done, logs = chosen.forward(problem, query, key, value, return_lse)
        return (done, cast(Tensor, logs)) if return_lse else done
    lists = problem.lists
    out, lse = attention_op(
        query,
        key,
        value,
        problem.head_scale,
        problem.text_valid,
        None if lists is None else lists.index,
        None if lists is None else lists.count,
        pattern.encoded,
        layout.grid,
        (layout.text_before, layout.text_after),
        () if lists is None else (*lists.tile, *lists.block),
        problem.scale,
        backend,
    )
    return (out, lse) if return_lse else out


def _by_head(
    problem: Problem,
    pattern: PerHead,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    return_lse: bool,
    backend: str,
) -> Tensor | tuple[Tensor, Tensor]:
    """The heads of each pattern together, then all in order again."""
    if len(pattern.assign) != query.shape[2]:
        raise ValueError(f"pattern assigns {len(pattern.assign)} heads, but query has {query.shape[2]}")
    shared = query.shape[2] // key.shape[2]
    order: list[int] = []
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    for number, one in enumerate(pattern.patterns):
        heads = pattern.heads(number)
        if not heads:
            continue
        order += heads
        own = torch.tensor(heads, device=query.device)
        scale = None if problem.head_scale is None else problem.head_scale[own]
        part = replace(problem, pattern=one, head_scale=scale)
        keys, values = (t.index_select(2, own // shared) for t in (key, value))
        result = compute(part, query.index_select(2, own), keys, values, return_lse, backend)
        if isinstance(result, Tensor):
            outs.append(result)
        else:
            outs.append(result[0])
            lses.append(result[1])
    back = torch.tensor(order, device=query.device).argsort()
    merged = torch.cat(outs, 2).index_select(2, back)
    return (merged, torch.cat(lses, 2).index_select(2, back)) if return_lse else merged


def split_scale(scale: float | Tensor | None, query: Tensor) -> tuple[float, Tensor | None]:
    """The scale as a number and, where it differs by head, a tensor of shape (H,).

    Raises:
        ValueError: a tensor of another shape, or a number that is not finite.
    """
    if scale is None:
        return query.shape[-1] ** -0.5, None
    if isinstance(scale, Tensor):
        if scale.shape != (query.shape[2],) or not scale.is_floating_point():
            raise ValueError(
                f"scale of shape {tuple(scale.shape)}, {scale.dtype}: must be a float, or floats of shape"
                f" (heads,) = ({query.shape[2]},)"
            )
        return 1.0, scale.to(query.device)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"scale={scale!r}: must be a finite float or a tensor of shape (heads,)")
    return float(scale), None


def check_tensors(query: Tensor, key: Tensor, value: Tensor, tokens: int) -> None:
    """Raise ValueError unless the tensors are (B, tokens, heads, D) of one kind."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}: must be a tensor")
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: must be (batch, tokens, heads, head_dim)"
            )
        if tensor.shape[1] != tokens:
            raise ValueError(f"{name} has {tensor.shape[1]} tokens, but the layout has {tokens}")
    check_alike(query, key, value)


def check_alike(
    query: Tensor, key: Tensor, value: Tensor, names: Sequence[str] = ("query", "key", "value")
) -> None:
    """Raise ValueError unless batch, heads, head sizes, dtype and device fit; heads and head size are the
    last axes.
    """
    q, k, v = names
    if not query.dtype.is_floating_point:
        raise ValueError(f"{q}.dtype={query.dtype}: must be a floating-point type")
    for name, tensor in ((k, key), (v, value)):
        if tensor.dtype != query.dtype:
            raise ValueError(f"{name}.dtype={tensor.dtype}: must be {q}'s, {query.dtype}")
        if tensor.device != query.device:
            raise ValueError(f"{name}.device={tensor.device}: must be {q}'s, {query.device}")
        if tensor.shape[0] != query.shape[0]:
            raise ValueError(f"{name} has batch {tensor.shape[0]}: must be {q}'s, {query.shape[0]}")
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"{k} has head_dim {key.shape[-1]}: must be {q}'s, {query.shape[-1]}")
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(f"{v} has {value.shape[-2]} heads: must be {k}'s, {key.shape[-2]}")
    if key.shape[-2] < 1 or query.shape[-2] % key.shape[-2]:
        raise ValueError(f"{k} has {key.shape[-2]} heads: must divide {q}'s, {query.shape[-2]}")


def merge_attentions(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attentions of the same queries over disjoint sets of keys, merged as if the keys had been one set.

    Exact, for any number of parts, and differentiable in outputs and lses.

    Args:
        outputs: tensors of shape (B, S, H, Dv), or (B, *grid, H, Dv).
        lses: their log-sum-exps, of the same shape without Dv, natural logarithm.

    Returns:
        (output, lse): the output in the outputs' dtype, the lse in the lses'.

    Raises:
        ValueError: no parts, or shapes that differ.
    """
    if len(outputs) != len(lses) or not outputs:
        raise ValueError(
            f"outputs has {len(outputs)} parts and lses {len(lses)}: give as many of each, at least one"
        )
    for part, lse in zip(outputs, lses, strict=True):
        if part.shape != outputs[0].shape or lse.shape != part.shape[:-1]:
            raise ValueError(
                f"parts of shape {tuple(part.shape)} with lse {tuple(lse.shape)}: every output must be"
                f" {tuple(outputs[0].shape)} and every lse {tuple(outputs[0].shape[:-1])}"
            )
    logs = torch.stack(tuple(lses))
    lse = torch.logsumexp(logs, 0)
    # parts that saw no key at all have lse -inf; a row of only such parts gives zero rather than nan
    weights = torch.where(torch.isneginf(logs), torch.zeros_like(logs), (logs - lse).exp())
    merged = sum(w[..., None] * o.to(w.dtype) for w, o in zip(weights, outputs, strict=True))
    return merged.to(outputs[0].dtype), lse
