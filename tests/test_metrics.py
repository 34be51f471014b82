"""PSNR and SSIM against values worked out by hand, a direct evaluation of the definition, and identities."""

import math

import numpy as np
import pytest
import torch

from vidattn import metrics

C1, C2 = 0.01**2, 0.03**2


def test_psnr_of_a_constant_difference():
    a = torch.zeros(3, 8, 8)
    assert metrics.psnr(a, a + 0.2).item() == pytest.approx(-20 * math.log10(0.2))
    assert metrics.psnr(a, a + 51, data_range=255).item() == pytest.approx(-20 * math.log10(0.2))


def test_psnr_of_one_wrong_pixel():
    a = torch.zeros(1, 10, 10)
    b = a.clone()
    b[0, 3, 4] = 0.5  # mean square error 0.25 / 100
    assert metrics.psnr(a, b).item() == pytest.approx(10 * math.log10(400))


def test_equal_pictures():
    a = torch.rand(2, 3, 20, 24)
    assert metrics.psnr(a, a).tolist() == [math.inf, math.inf]
    torch.testing.assert_close(metrics.ssim(a, a), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_ssim_of_flat_pictures_is_the_luminance_term():
    a, b = torch.full((3, 16, 16), 0.5), torch.full((3, 16, 16), 0.7)
    expected = (2 * 0.5 * 0.7 + C1) / (0.5**2 + 0.7**2 + C1)
    assert metrics.ssim(a.double(), b).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_of_a_negative_around_the_same_mean_is_negative():
    noise = torch.rand(1, 32, 32, dtype=torch.float64) - 0.5
    assert metrics.ssim(0.5 + noise, 0.5 - noise).item() < -0.5


def by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of one channel, window by window, with the weighted moments written out."""
    at = np.arange(11) - 5
    weight = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mean_p, mean_q = (weight * p).sum(), (weight * q).sum()
            var_p, var_q = (weight * (p - mean_p) ** 2).sum(), (weight * (q - mean_q) ** 2).sum()
            covariance = (weight * (p - mean_p) * (q - mean_q)).sum()
            luminance = (2 * mean_p * mean_q + C1) / (mean_p**2 + mean_q**2 + C1)
            values.append(luminance * (2 * covariance + C2) / (var_p + var_q + C2))
    return float(np.mean(values))


def test_ssim_against_its_definition():
    a = torch.rand(3, 14, 17, dtype=torch.float64)
    b = (a + 0.2 * torch.randn_like(a)).clamp(0, 1)
    expected = np.mean([by_definition(p.numpy(), q.numpy()) for p, q in zip(a, b, strict=True)])
    assert metrics.ssim(a, b).item() == pytest.approx(expected, abs=1e-10)


def test_a_batch_gives_what_its_pictures_give_alone():
    a, b = torch.rand(2, 2, 4, 3, 12, 15).unbind(0)
    for metric in (metrics.psnr, metrics.ssim):
        together = metric(a, b)
        assert together.shape == (2, 4)
        alone = torch.stack([metric(p, q) for p, q in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True)])
        torch.testing.assert_close(together.flatten(), alone)
        torch.testing.assert_close(together, metric(b, a))  # symmetric
        torch.testing.assert_close(together, metric(a * 255, b * 255, data_range=255))  # scale-free


@pytest.mark.parametrize(
    ("a", "b", "data_range", "message"),
    [
        ((3, 16, 16), (3, 16, 17), 1.0, "one shape"),
        ((16, 16), (16, 16), 1.0, r"\(\.\.\., C, H, W\)"),
        ((3, 16, 16), (3, 16, 16), 0.0, "data_range=0.0"),
    ],
)
def test_bad_input(a: tuple[int, ...], b: tuple[int, ...], data_range: float, message: str):
    for metric in (metrics.psnr, metrics.ssim):
        with pytest.raises(ValueError, match=message):
            metric(torch.zeros(a), torch.zeros(b), data_range)


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(ValueError, match="10x40 pixels: SSIM needs at least 11"):
        metrics.ssim(torch.zeros(3, 10, 40), torch.zeros(3, 10, 40))
