"""Backward kernels of the grid's tokens. Nothing is added atomically: a program owns the rows it writes.

The gradient of the queries visits what the forward visited, that of keys and values the inverse. Both
recompute the probabilities from ``logs``, the log-sum-exp in units of log 2, +inf for rows that saw no key.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl

from vidattn.kernels.boxes import (
    box_count,
    box_number,
    cell_mask,
    grid_tokens,
    head_place,
    list_of,
    listed_box,
    load_box,
    load_rows,
    program_tile,
    reaches_beyond,
    spread,
    store_rows,
    union_window,
    window_mask,
)  # fmt: skip
from vidattn.kernels.forward import SIZES, scaled_query, text_blocks, text_run


@triton.jit(do_not_specialize=["total", "tokens", "heads"])
def row_sums(
    out, grad_out, lse, grad_lse, logs, delta, total, tokens, heads,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """logs (B, H, S), and delta (B, H, S): what a row's softmax takes back, less what the lse asks for."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    held = (row < total)[:, None] & (column < SIZE)[None, :]
    where = row[:, None] * SIZE + column[None, :]
    product = tl.load(out + where, mask=held, other=0.0).to(tl.float32)
    product *= tl.load(grad_out + where, mask=held, other=0.0).to(tl.float32)
    log = tl.load(lse + row, mask=row < total, other=0.0)
    item, token, head = row // (tokens * heads), row // heads % tokens, row % heads
    target = (item * heads + head) * tokens + token
    log = tl.where(log == float("-inf"), float("inf"), log * 1.4426950408889634)
    tl.store(logs + target, log, mask=row < total)
    asked = tl.load(grad_lse + row, mask=row < total, other=0.0)
    tl.store(delta + target, tl.sum(product, 1) - asked, mask=row < total)


@triton.jit
def query_step(acc, scores, k, v, slope, logs, delta, factor, PRECISION: tl.constexpr):
    """Add what one box of keys says about the gradient of the queries."""
    share = tl.exp2(scores * factor - logs[:, None])
    change = tl.dot(slope, v.T, input_precision=PRECISION)
    change = share * (change - delta[:, None])
    return tl.dot(change.to(k.dtype), k, acc, input_precision=PRECISION)


@triton.jit
def key_step(grad_k, grad_v, scores, v, q, slope, logs, delta, factor, weight, PRECISION: tl.constexpr):
    """Add what one box of queries says about the gradients of keys and values; scores (keys, queries)."""
    share = tl.exp2(scores * factor - logs[None, :])
    grad_v = tl.dot(share.to(slope.dtype), slope, grad_v, input_precision=PRECISION)
    change = tl.dot(v, slope.T, input_precision=PRECISION)
    change = share * (change - delta[None, :]) * weight
    return tl.dot(change.to(q.dtype), q, grad_k, input_precision=PRECISION), grad_v


