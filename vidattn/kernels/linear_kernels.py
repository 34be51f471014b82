"""Linear attention in Triton: non-causal, with a mean-normalised state in float32.

Forward: o_m = phi(q_m)^T S / (phi(q_m) . z + eps) with S = mean phi(k) v^T and z = mean phi(k). Keys and
values are read once: each program sums a run of tokens, and a second small kernel adds these partial states
in a fixed order. Queries are read once.

Backward, with g = dL/do, w = 1 / (phi(q) . z + eps), r = S g and c = w^2 (phi(q) . r) (Katharopoulos et al.,
arXiv 2006.16236, give the causal case):

    dphi(q) = w r - c z               dS = sum phi(q) (w g)^T        dz = - sum c phi(q)
    dphi(k) = (dS v + dz) / N         dv = dS^T phi(k) / N

so q and g are read once more, then k and v. Without normalisation w = 1 and c = 0.

Float16 holds neither a sum over a million tokens nor 1 / eps. Operands of a product that may leave its range
are divided by their greatest entry, and the product is multiplied by it, in float32.

Letters: B batch, H heads, N tokens, D head size of q and k, E head size of v and o. A head's state is a
float32 vector of D * E + D numbers: S in rows of E, then z.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl


# ---------------------------------------------------------------------- pieces
@triton.jit
def _features(x, inside, MAP: tl.constexpr):
    """phi(x) over the last axis in float32, 0 where not ``inside``."""
    if MAP == "elu1":
        y = tl.where(x > 0, x + 1.0, tl.exp(tl.minimum(x, 0.0)))
    elif MAP == "relu":
        y = tl.maximum(x, 0.0)
    elif MAP == "softmax":
        # rows outside are all -inf: 0 keeps them from becoming nan
        top = tl.max(tl.where(inside, x, float("-inf")), 1)
        top = tl.where(top == float("-inf"), 0.0, top)
        e = tl.where(inside, tl.exp(x - top[:, None]), 0.0)
        total = tl.sum(e, 1)
        y = e / tl.where(total > 0, total, 1.0)[:, None]
    else:
        tl.static_assert(MAP == "identity")
        y = x
    return tl.where(inside, y, 0.0)


@triton.jit
def _features_grad(x, y, slope, MAP: tl.constexpr):
    """d phi(x)^T ``slope``, with y = phi(x)."""
    if MAP == "elu1":
        return tl.where(x > 0, slope, slope * y)
    elif MAP == "relu":
        return tl.where(x > 0, slope, 0.0)
    elif MAP == "softmax":
        return y * (slope - tl.sum(y * slope, 1)[:, None])
    else:
        return slope


@triton.jit
def _nonzero(x):
    return tl.where(x > 0, x, 1.0)


@triton.jit
def _fit(x, dtype: tl.constexpr):
    """``x`` as an operand of that dtype, and the number that its products have to be multiplied by."""
    scale = 1.0
    if dtype == tl.float16:
        scale = _nonzero(tl.max(tl.max(tl.abs(x), 1), 0))
        x = x / scale
    return x.to(dtype), scale


@triton.jit
def _fit_rows(x, dtype: tl.constexpr):
    """:func:`_fit` with a number for each row, (rows, 1)."""
    scale = tl.full([x.shape[0], 1], 1.0, tl.float32)
    if dtype == tl.float16:
        scale = _nonzero(tl.max(tl.abs(x), 1))[:, None]
        x = x / scale
    return x.to(dtype), scale


@triton.jit
def _add_outer(total, rows, columns, PRECISION: tl.constexpr):
    """total + rows^T columns, summed over tokens: (D, E), (N, D), (N, E)."""
    operand, scale = _fit(rows, columns.dtype)
    if columns.dtype == tl.float16:
        return total + tl.dot(tl.trans(operand), columns) * scale
    else:
        return tl.dot(tl.trans(operand), columns, total, input_precision=PRECISION)


@triton.jit
def _load(base, n, c, stride, tokens, size):
    """Rows n and columns c of a (tokens, size) matrix, and which of them exist."""
    inside = (n < tokens)[:, None] & (c < size)[None, :]
    return tl.load(base + n.to(tl.int64)[:, None] * stride + c[None, :], mask=inside, other=0.0), inside


@triton.jit
def _store(base, n, c, stride, tokens, size, x):
    inside = (n < tokens)[:, None] & (c < size)[None, :]
    where = base + n.to(tl.int64)[:, None] * stride + c[None, :]
    tl.store(where, x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _head(base, bh, heads, stride_b, stride_h):
    """Where head ``bh`` of a (B, N, H, D) tensor begins."""
    return base + (bh // heads).to(tl.int64) * stride_b + (bh % heads).to(tl.int64) * stride_h


@triton.jit
def _load_state(state, bh, d, e, D: tl.constexpr, E: tl.constexpr):
    """Columns e of a head's S: (D, E)."""
    inside = (d < D)[:, None] & (e < E)[None, :]
    return tl.load(
        state + bh.to(tl.int64) * (D * E + D) + d[:, None] * E + e[None, :], mask=inside, other=0.0
    )


