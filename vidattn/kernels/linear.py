"""Launches the kernels of linear attention: grids, block sizes, partial states. See ``linear_kernels``."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from vidattn.kernels.linear_kernels import (
    key_grad_kernel,
    output_kernel,
    query_grad_kernel,
    state_kernel,
    sum_kernel,
)

LONGEST_RUN = 1 << 14  # tokens that one program sums: longer float32 sums would lose digits
WAVES = 2  # programs for each multiprocessor


def forward(
    query: Tensor, key: Tensor, value: Tensor, feature_map: str, normalize: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Output (B, M, H, E) and the state (B, H, D * E + D) that :func:`backward` needs.

    Args:
        query: (B, M, H, D), float16, bfloat16 or float32; D, E and M at least 1. Any strides.
        key: (B, N, H, D).
        value: (B, N, H, E).
        feature_map: "elu1", "relu", "softmax" or "identity".
        normalize: divide by phi(q) . mean phi(k) + eps.
        eps: see there.
    """
    query, key, value = (_rows(t) for t in (query, key, value))
    batch, tokens, heads, size = query.shape
    width, count = value.shape[3], key.shape[1]
    out = query.new_empty(batch, tokens, heads, width)
    blocks, launch, parts = _blocks(value, size)
    run, splits = _runs(count, batch * heads * parts, blocks["BLOCK_N"], query.device)
    part = _partial_states(batch, heads, splits, size, width, query.device)
    with _on(query.device):
        state_kernel[(batch * heads, splits, parts)](
            key, value, part, count, heads, run, *key.stride()[:3], *value.stride()[:3],
            D=size, E=width, MAP=feature_map, **blocks, **launch,
        )  # fmt: skip
        state = _sum(part, 1.0 / count)
        run, splits = _runs(tokens, batch * heads * parts, blocks["BLOCK_N"], query.device)
        output_kernel[(batch * heads, splits, parts)](
            query, state, out, tokens, heads, run, eps, *query.stride()[:3], *out.stride()[:3],
            D=size, E=width, MAP=feature_map, NORMALIZE=normalize, **blocks, **launch,
        )  # fmt: skip
    return out, state


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: Tensor,
    feature_map: str,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, contiguous, from the output's and what :func:`forward` gave."""
    grad_out, query, key, value = (_rows(t) for t in (grad_out, query, key, value))
    batch, tokens, heads, size = query.shape
    width, count = value.shape[3], key.shape[1]
    grads = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (query, key, value)]
    blocks, launch, parts = _blocks(value, size, backward=True)
    run, splits = _runs(tokens, batch * heads * parts, blocks["BLOCK_N"], query.device)
    part = _partial_states(batch, heads, splits, size, width, query.device)
    with _on(query.device):
        query_grad_kernel[(batch * heads, splits, parts)](
            query, grad_out, state, grads[0], part, tokens, heads, run, eps,
            *query.stride()[:3], *grad_out.stride()[:3], *grads[0].stride()[:3],
            D=size, E=width, PARTS=parts, MAP=feature_map, NORMALIZE=normalize, **blocks, **launch,
        )  # fmt: skip
        state_grad = _sum(part, 1.0 / count)
        run, splits = _runs(count, batch * heads * parts, blocks["BLOCK_N"], query.device)
        key_grad_kernel[(batch * heads, splits, parts)](
            key, value, state_grad, grads[1], grads[2], count, heads, run,
            *key.stride()[:3], *value.stride()[:3], *grads[1].stride()[:3], *grads[2].stride()[:3],
            D=size, E=width, PARTS=parts, MAP=feature_map, **blocks, **launch,
        )  # fmt: skip
    return grads[0], grads[1], grads[2]


def _rows(tensor: Tensor) -> Tensor:
    """The tensor, copied only where the numbers of a head are not side by side."""
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _blocks(value: Tensor, size: int, backward: bool = False) -> tuple[dict[str, Any], dict[str, int], int]:
    """Block sizes, launch options, and into how many blocks E, the value's head size, is cut.

    A state of up to 128 x 128 stays in registers; beyond, E is cut, and keys are read again (from the cache)
    for each block.
    """
    block_d, width = max(16, triton.next_power_of_2(size)), max(16, triton.next_power_of_2(value.shape[3]))
    # float32 products are three on tensor cores, with operands of four times the registers
    wide = value.dtype == torch.float32
    block_e = min(width, 64 if block_d > 128 else 128)
    if wide:
        block_e = min(width, 64 if block_d <= 64 else 32)
    block_n = 32 if wide or (backward and block_d > 128) else 64
    options = {
        "num_warps": 8 if block_d * block_e > 64 * 64 else 4,
        "num_stages": 2 if wide or backward or block_d > 128 else 3,
    }
    precision = "tf32x3" if _has_tf32(value.device) else "ieee"
    blocks = {"BLOCK_D": block_d, "BLOCK_E": block_e, "BLOCK_N": block_n, "PRECISION": precision}
    return blocks, options, triton.cdiv(value.shape[3], block_e)


@functools.cache
def _has_tf32(device: torch.device) -> bool:
    nvidia = device.type == "cuda" and torch.version.hip is None
    return nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


def _runs(tokens: int, lanes: int, block: int, device: torch.device) -> tuple[int, int]:
    """How many tokens a program takes, and how many programs that makes, so that ``lanes`` of them fill the
    device.
    """
    wanted = max(1, WAVES * _multiprocessors(device) // lanes)
    run = min(triton.cdiv(tokens, wanted), LONGEST_RUN)
    run = max(triton.cdiv(run, block), 2) * block
    return run, triton.cdiv(tokens, run)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # the interpreter
    return torch.cuda.get_device_properties(device).multi_processor_count


def _partial_states(
    batch: int, heads: int, splits: int, size: int, width: int, device: torch.device
) -> Tensor:
    return torch.empty(batch, heads, splits, size * width + size, dtype=torch.float32, device=device)


def _sum(part: Tensor, factor: float) -> Tensor:
    batch, heads, splits, length = part.shape
    state = part.new_empty(batch, heads, length)
    block = 256 if batch * heads < 64 else 1024
    grid = batch * heads, triton.cdiv(length, block)
    sum_kernel[grid](part, state, splits, factor, L=length, BLOCK=block)
    return state


def _on(device: torch.device) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else torch.cuda.device(-1)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on CPU tensors: ``TRITON_INTERPRET=1`` at import."""
    return not isinstance(state_kernel, triton.JITFunction)