@triton.jit(do_not_specialize=SIZES)
def box_query_gradient(
    query, key, value, text_key, text_value, slope, grad_query, logs, delta, table, index, count, text_valid,
    head_scale, scale, slope_scale, q0, q1, q2, k0, k1, k2, v0, v1, v2, s0, s1, s2,
    extent_t, extent_y, extent_x, step_t, step_y, step_x, before, after, extra, heads, shared, entries,
    cells_t, cells_y, cells_x, cell_t, cell_y, cell_x, other_cells_y, other_cells_x, other_t, other_y,
    other_x, slots, list_b, list_h, rule_0, rule_1, rule_2, rule_3,
    TILE: tl.constexpr, BOX: tl.constexpr, SIZE: tl.constexpr, V_SIZE: tl.constexpr, WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr, RULE: tl.constexpr, LISTS: tl.constexpr, TEXT: tl.constexpr,
    VALID: tl.constexpr, HEAD_SCALE: tl.constexpr, DESC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the grid's queries; arguments as of ``box_forward``. ``slope``: gradient of the output."""
    ROWS: tl.constexpr = TILE[0] * TILE[1] * TILE[2]
    COLUMNS: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    extent, step = (extent_t, extent_y, extent_x), (step_t, step_y, step_x)
    cells, cell = (cells_t, cells_y, cells_x), (cell_t, cell_y, cell_x)
    others, other = (0, other_cells_y, other_cells_x), (other_t, other_y, other_x)
    rule = (rule_0, rule_1, rule_2, rule_3)
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    group, positions, start, stop = program_tile(tl.program_id(0), extent, step, cells, cell, TILE)
    if (start[0] >= stop[0]) | (start[1] >= stop[1]) | (start[2] >= stop[2]):
        return
    q_place = head_place(b, h, q0, q1, q2, DESC)
    k_place = head_place(b, h // shared, k0, k1, k2, DESC)
    v_place = head_place(b, h // shared, v0, v1, v2, DESC)
    s_place = head_place(b, h, s0, s1, s2, DESC)
    q = load_box(query, q_place, start, group, step, extent, positions, before, TILE, SIZE, WIDTH, DESC)
    rise = load_box(
        slope, s_place, start, group, step, extent, positions, before, TILE, V_SIZE, V_WIDTH, DESC
    )
    factor = tl.abs(scale)
    back = slope_scale
    if HEAD_SCALE:
        q, factor = scaled_query(q, head_scale, h, scale)
        back = slope_scale * tl.load(head_scale + h).to(tl.float32)
    tokens = before + extent_t * extent_y * extent_x + after
    token, inside = grid_tokens(start, group, step, extent, stop, TILE)
    line = tl.program_id(1).to(tl.int64) * tokens + before + token
    log = tl.load(logs + line, mask=inside, other=float("inf"))
    drop = tl.load(delta + line, mask=inside, other=0.0)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    local, inner = spread(TILE), spread(BOX)
    rows = (start[0] + local[0], start[1] + local[1], start[2] + local[2])
    if LISTS:
        entry, boxes = list_of(index, count, b, h, tl.program_id(0), cells, cell, slots, list_b, list_h, TILE)
        boxes *= tl.cdiv(other_t, BOX[0]) * tl.cdiv(other_y, BOX[1]) * tl.cdiv(other_x, BOX[2])
    else:
        low, high, common_low, common_high = union_window(table, entries, start, stop, group, step, extent)
        boxes = box_count(low, high, BOX)
    for j in range(0, boxes):
        if LISTS:
            at, end, partial = listed_box(j, entry, others, other, extent, BOX)
        else:
            at = box_number(j, low, high, BOX)
            partial = reaches_beyond(at, common_low, common_high, BOX)
        k = load_box(key, k_place, at, group, step, extent, positions, before, BOX, SIZE, WIDTH, DESC)
        v = load_box(value, v_place, at, group, step, extent, positions, before, BOX, V_SIZE, V_WIDTH, DESC)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if partial:
            columns = (at[0] + inner[0], at[1] + inner[1], at[2] + inner[2])
            if LISTS:
                seen = cell_mask(rows, columns, end, table, rule, RULE, False)
            else:
                seen = window_mask(rows, columns, table, entries, group, step, extent, TILE, BOX)
            scores = tl.where(seen, scores, float("-inf"))
        acc = query_step(acc, scores, k, v, rise, log, drop, factor, PRECISION)
    if TEXT:
        real = before + after
        if VALID:
            real = tl.load(text_valid + b).to(tl.int32)
        for j in range(0, text_blocks(before, after, extra, real, COLUMNS)):
            first, text, seen = text_run(j, before, after, extra, tokens, real, COLUMNS)
            k = load_rows(text_key, k_place, text, seen, first, SIZE, WIDTH, DESC)
            v = load_rows(text_value, v_place, text, seen, first, V_SIZE, V_WIDTH, DESC)
            scores = tl.dot(q, k.T, input_precision=PRECISION)
            scores = tl.where(seen[None, :], scores, float("-inf"))
            acc = query_step(acc, scores, k, v, rise, log, drop, factor, PRECISION)
    store_rows(grad_query, b * tokens + before + token, inside, heads, h, acc * back, SIZE, WIDTH)


@triton.jit(do_not_specialize=SIZES)
def box_key_gradient(
    query, key, value, text_query, text_slope, slope, grad_key, grad_value, logs, delta, table, index, count,
    head_scale, scale, slope_scale, q0, q1, q2, k0, k1, k2, v0, v1, v2, s0, s1, s2,
    extent_t, extent_y, extent_x, step_t, step_y, step_x, before, after, extra, heads, shared, entries,
    cells_t, cells_y, cells_x, cell_t, cell_y, cell_x, other_cells_y, other_cells_x, other_t, other_y,
    other_x, slots, list_b, list_h, rule_0, rule_1, rule_2, rule_3,
    TILE: tl.constexpr, BOX: tl.constexpr, SIZE: tl.constexpr, V_SIZE: tl.constexpr, WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr, RULE: tl.constexpr, LISTS: tl.constexpr, TEXT: tl.constexpr,
    HEAD_SCALE: tl.constexpr, DESC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the grid's keys and values: rows are keys, columns the queries that see them.

    Program (tile, b * Hkv + key head); the query heads that share a key head follow one another. ``TEXT``:
    there are text queries, which see every key.
    """
    ROWS: tl.constexpr = TILE[0] * TILE[1] * TILE[2]
    COLUMNS: tl.constexpr = BOX[0] * BOX[1] * BOX[2]
    extent, step = (extent_t, extent_y, extent_x), (step_t, step_y, step_x)
    cells, cell = (cells_t, cells_y, cells_x), (cell_t, cell_y, cell_x)
    others, other = (0, other_cells_y, other_cells_x), (other_t, other_y, other_x)
    rule = (rule_0, rule_1, rule_2, rule_3)
    key_heads = heads // shared
    b, key_head = tl.program_id(1) // key_heads, tl.program_id(1) % key_heads
    group, positions, start, stop = program_tile(tl.program_id(0), extent, step, cells, cell, TILE)
    if (start[0] >= stop[0]) | (start[1] >= stop[1]) | (start[2] >= stop[2]):
        return
    k_place = head_place(b, key_head, k0, k1, k2, DESC)
    v_place = head_place(b, key_head, v0, v1, v2, DESC)
    k = load_box(key, k_place, start, group, step, extent, positions, before, TILE, SIZE, WIDTH, DESC)
    v = load_box(value, v_place, start, group, step, extent, positions, before, TILE, V_SIZE, V_WIDTH, DESC)
    grad_k = tl.zeros([ROWS, WIDTH], tl.float32)
    grad_v = tl.zeros([ROWS, V_WIDTH], tl.float32)
    tokens = before + extent_t * extent_y * extent_x + after
    local, inner = spread(TILE), spread(BOX)
    rows = (start[0] + local[0], start[1] + local[1], start[2] + local[2])
    factor, weight = tl.abs(scale), 1.0
    if not LISTS:
        low, high, common_low, common_high = union_window(table, entries, start, stop, group, step, extent)
        boxes = box_count(low, high, BOX)
    for member in range(0, shared):
        h = key_head * shared + member
        q_place = head_place(b, h, q0, q1, q2, DESC)
        s_place = head_place(b, h, s0, s1, s2, DESC)
        lines = (b * heads + h).to(tl.int64) * tokens
        if LISTS:
            entry, boxes = list_of(
                index, count, b, h, tl.program_id(0), cells, cell, slots, list_b, list_h, TILE
            )
            boxes *= tl.cdiv(other_t, BOX[0]) * tl.cdiv(other_y, BOX[1]) * tl.cdiv(other_x, BOX[2])
        for j in range(0, boxes):
            if LISTS:
                at, end, partial = listed_box(j, entry, others, other, extent, BOX)
            else:
                at = box_number(j, low, high, BOX)
                partial = reaches_beyond(at, common_low, common_high, BOX)
            q = load_box(query, q_place, at, group, step, extent, positions, before, BOX, SIZE, WIDTH, DESC)
            rise = load_box(
                slope, s_place, at, group, step, extent, positions, before, BOX, V_SIZE, V_WIDTH, DESC
            )
            token, inside = grid_tokens(at, group, step, extent, positions, BOX)
            log = tl.load(logs + (lines + before + token), mask=inside, other=float("inf"))
            drop = tl.load(delta + (lines + before + token), mask=inside, other=0.0)
            if HEAD_SCALE:
                q, factor = scaled_query(q, head_scale, h, scale)
                weight = factor
            scores = tl.dot(k, q.T, input_precision=PRECISION)
            if partial:
                columns = (at[0] + inner[0], at[1] + inner[1], at[2] + inner[2])
                if LISTS:
                    seen = cell_mask(rows, columns, end, table, rule, RULE, True)
                else:
                    seen = window_mask(rows, columns, table, entries, group, step, extent, TILE, BOX)
                scores = tl.where(seen, scores, float("-inf"))
            grad_k, grad_v = key_step(
                grad_k, grad_v, scores, v, q, rise, log, drop, factor, weight, PRECISION
            )
        if TEXT:
            for j in range(0, text_blocks(before, after, 0, before + after, COLUMNS)):
                first, text, inside = text_run(j, before, after, 0, tokens, before + after, COLUMNS)
                q = load_rows(text_query, q_place, text, inside, first, SIZE, WIDTH, DESC)
                rise = load_rows(text_slope, s_place, text, inside, first, V_SIZE, V_WIDTH, DESC)
                log = tl.load(logs + (lines + text), mask=inside, other=float("inf"))
                drop = tl.load(delta + (lines + text), mask=inside, other=0.0)
                if HEAD_SCALE:
                    q, factor = scaled_query(q, head_scale, h, scale)
                    weight = factor
                scores = tl.dot(k, q.T, input_precision=PRECISION)
                grad_k, grad_v = key_step(
                    grad_k, grad_v, scores, v, q, rise, log, drop, factor, weight, PRECISION
                )
    token, inside = grid_tokens(start, group, step, extent, stop, TILE)
    token += b * (tokens + extra) + before
    store_rows(grad_key, token, inside, key_heads, key_head, grad_k * slope_scale, SIZE, WIDTH)
    store_rows(grad_value, token, inside, key_heads, key_head, grad_v, V_SIZE, V_WIDTH)
