"""Whether the kernels of linear attention compute on a device what they should, see ``backends.trial``."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vidattn.backends.trial import GRADIENT, OUT, Pair, greatest, tried
from vidattn.linear import chunks

_TOKENS = 300  # a tail behind every block of tokens


def doubted(query: Tensor, value: Tensor, feature_map: str) -> str:
    """Why backend "auto" does not take the kernels for inputs like these, or ""."""
    if query.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return "not yet compared with other operations here, and a CUDA graph is being captured"
    return compare(query.device, query.dtype, query.shape[-1], value.shape[-1], feature_map)


@lru_cache(maxsize=256)
@torch.no_grad()
def compare(device: torch.device, dtype: torch.dtype, size: int, value_size: int, feature_map: str) -> str:
    """What a small call showed, once per process; "" when it agreed."""
    make = torch.Generator(device).manual_seed(0)
    shapes = [(1, _TOKENS, 2, n) for n in (size, size, value_size, value_size)]
    q, k, v, slope = (torch.randn(s, generator=make, device=device).to(dtype) for s in shapes)
    # "identity" keeps signs, and its sums are near zero: these inputs keep them away from it
    return tried(f"linear attention ({feature_map})", _pairs, (q.abs(), k.abs(), v), slope, feature_map)


def _pairs(inputs: tuple[Tensor, Tensor, Tensor], slope: Tensor, feature_map: str) -> list[Pair]:
    from vidattn.kernels import linear

    step = torch.finfo(slope.dtype).eps
    q, k, v = inputs
    # float64: neither the caller's autocast nor its TF32 touches it
    exact_q, exact_k, exact_v = q.double(), k.double(), v.double()
    out, state = linear.forward(q, k, v, feature_map, True, 1e-4)
    true_out, true_state = chunks.forward(exact_q, exact_k, exact_v, feature_map, True, 1e-4)
    found = linear.backward(slope, q, k, v, state, feature_map, True, 1e-4)
    wanted = chunks.backward(slope.double(), exact_q, exact_k, exact_v, true_state, feature_map, True, 1e-4)
    pairs = [("output", out, true_out, OUT * step * greatest(exact_v))]
    for name, grad, other in zip(("query", "key", "value"), found, wanted, strict=True):
        pairs.append((f"the gradient of {name}", grad, other, GRADIENT * step * greatest(other)))
    return pairs
