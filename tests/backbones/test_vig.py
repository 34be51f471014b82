"""Bidirectional gated linear attention and ViG."""

import pytest
import torch

from tests.backbones.checks import check_mixer, close, conv, linear, merged, norm, on_meta, shapes
from tests.backbones.surface import check_surface
from vidattn.backbones.mixers import BidirectionalGatedLinearAttention
from vidattn.backbones.mixers.bidirectional_gated import bidirectional_gla


def silu(x):
    return x / (1 + (-x).exp())


def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def recurrence(q, k, v, gates, order):
    """Token by token."""
    state = torch.zeros(*q.shape[:1], *q.shape[2:], v.shape[-1], dtype=q.dtype)
    out = {}
    for t in order:
        state = gates[:, t, :, :, None].exp() * state + k[:, t, :, :, None] * v[:, t, :, None]
        out[t] = torch.einsum("bhd,bhde->bhe", q[:, t] * q.shape[-1] ** -0.5, state)
    return torch.stack([out[t] for t in range(q.shape[1])], 1)


def reference(heads, activations):
    def call(p, x):
        grid, n = x.shape[1:-1], x.shape[1:-1].numel()
        padded = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
        local = sum(
            p["in_proj.0.weight"][:, 0, i, j] * padded[:, i : i + grid[0], j : j + grid[1]]
            for i in range(3)
            for j in range(3)
        )
        local = (silu(local) if activations else local).flatten(1, 2)
        c = x.shape[-1]
        q, k, v = (
            t.unflatten(-1, (heads, -1))
            for t in (local @ p["qkv_proj.weight"].T).split([c // 2, c // 2, c], -1)
        )
        low = local @ p["gk_proj.0.weight"].T @ p["gk_proj.1.weight"].T + p["gk_proj.1.bias"]
        first, second = (t.unflatten(-1, (heads, -1)) for t in (-(1 + (-low).exp()).log() / 16).chunk(2, -1))
        o = recurrence(q, k, v, first, range(n)) + recurrence(q, k, v, second, range(n - 1, -1, -1))
        g = (1 / (1 + (-(local @ p["g_proj.weight"].T + p["g_proj.bias"])).exp())).unflatten(-1, (heads, -1))
        y = g * rms(o / 2, p["g_norm.weight"])
        y = (y + (1 - g) * rms(local.unflatten(-1, (heads, -1)), p["l_norm.weight"])).flatten(-2)
        return ((silu(y) if activations else y) @ p["o_proj.weight"].T).unflatten(1, grid)

    return call


@pytest.mark.parametrize(("grid", "activations"), [((5, 7), True), ((4, 8), False), ((7, 9), False)])
def test_the_mixer_is_its_equations(grid, activations):
    check_mixer(
        BidirectionalGatedLinearAttention(8, 2, activations=activations), reference(2, activations), grid
    )


@pytest.mark.parametrize("length", [1, 16, 37, 83])
def test_chunks_are_the_recurrence(length):
    """With gates so strong that a quotient of decays would overflow."""
    q, k, v, first, second = torch.randn(5, 1, length, 2, 4, dtype=torch.float64)
    first, second = -first.square() * 60, -second.square()
    wanted = recurrence(q, k, v, first, range(length))
    wanted = (wanted + recurrence(q, k, v, second, range(length - 1, -1, -1))) / 2
    close(bidirectional_gla(q, k, v, first, second), wanted, "output")


def test_a_flipped_map_with_swapped_gates_gives_the_flipped_output():
    q, k, v, first, second = torch.randn(5, 1, 20, 1, 4)
    args = [-first.abs(), -second.abs()]
    flipped = [t.flip(1) for t in (q, k, v, *reversed(args))]
    assert torch.allclose(bidirectional_gla(*flipped).flip(1), bidirectional_gla(q, k, v, *args), atol=1e-5)


def test_other_grids_and_bad_arguments():
    for grid in ((9,), (2, 3, 4)):
        mixer = BidirectionalGatedLinearAttention(8, 2, ndim=len(grid))
        assert mixer(torch.randn(1, *grid, 8)).shape == (1, *grid, 8)
    with pytest.raises(ValueError, match=r"expand_k=0\.4"):
        BidirectionalGatedLinearAttention(8, 2, expand_k=0.4)
    with pytest.raises(ValueError, match="takes no prefix tokens"):
        BidirectionalGatedLinearAttention(8, 2)(torch.randn(1, 2, 2, 8), torch.randn(1, 1, 8))


def test_the_names_are_the_authors():
    def parts():
        yield conv("patch_embed.proj.0", 96, 3, 9)
        yield norm("patch_embed.proj.1", 96)
        yield conv("patch_embed.proj.3", 192, 96, 3)
        yield norm("patch_embed.proj.4", 192)
        yield {"pos_embed": (1, 196, 192), "norm.weight": (192,)}
        for j in range(12):
            at = f"blocks.{j}"
            yield {f"{at}.attn_norm.weight": (192,), f"{at}.mlp_norm.weight": (192,)}
            yield conv(f"{at}.attn.in_proj.0", 192, 1, 3, bias=False)
            yield linear(f"{at}.attn.qkv_proj", 384, 192, bias=False)
            yield linear(f"{at}.attn.gk_proj.0", 16, 192, bias=False)
            yield linear(f"{at}.attn.gk_proj.1", 192, 16)
            yield linear(f"{at}.attn.g_proj", 192, 192)
            yield linear(f"{at}.attn.o_proj", 192, 192, bias=False)
            yield {f"{at}.attn.g_norm.weight": (64,), f"{at}.attn.l_norm.weight": (64,)}
            yield linear(f"{at}.mlp.gate_proj", 1024, 192, bias=False)
            yield linear(f"{at}.mlp.down_proj", 192, 512, bias=False)
        yield linear("head", 1000, 192)

    assert shapes(on_meta("vig_t")) == merged(parts())


def test_the_surface(tmp_path):
    check_surface("vig_t", tmp_path, img_size=64, embed_dim=16, heads=2, depth=2)
