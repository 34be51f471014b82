"""Runs ways on calls: first the check, then time and memory; rows of figures come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vidattn.bench import check, measure, ways
from vidattn.bench.call import Call, Function
from vidattn.bench.cases import Case
from vidattn.linear.functional import BACKENDS as LINEAR_BACKENDS

Row = dict[str, Any]
COLUMNS: tuple[str, ...] = (
    *("case", "pattern", "way", "pass", "tokens", "density", "ms", "MiB", "TFLOP/s", "times dense"),
    *("of visited ideal", "of density ideal", "of copy", "times flex", "note"),
)
"""What the printed table shows; rows hold more."""


def run(
    cases: Iterable[Case],
    way_names: Iterable[str],
    device: torch.device,
    dtype: torch.dtype,
    backward: bool = True,
    patterns: Iterable[str] | None = None,
    memory: bool = True,
) -> Iterator[list[Row]]:
    """The rows of one case after the other.

    Args:
        cases: what is measured.
        way_names: who; see ``ways.names``. Dense ones run once a case, as pattern "full".
        device: where.
        dtype: of the tensors.
        backward: measure gradients too.
        patterns: text forms instead of the cases' own.
        memory: measure peak memory.
    """
    chosen = list(way_names)
    for case in cases:
        rows: list[Row] = []
        tensors = Call(case, "full").inputs(device, dtype)
        wanted = tuple(patterns or case.patterns)
        for text in dict.fromkeys(("full", *wanted)):
            call = Call(case, text)
            for way in chosen:
                # dense attention knows only one pattern; our own "full" is measured where a case asks for it
                if call.linear and way not in LINEAR_BACKENDS:
                    continue
                if (way in ways.DENSE) == (text == "full") or (text == "full" and "full" in wanted):
                    rows += _measured(call, way, tensors, backward, memory)
        yield with_ratios(rows, case, measure.copy_milliseconds, device, tensors[0].element_size())


def _measured(call: Call, way: str, tensors: list[Tensor], backward: bool, memory: bool) -> list[Row]:
    """One row forward, one backward; a row without figures says why."""
    start: Row = {
        "case": call.case.name,
        "pattern": call.text,
        "way": way,
        "pass": "forward",
        "shape": [call.case.batch, call.case.heads, call.case.head_dim],
        "grid": list(call.case.grid),
        "text": [call.case.text_before, call.case.text_after],
        "tokens": call.layout.tokens,
        "density": call.density,
        "visited": call.visited,
    }
    refused = ways.reasons(way, call, tensors[0])
    if refused:
        return [start | {"note": "; ".join(refused)}]
    function = ways.build(way, call)
    rows = []
    for number in range(2 if backward else 1):
        row = start | {"pass": ("forward", "backward")[number]}
        try:
            rows.append(row | _figures(call, function, tensors, bool(number), memory))
        except (RuntimeError, NotImplementedError, MemoryError) as error:
            rows.append(row | {"note": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})
            break
    return rows


def _figures(call: Call, function: Function, tensors: list[Tensor], backward: bool, memory: bool) -> Row:
    device, dtype = tensors[0].device, tensors[0].dtype
    error = (check.error_backward if backward else check.error_forward)(call, function, tensors)
    complaint = check.complaint(error, dtype)
    if complaint:
        return {"error": error, "note": complaint}
    times = measure.milliseconds(_action(function, tensors, backward), device)
    row: Row = {"error": error, **times}
    row["TFLOP/s"] = call.flops(backward) / times["ms"] / 1e9
    if memory:
        row["MiB"] = measure.peak_memory(_whole(function, tensors, backward), device)
    return row


def _action(function: Function, tensors: list[Tensor], backward: bool) -> Callable[[], Any]:
    """The forward, or the backward alone."""
    if not backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return function(*tensors[:3])

        return forward
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    out = function(*leaves)
    return lambda: torch.autograd.grad(out, leaves, tensors[3], retain_graph=True)


def _whole(function: Function, tensors: list[Tensor], backward: bool) -> Callable[[], Any]:
    """The forward, or forward and backward together: what counts for memory."""
    if not backward:
        return _action(function, tensors, False)

    def both() -> Any:
        leaves = [t.detach().requires_grad_() for t in tensors[:3]]
        return torch.autograd.grad(function(*leaves), leaves, tensors[3])

    return both


def with_ratios(
    rows: list[Row],
    case: Case,
    copy: Callable[[float, torch.device], float],
    device: torch.device,
    itemsize: int,
) -> list[Row]:
    """The rows of a case with what they are relative to: the dense baseline, the two ideals (dense time times
    the share of pairs that the plan visits, and that the pattern allows), and every other way that ran.
    Linear attention's ideal is a copy of the same bytes.
    """
    for row in rows:
        if "ms" not in row:
            continue
        same = [r for r in rows if r["pass"] == row["pass"] and "ms" in r]
        base = next((r["ms"] for r in same if r["way"] == ways.baseline(device.type)), None)
        if base is not None:
            row["times dense"] = base / row["ms"]
        if row["pattern"] == "linear":
            moved = Call(case, row["pattern"]).bytes(itemsize, row["pass"] == "backward")
            row["of copy"] = copy(moved, device) / row["ms"]
        elif base is not None:
            row["of visited ideal"] = base * row["visited"] / row["ms"]
            row["of density ideal"] = base * row["density"] / row["ms"]
        for other in same:
            if other is not row and other["pattern"] in (row["pattern"], "full"):
                row[f"times {other['way']}"] = other["ms"] / row["ms"]
        published = dict(case.published).get(row["pattern"])
        if published and row["pass"] == "forward" and device.type == "cuda":
            row["times NATTEN as published"] = row["TFLOP/s"] / published
    return rows
