"""Kernels of the rows that see everything: text queries in the forward, and text and extra keys, which every
query sees, in the backward.

They are few and their other side is the whole sequence, which is cut into parts so that they fill a GPU. Each
part writes a result of its own in float32; the parts are put together afterwards.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl

from vidattn.kernels.backward import key_step, query_step
from vidattn.kernels.boxes import head_place, load_rows, store_rows
from vidattn.kernels.forward import scaled_query, softmax_step, text_run

SIZES = ["before", "after", "extra", "tokens", "heads", "shared", "chunk", "parts", "compact", "batch"]


@triton.jit
def real_keys(line, end, before, grid, tokens, real):
    """Which keys of the sequence are real: neither beyond ``end`` nor padded text."""
    padded = (line >= real) & (line < before)
    padded |= (line >= before + grid + tl.maximum(real - before, 0)) & (line < tokens)
    return (line < end) & (padded == 0)


@triton.jit(do_not_specialize=SIZES)
def rows_forward(
    query, key, value, part_out, part_logs, text_valid, head_scale, scale,
    q0, q1, q2, k0, k1, k2, v0, v1, v2, before, after, extra, tokens, heads, shared, chunk, compact, batch,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, V_SIZE: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, VALID: tl.constexpr, HEAD_SCALE: tl.constexpr,
    DESC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One part of the keys, of ``chunk``, for one block of text queries.

    Program (block, b * H + h, part). part_out (parts, B, compact, H, Dv) and part_logs (parts, B, compact, H)
    number the text rows through.
    """
    b, h, part = tl.program_id(1) // heads, tl.program_id(1) % heads, tl.program_id(2)
    first, line, inside = text_run(tl.program_id(0), before, after, 0, tokens, before + after, ROWS)
    q_place = head_place(b, h, q0, q1, q2, DESC)
    k_place = head_place(b, h // shared, k0, k1, k2, DESC)
    v_place = head_place(b, h // shared, v0, v1, v2, DESC)
    q = load_rows(query, q_place, line, inside, first, SIZE, WIDTH, DESC)
    factor = tl.abs(scale)
    if HEAD_SCALE:
        q, factor = scaled_query(q, head_scale, h, scale)
    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, V_WIDTH], tl.float32)
    grid = tokens - before - after
    real = before + after
    if VALID:
        real = tl.load(text_valid + b).to(tl.int32)
    end = tl.minimum((part + 1) * chunk, tokens + extra)
    for at in range(part * chunk, end, COLUMNS):
        other = at + tl.arange(0, COLUMNS)
        seen = real_keys(other, end, before, grid, tokens, real)
        k = load_rows(key, k_place, other, seen, at, SIZE, WIDTH, DESC)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if (at < before) | (at + COLUMNS > before + grid):
            scores = tl.where(seen[None, :], scores, float("-inf"))
        share, decay, top, total = softmax_step(scores, top, total, factor)
        acc *= decay[:, None]
        v = load_rows(value, v_place, other, seen, at, V_SIZE, V_WIDTH, DESC)
        acc = tl.dot(share.to(v.dtype), v, acc, input_precision=PRECISION)
    some = total > 0
    total = tl.where(some, total, 1.0)
    token = (part * batch + b) * compact + tl.where(line < before, line, line - grid)
    tl.store(
        part_logs + token.to(tl.int64) * heads + h,
        tl.where(some, top + tl.log2(total), float("-inf")),
        mask=inside,
    )
    store_rows(part_out, token, inside, heads, h, acc / total[:, None], V_SIZE, V_WIDTH)


