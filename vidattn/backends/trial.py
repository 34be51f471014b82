"""Whether the Triton kernels compute on a device what they should: small calls, before "auto" relies on them.

Kernels are compiled for every kind of GPU by the user's own Triton, and can be right on one and wrong or
refused on another. So the first call of a process with a device, dtype and head size is preceded by small
ones, which are compared with plain tensor operations. It takes seconds once, for compiling.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vidattn.backends import tiles, triton
from vidattn.backends.base import Saved
from vidattn.backends.problem import Problem
from vidattn.layout import TokenLayout
from vidattn.patterns import Disc, Neighborhood

_CALLS = (
    # a window with text in front, and a list of cells that need the element mask
    Problem(Neighborhood((3, 5, 7)), TokenLayout((3, 9, 21), text_before=5), 0.3),
    Problem(Disc(4.5), TokenLayout((1, 19, 21)), 0.3),
)
# Errors in units of the dtype's rounding step, times the greatest value: several times what rounding makes.
OUT, GRADIENT = 8, 64
_LSE = 2e-3

Pair = tuple[str, Tensor, Tensor, float]
"""A name, a result, what it should be, and the greatest difference allowed."""


def doubts(query: Tensor, value: Tensor, backward: bool = False) -> list[str]:
    """Why "auto" does not take the kernels for inputs like these; empty when the small calls agreed.

    Args:
        query: (B, S, H, D), of which device, dtype and D count.
        value: (B, S, Hkv, Dv), of which Dv counts.
        backward: look at the gradients too.
    """
    if query.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return ["not yet compared with other operations here, and a CUDA graph is being captured"]
    return list(compare(query.device, query.dtype, query.shape[-1], value.shape[-1], backward))


@lru_cache(maxsize=256)
@torch.no_grad()
def compare(
    device: torch.device, dtype: torch.dtype, size: int, value_size: int, backward: bool
) -> tuple[str, ...]:
    """What the small calls showed, once per process."""
    make = torch.Generator(device).manual_seed(0)
    for problem in _CALLS:
        tokens = problem.layout.tokens
        shapes = [(1, tokens, 2, n) for n in (size, size, value_size, value_size)]
        q, k, v, slope = (torch.randn(s, generator=make, device=device).to(dtype) for s in shapes)
        q = q / size**0.5
        found = tried(str(problem.pattern), _pairs, problem, (q, k, v), slope, backward)
        if found:
            return (found,)
    return ()


def tried(name: str, pairs: Callable[..., list[Pair]], *arguments: Any) -> str:
    """What a small call showed: what it raised, or what of its results differs too much; "" when nothing."""
    try:
        # "not at most" is true of nan as well
        worst = [n for n, got, want, bound in pairs(*arguments) if not greatest(got - want) <= bound]
    except Exception as error:  # whatever a compiler or a driver raises is a reason not to rely on it
        line = (str(error).splitlines() or [""])[0][:200]
        return f"a small call of {name} raised {type(error).__name__}: {line}"
    return f"a small call of {name} differs from plain operations in {', '.join(worst)}" if worst else ""


def greatest(tensor: Tensor) -> float:
    """The greatest magnitude, nan if there is one."""
    return float(tensor.abs().max())


def _pairs(
    problem: Problem, inputs: tuple[Tensor, Tensor, Tensor], slope: Tensor, backward: bool
) -> list[Pair]:
    # float64: neither the caller's autocast nor its TF32 touches it
    exact = inputs[0].double(), inputs[1].double(), inputs[2].double()
    out, lse = triton.forward(problem, *inputs)
    true_out, true_lse = tiles.forward(problem, *exact)
    step = torch.finfo(out.dtype).eps
    pairs = [("output", out, true_out, OUT * step * greatest(exact[2]))]
    pairs.append(("log-sum-exp", lse, true_lse, _LSE))
    if backward:
        none = torch.zeros_like(lse)
        saved: Saved = (*inputs, out, lse)
        true: Saved = (*exact, true_out, true_lse)
        found = triton.backward(problem, saved, slope, none)
        wanted = tiles.backward(problem, true, slope.double(), none.double())
        for name, grad, other in zip(("query", "key", "value"), found, wanted, strict=True):
            pairs.append((f"the gradient of {name}", grad, other, GRADIENT * step * greatest(other)))
    return pairs
