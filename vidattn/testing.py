"""Checks for attention code, for our tests and others': a float64 reference and an error bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Masked attention by definition, in float64: (B, Sq, H, Dv) and log-sum-exp (B, Sq, H).

    Args:
        query: (B, Sq, H, D).
        key: (B, Sk, Hkv, D), H a multiple of Hkv.
        value: (B, Sk, Hkv, Dv).
        mask: bool (Sq, Sk), (B, Sq, Sk), or with heads (1 | B, H, Sq, Sk), True where the query sees the key.
        scale: a float, or a tensor (H,); 1 / sqrt(D) when None.
    """
    return _attend(query.double(), key.double(), value.double(), mask, scale)


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`reference_attention` in the inputs' own dtype: what plain PyTorch code would give."""
    return _attend(query, key, value, mask, scale)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    if isinstance(factor, Tensor):
        factor = factor.to(q.dtype)[:, None, None]
    seen = mask.to(q.device)
    scores = (q @ k.transpose(-1, -2) * factor).masked_fill(
        ~(seen[:, None] if seen.ndim == 3 else seen), -math.inf
    )
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1).transpose(1, 2)


def assert_no_worse_than_eager(actual: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Assert that ``actual`` is about as close to the truth as plain PyTorch in the same dtype.

    The root mean square error must be at most twice eager's own and the greatest at most three times, each
    plus a quarter of a rounding step. Bounds on both see errors that touch few elements as well as small ones
    that touch all.

    Args:
        actual: the result under test.
        eager: the same formula, evaluated in ``actual``'s dtype.
        exact: the float64 result.
    """
    assert actual.shape == exact.shape, f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    assert actual.dtype == eager.dtype, f"dtype {actual.dtype}, expected {eager.dtype}"
    assert torch.isfinite(actual).all(), f"{int((~torch.isfinite(actual)).sum())} elements are not finite"
    got, plain, truth = (t.detach().double().cpu() for t in (actual, eager, exact))
    step = torch.finfo(actual.dtype).eps / 4
    for name, times, size in (("max", 3, _greatest), ("rms", 2, _root_mean_square)):
        error, bound = size(got - truth), times * size(plain - truth) + step * size(truth)
        where = int((got - truth).abs().argmax())
        assert error <= bound, (
            f"{name} error {error:.3e} exceeds {bound:.3e}; worst at {where}: {got.flatten()[where]:.6g}"
            f" instead of {truth.flatten()[where]:.6g}"
        )


def _greatest(tensor: Tensor) -> Tensor:
    return tensor.abs().max()


def _root_mean_square(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()
