"""Bi-level routing attention and BiFormer."""

import itertools

import pytest
import torch

from tests.backbones.checks import (
    batch_norm,
    check_mixer,
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
from vidattn.backbones.mixers import AttentionLePE, BiLevelRoutingAttention


def convolved(image, weight, bias):
    """A depthwise convolution of a map (B, H, W, C) as a sum over offsets."""
    size = weight.shape[-1]
    reach = size // 2
    padded = torch.nn.functional.pad(image, (0, 0, reach, reach, reach, reach))
    out = bias.expand_as(image).clone()
    for a, b in itertools.product(range(size), repeat=2):
        out = out + weight[:, 0, a, b] * padded[:, a : a + image.shape[1], b : b + image.shape[2]]
    return out


def routed(regions, topk, heads, pad="mask", scale="full", per_head=False):
    """The choice and the attention of every token by itself."""

    def call(p, x, prefix=None):
        grid, before = x.shape[1:-1], 0 if prefix is None else prefix.shape[1]
        side = [-(-n // regions) for n in grid]
        image = x
        if pad == "zero":
            image = x.new_zeros(x.shape[0], *(regions * s for s in side), x.shape[-1])
            image[:, : grid[0], : grid[1]] = x
        places = list(itertools.product(*map(range, image.shape[1:-1])))
        home = [tuple(i // s for i, s in zip(place, side, strict=True)) for place in places]
        names = sorted(set(home))
        tokens = image.flatten(1, 2)
        if prefix is not None:
            tokens = torch.cat([prefix, tokens], 1)
        width = (p["qkv.qkv.weight"].shape[0] - x.shape[-1]) // 2
        q, k, v = (tokens @ p["qkv.qkv.weight"].T + p["qkv.qkv.bias"]).split([width, width, x.shape[-1]], -1)
        members = {name: [before + n for n, h in enumerate(home) if h == name] for name in names}
        qs, ks, vs = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
        means = [torch.stack([t[:, members[n]].mean(1) for n in names], 1).detach() for t in (qs, ks)]
        products = torch.einsum("brhd,bshd->bhrs", *means)
        if not per_head:
            products = products.sum(1, keepdim=True).expand(-1, heads, -1, -1)
        best = products.argsort(-1, descending=True)[..., :topk]
        tau = (width if scale == "full" else width // heads) ** -0.5
        total = before + len(places)
        out = []
        for b in range(x.shape[0]):
            seen = torch.ones(heads, total, total, dtype=torch.bool)
            for h, (r, name) in itertools.product(range(heads), enumerate(names)):
                chosen = [t for s in best[b, h, r].tolist() for t in members[names[s]]]
                row = torch.zeros(total, dtype=torch.bool)
                row[list(range(before)) + chosen] = True
                seen[h, members[name]] = row
            out.append(softmax_attention(qs[b : b + 1], ks[b : b + 1], vs[b : b + 1], tau, seen))
        y = torch.cat(out).flatten(-2)
        local = convolved(v[:, before:].unflatten(1, image.shape[1:-1]), p["lepe.weight"], p["lepe.bias"])
        mapped = (y[:, before:].unflatten(1, image.shape[1:-1]) + local)[:, : grid[0], : grid[1]]
        last = lambda t: t @ p["wo.weight"].T + p["wo.bias"]  # noqa: E731
        return last(mapped) if prefix is None else (last(mapped), last(y[:, :before]))

    return call


@pytest.mark.parametrize(
    ("grid", "regions", "topk", "options", "prefix"),
    [
        ((6, 6), 3, 2, {}, 0),
        ((5, 7), 3, 2, {}, 0),
        ((5, 7), 3, 2, {"pad": "zero"}, 0),
        ((4, 6), 2, 1, {"per_head_routing": True, "scale": "head"}, 2),
        ((3, 5), 2, 9, {"qk_dim": 4}, 1),
    ],
)
def test_the_mixer_is_its_equations(grid, regions, topk, options, prefix):
    mixer = BiLevelRoutingAttention(8, 2, n_regions=regions, topk=topk, **options)
    reference = routed(
        regions,
        topk,
        2,
        options.get("pad", "mask"),
        options.get("scale", "full"),
        options.get("per_head_routing", False),
    )
    check_mixer(mixer, reference, grid, prefix)


def test_all_regions_are_full_attention():
    mixer = randomized(BiLevelRoutingAttention(8, 2, n_regions=3, topk=9, scale="head", lepe_kernel=0))
    x = torch.randn(1, 5, 7, 8, dtype=torch.float64)
    q, k, v = (t.unflatten(-1, (2, 4)) for t in mixer.qkv(x.flatten(1, 2)))
    full = mixer.wo(softmax_attention(q, k, v, 0.5).flatten(-2)).unflatten(1, (5, 7))
    assert torch.allclose(mixer(x), full, rtol=1e-10, atol=1e-10)


def test_three_axes():
    mixer = BiLevelRoutingAttention(8, 2, n_regions=2, topk=3, ndim=3)
    assert mixer(torch.randn(2, 3, 4, 5, 8)).shape == (2, 3, 4, 5, 8)


@pytest.mark.parametrize("prefix", [0, 1])
def test_the_last_stages_mixer(prefix):
    def reference(p, x, prefix=None):
        before = 0 if prefix is None else prefix.shape[1]
        tokens = x.flatten(1, 2) if prefix is None else torch.cat([prefix, x.flatten(1, 2)], 1)
        q, k, v = (t.unflatten(-1, (2, -1)) for t in (tokens @ p["qkv.weight"].T).chunk(3, -1))
        y = softmax_attention(q, k, v, q.shape[-1] ** -0.5).flatten(-2)
        local = convolved(x, p["lepe.weight"], p["lepe.bias"])
        mapped = y[:, before:].unflatten(1, x.shape[1:-1]) + local
        last = lambda t: t @ p["proj.weight"].T + p["proj.bias"]  # noqa: E731
        return last(mapped) if prefix is None else (last(mapped), last(y[:, :before]))

    check_mixer(AttentionLePE(8, 2), reference, (3, 4), prefix)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_regions": 0}, "n_regions=0"),
        ({"qk_dim": 5}, "qk_dim=5"),
        ({"scale": "none"}, "scale='none'"),
        ({"pad": "wrap"}, "pad='wrap'"),
        ({"lepe_kernel": 2}, "lepe_kernel=2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(8, 2, **arguments)


def state(width, depths, ratio, swin):
    """The authors' keys and shapes."""

    def parts():
        at = "downsample_layers.0"
        if swin:
            yield conv(f"{at}.0", width, 3, 4)
            yield batch_norm(f"{at}.1", width)
        else:
            yield conv(f"{at}.0", width // 2, 3, 3)
            yield batch_norm(f"{at}.1", width // 2)
            yield conv(f"{at}.3", width, width // 2, 3)
            yield batch_norm(f"{at}.4", width)
        for i, depth in enumerate(depths):
            c = width * 2**i
            if i and swin:
                yield batch_norm(f"downsample_layers.{i}.0", c // 2)
                yield conv(f"downsample_layers.{i}.1", c, c // 2, 2)
            elif i:
                yield conv(f"downsample_layers.{i}.0", c, c // 2, 3)
                yield batch_norm(f"downsample_layers.{i}.1", c)
            for j in range(depth):
                at = f"stages.{i}.blocks.{j}" if swin else f"stages.{i}.{j}"
                if not swin:
                    yield conv(f"{at}.pos_embed", c, 1, 3)
                yield norm(f"{at}.norm1", c)
                yield conv(f"{at}.attn.lepe", c, 1, 5)
                if i < 3:
                    yield linear(f"{at}.attn.qkv.qkv", 3 * c, c)
                    yield linear(f"{at}.attn.wo", c, c)
                else:
                    yield linear(f"{at}.attn.qkv", 3 * c, c, bias=False)
                    yield linear(f"{at}.attn.proj", c, c)
                yield norm(f"{at}.norm2", c)
                yield linear(f"{at}.mlp.0", ratio * c, c)
                yield linear(f"{at}.mlp.{2 if swin else 3}", c, ratio * c)
        yield batch_norm("norm", 8 * width)
        yield linear("head", 1000, 8 * width)

    return merged(parts())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("biformer_tiny", (64, (2, 2, 8, 2), 3, False)),
        ("biformer_stl", (96, (2, 2, 6, 2), 4, True)),
    ],
)
def test_the_names_are_the_authors(name, settings):
    assert shapes(on_meta(name)) == state(*settings)


def test_the_surface(tmp_path):
    tiny = {"embed_dim": 8, "depths": (1, 1, 1, 1), "head_dim": 4, "mlp_ratio": 1, "topk": (1, 2, 3, 0)}
    check_surface("biformer_tiny", tmp_path, n_regions=2, **tiny)
