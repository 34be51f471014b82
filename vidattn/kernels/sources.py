"""How a tensor (B, S, H, D) reaches a kernel: as a tensor descriptor where the hardware's rules allow it,
else as a pointer with strides; never as a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True)
class Source:
    """A tensor with the three integers that place a head in it (see ``boxes.head_place``)."""

    argument: Any
    place: tuple[int, int, int]


def padded(size: int) -> int:
    """The head size that a kernel computes with: a power of two, at least 16."""
    return max(16, 1 << (size - 1).bit_length())


@lru_cache(maxsize=64)
def takes_descriptors(device: torch.device, bits: int) -> bool:
    """Whether a device has a tensor memory accelerator (Hopper and later); the interpreter acts as if.

    float32 goes without: its products run on the ordinary cores, whose code spills ten times as much when
    operands arrive through descriptors (compiled for Hopper, 4,448 bytes a thread against 432).
    """
    if device.type != "cuda":
        return True
    return bits == 16 and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)


def heads_inside(tensor: Tensor) -> bool:
    """Whether the heads of a token lie inside its row, as in a contiguous (B, S, H, D)."""
    _, _, heads, size = tensor.shape
    return (heads - 1) * tensor.stride(2) + size <= tensor.stride(1)


def describable(tensor: Tensor) -> bool:
    """Whether descriptors can address the tensor: 16-byte strides, and no head read into another's."""
    batch, _, heads, size = tensor.shape
    strides = tensor.stride()[: 3 if heads > 1 else 2][0 if batch > 1 else 1 :]
    if tensor.data_ptr() % 16 or any(s <= 0 or s * tensor.element_size() % 16 for s in strides):
        return False
    if heads == 1 or heads_inside(tensor):
        return size == padded(size)
    return batch == 1 or tensor.stride(0) == heads * tensor.stride(2)


def pointer(tensor: Tensor) -> Source:
    """The tensor as a pointer."""
    return Source(tensor, (tensor.stride(0), tensor.stride(2), tensor.stride(1)))


def _outer(tensor: Tensor) -> tuple[int, int, int, tuple[int, int, int]]:
    """Extent and stride of the outer axis, extent of the inner one, and the place of a head."""
    batch, _, heads, size = tensor.shape
    between, row, head, _ = tensor.stride()
    if heads == 1 or heads_inside(tensor):
        return batch, between if batch > 1 else row, (heads - 1) * head + size, (1, 0, head)
    return batch * heads, head, size, (heads, 1, 0)


def described_grid(tensor: Tensor, before: int, grid: Sequence[int], box: Sequence[int]) -> Source:
    """A descriptor (outer, T, Y, X, inner) of the grid's tokens that loads boxes."""
    outer, stride, inner, place = _outer(tensor)
    row = tensor.stride(1)
    strides = [stride, grid[1] * grid[2] * row, grid[2] * row, row, 1]
    block = [1, *box, padded(tensor.shape[3])]
    base = tensor[:, before:] if before else tensor
    return Source(TensorDescriptor(base, [outer, *grid, inner], strides, block), place)


def described_rows(tensor: Tensor, rows: int) -> Source:
    """A descriptor (outer, row, inner) of the whole sequence that loads ``rows`` tokens."""
    outer, stride, inner, place = _outer(tensor)
    shape, block = [outer, tensor.shape[1], inner], [1, rows, padded(tensor.shape[3])]
    return Source(TensorDescriptor(tensor, shape, [stride, tensor.stride(1), 1], block), place)


@lru_cache(maxsize=64)
def device_class(device: torch.device) -> str:
    """The key of a device in the table of tiles: "sm_90", "sm_80", ...; "any" without CUDA."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "any"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
