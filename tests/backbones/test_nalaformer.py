"""NaLaFormer: norm-aware linear attention, and the models."""

import pytest
import torch

from tests.backbones.checks import batch_norm, check_mixer, conv, linear, merged, norm, on_meta, shapes
from tests.backbones.surface import check_surface
from tests.backbones.test_gated import TINY, rotation, softmax, turned
from vidattn.backbones.mixers import NormAwareLinearAttention, NormGatedSoftmaxAttention


def norm_aware(q, k, v, r):
    """The N x N weights of each half, summed."""
    length = q.square().sum(-1, keepdim=True).sqrt()
    u, power = (
        q / (length + 1e-6),
        3 * (0.5 + (length.exp() - (-length).exp()) / (length.exp() + (-length).exp())),
    )
    products = plain = 0
    for sign in (1, -1):
        a = torch.where(sign * u > 0, (sign * u).abs() ** power, 0.0)
        b = torch.where(sign * k > 0, (sign * k) ** 3, 0.0)
        products = products + torch.einsum("bihd,bjhd->bhij", turned(r, a), turned(r, b))
        plain = plain + torch.einsum("bihd,bjhd->bhij", a, b)
    n = k.shape[1]
    weights = products / n / (plain.mean(-1, keepdim=True) + 1e-6)
    return torch.einsum("bhij,bjhe->bihe", weights, v)


def framed(core, heads):
    """The frame around a core, with the convolution as a sum over offsets."""

    def call(p, x, prefix=None):
        grid, before = x.shape[1:-1], 0 if prefix is None else prefix.shape[1]
        tokens = x.flatten(1, -2) if prefix is None else torch.cat([prefix, x.flatten(1, -2)], 1)
        q, k, v, g = (tokens @ p["qkvg.weight"].T + p["qkvg.bias"]).chunk(4, -1)
        a, b, c = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
        y = core(a, b, c, rotation(grid, before, a.shape[-1])).flatten(-2)
        padded = torch.nn.functional.pad(v[:, before:].unflatten(1, grid), (0, 0, 2, 2, 2, 2))
        local = p["lepe.bias"] + sum(
            p["lepe.weight"][:, 0, i, j] * padded[:, i : i + grid[0], j : j + grid[1]]
            for i in range(5)
            for j in range(5)
        )
        y = torch.cat([y[:, :before], y[:, before:] + local.flatten(1, 2)], 1)
        centred = y - y.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p["ln.weight"] + p["ln.bias"]
        out = (y * g / (1 + (-g).exp())) @ p["out_proj.weight"].T + p["out_proj.bias"]
        mapped = out[:, before:].unflatten(1, grid)
        return (mapped, out[:, :before]) if before else mapped

    return call


@pytest.mark.parametrize(
    ("kind", "core", "grid", "prefix"),
    [
        (NormAwareLinearAttention, norm_aware, (5, 3), 0),
        (NormAwareLinearAttention, norm_aware, (4, 6), 2),
        (NormGatedSoftmaxAttention, softmax, (3, 5), 1),
    ],
)
def test_the_mixers_are_their_equations(kind, core, grid, prefix):
    check_mixer(kind(16, 2), framed(core, 2), grid, prefix)


def test_zero_queries_have_finite_gradients():
    mixer = NormAwareLinearAttention(8, 2)
    x = torch.zeros(1, 3, 3, 8, requires_grad=True)
    torch.nn.init.zeros_(mixer.qkvg.bias)
    mixer(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(mixer.qkvg.weight.grad).all()


def test_grids_of_one_and_three_axes():
    for grid, dim in (((9,), 8), ((2, 3, 4), 12)):
        mixer = NormAwareLinearAttention(dim, 1, ndim=len(grid))
        assert mixer(torch.randn(1, *grid, dim)).shape == (1, *grid, dim)


def test_the_names_are_the_authors():
    def parts():
        half = 48
        for place, (out, width) in zip(
            (0, 3, 6, 9), ((half, 3), (half, half), (half, half), (2 * half, half)), strict=True
        ):
            yield conv(f"patch_embed.proj.{place}", out, width, 3)
            yield batch_norm(f"patch_embed.proj.{place + 1}", out)
        widths = (96, 192, 384, 512)
        for i, (c, depth) in enumerate(zip(widths, (4, 6, 12, 6), strict=True)):
            for j in range(depth):
                at = f"layers.{i}.blocks.{j}"
                yield conv(f"{at}.cpe1", c, 1, 3)
                yield conv(f"{at}.cpe2", c, 1, 3)
                yield norm(f"{at}.norm1.norm", c)
                yield linear(f"{at}.attn.qkvg", 4 * c, c)
                yield conv(f"{at}.attn.lepe", c, 1, 5)
                yield norm(f"{at}.attn.ln", c)
                yield linear(f"{at}.attn.out_proj", c, c)
                yield norm(f"{at}.norm2.norm", c)
                yield linear(f"{at}.ffn.fc1", 4 * c, c)
                yield linear(f"{at}.ffn.fc2", c, 4 * c)
                yield conv(f"{at}.ffn.dwconv", 4 * c, 1, 3)
                yield {f"{at}.gamma_1": (1, c, 1, 1), f"{at}.gamma_2": (1, c, 1, 1)}
            if i < 3:
                yield conv(f"layers.{i}.downsample.reduction", widths[i + 1], c, 3)
                yield batch_norm(f"layers.{i}.downsample.norm", widths[i + 1])
        yield linear("proj", 1024, 512)
        yield batch_norm("norm", 1024)
        yield conv("head", 1000, 1024, 1)

    assert shapes(on_meta("nalaformer_b")) == merged(parts())


def test_the_surface(tmp_path):
    check_surface("nalaformer_s", tmp_path, **TINY)
