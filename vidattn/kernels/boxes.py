"""What the attention kernels share: boxes of the token grid, runs of the sequence, and who sees whom.

Places are (t, y, x) tuples. Along an axis with dilation d the tokens fall into d groups; tiles and boxes are
boxes of *positions* inside one group: position p of group g is the coordinate p * d + g.

A tensor (B, S, H, D) reaches a kernel in one of two forms. DESC: a tensor descriptor (outer, T, Y, X, inner)
over the grid, or (outer, row, inner) over the sequence; head h of item b is at outer b * s0 + h * s1, inner
h * s2. Otherwise: a pointer with the strides s0 of b, s1 of h and s2 of a token.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl


@triton.jit
def unfold(number, size):
    """The place with this raster number in a grid of this size."""
    rest = number // size[2]
    return rest // size[1], rest % size[1], number % size[2]


@triton.jit
def spread(SHAPE: tl.constexpr):
    """The place inside a box for each of its tokens."""
    number = tl.arange(0, SHAPE[0] * SHAPE[1] * SHAPE[2])
    return number // (SHAPE[1] * SHAPE[2]), number // SHAPE[2] % SHAPE[1], number % SHAPE[2]


@triton.jit
def head_place(b, h, s0, s1, s2, DESC: tl.constexpr):
    """Where head h of item b is: (outer, inner) of a descriptor, or (offset, token stride) of a pointer."""
    if DESC:
        return b * s0 + h * s1, h * s2
    else:
        return b.to(tl.int64) * s0 + h.to(tl.int64) * s1, s2


@triton.jit
def grid_tokens(start, group, step, extent, stop, SHAPE: tl.constexpr):
    """For each token of a box its raster number in the grid, and whether it lies before ``stop``."""
    local = spread(SHAPE)
    t, y, x = start[0] + local[0], start[1] + local[1], start[2] + local[2]
    inside = (t < stop[0]) & (y < stop[1]) & (x < stop[2])
    t, y, x = t * step[0] + group[0], y * step[1] + group[1], x * step[2] + group[2]
    return (t * extent[1] + y) * extent[2] + x, inside


@triton.jit
def load_rows(
    source, place, rows, inside, first, SIZE: tl.constexpr, WIDTH: tl.constexpr, DESC: tl.constexpr
):
    """Rows of the sequence as (rows, WIDTH): the run that begins at ``first``, zero outside the tensor."""
    if DESC:
        return source.load([place[0], first, place[1]]).reshape([rows.shape[0], WIDTH])
    else:
        column = tl.arange(0, WIDTH)
        where = place[0] + rows.to(tl.int64)[:, None] * place[1] + column[None, :]
        return tl.load(source + where, mask=inside[:, None] & (column < SIZE)[None, :], other=0.0)


@triton.jit
def load_box(
    source, place, start, group, step, extent, count, before,
    SHAPE: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr, DESC: tl.constexpr,
):  # fmt: skip
    """A box of the grid as (tokens, WIDTH), zero outside the grid."""
    if DESC:
        box = source.load([place[0], start[0], start[1], start[2], place[1]])
        return box.reshape([SHAPE[0] * SHAPE[1] * SHAPE[2], WIDTH])
    else:
        token, inside = grid_tokens(start, group, step, extent, count, SHAPE)
        column = tl.arange(0, WIDTH)
        where = place[0] + (token + before).to(tl.int64)[:, None] * place[1] + column[None, :]
        return tl.load(source + where, mask=inside[:, None] & (column < SIZE)[None, :], other=0.0)


@triton.jit
def store_rows(target, token, inside, heads, head, values, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """Write (rows, WIDTH) into the rows of head ``head`` of a contiguous (tokens, heads, SIZE)."""
    column = tl.arange(0, WIDTH)
    where = (token.to(tl.int64) * heads + head)[:, None] * SIZE + column[None, :]
    tl.store(
        target + where,
        values.to(target.dtype.element_ty),
        mask=inside[:, None] & (column < SIZE)[None, :],
    )


@triton.jit
def axis_window(table, entries, first, last, AXIS: tl.constexpr, extent):
    """Union [a, b) and intersection [c, d) of the windows of the coordinates first .. last of an axis."""
    offset = 0
    if AXIS > 0:
        offset += extent[0]
    if AXIS > 1:
        offset += extent[1]
    low, high = table + offset, table + entries + offset
    return tl.load(low + first), tl.load(high + last), tl.load(low + last), tl.load(high + first)


@triton.jit
def row_window(table, entries, position, group, step, extent, AXIS: tl.constexpr):
    """First position and length of the window of each row along an axis; rows outside get the last one's."""
    offset = 0
    if AXIS > 0:
        offset += extent[0]
    if AXIS > 1:
        offset += extent[1]
    entry = table + offset + tl.minimum(position * step[AXIS] + group[AXIS], extent[AXIS] - 1)
    first = tl.load(entry)
    return first, (tl.load(entry + entries) - first).to(tl.uint32)


