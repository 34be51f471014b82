"""HaloNet: blocked local attention with a halo, and its models."""

import itertools

import pytest
import torch

from tests.backbones.checks import check_mixer
from tests.backbones.surface import check_surface
from vidattn.backbones.mixers import HaloAttention


def halo(heads, qk, block, around, *, stride=1, bias=False, scaled=False, masked=False):
    """One query at a time: a softmax over its window's places, those outside the map with zeros."""
    window = block + 2 * around

    def call(p, x):
        grid = x.shape[1:-1]
        q, kv = (x @ p[f"{n}.weight"][:, :, 0, 0].T + (p[f"{n}.bias"] if bias else 0) for n in ("q", "kv"))
        q, kv = (t.unflatten(-1, (heads, -1)) for t in (q, kv))
        width = qk // heads
        zero = torch.zeros_like(kv[(slice(None), *[0] * len(grid))])
        tables = [p[f"pos_embed.{n}"] for n in ("time_rel", "height_rel", "width_rel")[-len(grid) :]]
        tokens = []
        for place in itertools.product(*(range(0, n, stride) for n in grid)):
            own = q[(slice(None), *place)]
            scores, values = [], []
            for j in itertools.product(range(window), repeat=len(grid)):
                at = [n // block * block - around + k for n, k in zip(place, j, strict=True)]
                inside = all(0 <= n < extent for n, extent in zip(at, grid, strict=True))
                if masked and not inside:
                    continue
                pair = kv[(slice(None), *at)] if inside else zero
                i = [n % block // stride for n in place]
                moved = sum(t[b - a + window - 1] for t, a, b in zip(tables, i, j, strict=True))
                content = (own * pair[..., :width]).sum(-1) * width**-0.5
                scores.append(content + (own * moved).sum(-1) * (width**-0.5 if scaled else 1))
                values.append(pair[..., width:])
            weights = torch.stack(scores).softmax(0)
            tokens.append((weights[..., None] * torch.stack(values)).sum(0).flatten(-2))
        return torch.stack(tokens, 1).unflatten(1, [-(-n // stride) for n in grid])

    return call


@pytest.mark.parametrize(
    ("grid", "block", "around", "more"),
    [
        ((4, 6), 2, 1, {}),
        ((5, 3), 2, 1, {"scaled": True, "bias": True}),
        ((5, 6), 4, 1, {"masked": True}),
        ((7, 5), 4, 1, {"stride": 2}),
        ((3, 4), 3, 0, {"masked": True, "bias": True}),
        ((7,), 3, 2, {}),
        ((3, 2, 2), 2, 1, {}),
    ],
    ids=str,
)
def test_the_mixer_is_its_equations(grid, block, around, more):
    options = {
        "stride": more.get("stride", 1),
        "qkv_bias": more.get("bias", False),
        "scale_pos_embed": more.get("scaled", False),
        "mask_padding": more.get("masked", False),
    }
    mixer = HaloAttention(
        4, 2, dim_out=6, qk_dim=4, block_size=block, halo_size=around, ndim=len(grid), **options
    )
    check_mixer(mixer, halo(2, 4, block, around, **more), grid, batch=1)


def test_a_block_as_large_as_the_map_is_dense_attention():
    mixer = HaloAttention(8, 2, block_size=8, halo_size=2, mask_padding=True).double()
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    q = mixer.q(x).flatten(1, 2).unflatten(-1, (2, 4)).transpose(1, 2)
    kv = mixer.kv(x).flatten(1, 2).unflatten(-1, (2, 8)).transpose(1, 2)
    # without positions, which start as zeros
    expected = torch.nn.functional.scaled_dot_product_attention(q, kv[..., :4], kv[..., 4:])
    assert torch.allclose(mixer(x), expected.transpose(1, 2).reshape(2, 5, 7, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 0}, "block_size=0"),
        ({"block_size": 6, "stride": 4}, "stride=4"),
        ({"qk_dim": 3}, "qk_dim=3"),
        ({"ndim": 4}, "ndim=4"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HaloAttention(8, 2, **arguments)
    with pytest.raises(ValueError, match="grid of 1 axes"):
        HaloAttention(8, 2)(torch.randn(1, 4, 8))


def test_the_surface(tmp_path):
    tiny = {"widths": (8, 8, 16, 16), "third": 1, "depths": 1, "heads": (1, 2, 2, 2), "final": 24}
    check_surface("halonet_h4", tmp_path, size=(70, 96), **tiny, block_size=4, halo_size=1)
