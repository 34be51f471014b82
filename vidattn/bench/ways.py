"""Who is measured: this package's backends, and PyTorch's dense attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import vidattn
from vidattn import backends
from vidattn.backends import BACKENDS, pick
from vidattn.backends.problem import Problem
from vidattn.bench.call import Call, Function
from vidattn.linear.functional import triton_reasons

DENSE = {
    "sdpa-cudnn": (SDPBackend.CUDNN_ATTENTION, "cuda"),
    "sdpa-flash": (SDPBackend.FLASH_ATTENTION, ""),
    "sdpa-efficient": (SDPBackend.EFFICIENT_ATTENTION, "cuda"),
}
"""Dense attention of PyTorch, and the kind of device that has it ("" for all)."""


def names(kind: str) -> list[str]:
    """Every way that a device of this kind ("cpu" or "cuda") may have, the dense ones first."""
    dense = [name for name, (_, only) in DENSE.items() if only in ("", kind)]
    return [*dense, *(name for name in BACKENDS if name != "dense")]


def defaults(kind: str) -> tuple[list[str], dict[str, str]]:
    """The ways that are measured unless others are asked for, and why the rest is not."""
    missing = {name: "; ".join(why) for name, why in backends.reasons(kind).items() if why}
    if kind == "cpu":
        missing["flex"] = "on CPUs it holds the n x n scores, and takes 10 times as long as dense attention"
    chosen = [name for name in names(kind) if name not in missing]
    return chosen, {name: why for name, why in missing.items() if name in names(kind)}


def baseline(kind: str) -> str:
    """The dense way that ratios are to."""
    return "sdpa-cudnn" if kind == "cuda" else "sdpa-flash"


def build(way: str, call: Call) -> Function:
    """The function that a way runs for a call."""
    if way in DENSE:
        return _dense(DENSE[way][0])
    if call.linear:
        return lambda q, k, v: vidattn.linear_attention(q, k, v, backend=way)
    pattern, layout = call.pattern, call.layout
    return lambda q, k, v: cast(Tensor, vidattn.attention(q, k, v, pattern, layout, backend=way))


def reasons(way: str, call: Call, query: Tensor) -> list[str]:
    """Why a way cannot run a call, an empty list where it can."""
    if way in DENSE:
        return []
    if call.linear:
        return triton_reasons(query, query) if way == "triton" else []
    problem = Problem(call.pattern, call.layout, query.shape[3] ** -0.5)
    try:
        pick(way, problem, query, query, query)
    except NotImplementedError as error:
        return [str(error)]
    return []


def _dense(kind: SDPBackend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))
        with sdpa_kernel([kind]):
            out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2)

    return run
