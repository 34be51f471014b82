"""From tensors to the launches of the backward."""

from __future__ import annotations

import torch
from torch import Tensor

from vidattn.kernels import backward, rows
from vidattn.kernels.launch import (
    LOG2E,
    Arguments,
    Call,
    box_flags,
    box_sizes,
    launch_flags,
    parts_of,
    places,
    scale_arguments,
    size_options,
    volume,
)  # fmt: skip
from vidattn.kernels.sources import padded
from vidattn.kernels.tiling import Tiling
from vidattn.kernels.visits import Visits


def row_sums(out: Tensor, grad_out: Tensor, lse: Tensor, grad_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp in units of log 2 and delta, float32 (B, H, S); all inputs contiguous."""
    batch, tokens, heads, size = out.shape
    logs, delta = lse.new_empty(2, batch, heads, tokens)
    total, block = batch * tokens * heads, 32
    backward.row_sums[(-(-total // block),)](
        out, grad_out, lse, grad_lse, logs, delta, total, tokens, heads,
        SIZE=size, WIDTH=padded(size), ROWS=block, num_warps=4,
    )  # fmt: skip
    return logs, delta


def box_query_gradient(
    call: Call, visits: Visits, tiling: Tiling, inputs: tuple[Tensor, ...], sums: tuple[Tensor, Tensor],
    grad_query: Tensor,
) -> None:  # fmt: skip
    """Fill the grid's rows of ``grad_query``; ``inputs``: query, key, value, gradient of the output."""
    query, key, value, slope = inputs
    batch, _, heads, _ = query.shape
    query, scale, head_scale = scale_arguments(call, query)
    given = Arguments(call, visits, (query, key, value, slope))
    sources = given.boxes(visits.tile, visits.box, visits.box, visits.tile)
    columns = volume(visits.box) if call.elsewhere else 0
    text = [s.argument for s in given.rows(0, columns, columns, 0)] or [None, None]
    backward.box_query_gradient[(visits.tiles, batch * heads)](
        *(s.argument for s in sources[:3]), *text, sources[3].argument, grad_query, *sums, visits.table,
        visits.index, visits.count, call.text_valid, head_scale, scale, call.scale, *places(sources),
        *box_sizes(call, visits, heads, key.shape[2]), **size_options(query, value), **box_flags(visits),
        TEXT=call.elsewhere > 0, **launch_flags(call, head_scale, given.desc, tiling),
    )  # fmt: skip


def box_key_gradient(
    call: Call, visits: Visits, tiling: Tiling, inputs: tuple[Tensor, ...], sums: tuple[Tensor, Tensor],
    grad_key: Tensor, grad_value: Tensor,
) -> None:  # fmt: skip
    """Fill the grid's rows of ``grad_key`` and ``grad_value``; ``visits`` is the inverse."""
    query, key, value, slope = inputs
    batch, _, heads, _ = query.shape
    query, scale, head_scale = scale_arguments(call, query)
    given = Arguments(call, visits, (query, key, value, slope))
    sources = given.boxes(visits.box, visits.tile, visits.tile, visits.box)
    columns = volume(visits.box) if call.text else 0
    text = [s.argument for s in given.rows(columns, 0, 0, columns)] or [None, None]
    flags = launch_flags(call, head_scale, given.desc, tiling)
    flags.pop("VALID")  # the grid's keys are all real
    backward.box_key_gradient[(visits.tiles, batch * key.shape[2])](
        *(s.argument for s in sources[:3]), *text, sources[3].argument, grad_key, grad_value, *sums,
        visits.table, visits.index, visits.count, head_scale, scale, _key_scale(scale, head_scale),
        *places(sources),
        *box_sizes(call, visits, heads, key.shape[2]), **size_options(query, value), **box_flags(visits),
        TEXT=call.text > 0, **flags,
    )  # fmt: skip


def rows_query_gradient(
    call: Call, tiling: Tiling, inputs: tuple[Tensor, ...], sums: tuple[Tensor, Tensor], grad_query: Tensor
) -> None:
    """Fill the text's rows of ``grad_query``."""
    query, key, value, slope = inputs
    batch, tokens, heads, size = query.shape
    query, scale, head_scale = scale_arguments(call, query)
    given = Arguments(call, None, (query, key, value, slope))
    sources = given.rows(tiling.rows, tiling.columns, tiling.columns, tiling.rows)
    blocks = sum(-(-n // tiling.rows) for n in (call.before, call.after))
    parts, chunk = parts_of(blocks * batch * heads, key.shape[1], tiling.columns, query.device)
    part = query.new_empty(parts, batch, call.text, heads, size, dtype=torch.float32)
    rows.rows_query_gradient[(blocks, batch * heads, parts)](
        *(s.argument for s in sources), part, *sums, call.text_valid, head_scale, scale, call.scale,
        *places(sources), call.before, call.after, call.extra, tokens, heads, heads // key.shape[2], chunk,
        call.text, batch, ROWS=tiling.rows, COLUMNS=tiling.columns, **size_options(query, value),
        **launch_flags(call, head_scale, given.desc, tiling),
    )  # fmt: skip
    _put(grad_query, part.sum(0), call)


def rows_key_gradient(
    call: Call, tiling: Tiling, inputs: tuple[Tensor, ...], sums: tuple[Tensor, Tensor], grad_key: Tensor,
    grad_value: Tensor,
) -> None:  # fmt: skip
    """Fill the rows of ``grad_key`` and ``grad_value`` that are text or extra."""
    query, key, value, slope = inputs
    batch, tokens, heads, size = query.shape
    query, scale, head_scale = scale_arguments(call, query)
    given = Arguments(call, None, (query, key, value, slope))
    sources = given.rows(tiling.columns, tiling.rows, tiling.rows, tiling.columns)
    blocks = sum(-(-n // tiling.rows) for n in (call.before, call.after + call.extra))
    parts, chunk = parts_of(blocks * batch * heads, tokens, tiling.columns, query.device)
    part_key = query.new_empty(parts, batch, call.elsewhere, heads, size, dtype=torch.float32)
    part_value = part_key.new_empty(*part_key.shape[:4], value.shape[3])
    rows.rows_key_gradient[(blocks, batch * heads, parts)](
        *(s.argument for s in sources), part_key, part_value, *sums, call.text_valid, head_scale, scale,
        _key_scale(scale, head_scale), *places(sources), call.before, call.after, call.extra, tokens, heads,
        heads // key.shape[2], chunk, call.elsewhere, batch, ROWS=tiling.rows, COLUMNS=tiling.columns,
        **size_options(query, value), **launch_flags(call, head_scale, given.desc, tiling),
    )  # fmt: skip
    for grad, part in ((grad_key, part_key), (grad_value, part_value)):
        _put(grad, part.unflatten(3, (key.shape[2], -1)).sum((0, 4)), call)


def _key_scale(scale: float, head_scale: Tensor | None) -> float:
    """What the sums for the keys still lack; scales per head are in them, in units of log 2."""
    return (scale if head_scale is None else 1.0) / LOG2E


def _put(target: Tensor, values: Tensor, call: Call) -> None:
    """Write rows (B, compact, ...) where the text and extra tokens are."""
    target[:, : call.before] = values[:, : call.before]
    target[:, target.shape[1] - (values.shape[1] - call.before) :] = values[:, call.before :]
