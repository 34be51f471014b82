"""Gated positional self-attention, plain self-attention and ConViT."""

import itertools

import pytest
import torch

from tests.backbones.checks import check_mixer, conv, linear, merged, norm, on_meta, shapes, softmax_attention
from tests.backbones.surface import check_surface
from vidattn.backbones.mixers import GPSA, SoftmaxAttention


def gpsa(heads):
    """Both N x N maps in full, mixed and divided by their sum."""

    def call(p, x):
        grid = x.shape[1:-1]
        places = list(itertools.product(*map(range, grid)))
        away = torch.tensor([[[b - a for a, b in zip(i, j, strict=True)] for j in places] for i in places])
        r = torch.cat([away.flip(-1), (away**2).sum(-1, keepdim=True)], -1).double()
        tokens = x.flatten(1, -2)
        q, k = ((tokens @ w.T).unflatten(-1, (heads, -1)) for w in p["qk.weight"].chunk(2))
        v = (tokens @ p["v.weight"].T).unflatten(-1, (heads, -1))
        content = (torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        position = (r @ p["pos_proj.weight"].T + p["pos_proj.bias"]).permute(2, 0, 1).softmax(-1)
        gate = torch.sigmoid(p["gating_param"])[:, None, None]
        weights = (1 - gate) * content + gate * position
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(-2)
        return (out @ p["proj.weight"].T + p["proj.bias"]).unflatten(1, grid)

    return call


@pytest.mark.parametrize("grid", [(4, 6), (5, 3), (7,), (2, 3, 2)], ids=str)
def test_the_mixer_is_its_equations(grid):
    two = len(grid) == 2
    check_mixer(GPSA(12, 3, use_local_init=two, ndim=len(grid)), gpsa(3), grid)


@pytest.mark.parametrize("prefix", [0, 2])
def test_self_attention_is_its_equations(prefix):
    def call(p, x, prefix=None):
        before = 0 if prefix is None else prefix.shape[1]
        tokens = x.flatten(1, 2) if prefix is None else torch.cat([prefix, x.flatten(1, 2)], 1)
        q, k, v = (tokens @ p["qkv.weight"].T + p["qkv.bias"]).unflatten(-1, (3, 2, 4)).unbind(2)
        out = softmax_attention(q, k, v, 0.5).flatten(-2) @ p["proj.weight"].T + p["proj.bias"]
        mapped = out[:, before:].unflatten(1, x.shape[1:3])
        return mapped if prefix is None else (mapped, out[:, :before])

    check_mixer(SoftmaxAttention(8, 2), call, (3, 5), prefix)


@pytest.mark.parametrize(("heads", "centre"), [(4, 0.5), (11, 1)])
def test_heads_start_at_the_places_of_a_square(heads, centre):
    side = int(2 * centre) + 1
    mixer = GPSA(4 * heads, heads, locality_strength=9.0)
    assert torch.equal(mixer.v.weight, torch.eye(4 * heads))
    image = torch.zeros(1, 9, 9, heads, 4)
    image[0, 4, 4] = 1
    seen = mixer._by_position(image)[0, ..., 0].detach()
    if side % 2:
        for a, b in itertools.product(range(side), repeat=2):
            # the head that looks one row up sees the lit place one row below it
            assert seen[4 - (a - 1), 4 - (b - 1), a + side * b] > 0.99
    else:
        # between places: four are at the same distance
        for a, b in itertools.product(range(side), repeat=2):
            rows, columns = (slice(4, 6) if n == 0 else slice(3, 5) for n in (a, b))
            corner = seen[rows, columns, a + side * b]
            assert torch.allclose(corner, torch.full((2, 2), 0.25), atol=1e-3)


def test_bad_arguments():
    with pytest.raises(ValueError, match="ndim=0"):
        GPSA(8, 2, ndim=0)
    with pytest.raises(ValueError, match="use_local_init=True"):
        GPSA(8, 2, ndim=3)
    with pytest.raises(ValueError, match="grid of 1 axes"):
        GPSA(8, 2)(torch.randn(1, 4, 8))


def test_the_names_are_the_authors():
    def parts():
        yield {"cls_token": (1, 1, 432), "pos_embed": (1, 196, 432)}
        yield conv("patch_embed.proj", 432, 3, 16)
        for i in range(12):
            at = f"blocks.{i}"
            yield norm(f"{at}.norm1", 432)
            if i < 10:
                yield {f"{at}.attn.gating_param": (9,)}
                yield linear(f"{at}.attn.qk", 864, 432, bias=False)
                yield linear(f"{at}.attn.v", 432, 432, bias=False)
                yield linear(f"{at}.attn.pos_proj", 9, 3)
            else:
                yield linear(f"{at}.attn.qkv", 1296, 432, bias=False)
            yield linear(f"{at}.attn.proj", 432, 432)
            yield norm(f"{at}.norm2", 432)
            yield linear(f"{at}.mlp.fc1", 1728, 432)
            yield linear(f"{at}.mlp.fc2", 432, 1728)
        yield norm("norm", 432)
        yield linear("head", 1000, 432)

    assert shapes(on_meta("convit_small")) == merged(parts())


def test_the_surface(tmp_path):
    check_surface("convit_tiny", tmp_path, head_dim=8, depth=2, local=1, patch=16)