@triton.jit
def _load_mean(state, bh, d, D: tl.constexpr, E: tl.constexpr):
    """A head's z: (D,)."""
    return tl.load(state + bh.to(tl.int64) * (D * E + D) + D * E + d, mask=d < D, other=0.0)


# ---------------------------------------------------------------------- kernels
@triton.jit
def state_kernel(
    K, V, PART, N, H, run, k_b, k_n, k_h, v_b, v_n, v_h,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    """Sums of phi(k) v^T and of phi(k) over the tokens of one run."""
    bh, split, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d, e = tl.arange(0, BLOCK_D), part * BLOCK_E + tl.arange(0, BLOCK_E)
    keys, values = _head(K, bh, H, k_b, k_h), _head(V, bh, H, v_b, v_h)
    total = tl.zeros([BLOCK_D, BLOCK_E], tl.float32)
    mean = tl.zeros([BLOCK_D], tl.float32)
    for start in range(split * run, tl.minimum(split * run + run, N), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        k, inside = _load(keys, n, d, k_n, N, D)
        v, _ = _load(values, n, e, v_n, N, E)
        f = _features(k.to(tl.float32), inside, MAP)
        mean += tl.sum(f, 0)
        total = _add_outer(total, f, v, PRECISION)
    here = PART + (bh.to(tl.int64) * tl.num_programs(1) + split) * (D * E + D)
    tl.store(here + d[:, None] * E + e[None, :], total, mask=(d < D)[:, None] & (e < E)[None, :])
    if part == 0:
        tl.store(here + D * E + d, mean, mask=d < D)


@triton.jit
def sum_kernel(PART, STATE, splits, factor, L: tl.constexpr, BLOCK: tl.constexpr):
    """``factor`` times the sum of the partial states, in their order."""
    bh, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        total += tl.load(PART + (bh * splits + split) * L + at, mask=at < L, other=0.0)
    tl.store(STATE + bh * L + at, total * factor, mask=at < L)


@triton.jit
def output_kernel(
    Q, STATE, OUT, N, H, run, eps, q_b, q_n, q_h, o_b, o_n, o_h,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, MAP: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """phi(q)^T S, divided by phi(q) . z + eps."""
    bh, split, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d, e = tl.arange(0, BLOCK_D), part * BLOCK_E + tl.arange(0, BLOCK_E)
    queries, outputs = _head(Q, bh, H, q_b, q_h), _head(OUT, bh, H, o_b, o_h)
    state, scale = _fit(_load_state(STATE, bh, d, e, D, E), Q.dtype.element_ty)
    mean = _load_mean(STATE, bh, d, D, E)
    for start in range(split * run, tl.minimum(split * run + run, N), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        q, inside = _load(queries, n, d, q_n, N, D)
        f = _features(q.to(tl.float32), inside, MAP)
        rows, scales = _fit_rows(f, q.dtype)
        o = tl.dot(rows, state, input_precision=PRECISION) * (scales * scale)
        if NORMALIZE:
            total = tl.sum(f * mean[None, :], 1) + eps
            o = o / tl.where(n < N, total, 1.0)[:, None]
        _store(outputs, n, e, o_n, N, E, o)


@triton.jit
def query_grad_kernel(
    Q, G, STATE, DQ, PART, N, H, run, eps, q_b, q_n, q_h, g_b, g_n, g_h, dq_b, dq_n, dq_h,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, PARTS: tl.constexpr, MAP: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """dq, and one run's sums for dS and dz; dq and dz by the first of a head's PARTS blocks of E alone."""
    bh, split, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d, e = tl.arange(0, BLOCK_D), part * BLOCK_E + tl.arange(0, BLOCK_E)
    queries, slopes = _head(Q, bh, H, q_b, q_h), _head(G, bh, H, g_b, g_h)
    state, scale = _fit(_load_state(STATE, bh, d, e, D, E), G.dtype.element_ty)
    mean = _load_mean(STATE, bh, d, D, E)
    total = tl.zeros([BLOCK_D, BLOCK_E], tl.float32)
    mean_grad = tl.zeros([BLOCK_D], tl.float32)
    for start in range(split * run, tl.minimum(split * run + run, N), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        q, inside = _load(queries, n, d, q_n, N, D)
        g, _ = _load(slopes, n, e, g_n, N, E)
        x = q.to(tl.float32)
        f = _features(x, inside, MAP)
        w = tl.full([BLOCK_N], 1.0, tl.float32)
        if NORMALIZE:
            w = 1.0 / tl.where(n < N, tl.sum(f * mean[None, :], 1) + eps, 1.0)
        total = _add_outer(total, f * w[:, None], g, PRECISION)
        if part == 0:
            r = tl.dot(g, tl.trans(state), input_precision=PRECISION) * scale
            for other in tl.static_range(1, PARTS):
                c = other * BLOCK_E + tl.arange(0, BLOCK_E)
                more, size = _fit(_load_state(STATE, bh, d, c, D, E), G.dtype.element_ty)
                h, _ = _load(slopes, n, c, g_n, N, E)
                r += tl.dot(h, tl.trans(more), input_precision=PRECISION) * size
            r = r * w[:, None]
            if NORMALIZE:
                drop = tl.sum(f * r, 1) * w
                mean_grad -= tl.sum(f * drop[:, None], 0)
                r -= drop[:, None] * mean[None, :]
            _store(_head(DQ, bh, H, dq_b, dq_h), n, d, dq_n, N, D, _features_grad(x, f, r, MAP))
    here = PART + (bh.to(tl.int64) * tl.num_programs(1) + split) * (D * E + D)
    tl.store(here + d[:, None] * E + e[None, :], total, mask=(d < D)[:, None] & (e < E)[None, :])
    if part == 0:
        tl.store(here + D * E + d, mean_grad, mask=d < D)


@triton.jit
def key_grad_kernel(
    K, V, GRAD, DK, DV, N, H, run, k_b, k_n, k_h, v_b, v_n, v_h, dk_b, dk_n, dk_h, dv_b, dv_n, dv_h,
    D: tl.constexpr, E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, PARTS: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    """dk and dv from the state's gradient, 1 / N in it; dk by the first of a head's PARTS blocks alone."""
    bh, split, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    d, e = tl.arange(0, BLOCK_D), part * BLOCK_E + tl.arange(0, BLOCK_E)
    keys, values = _head(K, bh, H, k_b, k_h), _head(V, bh, H, v_b, v_h)
    grad, scale = _fit(_load_state(GRAD, bh, d, e, D, E), V.dtype.element_ty)
    mean = _load_mean(GRAD, bh, d, D, E)
    for start in range(split * run, tl.minimum(split * run + run, N), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        k, inside = _load(keys, n, d, k_n, N, D)
        x = k.to(tl.float32)
        f = _features(x, inside, MAP)
        rows, scales = _fit_rows(f, k.dtype)
        dv = tl.dot(rows, grad, input_precision=PRECISION) * (scales * scale)
        _store(_head(DV, bh, H, dv_b, dv_h), n, e, dv_n, N, E, dv)
        if part == 0:
            v, _ = _load(values, n, e, v_n, N, E)
            r = tl.dot(v, tl.trans(grad), input_precision=PRECISION) * scale
            for other in tl.static_range(1, PARTS):
                c = other * BLOCK_E + tl.arange(0, BLOCK_E)
                more, size = _fit(_load_state(GRAD, bh, d, c, D, E), V.dtype.element_ty)
                h, _ = _load(values, n, c, v_n, N, E)
                r += tl.dot(h, tl.trans(more), input_precision=PRECISION) * size
            r += mean[None, :]
            _store(_head(DK, bh, H, dk_b, dk_h), n, d, dk_n, N, D, _features_grad(x, f, r, MAP))
