"""L2ViT: linear attention with a bounded normaliser, and the models."""

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
)
from tests.backbones.surface import check_surface
from vidattn.backbones.layers.local_concentration import LocalConcentration
from vidattn.backbones.mixers import ReLULinearAttention


def reference(heads, bound, counts):
    """The N x N weights; ``counts`` gets how many normalisers are under the bound, and how many there are."""

    def call(p, x, prefix=None):
        grid, before = x.shape[1:-1], 0 if prefix is None else prefix.shape[1]
        tokens = x.flatten(1, -2) if prefix is None else torch.cat([prefix, x.flatten(1, -2)], 1)
        q, k, v = (
            t.unflatten(-1, (heads, -1)) for t in (tokens @ p["qkv.weight"].T + p["qkv.bias"]).chunk(3, -1)
        )
        products = torch.einsum("bihd,bjhd->bhij", q * (q > 0), k * (k > 0))
        total = products.sum(-1, keepdim=True)
        counts.append(((total < bound).sum().item(), total.numel()))
        weights = p["temperature"] * products / torch.where(total < bound, bound, total)
        out = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(-2) @ p["proj.weight"].T + p["proj.bias"]
        mapped = out[:, before:].unflatten(1, grid)
        return (mapped, out[:, :before]) if before else mapped

    return call


@pytest.mark.parametrize(
    ("grid", "prefix", "bound"), [((5, 7), 0, 3.0), ((4, 6), 2, 3.0), ((9,), 0, 100.0), ((2, 3, 2), 0, 1e-3)]
)
def test_the_mixer_is_its_equations(grid, prefix, bound):
    counts = []
    check_mixer(ReLULinearAttention(8, 2, min_norm=bound), reference(2, bound, counts), grid, prefix)
    under, total = counts[0]
    if bound == 3:
        assert 0 < under < total


def test_local_concentration():
    """By sums over offsets, on a grid smaller than the kernel as well."""
    module = randomized(LocalConcentration(3, 5)).eval()

    def convolved(x, name):
        weight, bias = module.get_parameter(f"{name}.weight"), module.get_parameter(f"{name}.bias")
        padded = torch.nn.functional.pad(x, (0, 0, 2, 2, 2, 2))
        taps = [(i, j) for i in range(5) for j in range(5)]
        h, w = x.shape[1:3]
        return bias + sum(weight[:, 0, i, j] * padded[:, i : i + h, j : j + w] for i, j in taps)

    for grid in ((3, 4), (7, 6)):
        x = torch.randn(1, *grid, 3, dtype=torch.float64)
        y = convolved(x, "conv1")
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
        bn = module.bn
        y = (y - bn.running_mean) / (bn.running_var + 1e-5).sqrt() * bn.weight + bn.bias
        close(module(x).detach(), convolved(y, "conv2").detach(), "local concentration")


def test_bad_arguments():
    for bound in (0, -1, float("inf")):
        with pytest.raises(ValueError, match=f"min_norm={bound}"):
            ReLULinearAttention(8, 2, min_norm=bound)


def test_the_names_are_the_authors():
    """Their convolutions ``cpe.0.proj`` are our ``cpe_0``; loading renames them."""

    def parts():
        yield conv("downsample_layers.0.proj.proj.0", 48, 3, 3)
        yield batch_norm("downsample_layers.0.proj.proj.1", 48)
        yield conv("downsample_layers.0.proj.proj.3", 96, 48, 3)
        yield batch_norm("downsample_layers.0.proj.proj.4", 96)
        yield norm("downsample_layers.0.norm", 96)
        for i, depth in enumerate((2, 2, 6, 2)):
            c = 96 * 2**i
            if i:
                yield norm(f"downsample_layers.{i}.norm", c // 2)
                yield conv(f"downsample_layers.{i}.proj", c, c // 2, 2)
            for j in range(depth):
                at = f"stages.{i}.{j}"
                yield conv(f"{at}.cpe.0.proj", c, 1, 3)
                yield norm(f"{at}.norm1", c)
                yield linear(f"{at}.attn.qkv", 3 * c, c)
                yield linear(f"{at}.attn.proj", c, c)
                yield norm(f"{at}.norm2", c)
                yield linear(f"{at}.mlp.fc1", 4 * c, c)
                yield linear(f"{at}.mlp.fc2", c, 4 * c)
                if j % 2:
                    yield {f"{at}.attn.temperature": (3 * 2**i, 1, 1)}
                    yield norm(f"{at}.norm3", c)
                    yield conv(f"{at}.local_mp.conv1", c, 1, 7)
                    yield batch_norm(f"{at}.local_mp.bn", c)
                    yield conv(f"{at}.local_mp.conv2", c, 1, 7)
                else:
                    yield conv(f"{at}.cpe.1.proj", c, 1, 3)
        yield norm("norm", 768)
        yield linear("head", 1000, 768)

    authors, model = merged(parts()), on_meta("l2vit_t")
    # the authors' stem is one level deeper
    assert {model.names.ours(key): shape for key, shape in authors.items()} == shapes(model)


def test_the_surface(tmp_path):
    check_surface("l2vit_t", tmp_path, embed_dim=8, depths=(1, 2, 1, 2), heads=1, window=3)
