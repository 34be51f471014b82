"""Scatterbrain."""

import pytest
import torch

from tests.backbones.checks import check_mixer, close, softmax_attention
from vidattn.backbones.mixers import ScatterbrainAttention
from vidattn.backbones.mixers.scatterbrain import orthogonal_frequencies, scatterbrain


def by_definition(q, k, v, w, window):
    """The N x N weights, entry by entry, without shifts."""
    scale = q.shape[-1] ** -0.5
    signed = torch.cat([w, -w])

    def features(x):
        turned = torch.einsum("bshd,rd->bshr", x * scale**0.5, signed)
        return (turned - scale * x.square().sum(-1, keepdim=True) / 2).exp() / len(signed) ** 0.5

    exact = (scale * torch.einsum("bihd,bjhd->bhij", q, k)).exp()
    estimate = torch.einsum("bihf,bjhf->bhij", features(q), features(k))
    n = q.shape[1]
    near = torch.tensor(
        [[i - window // 2 <= j <= i + (window + 1) // 2 - 1 for j in range(n)] for i in range(n)]
    )
    weights = torch.where(near, exact, estimate)
    return torch.einsum("bhij,bjhd->bihd", weights / weights.sum(-1, keepdim=True), v)


def reference(heads, window):
    def call(p, x, prefix=None):
        grid, before = x.shape[1:-1], 0 if prefix is None else prefix.shape[1]
        tokens = x.flatten(1, -2) if prefix is None else torch.cat([prefix, x.flatten(1, -2)], 1)
        q, k, v = (
            t.unflatten(-1, (heads, -1)) for t in (tokens @ p["qkv.weight"].T + p["qkv.bias"]).chunk(3, -1)
        )
        y = by_definition(q, k, v, p["projection"], window).flatten(-2)
        out = y @ p["proj.weight"].T + p["proj.bias"]
        mapped = out[:, before:].unflatten(1, grid)
        return (mapped, out[:, :before]) if before else mapped

    return call


@pytest.mark.parametrize(
    ("grid", "prefix", "window"), [((5, 3), 0, 5), ((4, 6), 0, 4), ((3, 3), 2, 3), ((7,), 0, 0)]
)
def test_the_mixer_is_its_equations(grid, prefix, window):
    check_mixer(ScatterbrainAttention(16, 2, window=window, n_features=6), reference(2, window), grid, prefix)


def test_a_window_over_all_tokens_is_softmax_attention():
    """Large scores, whose exponentials overflow float32 without the shifts."""
    q, k, v = torch.randn(3, 1, 9, 2, 8, dtype=torch.float64)
    w = orthogonal_frequencies(5, 8).double()
    close(scatterbrain(q, k, v, w, 18), softmax_attention(q, k, v, 8**-0.5), "output")
    large = scatterbrain(20 * q.float(), k.float(), v.float(), w.float(), 18)
    wanted = softmax_attention(20 * q, k, v, 8**-0.5)
    assert torch.allclose(large.double(), wanted, atol=1e-3)


def test_estimates_are_unbiased():
    torch.manual_seed(3)
    q, k = 0.5 * torch.randn(2, 1, 1, 1, 4, dtype=torch.float64)
    values = []
    for _ in range(400):
        w = orthogonal_frequencies(4, 4).double()
        turned = torch.cat([w, -w]) / 2**0.5
        one, other = ((turned @ x.flatten() - x.square().sum() / 4).exp() for x in (q, k))
        values.append((one * other).mean())
    found = torch.stack(values)
    exact = ((q * k).sum() / 2).exp()
    assert abs(found.mean() - exact) < 4 * found.std() / 20


def test_frequencies():
    w = orthogonal_frequencies(7, 4)
    assert w.shape == (7, 4)
    products = w[:4] @ w[:4].T
    assert torch.allclose(products, products.diag().diag(), atol=1e-5)
    mixer = ScatterbrainAttention(8, 2)
    before = mixer.projection.clone()
    mixer.redraw()
    assert not torch.equal(mixer.projection, before)


def test_it_compiles_whole():
    mixer, x = ScatterbrainAttention(8, 2, window=3), torch.randn(1, 3, 4, 8)
    torch.compiler.reset()
    assert torch.allclose(torch.compile(mixer, fullgraph=True, backend="eager")(x), mixer(x), atol=1e-5)
    torch.compiler.reset()


def test_bad_arguments():
    for wrong in ({"window": -1}, {"n_features": 3}, {"n_features": 0}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f"{name}={value}"):
            ScatterbrainAttention(8, 2, **wrong)
