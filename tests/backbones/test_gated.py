"""RALA, MALA and their models."""

import pytest
import torch

from tests.backbones.checks import (
    batch_norm,
    check_mixer,
    conv,
    merged,
    norm,
    on_meta,
    shapes,
    softmax_attention,
)
from tests.backbones.surface import check_surface
from vidattn.backbones.mixers import MALA, RALA, GatedSoftmaxAttention


def rotation(grid, before, dim):
    """(N, D, D) block-diagonal rotations, from the definition."""
    pairs = dim // (2 * len(grid))
    speeds = [10000.0 ** (-s / max(1, pairs - 1)) for s in range(pairs)]
    cells = torch.cartesian_prod(*[torch.arange(n) for n in grid]).reshape(-1, len(grid))
    matrices = torch.eye(dim, dtype=torch.float64).repeat(before + len(cells), 1, 1)
    for n, cell in enumerate(cells):
        angles = torch.tensor(
            [float(index) * speed for index in cell for speed in speeds], dtype=torch.float64
        )
        for pair, angle in enumerate(angles):
            a = 2 * pair
            block = torch.stack(
                [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
            )
            matrices[before + n, a : a + 2, a : a + 2] = block
    return matrices


def turned(matrices, x):
    return torch.einsum("nde,bnhe->bnhd", matrices, x)


def rala(q, k, v, r, weighting=True):
    tau = q.shape[-1] ** -0.5
    q, k = torch.where(q > 0, q + 1, q.exp()), torch.where(k > 0, k + 1, k.exp())
    alpha = (tau * torch.einsum("bhd,bjhd->bhj", q.mean(1), k)).softmax(-1)
    n = k.shape[1]
    if weighting:
        k = k * n * alpha.transpose(1, 2)[..., None]
    weights = torch.einsum("bihd,bjhd->bhij", turned(r, q), turned(r, k)) / n
    total = torch.einsum("bihd,bjhd->bhij", q, k).sum(-1, keepdim=True) / n
    return torch.einsum("bhij,bjhe->bihe", weights / (total + 1e-6), v)


def mala(q, k, v, r):
    tau, n = q.shape[-1] ** -0.5, k.shape[1]
    q, k = torch.where(q > 0, q + 1, q.exp()), torch.where(k > 0, k + 1, k.exp())
    z = tau * torch.einsum("bihd,bjhd->bhij", q, k).mean(-1, keepdim=True)
    products = torch.einsum("bihd,bjhd->bhij", turned(r, q), turned(r, k))
    return torch.einsum("bhij,bjhe->bihe", tau / n * (1 + 1 / (z + 1e-6)) * products - z / n, v)


def softmax(q, k, v, r):
    return softmax_attention(turned(r, q), turned(r, k), v, q.shape[-1] ** -0.5)


def framed(core, heads):
    """The frame around a core, token by token, with the convolution as a sum over offsets."""

    def call(p, x, prefix=None):
        grid, before = x.shape[1:-1], 0 if prefix is None else prefix.shape[1]
        tokens = x.flatten(1, -2) if prefix is None else torch.cat([prefix, x.flatten(1, -2)], 1)
        q, k, v, o = (tokens @ p["qkvo.weight"][:, :, 0, 0].T + p["qkvo.bias"]).chunk(4, -1)
        q, k, w = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
        y = core(q, k, w, rotation(grid, before, q.shape[-1])).flatten(-2)
        image, kernel = v[:, before:].unflatten(1, grid), p["lepe.weight"][:, 0]
        local = p["lepe.bias"].expand_as(image).clone()
        for a in range(5):
            for b in range(5):
                shifted = torch.nn.functional.pad(image, (0, 0, 2, 2, 2, 2))
                local = local + kernel[:, a, b] * shifted[:, a : a + grid[0], b : b + grid[1]]
        y = torch.cat([y[:, :before], y[:, before:] + local.flatten(1, 2)], 1)
        out = (y * o) @ p["proj.weight"][:, :, 0, 0].T + p["proj.bias"]
        return (
            out.unflatten(1, grid)
            if prefix is None
            else (out[:, before:].unflatten(1, grid), out[:, :before])
        )

    return call


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("grid", [(5, 7), (4, 6)], ids=str)
@pytest.mark.parametrize(
    ("kind", "core"),
    [(RALA, rala), (MALA, mala), (GatedSoftmaxAttention, softmax)],
    ids=lambda k: k.__name__,
)
def test_the_mixers_are_their_equations(kind, core, grid, prefix):
    check_mixer(kind(16, 2), framed(core, 2), grid, prefix)


def test_a_rala_without_weights_is_plain_linear_attention():
    check_mixer(RALA(8, 1, kv_weighting=False), framed(lambda *a: rala(*a, weighting=False), 1), (3, 4))


def test_rows_of_mala_sum_to_one():
    mixer = MALA(8, 2, rope=False, lepe_kernel=0, gate=False)
    q, k = torch.randn(2, 1, 35, 2, 4, dtype=torch.float64)
    ones = mixer.core(q, k, torch.ones_like(k), lambda t: t)
    assert torch.allclose(ones, torch.ones_like(ones), atol=1e-5)


def test_grids_of_one_and_three_axes():
    for grid, dim in (((9,), 8), ((2, 3, 4), 12)):
        mixer = MALA(dim, 1, ndim=len(grid))
        assert mixer(torch.randn(1, *grid, dim)).shape == (1, *grid, dim)


def test_tokens_without_positions_are_a_set():
    mixer = RALA(8, 2, rope=False, lepe_kernel=0).double()
    x, order = torch.randn(1, 12, 8, dtype=torch.float64), torch.randperm(12)
    assert torch.allclose(mixer(x[:, order]), mixer(x)[:, order])


def test_bad_arguments():
    with pytest.raises(ValueError, match="lepe_kernel=4"):
        RALA(8, 2, lepe_kernel=4)
    with pytest.raises(ValueError, match="head_dim=6"):
        MALA(12, 2)(torch.randn(1, 4, 4, 12))


def state(widths, depths, projection):
    """The authors' keys and shapes."""

    def parts():
        half = widths[0] // 2
        for place, (out, width) in zip(
            (0, 3, 6, 9), ((half, 3), (half, half), (half, half), (2 * half, half)), strict=True
        ):
            yield conv(f"patch_embed.proj.{place}", out, width, 3)
            yield batch_norm(f"patch_embed.proj.{place + 1}", out)
        for i, (c, depth) in enumerate(zip(widths, depths, strict=True)):
            for j in range(depth):
                at = f"layers.{i}.blocks.{j}"
                yield conv(f"{at}.pos", c, 1, 3)
                yield norm(f"{at}.norm1.norm", c)
                yield conv(f"{at}.attn.qkvo", 4 * c, c, 1)
                yield conv(f"{at}.attn.lepe", c, 1, 5)
                yield conv(f"{at}.attn.proj", c, c, 1)
                yield norm(f"{at}.norm2.norm", c)
                yield conv(f"{at}.ffn.fc1", int(3.5 * c), c, 1)
                yield conv(f"{at}.ffn.fc2", c, int(3.5 * c), 1)
                yield conv(f"{at}.ffn.dwconv", int(3.5 * c), 1, 3)
                yield {f"{at}.gamma_1": (1, c, 1, 1), f"{at}.gamma_2": (1, c, 1, 1)}
            if i < 3:
                yield conv(f"layers.{i}.downsample.reduction", widths[i + 1], c, 3)
                yield batch_norm(f"layers.{i}.downsample.norm", widths[i + 1])
        yield conv("proj", projection, widths[-1], 1)
        yield batch_norm("norm", projection)
        yield conv("head", 1000, projection, 1)

    return merged(parts())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ravlt_t", ((64, 128, 256, 512), (2, 2, 6, 2), 1024)),
        ("mavit_l", ((96, 192, 448, 640), (4, 7, 19, 8), 2560)),
    ],
)
def test_the_names_are_the_authors(name, settings):
    assert shapes(on_meta(name)) == state(*settings)


TINY = {
    "widths": (8, 8, 16, 16),
    "depths": (1, 1, 1, 1),
    "heads": (1, 2, 2, 1),
    "projection": 24,
    "mlp_ratio": 2,
}


def test_the_authors_tables_of_angles_are_left_out():
    from vidattn.backbones import create_model

    model = create_model("ravlt_t", **TINY)
    state = model.state_dict() | {"layers.0.RoPE.angle": torch.zeros(4)}
    model.load_state_dict(state, strict=True)


def test_mixers_by_name():
    from vidattn.backbones import create_model

    model = create_model("mavit_t", **TINY, mixers=("linear",) * 4)
    assert all(isinstance(model.part(f"layers.{i}.blocks.0.attn"), MALA) for i in range(4))
    with pytest.raises(ValueError, match="mixers="):
        create_model("mavit_t", **TINY, mixers=("linear", "linear", "soft", "linear"))


@pytest.mark.parametrize("name", ["ravlt_s", "mavit_b"])
def test_the_surface(name, tmp_path):
    check_surface(name, tmp_path, **TINY)