@triton.jit(do_not_specialize=SIZES)
def rows_merge(
    part_out, part_logs, out, lse, before, tokens, heads, parts, compact, batch,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The parts of :func:`rows_forward` as one softmax. Program (block of text rows, b * H + h)."""
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, column = row < compact, tl.arange(0, WIDTH)
    held = inside[:, None] & (column < SIZE)[None, :]
    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    for part in range(0, parts):
        place = ((part * batch + b) * compact + row).to(tl.int64) * heads + h
        log = tl.load(part_logs + place, mask=inside, other=float("-inf"))
        new = tl.maximum(top, log)
        decay, weight = tl.exp2(top - new), tl.exp2(log - new)
        values = tl.load(part_out + place[:, None] * SIZE + column[None, :], mask=held, other=0.0)
        acc = acc * decay[:, None] + values * weight[:, None]
        total, top = total * decay + weight, new
    some = total > 0
    total = tl.where(some, total, 1.0)
    token = b * tokens + tl.where(row < before, row, row + tokens - compact)
    logs = tl.where(some, (top + tl.log2(total)) * 0.6931471805599453, float("-inf"))
    tl.store(lse + token.to(tl.int64) * heads + h, logs, mask=inside)
    store_rows(out, token, inside, heads, h, acc / total[:, None], SIZE, WIDTH)


@triton.jit(do_not_specialize=SIZES)
def rows_query_gradient(
    query, key, value, slope, part_query, logs, delta, text_valid, head_scale, scale, slope_scale,
    q0, q1, q2, k0, k1, k2, v0, v1, v2, s0, s1, s2, before, after, extra, tokens, heads, shared, chunk,
    compact, batch,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, V_SIZE: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, VALID: tl.constexpr, HEAD_SCALE: tl.constexpr,
    DESC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the text queries from one part of the keys, into (parts, B, compact, H, D)."""
    b, h, part = tl.program_id(1) // heads, tl.program_id(1) % heads, tl.program_id(2)
    first, line, inside = text_run(tl.program_id(0), before, after, 0, tokens, before + after, ROWS)
    q_place = head_place(b, h, q0, q1, q2, DESC)
    k_place = head_place(b, h // shared, k0, k1, k2, DESC)
    v_place = head_place(b, h // shared, v0, v1, v2, DESC)
    s_place = head_place(b, h, s0, s1, s2, DESC)
    q = load_rows(query, q_place, line, inside, first, SIZE, WIDTH, DESC)
    rise = load_rows(slope, s_place, line, inside, first, V_SIZE, V_WIDTH, DESC)
    factor = tl.abs(scale)
    back = slope_scale
    if HEAD_SCALE:
        q, factor = scaled_query(q, head_scale, h, scale)
        back = slope_scale * tl.load(head_scale + h).to(tl.float32)
    lines = tl.program_id(1).to(tl.int64) * tokens + line
    log = tl.load(logs + lines, mask=inside, other=float("inf"))
    drop = tl.load(delta + lines, mask=inside, other=0.0)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    grid = tokens - before - after
    real = before + after
    if VALID:
        real = tl.load(text_valid + b).to(tl.int32)
    end = tl.minimum((part + 1) * chunk, tokens + extra)
    for at in range(part * chunk, end, COLUMNS):
        other = at + tl.arange(0, COLUMNS)
        seen = real_keys(other, end, before, grid, tokens, real)
        k = load_rows(key, k_place, other, seen, at, SIZE, WIDTH, DESC)
        v = load_rows(value, v_place, other, seen, at, V_SIZE, V_WIDTH, DESC)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if (at < before) | (at + COLUMNS > before + grid):
            scores = tl.where(seen[None, :], scores, float("-inf"))
        acc = query_step(acc, scores, k, v, rise, log, drop, factor, PRECISION)
    token = (part * batch + b) * compact + tl.where(line < before, line, line - grid)
    store_rows(part_query, token, inside, heads, h, acc * back, SIZE, WIDTH)


@triton.jit(do_not_specialize=SIZES)
def rows_key_gradient(
    query, key, value, slope, part_key, part_value, logs, delta, text_valid, head_scale, scale, slope_scale,
    q0, q1, q2, k0, k1, k2, v0, v1, v2, s0, s1, s2, before, after, extra, tokens, heads, shared, chunk,
    compact, batch,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr, V_SIZE: tl.constexpr,
    WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, VALID: tl.constexpr, HEAD_SCALE: tl.constexpr,
    DESC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of text and extra keys and values from one part of the queries of one query head, into
    (parts, B, compact, H, D) and (..., Dv); padded text gets zero.
    """
    b, h, part = tl.program_id(1) // heads, tl.program_id(1) % heads, tl.program_id(2)
    everything = before + after
    first, line, inside = text_run(tl.program_id(0), before, after, extra, tokens, everything, ROWS)
    q_place = head_place(b, h, q0, q1, q2, DESC)
    k_place = head_place(b, h // shared, k0, k1, k2, DESC)
    v_place = head_place(b, h // shared, v0, v1, v2, DESC)
    s_place = head_place(b, h, s0, s1, s2, DESC)
    k = load_rows(key, k_place, line, inside, first, SIZE, WIDTH, DESC)
    v = load_rows(value, v_place, line, inside, first, V_SIZE, V_WIDTH, DESC)
    grad_k = tl.zeros([ROWS, WIDTH], tl.float32)
    grad_v = tl.zeros([ROWS, V_WIDTH], tl.float32)
    factor, weight = tl.abs(scale), 1.0
    lines = tl.program_id(1).to(tl.int64) * tokens
    end = tl.minimum((part + 1) * chunk, tokens)
    for at in range(part * chunk, end, COLUMNS):
        other = at + tl.arange(0, COLUMNS)
        q = load_rows(query, q_place, other, other < end, at, SIZE, WIDTH, DESC)
        rise = load_rows(slope, s_place, other, other < end, at, V_SIZE, V_WIDTH, DESC)
        log = tl.load(logs + (lines + other), mask=other < end, other=float("inf"))
        drop = tl.load(delta + (lines + other), mask=other < end, other=0.0)
        if HEAD_SCALE:
            q, factor = scaled_query(q, head_scale, h, scale)
            weight = factor
        scores = tl.dot(k, q.T, input_precision=PRECISION)
        grad_k, grad_v = key_step(grad_k, grad_v, scores, v, q, rise, log, drop, factor, weight, PRECISION)
    grid = tokens - everything
    if VALID:
        real = tl.load(text_valid + b).to(tl.int32)
        seen = real_keys(line, tokens + extra, before, grid, tokens, real)
        grad_k = tl.where(seen[:, None], grad_k, 0.0)
        grad_v = tl.where(seen[:, None], grad_v, 0.0)
    token = (part * batch + b) * compact + tl.where(line < before, line, line - grid)
    store_rows(part_key, token, inside, heads, h, grad_k * slope_scale, SIZE, WIDTH)
    store_rows(part_value, token, inside, heads, h, grad_v, V_SIZE, V_WIDTH)
