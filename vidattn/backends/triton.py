"""The ``triton`` backend: fused kernels on the grid as it is, without permuting or repeating tokens."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidattn.backends.base import Saved
from vidattn.backends.problem import Problem
from vidattn.patterns import Disc

if TYPE_CHECKING:
    from vidattn.kernels.launch import Call
    from vidattn.kernels.tiling import Tiling

MAX_HEAD_SIZE = 256
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MAX_GRID = 65535  # programs along the second axis of a launch


@lru_cache(maxsize=64)
def missing(device: torch.device) -> list[str]:
    """What keeps the kernels from running on a device."""
    if find_spec("triton") is None:
        return ["triton is not installed"]
    if device.type == "cpu" and _interpreted():
        return []
    if device.type != "cuda":
        return [f"needs a GPU, not {device.type} (TRITON_INTERPRET=1 runs it slowly on a CPU, for tests)"]
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(device)
        return [f"needs compute capability 8.0, the device has {major}.{minor}"]
    return []


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def reasons(problem: Problem, query: Tensor, key: Tensor, value: Tensor) -> list[str]:
    """What keeps the kernels from running a call."""
    found = list(missing(query.device))
    if query.dtype not in DTYPES:
        found.append(f"needs float16, bfloat16 or float32, not {query.dtype}")
    for name, size in (("head_dim", query.shape[-1]), ("head_dim of value", value.shape[-1])):
        if size > MAX_HEAD_SIZE:
            found.append(f"{name} {size} is over {MAX_HEAD_SIZE}")
    if query.shape[0] * query.shape[2] > _MAX_GRID:
        found.append(f"batch * heads = {query.shape[0] * query.shape[2]} is over {_MAX_GRID}")
    if problem.layout.tokens + problem.extra >= 2**31:
        found.append("the sequence has 2^31 tokens or more")
    if not found and problem.lists is None:
        from vidattn.backends.triton_plan import plannable

        if not plannable(problem.pattern):
            found.append(f"has no kernel for pattern {problem.pattern.name!r}")
        elif isinstance(problem.pattern, Disc) and problem.pattern.pooled and problem.layout.text_tokens:
            found.append("has no kernel for pooled keys, which text does not see")
    return found


def forward(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, return_lse: bool = True
) -> tuple[Tensor, Tensor]:
    """Output (B, S, H, Dv) and log-sum-exp (B, S, H), float32."""
    from vidattn.backends.triton_plan import visits_of
    from vidattn.kernels import launch

    batch, tokens, heads, _ = query.shape
    out = query.new_empty(batch, tokens, heads, value.shape[3])
    lse = query.new_empty(batch, tokens, heads, dtype=torch.float32)
    if not query.numel() or not value.numel():
        return out, lse
    query, key, value = (_even(t) for t in (query, key, value))
    call, tiling = _call(problem), _tiling("forward", query, value)
    launch.box_forward(
        call, visits_of(problem, tiling, False, query.device), tiling, query, key, value, out, lse
    )
    if call.text:
        launch.rows_forward(call, tiling, query, key, value, out, lse)
    return out, lse


def backward(
    problem: Problem, saved: Saved, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    from vidattn.backends.triton_plan import visits_of
    from vidattn.kernels import launch_backward as launch

    query, key, value, out, lse = saved
    grads = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    if not query.numel() or not value.numel():
        return grads
    call, grad_out = _call(problem), grad_out.contiguous()
    inputs = (_even(query), _even(key), _even(value), grad_out)
    sums = launch.row_sums(out.contiguous(), grad_out, lse.contiguous(), grad_lse.float().contiguous())
    tiling = _tiling("query", query, value)
    visits = visits_of(problem, tiling, False, query.device)
    launch.box_query_gradient(call, visits, tiling, inputs, sums, grads[0])
    if call.text:
        launch.rows_query_gradient(call, tiling, inputs, sums, grads[0])
    tiling = _tiling("key", query, value)
    visits = visits_of(problem, tiling, True, query.device)
    launch.box_key_gradient(call, visits, tiling, inputs, sums, grads[1], grads[2])
    if call.elsewhere:
        launch.rows_key_gradient(call, tiling, inputs, sums, grads[1], grads[2])
    return grads


def _even(tensor: Tensor) -> Tensor:
    """The tensor itself; a copy only where the elements of a head do not follow one another."""
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _call(problem: Problem) -> Call:
    from vidattn.kernels.launch import Call

    layout, scale = problem.layout, problem.head_scale
    return Call(
        layout.grid,
        layout.text_before,
        layout.text_after,
        problem.extra,
        problem.scale,
        None if scale is None else scale.contiguous(),
        problem.text_valid if layout.text_tokens else None,
    )


def _tiling(kernel: str, query: Tensor, value: Tensor) -> Tiling:
    from vidattn.kernels.sources import device_class, padded
    from vidattn.kernels.tiling import choose

    size = padded(max(query.shape[3], value.shape[3]))
    return choose(kernel, device_class(query.device), query.element_size() * 8, size)
