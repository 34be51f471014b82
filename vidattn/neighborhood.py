"""Neighborhood attention on 1-D, 2-D and 3-D grids with NATTEN's signature and rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vidattn.attention import check_alike, compute
from vidattn.backends import check_backend
from vidattn.backends.problem import Problem
from vidattn.layout import TokenLayout
from vidattn.patterns import Neighborhood
from vidattn.patterns.sizes import is_int

Sizes = int | Sequence[int]
_DOC = """Neighborhood attention on a {rank}-D grid of tokens as NATTEN defines it (arXiv 2204.07143).

    Shapes: query (B, {axes}, H, D), key (B, {axes}, Hkv, D), value (B, {axes}, Hkv, Dv), H a multiple of Hkv;
    the result is (B, {axes}, H, Dv) in the query's dtype. Beyond NATTEN: windows of 1, any head size, Dv !=
    D, every device, gradients also through the lse.

    Args:
        query: queries.
        key: keys.
        value: values.
        kernel_size: window per axis, an int or one per axis; 1 to the axis's extent.
        stride: queries that share a window, at most the window.
        dilation: distance of neighbouring keys; kernel_size * dilation must fit into the axis.
        is_causal: no keys behind the query, a bool or one per axis.
        scale: of the scores; 1 / sqrt(D) when None or 0.
        additional_keys: (B, N, Hkv, D) keys that every query sees as well, in the same softmax.
        additional_values: (B, N, Hkv, Dv); both or neither.
        return_lse: also return the log-sum-exp (B, {axes}, H), float32, natural logarithm.
        backend: "auto", or a name that ``vidattn doctor`` lists; a named one never falls back.

    Returns:
        The output, or (output, lse) with ``return_lse``.

    Raises:
        ValueError: an argument that NATTEN refuses too (but for windows of 1), named with what is allowed.
    """


def _sizes(value: Any, rank: int, name: str, default: int | None) -> tuple[int, ...]:
    if value is None and default is not None:
        return (default,) * rank
    entries = (value,) * rank if is_int(value) else value
    if not isinstance(entries, (tuple, list)) or len(entries) != rank or not all(is_int(e) for e in entries):
        raise ValueError(f"{name}={value!r}: must be an integer or {rank} of them")
    if min(entries) < 1:
        raise ValueError(f"{name}={value!r}: every entry must be at least 1")
    return tuple(entries)


def _flags(value: Any, rank: int) -> tuple[bool, ...]:
    entries = (bool(value),) * rank if value is None or isinstance(value, bool) else value
    if (
        not isinstance(entries, (tuple, list))
        or len(entries) != rank
        or not all(isinstance(e, bool) for e in entries)
    ):
        raise ValueError(f"is_causal={value!r}: must be a bool or {rank} of them")
    return tuple(entries)


def _check_window(
    grid: Sequence[int], window: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> None:
    for axis, (n, k, s, d) in enumerate(zip(grid, window, stride, dilation, strict=True)):
        if k * d > n:
            raise ValueError(
                f"kernel_size={tuple(window)} with dilation={tuple(dilation)}: {k} * {d} exceeds"
                f" the extent {n} of axis {axis}"
            )
        if s > k:
            raise ValueError(
                f"stride={tuple(stride)}: must not exceed kernel_size={tuple(window)} (axis {axis})"
            )


def _check_additional(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None, values: Tensor | None
) -> None:
    if (keys is None) != (values is None):
        given, missing = ("additional_keys", "additional_values")[:: 1 if values is None else -1]
        raise ValueError(f"{given} was given without {missing}: give both or neither")
    if keys is None or values is None:
        return
    for name, tensor, like in (("additional_keys", keys, key), ("additional_values", values, value)):
        if tensor.ndim != 4 or tensor.shape[2:] != like.shape[-2:]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: must be (batch, tokens,"
                f" {like.shape[-2]}, {like.shape[-1]})"
            )
    if keys.shape[1] != values.shape[1]:
        raise ValueError(
            f"additional_keys has {keys.shape[1]} tokens, additional_values {values.shape[1]}: must be equal"
        )
    check_alike(query, keys, values, ("query", "additional_keys", "additional_values"))


def _neighborhood(
    rank: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Sizes,
    stride: Sizes,
    dilation: Sizes,
    is_causal: bool | Sequence[bool],
    scale: float | None,
    additional_keys: Tensor | None,
    additional_values: Tensor | None,
    return_lse: bool,
    backend: str,
) -> Tensor | tuple[Tensor, Tensor]:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor) or tensor.ndim != rank + 3:
            raise ValueError(
                f"{name} must be a tensor of {rank + 3} axes, (batch, {rank} grid axes, heads, head_dim)"
            )
        if tensor.shape[1:-2] != query.shape[1:-2]:
            raise ValueError(
                f"{name} has the grid {tuple(tensor.shape[1:-2])}: must be query's,"
                f" {tuple(query.shape[1:-2])}"
            )
    check_alike(query, key, value)
    check_backend(backend)
    grid = tuple(query.shape[1:-2])
    window = _sizes(kernel_size, rank, "kernel_size", None)
    steps, apart = _sizes(stride, rank, "stride", 1), _sizes(dilation, rank, "dilation", 1)
    causal = _flags(is_causal, rank)
    _check_window(grid, window, steps, apart)
    _check_additional(query, key, value, additional_keys, additional_values)
    one = (1,) * (3 - rank)
    pattern = Neighborhood(one + window, one + steps, one + apart, (False,) * (3 - rank) + causal)
    flat = [t.flatten(1, -3) for t in (query, key, value)]
    extra = 0
    if additional_keys is not None and additional_values is not None:
        flat[1:] = [torch.cat(pair, 1) for pair in ((flat[1], additional_keys), (flat[2], additional_values))]
        extra = additional_keys.shape[1]
    number = float(scale) if scale else query.shape[-1] ** -0.5
    problem = Problem(pattern, TokenLayout(grid), number, extra=extra)  # type: ignore[arg-type]
    result = compute(problem, flat[0], flat[1], flat[2], return_lse, backend)
    if isinstance(result, tuple):
        return result[0].unflatten(1, grid), result[1].unflatten(1, grid)
    return result.unflatten(1, grid)


def _public(rank: int, axes: str) -> Callable[..., Any]:
    def function(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: Sizes,
        stride: Sizes = 1,
        dilation: Sizes = 1,
        is_causal: bool | Sequence[bool] = False,
        scale: float | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        return_lse: bool = False,
        backend: str = "auto",
    ) -> Tensor | tuple[Tensor, Tensor]:
        return _neighborhood(
            rank, query, key, value, kernel_size, stride, dilation, is_causal, scale,
            additional_keys, additional_values, return_lse, backend,
        )  # fmt: skip

    function.__name__ = function.__qualname__ = f"na{rank}d"
    function.__doc__ = _DOC.format(rank=rank, axes=axes)
    return function


na1d = _public(1, "L")
na2d = _public(2, "H, W")
na3d = _public(3, "T, H, W")
