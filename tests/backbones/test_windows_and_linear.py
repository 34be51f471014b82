"""InLine, simplified linear and window attention, progressive norms, and the models on them."""

import itertools

import pytest
import torch
from torch import nn

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
)
from tests.backbones.surface import check_surface
from vidattn.backbones import create_model
from vidattn.backbones.layers.progressive import ProgressiveNorm, RepBN, fold_norms
from vidattn.backbones.mixers import InLineAttention, SimplifiedLinearAttention, WindowAttention


def taps(size):
    return itertools.product(range(size), repeat=2)


def inline(heads, kernel=lambda t: t, split=False, residual=True):
    """The N x N weights, and the residual one image and channel at a time."""

    def call(p, x, prefix=None):
        grid, before = x.shape[1:-1], 0 if prefix is None else prefix.shape[1]
        tokens = x.flatten(1, 2) if prefix is None else torch.cat([prefix, x.flatten(1, 2)], 1)
        if split:
            q = tokens @ p["q.weight"].T + p["q.bias"]
            k, v = (tokens @ p["kv.weight"].T + p["kv.bias"]).chunk(2, -1)
        else:
            q, k, v = (tokens @ p["qkv.weight"].T + p["qkv.bias"]).chunk(3, -1)
        a, b, c = (t.unflatten(-1, (heads, -1)) for t in (q, k, v))
        n, tau = tokens.shape[1], a.shape[-1] ** -0.5
        products = torch.einsum("bihd,bjhd->bhij", kernel(a), kernel(b))
        weights = tau / n * (products - products.mean(-1, keepdim=True)) + 1 / n
        y = torch.einsum("bhij,bjhd->bihd", weights, c).flatten(-2)
        if residual:
            mean, dim, group = tokens.mean(1), x.shape[-1], x.shape[-1] // heads
            first = [
                p["residual.0.weight"][o, :, 0] @ mean[:, o // group * group : (o // group + 1) * group].T
                + p["residual.0.bias"][o]
                for o in range(dim)
            ]
            hidden = nn.functional.gelu(torch.stack(first, 1))
            second = [
                p["residual.2.weight"][o, :, 0]
                @ hidden[:, o // (9 * group) * group : (o // (9 * group) + 1) * group].T
                + p["residual.2.bias"][o]
                for o in range(9 * dim)
            ]
            kernels = torch.stack(second, 1).unflatten(1, (dim, 3, 3))
            padded = nn.functional.pad(v[:, before:].unflatten(1, grid), (0, 0, 1, 1, 1, 1))
            local = sum(
                kernels[:, :, i, j][:, None, None] * padded[:, i : i + grid[0], j : j + grid[1]]
                for i, j in taps(3)
            )
            y = torch.cat([y[:, :before], y[:, before:] + local.flatten(1, 2)], 1)
        out = y @ p["proj.weight"].T + p["proj.bias"]
        return (
            out.unflatten(1, grid)
            if prefix is None
            else (out[:, before:].unflatten(1, grid), out[:, :before])
        )

    return call


@pytest.mark.parametrize(("grid", "prefix"), [((5, 3), 0), ((4, 6), 0), ((3, 4), 1)])
def test_inline_is_its_equations(grid, prefix):
    check_mixer(InLineAttention(8, 2), inline(2), grid, prefix)


@pytest.mark.parametrize(
    ("kernel", "function"),
    [
        ("relu", torch.relu),
        ("leaky_relu", nn.functional.leaky_relu),
        ("exp", lambda t: (0.2 * t).exp()),
    ],
)
def test_inline_kernels(kernel, function):
    mixer = InLineAttention(8, 2, kernel=kernel, split_qkv=True, local_residual=False)
    check_mixer(mixer, inline(2, function, split=True, residual=False), (3, 4))


def test_inline_on_other_grids():
    for grid in ((7,), (2, 3, 4)):
        mixer = InLineAttention(8, 2, ndim=len(grid))
        assert mixer(torch.randn(2, *grid, 8)).shape == (2, *grid, 8)
    with pytest.raises(ValueError, match="ndim=2"):
        InLineAttention(8, 2)(torch.randn(1, 7, 8))
    with pytest.raises(ValueError, match=r"kernel='rely'.*did you mean 'relu'"):
        InLineAttention(8, 2, kernel="rely")


def simplified(heads):
    def call(p, x):
        grid = x.shape[1:-1]
        q, k, v = (x.flatten(1, 2) @ p["qkv.weight"].T + p["qkv.bias"]).chunk(3, -1)
        a, b, c = (t.unflatten(-1, (heads, -1)) for t in (q, k + p["positional_encoding"], v))
        products = torch.einsum("bihd,bjhd->bhij", a.relu(), b.relu())
        y = torch.einsum("bhij,bjhd->bihd", products / (products.sum(-1, keepdim=True) + 1e-6), c)
        padded = nn.functional.pad(c.unflatten(1, grid), (0, 0, 0, 0, 2, 2, 2, 2))
        local = p["dwc.bias"] + sum(
            p["dwc.weight"][:, 0, i, j] * padded[:, i : i + grid[0], j : j + grid[1]] for i, j in taps(5)
        )
        out = (y + local.flatten(1, 2)).flatten(-2) @ p["proj.weight"].T + p["proj.bias"]
        return out.unflatten(1, grid)

    return call


@pytest.mark.parametrize("grid", [(5, 3), (4, 6)])
def test_simplified_linear_attention_is_its_equations(grid):
    check_mixer(SimplifiedLinearAttention(8, 2, grid=grid), simplified(2), grid)


def test_simplified_linear_attention_on_another_grid():
    mixer = SimplifiedLinearAttention(8, 2, grid=(4, 4))
    assert mixer(torch.randn(1, 6, 5, 8)).shape == (1, 6, 5, 8)
    with pytest.raises(ValueError, match="3 axes"):
        mixer(torch.randn(1, 2, 2, 2, 8))
    with pytest.raises(ValueError, match="kernel_size=4"):
        SimplifiedLinearAttention(8, 2, grid=(4, 4), kernel_size=4)


def windows(heads, size, shift, bias):
    """Two tokens see each other in the same window, unless the map's edge lies between them."""

    def call(p, x):
        grid = x.shape[1:-1]
        q, k, v = (
            t.unflatten(-1, (heads, -1))
            for t in (x.flatten(1, 2) @ p["qkv.weight"].T + p["qkv.bias"]).chunk(3, -1)
        )
        places = list(itertools.product(*map(range, grid)))
        sides = [min(size, n) for n in grid]
        moved = [shift if n > size else 0 for n in grid]
        total = [-(-n // s) * s for n, s in zip(grid, sides, strict=True)]

        def home(place):
            return tuple((i - m) % t // s for i, m, t, s in zip(place, moved, total, sides, strict=True))

        def wrapped(place):
            return tuple(i < m for i, m in zip(place, moved, strict=True))

        seen = torch.tensor(
            [[home(a) == home(b) and wrapped(a) == wrapped(b) for b in places] for a in places]
        )
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
        if bias:
            table, width = p["relative_position_bias_table"], 2 * size - 1
            # displacements of tokens that do not see each other may lie beyond the table
            rows = [
                [
                    table[((a[0] - b[0] + size - 1) * width + a[1] - b[1] + size - 1) % len(table)]
                    for b in places
                ]
                for a in places
            ]
            scores = scores + torch.stack([torch.stack(row) for row in rows]).permute(2, 0, 1)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        y = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(-2)
        return (y @ p["proj.weight"].T + p["proj.bias"]).unflatten(1, grid)

    return call


@pytest.mark.parametrize(
    ("grid", "size", "shift", "bias"),
    [
        ((6, 9), 3, 0, True),
        ((6, 9), 3, 1, True),
        ((5, 7), 3, 1, True),
        ((2, 5), 3, 1, True),
        ((4, 4), 4, 2, False),
        ((5, 6), 4, 2, False),
    ],
)
def test_window_attention_is_its_definition(grid, size, shift, bias):
    mixer = WindowAttention(8, 2, window_size=size, shift=shift, rel_pos_bias=bias)
    check_mixer(mixer, windows(2, size, shift, bias), grid)


def test_window_attention_refuses():
    with pytest.raises(ValueError, match="window_size=3, shift=3"):
        WindowAttention(8, 2, window_size=3, shift=3)
    with pytest.raises(ValueError, match="the bias is for 2"):
        WindowAttention(8, 2)(torch.randn(1, 3, 3, 3, 8))
    assert WindowAttention(8, 2, rel_pos_bias=False)(torch.randn(1, 9, 2, 8, 8)).shape == (1, 9, 2, 8, 8)


def test_progressive_norms_fade():
    layer = ProgressiveNorm(nn.LayerNorm(4), RepBN(4), total_steps=4, warmup=1)
    x = torch.randn(2, 3, 3, 4)
    before = layer.norm2.bn.running_mean.clone()
    assert torch.equal(layer(x), layer.norm1(x))
    assert torch.equal(layer.norm2.bn.running_mean, before)
    flat = x.flatten(0, -2)
    batch = (x - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-5).sqrt() + x
    for share in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        expected = share * layer.norm1(x) + (1 - share) * batch
        assert torch.allclose(layer(x), expected, atol=1e-5)
    layer.eval()
    assert torch.equal(layer(x), layer.norm2(x))
    assert {"warm", "iter", "total_step"} <= set(layer.state_dict())
    with pytest.raises(ValueError, match="total_steps=0"):
        ProgressiveNorm(nn.LayerNorm(4), RepBN(4), total_steps=0)


@pytest.mark.parametrize(
    ("name", "tiny", "gone"),
    [
        ("slab_swin_t", {"embed_dim": 8, "depths": (1, 1, 1, 1), "heads": 1, "img_size": 64}, 13),
        ("slab_deit_t", {"embed_dim": 16, "depths": (2,), "heads": 2, "img_size": 64}, 5),
    ],
)
def test_folded_norms_change_nothing(name, tiny, gone):
    model = randomized(create_model(name, num_classes=3, **tiny), std=0.1).eval()
    image = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    before = model(image)
    assert fold_norms(model) == gone
    assert not any(isinstance(m, RepBN) for m in model.modules())
    close(model(image).detach(), before.detach(), "folded")
    assert fold_norms(model) == 0


def progressive(name, width):
    """State of the authors' norm, batch norm's counter left out."""
    counters = {f"{name}.{counter}": () for counter in ("warm", "iter", "total_step")}
    return (
        norm(f"{name}.norm1", width)
        | {f"{name}.norm2.alpha": (1,)}
        | batch_norm(f"{name}.norm2.bn", width)
        | counters
    )


def residual(name, width, heads):
    group = width // heads
    return {
        f"{name}.residual.0.weight": (width, group, 1),
        f"{name}.residual.0.bias": (width,),
        f"{name}.residual.2.weight": (9 * width, group, 1),
        f"{name}.residual.2.bias": (9 * width,),
    }


def mlp(name, width, ratio):
    return linear(f"{name}.fc1", ratio * width, width) | linear(f"{name}.fc2", width, ratio * width)


def test_the_names_of_inline_deit():
    def parts():
        yield conv("patch_embed.proj", 192, 3, 16)
        yield {"cls_token": (1, 1, 192), "pos_embed": (1, 197, 192)}
        for j in range(12):
            yield norm(f"blocks.{j}.norm1", 192)
            yield linear(f"blocks.{j}.attn.qkv", 576, 192)
            yield linear(f"blocks.{j}.attn.proj", 192, 192)
            yield residual(f"blocks.{j}.attn", 192, 6)
            yield norm(f"blocks.{j}.norm2", 192)
            yield mlp(f"blocks.{j}.mlp", 192, 4)
        yield norm("norm", 192)
        yield linear("head", 1000, 192)

    assert shapes(on_meta("inline_deit_t")) == merged(parts())


def test_the_names_of_inline_pvt():
    """Positions apart, whose names the authors have beside the patches'; loading renames them."""

    def parts():
        for i, (c, before, heads, depth) in enumerate(
            zip((64, 128, 320, 512), (3, 64, 128, 320), (2, 4, 10, 16), (2, 2, 2, 2), strict=True)
        ):
            yield conv(f"patch_embed{i + 1}.proj", c, before, 2 if i else 4)
            yield norm(f"patch_embed{i + 1}.norm", c)
            yield {f"pos_embed{i + 1}": (1, (56 // 2**i) ** 2, c)}
            for j in range(depth):
                at = f"block{i + 1}.{j}"
                yield norm(f"{at}.norm1", c)
                yield linear(f"{at}.attn.q", c, c)
                yield linear(f"{at}.attn.kv", 2 * c, c)
                yield linear(f"{at}.attn.proj", c, c)
                yield residual(f"{at}.attn", c, heads)
                yield norm(f"{at}.norm2", c)
                yield mlp(f"{at}.mlp", c, (8, 8, 4, 4)[i])
        yield linear("head", 1000, 512)

    authors = merged(parts())
    model = on_meta("inline_pvt_t")
    assert {model.names.ours(key): shape for key, shape in authors.items()} == shapes(model)
    # the authors' keys load as they are
    model.load_state_dict(
        {key: torch.empty(shape, device="meta") for key, shape in authors.items()}, strict=True
    )


def swin_state(width, depths, heads, make_norm, mixer):
    def parts():
        yield conv("patch_embed.proj", width, 3, 4)
        yield make_norm("patch_embed.norm", width)
        for i, depth in enumerate(depths):
            c = width * 2**i
            for j in range(depth):
                at = f"layers.{i}.blocks.{j}"
                yield make_norm(f"{at}.norm1", c)
                yield linear(f"{at}.attn.qkv", 3 * c, c)
                yield linear(f"{at}.attn.proj", c, c)
                yield mixer(f"{at}.attn", i, j, c, heads * 2**i)
                yield make_norm(f"{at}.norm2", c)
                yield mlp(f"{at}.mlp", c, 4)
            if i < 3:
                yield linear(f"layers.{i}.downsample.reduction", 2 * c, 4 * c, bias=False)
                yield make_norm(f"layers.{i}.downsample.norm", 4 * c)
        yield make_norm("norm", 8 * width)
        yield linear("head", 1000, 8 * width)

    return merged(parts())


def table(name, heads):
    return {f"{name}.relative_position_bias_table": (169, heads)}


def test_the_names_of_the_swins():
    def inline_mixer(name, i, j, c, heads):
        return residual(name, c, heads) if j < (2, 2, 2, 0)[i] else table(name, heads)

    def slab_mixer(name, i, j, c, heads):
        if i > 1:
            return table(name, heads)
        head = c // heads
        return {f"{name}.positional_encoding": (1, (56 // 2**i) ** 2, c)} | conv(f"{name}.dwc", head, 1, 5)

    def dinat_mixer(name, i, j, c, heads):
        return {f"{name}.rpb": (heads, 13, 13)}

    assert shapes(on_meta("inline_swin_b")) == swin_state(128, (2, 2, 18, 2), 4, norm, inline_mixer)
    assert shapes(on_meta("slab_swin_t")) == swin_state(96, (2, 2, 6, 2), 3, progressive, slab_mixer)
    assert shapes(on_meta("dinat_s_tiny")) == swin_state(96, (2, 2, 6, 2), 3, norm, dinat_mixer)


def test_the_authors_tables_are_left_out():
    model = create_model("inline_swin_t", embed_dim=8, depths=(1, 1, 1, 1), heads=1, inline=(1, 0, 0, 0))
    extra = {
        "layers.1.blocks.0.attn_mask": torch.zeros(2),
        "layers.1.blocks.0.attn.relative_position_index": torch.zeros(2),
    }
    model.load_state_dict(model.state_dict() | extra, strict=True)


@pytest.mark.parametrize(
    ("name", "tiny"),
    [
        ("inline_deit_t", {"embed_dim": 16, "heads": 2, "depth": 2}),
        ("inline_pvt_t", {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 1)}),
        (
            "inline_swin_b",
            {"embed_dim": 8, "depths": (1, 1, 2, 1), "heads": 1, "inline": (1, 0, 1, 0), "window": 3},
        ),
        ("slab_swin_t", {"embed_dim": 8, "depths": (1, 1, 1, 2), "heads": 1, "window": 3}),
    ],
)
def test_the_surface(name, tiny, tmp_path):
    check_surface(name, tmp_path, img_size=64, **tiny)
