"""HiLo attention, deformable convolution and LITv2."""

import itertools
import math

import pytest
import torch

from tests.backbones.checks import (
    batch_norm,
    check_mixer,
    close,
    conv,
    linear,
    merged,
    norm,
    on_meta,
    randomized,
    shapes,
    softmax_attention,
)
from tests.backbones.surface import check_surface
from vidattn.backbones import create_model
from vidattn.backbones.layers.deformable import DeformableConv2d
from vidattn.backbones.mixers import HiLoAttention


def hilo(size, low, high, head_dim, pad):
    """Token by token; padding is a set of places without tokens ("mask") or with zero ones ("zero")."""

    def call(p, x):
        grid = x.shape[1:-1]
        full = [-(-n // size) * size for n in grid]
        image = x
        if pad == "zero":
            image = x.new_zeros(x.shape[0], *full, x.shape[-1])
            image[(slice(None), *(slice(n) for n in grid))] = x
        places = list(itertools.product(*map(range, image.shape[1:-1])))
        number = {place: n for n, place in enumerate(places)}
        window = [tuple(i // size for i in place) for place in places]
        tokens = image.flatten(1, -2)
        parts = []
        if high:
            qkv = tokens @ p["h_qkv.weight"].T + p["h_qkv.bias"]
            q, k, v = (t.unflatten(-1, (high, head_dim)) for t in qkv.chunk(3, -1))
            same = torch.tensor([[a == b for b in window] for a in window])
            out = softmax_attention(q, k, v, head_dim**-0.5, same).flatten(-2)
            parts.append(out @ p["h_proj.weight"].T + p["h_proj.bias"])
        if low:
            names = sorted(set(window))
            members = [[n for n, w in enumerate(window) if w == name] for name in names]
            means = torch.stack([tokens[:, m].mean(1) for m in members], 1)
            q = (tokens @ p["l_q.weight"].T + p["l_q.bias"]).unflatten(-1, (low, head_dim))
            kv = (means @ p["l_kv.weight"].T + p["l_kv.bias"]).chunk(2, -1)
            k, v = (t.unflatten(-1, (low, head_dim)) for t in kv)
            out = softmax_attention(q, k, v, head_dim**-0.5).flatten(-2)
            parts.append(out @ p["l_proj.weight"].T + p["l_proj.bias"])
        out = torch.cat(parts, -1)
        kept = [number[place] for place in itertools.product(*map(range, grid))]
        return out[:, kept].unflatten(1, grid)

    return call


@pytest.mark.parametrize(
    ("grid", "size", "alpha", "pad"),
    [
        ((6, 4), 2, 0.5, "mask"),
        ((5, 7), 2, 0.5, "mask"),
        ((5, 7), 3, 0.3, "zero"),
        ((5, 7), 3, 0.0, "mask"),
        ((4, 5), 2, 1.0, "mask"),
        ((3, 4), 1, 0.5, "mask"),
        ((7,), 2, 0.5, "mask"),
        ((3, 2, 5), 2, 0.75, "mask"),
    ],
)
def test_the_mixer_is_its_equations(grid, size, alpha, pad):
    mixer = HiLoAttention(16, 4, window_size=size, alpha=alpha, pad=pad)
    low = 4 if size == 1 else math.floor(4 * alpha + 1e-9)
    check_mixer(mixer, hilo(size, low, 4 - low, 4, pad), grid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"alpha": 1.5}, "alpha=1.5"), ({"window_size": 0}, "window_size=0"), ({"pad": "wrap"}, "pad='wrap'")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HiLoAttention(8, 2, **arguments)


def test_no_prefix_tokens():
    with pytest.raises(ValueError, match="no prefix tokens"):
        HiLoAttention(8, 2)(torch.randn(1, 4, 4, 8), torch.randn(1, 1, 8))


@pytest.mark.parametrize("grid", [(4, 6), (5, 3)])
def test_deformable_convolution_is_its_definition(grid):
    layer = randomized(DeformableConv2d(2, 3, 2))
    x = torch.randn(1, *grid, 2, dtype=torch.float64)
    height, width = -(-grid[0] // 2), -(-grid[1] // 2)
    padded = torch.zeros(1, 2 * height, 2 * width, 2, dtype=torch.float64)
    padded[:, : grid[0], : grid[1]] = x
    offsets = layer.conv_offset(padded)
    expected = torch.zeros(1, height, width, 3, dtype=torch.float64)
    for r, c, tap in itertools.product(range(height), range(width), range(4)):
        dy, dx = offsets[0, r, c, 2 * tap : 2 * tap + 2]
        y, x_ = 2 * r + tap // 2 + dy, 2 * c + tap % 2 + dx
        value = torch.zeros(2, dtype=torch.float64)
        for i, j in itertools.product(range(grid[0]), range(grid[1])):
            value = value + (1 - (y - i).abs()).clamp(min=0) * (1 - (x_ - j).abs()).clamp(min=0) * x[0, i, j]
        expected[0, r, c] = expected[0, r, c] + layer.weight[:, :, tap // 2, tap % 2] @ value
    close(layer(x).detach(), (expected + layer.bias).detach(), "deformable")


TINY = {"embed_dim": 16, "depths": (1, 1, 1, 1), "heads": 1, "mlp_ratio": 2, "alpha": 0.5}


def test_without_offsets_it_is_a_convolution():
    deformable = create_model("litv2_s", num_classes=3, **TINY)
    plain = create_model("litv2_s", num_classes=3, downsample="conv", **TINY)
    state = {k: v for k, v in deformable.state_dict().items() if "conv_offset" not in k}
    plain.load_state_dict(state)
    image = torch.randn(1, 3, 64, 64)
    assert torch.allclose(plain(image), deformable(image), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="downsample='pool'"):
        create_model("litv2_s", downsample="pool", **TINY)


def test_the_names_are_the_authors():
    def parts():
        yield conv("patch_embed.proj", 96, 3, 4)
        yield norm("patch_embed.norm", 96)
        for i, depth in enumerate((2, 2, 6, 2)):
            c, heads = 96 * 2**i, 3 * 2**i
            low = {2: 10 * c // heads, 3: c}.get(i, 0)
            for j in range(depth):
                at = f"layers.{i}.blocks.{j}"
                if low:
                    yield norm(f"{at}.norm1", c)
                    yield linear(f"{at}.attn.l_q", low, c)
                    yield linear(f"{at}.attn.l_kv", 2 * low, c)
                    yield linear(f"{at}.attn.l_proj", low, low)
                if c > low > 0:
                    yield linear(f"{at}.attn.h_qkv", 3 * (c - low), c)
                    yield linear(f"{at}.attn.h_proj", c - low, c - low)
                yield norm(f"{at}.norm2", c)
                yield linear(f"{at}.mlp.fc1", 4 * c, c)
                yield conv(f"{at}.mlp.dwconv.dwconv", 4 * c, 1, 3)
                yield linear(f"{at}.mlp.fc2", c, 4 * c)
            if i < 3:
                yield conv(f"layers.{i}.downsample.dconv", 2 * c, c, 2)
                yield conv(f"layers.{i}.downsample.dconv.conv_offset", 8, c, 2)
                yield batch_norm(f"layers.{i}.downsample.norm_layer", 2 * c)
        yield norm("norm", 768)
        yield linear("head", 1000, 768)

    assert shapes(on_meta("litv2_s")) == merged(parts())


def test_the_surface(tmp_path):
    check_surface("litv2_s", tmp_path, size=(62, 96), **{**TINY, "heads": 2})
