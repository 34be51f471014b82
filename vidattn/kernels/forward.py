"""Forward kernels: one query tile against the key boxes that it sees, then the text, in one softmax.

Scores are kept in units of log 2, the sign of the scale is moved into the query, and hidden scores are -inf
under a running maximum that starts finite: a row that sees no key gives zero and -inf without a special case
in the loop.
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

SIZES = """
    extent_t extent_y extent_x step_t step_y step_x before after extra heads shared entries
    cells_t cells_y cells_x cell_t cell_y cell_x other_cells_y other_cells_x other_t other_y other_x
    slots list_b list_h rule_0 rule_1 rule_2 rule_3
""".split()
"""Integer arguments for which no variant of a kernel is compiled."""


@triton.jit
def softmax_step(scores, top, total, scale):
    """One step of the running softmax: probabilities, and the state's decay, maximum and sum."""
    new = tl.maximum(top, tl.max(scores, 1) * scale)
    share = tl.exp2(scores * scale - new[:, None])
    decay = tl.exp2(top - new)
    return share, decay, new, total * decay + tl.sum(share, 1)


@triton.jit
def scaled_query(q, head_scale, head, scale):
    """A query with the sign of its head's scale, and the size of that scale, kept above zero."""
    factor = scale * tl.load(head_scale + head).to(tl.float32)
    return tl.where(factor < 0, -q, q), tl.maximum(tl.abs(factor), 1e-30)


@triton.jit
def text_run(j, before, after, extra, tokens, real, ROWS: tl.constexpr):
    """Block ``j`` of the keys outside the grid: its first row, the rows it holds and those that are real.

    The run before the grid is cut at its real text; the run behind it holds text, padding and extra tokens.
    """
    front = tl.cdiv(tl.minimum(before, real), ROWS)
    behind = tokens - after
    first = tl.where(j < front, j * ROWS, behind + (j - front) * ROWS)
    rows = first + tl.arange(0, ROWS)
    stop = tl.where(j < front, tl.minimum(before, real), tokens + extra)
    padding = behind + tl.maximum(real - before, 0)
    return first, rows, (rows < stop) & ((rows < padding) | (rows >= tokens))


@triton.jit
def text_blocks(before, after, extra, real, ROWS: tl.constexpr):
    """Number of blocks of :func:`text_run`."""
    last = tl.where(extra > 0, after + extra, tl.maximum(real - before, 0))
    return tl.cdiv(tl.minimum(before, real), ROWS) + tl.cdiv(last, ROWS)


@triton.jit(do_not_specialize=SIZES)
def box_forward(
    query, key, value, text_key, text_value, out, lse, table, index, count, text_valid, head_scale, scale,
    q0, q1, q2, k0, k1, k2, v0, v1, v2,
    extent_t, extent_y, extent_x, step_t, step_y, step_x, before, after, extra, heads, shared, entries,
    cells_t, cells_y, cells_x, cell_t, cell_y, cell_x, other_cells_y, other_cells_x, other_t, other_y,
    other_x, slots, list_b, list_h, rule_0, rule_1, rule_2, rule_3,
    TILE: tl.constexpr, BOX: tl.constexpr, SIZE: tl.constexpr, V_SIZE: tl.constexpr, WIDTH: tl.constexpr,
    V_WIDTH: tl.constexpr, RULE: tl.constexpr, LISTS: tl.constexpr, TEXT: tl.constexpr,
    VALID: tl.constexpr, HEAD_SCALE: tl.constexpr, DESC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of the grid's queries.

    Program (tile of a group, b * H + h). ``table``: int32 (2, T + H + W), for each coordinate of each axis
    the first and the last + 1 key position that it sees (RULE "window"), or what ``boxes.in_rule`` looks up.
    With LISTS the columns are the cells ``index[b, h, row cell, :count]``; ~number marks a cell that needs
    the element mask.
    """
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
    q = load_box(query, q_place, start, group, step, extent, positions, before, TILE, SIZE, WIDTH, DESC)
    factor = tl.abs(scale)
    if HEAD_SCALE:
        q, factor = scaled_query(q, head_scale, h, scale)
    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, V_WIDTH], tl.float32)
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
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if partial:
            columns = (at[0] + inner[0], at[1] + inner[1], at[2] + inner[2])
            if LISTS:
                seen = cell_mask(rows, columns, end, table, rule, RULE, False)
            else:
                seen = window_mask(rows, columns, table, entries, group, step, extent, TILE, BOX)
            scores = tl.where(seen, scores, float("-inf"))
        share, decay, top, total = softmax_step(scores, top, total, factor)
        acc *= decay[:, None]
        v = load_box(value, v_place, at, group, step, extent, positions, before, BOX, V_SIZE, V_WIDTH, DESC)
        acc = tl.dot(share.to(v.dtype), v, acc, input_precision=PRECISION)
    tokens = before + extent_t * extent_y * extent_x + after
    if TEXT:
        real = before + after
        if VALID:
            real = tl.load(text_valid + b).to(tl.int32)
        for j in range(0, text_blocks(before, after, extra, real, COLUMNS)):
            first, line, seen = text_run(j, before, after, extra, tokens, real, COLUMNS)
            k = load_rows(text_key, k_place, line, seen, first, SIZE, WIDTH, DESC)
            scores = tl.dot(q, k.T, input_precision=PRECISION)
            scores = tl.where(seen[None, :], scores, float("-inf"))
            share, decay, top, total = softmax_step(scores, top, total, factor)
            acc *= decay[:, None]
            v = load_rows(text_value, v_place, line, seen, first, V_SIZE, V_WIDTH, DESC)
            acc = tl.dot(share.to(v.dtype), v, acc, input_precision=PRECISION)
    token, inside = grid_tokens(start, group, step, extent, stop, TILE)
    token += b * tokens + before
    some = total > 0
    total = tl.where(some, total, 1.0)
    logs = tl.where(some, (top + tl.log2(total)) * 0.6931471805599453, float("-inf"))
    tl.store(lse + token.to(tl.int64) * heads + h, logs, mask=inside)
    store_rows(out, token, inside, heads, h, acc / total[:, None], V_SIZE, V_WIDTH)
