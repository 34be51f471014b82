"""Who computes a pattern: a table of backends, and the choice among them with reasons.

An explicit choice never falls back: a backend that cannot run a call says why.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidattn.backends import blocks, dense, flex, natten, tiles, trial, triton, xformers
from vidattn.backends.base import Backend, Saved
from vidattn.backends.problem import Problem
from vidattn.layout import TokenLayout
from vidattn.patterns import Pattern, Segments
from vidattn.patterns.text import nearest


def _run_torch(
    problem: Problem, query: Tensor, key: Tensor, value: Tensor, return_lse: bool
) -> tuple[Tensor, Tensor]:
    if problem.lists is not None:
        return blocks.forward(problem, problem.lists, query, key, value)
    return tiles.forward(problem, query, key, value)


def _differentiate_torch(
    problem: Problem, saved: Saved, grad_out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if problem.lists is not None:
        return blocks.backward(problem, problem.lists, saved, grad_out, grad_lse)
    return tiles.backward(problem, saved, grad_out, grad_lse)


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "triton",
            "fused kernels on the grid as it is, for windows and block lists",
            triton.forward,
            triton.backward,
            missing=triton.missing,
            reasons=triton.reasons,
            doubts=trial.doubts,
        ),
        Backend(
            "torch",
            "runs the plan with tensor operations on any device; memory linear in tokens",
            _run_torch,
            _differentiate_torch,
        ),
        Backend(
            "dense",
            "PyTorch's scaled_dot_product_attention, with the n x n mask unless every query sees all",
            dense.forward,
        ),
        Backend(
            "flex",
            "PyTorch's FlexAttention with the pattern as its mask; compiles for every shape",
            flex.forward,
            missing=flex.missing,
            reasons=flex.reasons,
        ),
        Backend(
            "natten",
            "NATTEN's kernels, for neighborhood patterns",
            natten.forward,
            missing=natten.missing,
            reasons=natten.reasons,
        ),
        Backend(
            "xformers",
            "xFormers' memory-efficient attention, with the n x n mask on small grids",
            xformers.forward,
            missing=xformers.missing,
            reasons=xformers.reasons,
        ),
    )
}


def preferred(device: torch.device) -> tuple[str, ...]:
    """What "auto" tries for a sparse call, in this order; the last one runs everything.

    The kernels are taken unasked only on NVIDIA's GPUs, and there only when small calls came out right
    (:mod:`vidattn.backends.trial`).
    """
    if device.type == "cuda" and torch.version.hip is None:
        return "triton", "torch"
    return ("torch",)


def check_backend(name: str) -> str:
    """``name``, when it is "auto" or a backend.

    Raises:
        ValueError: it is neither.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend={name!r}: {nearest(str(name), ['auto', *BACKENDS])}")
    return name


def pick(
    name: str, problem: Problem, query: Tensor, key: Tensor, value: Tensor, backward: bool = False
) -> tuple[Backend, str]:
    """The backend that runs a sparse call, or its backward, and why: the one asked for, or for "auto" the
    first that can and of which there are no doubts.

    Raises:
        ValueError: unknown name.
        NotImplementedError: the backend that was asked for cannot run the call; the message says why.
    """
    if check_backend(name) != "auto":
        reasons = BACKENDS[name].reasons(problem, query, key, value)
        if reasons:
            raise NotImplementedError(f"backend={name!r} cannot run this call: {'; '.join(reasons)}")
        return BACKENDS[name], "asked for"
    passed_over: list[str] = []
    *candidates, last = preferred(query.device)
    for candidate in candidates:
        reasons = BACKENDS[candidate].reasons(problem, query, key, value)
        if not reasons:
            reasons = BACKENDS[candidate].doubts(query, value, backward)
        if not reasons:
            return BACKENDS[candidate], "the first choice for this device"
        passed_over.append(f"{candidate} is passed over: {'; '.join(reasons)}")
    return BACKENDS[last], ". ".join(passed_over) or "runs everywhere"


def resolve(
    name: str, pattern: Pattern, layout: TokenLayout, device: torch.device | str = "cpu"
) -> tuple[str, str]:
    """The backend that will run, and why, said before there are tensors.

    Args:
        name: "auto" or a backend of ``BACKENDS``.
        pattern: who sees whom.
        layout: where the tokens are.
        device: where the tensors will be; they are taken to be bfloat16 with a head size of 64.

    Raises:
        ValueError: unknown name.
    """
    if check_backend(name) != "auto":
        return name, "asked for"
    if pattern.covers(layout.grid):
        return "dense", "every query sees every key"
    if isinstance(pattern, Segments):
        return "dense", "one call for each group of segments, without a mask"
    probe = torch.empty(1, 1, 1, 64, dtype=torch.bfloat16, device=device).expand(1, layout.tokens, 1, 64)
    backend, why = pick(name, Problem(pattern, layout, 1.0), probe, probe, probe)
    return backend.name, why


def reasons(device: torch.device | str | None = None) -> dict[str, list[str]]:
    """For each backend why it cannot run on a device, an empty list where it can.

    Args:
        device: the first GPU where there is one, else the CPU, when None.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: backend.missing(torch.device(device)) for name, backend in BACKENDS.items()}
