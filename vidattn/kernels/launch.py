"""From tensors to launches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vidattn.kernels import forward, rows
from vidattn.kernels.sources import (
    Source,
    describable,
    described_grid,
    described_rows,
    padded,
    pointer,
    takes_descriptors,
)
from vidattn.kernels.tiling import Tiling
from vidattn.kernels.visits import Place, Visits

LOG2E = 1.4426950408889634


@dataclass(frozen=True)
class Call:
    """What every kernel of a call is told beside the tensors.

    Args:
        grid: (T, H, W).
        before: text tokens in front of the grid.
        after: text tokens behind it.
        extra: keys behind the sequence.
        scale: factor of the scores.
        head_scale: one more per head (H,), or None.
        text_valid: int64 (B,), or None.
    """

    grid: Place
    before: int
    after: int
    extra: int
    scale: float
    head_scale: Tensor | None
    text_valid: Tensor | None

    @property
    def elsewhere(self) -> int:
        """Keys outside the grid."""
        return self.before + self.after + self.extra

    @property
    def text(self) -> int:
        """Text tokens."""
        return self.before + self.after

    @property
    def tokens(self) -> int:
        """Tokens of the sequence."""
        return self.grid[0] * self.grid[1] * self.grid[2] + self.text


def precision(tensor: Tensor) -> str:
    """How float32 inputs are multiplied: exactly."""
    return "ieee" if tensor.dtype == torch.float32 else "tf32"


def size_options(query: Tensor, value: Tensor) -> dict[str, Any]:
    """The compile-time sizes of heads."""
    return {
        "SIZE": query.shape[3],
        "V_SIZE": value.shape[3],
        "WIDTH": padded(query.shape[3]),
        "V_WIDTH": padded(value.shape[3]),
        "PRECISION": precision(query),
    }


def scale_arguments(call: Call, query: Tensor) -> tuple[Tensor, float, Tensor | None]:
    """Query, scale in units of log 2 and scale per head; a scale alone is made positive."""
    scale = call.scale * LOG2E
    if call.head_scale is not None:
        return query, scale, call.head_scale
    return (query if scale >= 0 else -query), max(abs(scale), 1e-30), None


def parts_of(blocks: int, others: int, columns: int, device: torch.device) -> tuple[int, int]:
    """Into how many parts the other side of a few rows is cut, and their length: enough for two programs a
    multiprocessor, none of fewer than four steps.
    """
    wanted = 4 if device.type == "cpu" else -(-2 * _multiprocessors(device) // blocks)
    steps = -(-others // columns)
    parts = max(1, min(wanted, steps // 4))
    chunk = -(-steps // parts) * columns
    return -(-others // chunk), chunk


@lru_cache(maxsize=16)
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


class Arguments:
    """The arguments that box kernels or row kernels share, for one call."""

    def __init__(self, call: Call, visits: Visits | None, tensors: tuple[Tensor, ...]) -> None:
        self.call, self.visits, self.tensors = call, visits, tensors
        whole = visits is None or visits.step == (1, 1, 1)
        able = takes_descriptors(tensors[0].device, tensors[0].element_size() * 8)
        self.desc = able and whole and all(describable(t) for t in tensors)

    def boxes(self, *shapes: Place) -> list[Source]:
        """Each tensor over the grid, loaded in its shape."""
        if not self.desc:
            return [pointer(t) for t in self.tensors]
        assert self.visits is not None
        extent, pairs = self.visits.extent, zip(self.tensors, shapes, strict=True)
        return [described_grid(t, self.call.before, extent, shape) for t, shape in pairs]

    def rows(self, *counts: int) -> list[Source]:
        """Each tensor over the sequence, loaded in so many rows; 0 leaves it out."""
        pairs = zip(self.tensors, counts, strict=True)
        if not self.desc:
            return [pointer(t) for t, count in pairs if count]
        return [described_rows(t, count) for t, count in pairs if count]


def volume(box: Place) -> int:
    return box[0] * box[1] * box[2]


def places(sources: list[Source]) -> list[int]:
    return [number for source in sources for number in source.place]


def box_sizes(call: Call, visits: Visits, heads: int, key_heads: int) -> tuple[int, ...]:
    """The integers from ``extent_t`` on."""
    return (
        *visits.extent, *visits.step, call.before, call.after, call.extra, heads, heads // key_heads,
        visits.table.shape[-1], *visits.sizes,
    )  # fmt: skip


def launch_flags(call: Call, head_scale: Tensor | None, desc: bool, tiling: Tiling) -> dict[str, Any]:
    return {
        "VALID": call.text_valid is not None, "HEAD_SCALE": head_scale is not None, "DESC": desc,
        "num_warps": tiling.warps, "num_stages": tiling.stages,
    }  # fmt: skip


def box_flags(visits: Visits) -> dict[str, Any]:
    return {"TILE": visits.tile, "BOX": visits.box, "RULE": visits.rule, "LISTS": visits.index is not None}


def box_forward(
    call: Call, visits: Visits, tiling: Tiling, query: Tensor, key: Tensor, value: Tensor, out: Tensor,
    lse: Tensor,
) -> None:  # fmt: skip
    """Fill the grid's rows of ``out`` and ``lse``."""
    batch, _, heads, _ = query.shape
    query, scale, head_scale = scale_arguments(call, query)
    given = Arguments(call, visits, (query, key, value))
    sources = given.boxes(visits.tile, visits.box, visits.box)
    columns = volume(visits.box) if call.elsewhere else 0
    text = [s.argument for s in given.rows(0, columns, columns)] or [None, None]
    forward.box_forward[(visits.tiles, batch * heads)](
        *(s.argument for s in sources), *text, out, lse, visits.table, visits.index, visits.count,
        call.text_valid, head_scale, scale, *places(sources), *box_sizes(call, visits, heads, key.shape[2]),
        **size_options(query, value), **box_flags(visits), TEXT=call.elsewhere > 0,
        **launch_flags(call, head_scale, given.desc, tiling),
    )  # fmt: skip


def rows_forward(
    call: Call, tiling: Tiling, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
) -> None:
    """Fill the text's rows of ``out`` and ``lse``."""
    batch, tokens, heads, _ = query.shape
    query, scale, head_scale = scale_arguments(call, query)
    given = Arguments(call, None, (query, key, value))
    sources = given.rows(tiling.rows, tiling.columns, tiling.columns)
    blocks = sum(-(-n // tiling.rows) for n in (call.before, call.after))
    parts, chunk = parts_of(blocks * batch * heads, key.shape[1], tiling.columns, query.device)
    part_out = query.new_empty(parts, batch, call.text, heads, value.shape[3], dtype=torch.float32)
    part_logs = part_out.new_empty(part_out.shape[:4])
    rows.rows_forward[(blocks, batch * heads, parts)](
        *(s.argument for s in sources), part_out, part_logs, call.text_valid, head_scale, scale,
        *places(sources), call.before, call.after, call.extra, tokens, heads, heads // key.shape[2], chunk,
        call.text, batch, ROWS=tiling.rows, COLUMNS=tiling.columns, **size_options(query, value),
        **launch_flags(call, head_scale, given.desc, tiling),
    )  # fmt: skip
    rows.rows_merge[(-(-call.text // 16), batch * heads)](
        part_out, part_logs, out, lse, call.before, tokens, heads, parts, call.text, batch,
        SIZE=value.shape[3], WIDTH=padded(value.shape[3]), ROWS=16, num_warps=4,
    )  # fmt: skip
