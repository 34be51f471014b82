"""Distances between pictures: PSNR, and SSIM as Wang et al. (2004) define it.

Letters: C channels, H and W height and width in pixels; leading dimensions are a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The constants of the paper: an 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03.
WINDOW = 11
"""Side of the window that SSIM compares: pictures must be at least as large."""
_SIGMA = 1.5
_K1 = 0.01
_K2 = 0.03


def psnr(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``10 log10(data_range² / mean((a - b)²))``; infinity for a = b.

    Args:
        a: pictures of shape (..., C, H, W).
        b: pictures of the same shape.
        data_range: largest value minus smallest value that a pixel can have: 1.0 for [0, 1], 255 for bytes.

    Returns:
        One value for each picture, float64, of shape (...).

    Raises:
        ValueError: the shapes differ or aren't pictures, or ``data_range`` isn't positive.

    Example:
        >>> round(psnr(torch.zeros(3, 8, 8), torch.full((3, 8, 8), 0.1)).item(), 4)
        20.0
    """
    a, b = _pictures(a, b, data_range)
    error = (a - b).square().mean((-3, -2, -1))
    return 10 * torch.log10(data_range**2 / error)


def ssim(a: Tensor, b: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity, mean over channels and over every whole 11x11 window: 1 for equal pictures.

    Args:
        a: pictures of shape (..., C, H, W), H and W at least 11.
        b: pictures of the same shape.
        data_range: largest value minus smallest value that a pixel can have.

    Returns:
        One value for each picture, float64, of shape (...).

    Raises:
        ValueError: the shapes differ, a side is shorter than the window, or ``data_range`` isn't positive.
    """
    a, b = _pictures(a, b, data_range)
    if min(a.shape[-2:]) < WINDOW:
        raise ValueError(
            f"pictures of {a.shape[-2]}x{a.shape[-1]} pixels: SSIM needs at least {WINDOW} a side"
        )
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a.square()
    var_b = _blur(b * b) - mean_b.square()
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean((-3, -2, -1))


def _pictures(a: Tensor, b: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise ValueError(f"a and b are pictures of one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.ndim < 3 or a.numel() == 0:
        raise ValueError(f"pictures have the shape (..., C, H, W) and aren't empty; got {tuple(a.shape)}")
    if not data_range > 0:
        raise ValueError(f"data_range={data_range!r}: must be positive")
    # Differences of squares lose half the digits: single precision would show in the third decimal of SSIM.
    return a.double(), b.double()


def _blur(x: Tensor) -> Tensor:
    """Gaussian mean over each whole window; separable, so one pass for the rows and one for the columns."""
    at = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weight = torch.exp(-at.square() / (2 * _SIGMA**2))
    weight = weight / weight.sum()
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.conv2d(F.conv2d(flat, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))
    return flat.view(*x.shape[:-2], *flat.shape[-2:])