@triton.jit
def in_window(first, length, position):
    """Whether each row's window holds each column."""
    return (position[None, :] - first[:, None]).to(tl.uint32) < length[:, None]


@triton.jit
def in_rule(rows, columns, table, rule, RULE: tl.constexpr, KEYS_ARE_ROWS: tl.constexpr):
    """The element mask of a pattern that no window per axis describes.

    "disc": rule = (greatest squared distance, ...). "band": |order of the query - of the key| is at most
    ``table[distance in frames]``, order = rule[0] * t + rule[1] * (x // rule[2]); with rule[3] frame 0 is
    seen by all. The tiles of a band hold one frame each unless the table is constant. "groups": the axes
    along which query and key are in the same group of rule[0] x rule[1] x rule[2] tokens are looked up in the
    bits of rule[3].
    """
    if RULE == "disc":
        dy = rows[1][:, None] - columns[1][None, :]
        dx = rows[2][:, None] - columns[2][None, :]
        return dy * dy + dx * dx <= rule[0]
    elif RULE == "band":
        row = rule[0] * rows[0] + rule[1] * (rows[2] // rule[2])
        column = rule[0] * columns[0] + rule[1] * (columns[2] // rule[2])
        width = tl.load(table + tl.abs(tl.min(rows[0], 0) - tl.min(columns[0], 0)))
        near = tl.abs(row[:, None] - column[None, :]) <= width
        if KEYS_ARE_ROWS:
            return near | ((rule[3] > 0) & (rows[0] == 0))[:, None]
        else:
            return near | ((rule[3] > 0) & (columns[0] == 0))[None, :]
    else:
        same_t = (rows[0] // rule[0])[:, None] == (columns[0] // rule[0])[None, :]
        same_y = (rows[1] // rule[1])[:, None] == (columns[1] // rule[1])[None, :]
        same_x = (rows[2] // rule[2])[:, None] == (columns[2] // rule[2])[None, :]
        case = same_t.to(tl.int32) + 2 * same_y.to(tl.int32) + 4 * same_x.to(tl.int32)
        return ((rule[3] >> case) & 1) != 0


@triton.jit
def union_window(table, entries, start, stop, group, step, extent):
    """Union and intersection of the windows of a tile, as four places: the union's start and stop, the
    intersection's start and stop.
    """
    first_t, last_t = start[0] * step[0] + group[0], (stop[0] - 1) * step[0] + group[0]
    first_y, last_y = start[1] * step[1] + group[1], (stop[1] - 1) * step[1] + group[1]
    first_x, last_x = start[2] * step[2] + group[2], (stop[2] - 1) * step[2] + group[2]
    t = axis_window(table, entries, first_t, last_t, 0, extent)
    y = axis_window(table, entries, first_y, last_y, 1, extent)
    x = axis_window(table, entries, first_x, last_x, 2, extent)
    return (t[0], y[0], x[0]), (t[1], y[1], x[1]), (t[2], y[2], x[2]), (t[3], y[3], x[3])


@triton.jit
def box_number(number, low, high, BOX: tl.constexpr):
    """Start of the box with this number among those that tile [low, high) from its start."""
    counts = (0, tl.cdiv(high[1] - low[1], BOX[1]), tl.cdiv(high[2] - low[2], BOX[2]))
    at = unfold(number, counts)
    return low[0] + at[0] * BOX[0], low[1] + at[1] * BOX[1], low[2] + at[2] * BOX[2]


@triton.jit
def box_count(low, high, BOX: tl.constexpr):
    """How many boxes tile [low, high)."""
    t = tl.cdiv(tl.maximum(high[0] - low[0], 0), BOX[0])
    y = tl.cdiv(tl.maximum(high[1] - low[1], 0), BOX[1])
    return t * y * tl.cdiv(tl.maximum(high[2] - low[2], 0), BOX[2])


@triton.jit
def cell_box(number, sub, cells, cell, limit, BOX: tl.constexpr):
    """Start of box ``sub`` of the cell with this number, and where the cell ends."""
    at = unfold(number, cells)
    low = (at[0] * cell[0], at[1] * cell[1], at[2] * cell[2])
    high = (
        tl.minimum(low[0] + cell[0], limit[0]),
        tl.minimum(low[1] + cell[1], limit[1]),
        tl.minimum(low[2] + cell[2], limit[2]),
    )
    counts = (0, tl.cdiv(cell[1], BOX[1]), tl.cdiv(cell[2], BOX[2]))
    part = unfold(sub, counts)
    return (low[0] + part[0] * BOX[0], low[1] + part[1] * BOX[1], low[2] + part[2] * BOX[2]), high


@triton.jit
def reaches_beyond(start, low, high, BOX: tl.constexpr):
    """Whether a box is not wholly inside [low, high)."""
    t = (start[0] < low[0]) | (start[0] + BOX[0] > high[0])
    y = (start[1] < low[1]) | (start[1] + BOX[1] > high[1])
    return t | y | (start[2] < low[2]) | (start[2] + BOX[2] > high[2])


@triton.jit
def program_tile(number, extent, step, cells, cell, TILE: tl.constexpr):
    """The tile of a program: its dilation group, the group's positions, and the tile's start and stop."""
    parts = tl.cdiv(cell[0], TILE[0]) * tl.cdiv(cell[1], TILE[1]) * tl.cdiv(cell[2], TILE[2])
    total = parts * cells[0] * cells[1] * cells[2]
    group = unfold(number // total, step)
    count = (
        (extent[0] - group[0] + step[0] - 1) // step[0],
        (extent[1] - group[1] + step[1] - 1) // step[1],
        (extent[2] - group[2] + step[2] - 1) // step[2],
    )
    inner = number % total
    start, high = cell_box(inner // parts, inner % parts, cells, cell, count, TILE)
    stop = (
        tl.minimum(start[0] + TILE[0], high[0]),
        tl.minimum(start[1] + TILE[1], high[1]),
        tl.minimum(start[2] + TILE[2], high[2]),
    )
    return group, count, start, stop


@triton.jit
def listed_box(j, index, cells, cell, limit, BOX: tl.constexpr):
    """Box ``j`` of the cells in a list: its start, where its cell ends, and whether it needs a mask."""
    parts = tl.cdiv(cell[0], BOX[0]) * tl.cdiv(cell[1], BOX[1]) * tl.cdiv(cell[2], BOX[2])
    entry = tl.load(index + j // parts)
    start, stop = cell_box(tl.where(entry < 0, ~entry, entry), j % parts, cells, cell, limit, BOX)
    return start, stop, (entry < 0) | reaches_beyond(start, start, stop, BOX)


@triton.jit
def list_of(index, count, b, h, number, cells, cell, slots, list_b, list_h, TILE: tl.constexpr):
    """The list of a program's cell: its first entry and its length."""
    parts = tl.cdiv(cell[0], TILE[0]) * tl.cdiv(cell[1], TILE[1]) * tl.cdiv(cell[2], TILE[2])
    row = b.to(tl.int64) * list_b + h * list_h + number // parts
    return index + row * slots, tl.load(count + row)


@triton.jit
def window_mask(rows, columns, table, entries, group, step, extent, TILE: tl.constexpr, BOX: tl.constexpr):
    """Whether the windows of the rows hold the columns; axes along which a tile and a box are 1 always do."""
    first, length = row_window(table, entries, rows[2], group, step, extent, 2)
    seen = in_window(first, length, columns[2])
    if TILE[1] * BOX[1] > 1:
        first, length = row_window(table, entries, rows[1], group, step, extent, 1)
        seen = seen & in_window(first, length, columns[1])
    if TILE[0] * BOX[0] > 1:
        first, length = row_window(table, entries, rows[0], group, step, extent, 0)
        seen = seen & in_window(first, length, columns[0])
    return seen


@triton.jit
def cell_mask(rows, columns, stop, table, rule, RULE: tl.constexpr, KEYS_ARE_ROWS: tl.constexpr):
    """Whether the columns lie before ``stop`` and the rule lets the rows see them."""
    held = (columns[0] < stop[0]) & (columns[1] < stop[1]) & (columns[2] < stop[2])
    if RULE == "all":
        return held[None, :] & (rows[2] >= 0)[:, None]
    else:
        return held[None, :] & in_rule(rows, columns, table, rule, RULE, KEYS_ARE_ROWS)
