"""Mixers in a ViT with timm's names, class token and register in front."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.backbones.checks import softmax_attention
from vidattn.backbones.mixers import BiLevelRoutingAttention, NeighborhoodAttention
from vidattn.backbones.timm_vit import patch_timm_vit


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, norm: bool = False) -> None:
        super().__init__()
        self.num_heads = heads
        self.q_norm = nn.LayerNorm(dim // heads) if norm else nn.Identity()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, attn_mask=None, is_causal=False) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ViT(nn.Module):
    def __init__(self, prefix: int = 2, norm: bool = False) -> None:
        super().__init__()
        self.num_prefix_tokens = prefix
        self.patch_embed = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2))
        self.patch_embed.patch_size = (4, 4)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 16))
        self.blocks = nn.ModuleList(nn.Module() for _ in range(2))
        for block in self.blocks:
            block.attn = Attention(16, 2, norm)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = x + block.attn(x, attn_mask=None, is_causal=False)
        return x


def all_keys(kind: str) -> dict:
    """Settings under which the mixer sees everything."""
    return {
        "NeighborhoodAttention": {"kernel_size": 99},
        "BiLevelRoutingAttention": {"n_regions": 2, "topk": 4, "scale": "head"},
    }[kind]


@pytest.mark.parametrize("kind", ["NeighborhoodAttention", "BiLevelRoutingAttention"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_it_starts_at_the_pretrained_attention(kind, prefix):
    model, image = ViT(prefix).double().eval(), torch.randn(2, 3, 20, 12, dtype=torch.float64)
    before, state = model(image), set(model.state_dict())
    patched = patch_timm_vit(model, kind, **all_keys(kind))
    assert len(patched.layers) == 2
    torch.testing.assert_close(model(image), before)
    patched.undo()
    assert torch.equal(model(image), before)
    assert set(model.state_dict()) == state


def test_windows_with_global_prefix_tokens():
    model, image = ViT(1).double().eval(), torch.randn(1, 3, 16, 20, dtype=torch.float64)
    layer = model.blocks[0].attn
    tokens = torch.cat([model.prefix, model.patch_embed(image).transpose(1, 2)], 1)
    q, k, v = (t.unflatten(-1, (2, 8)) for t in layer.qkv(tokens).chunk(3, -1))
    rows, columns = torch.arange(20) // 5, torch.arange(20) % 5
    starts = [(t - 1).clamp(0, n - 3) for t, n in ((rows, 4), (columns, 5))]
    seen = torch.ones(21, 21, dtype=torch.bool)
    inside = [(s[:, None] <= t) & (t < s[:, None] + 3) for s, t in zip(starts, (rows, columns), strict=True)]
    seen[1:, 1:] = inside[0] & inside[1]
    expected = layer.proj(softmax_attention(q, k, v, 8**-0.5, seen).flatten(-2))
    patched = patch_timm_vit(model, lambda dim, heads: NeighborhoodAttention(dim, heads, 3))
    model.patch_embed(image)
    torch.testing.assert_close(patched.layers[0](tokens), expected)


@pytest.mark.parametrize("kind", ["MALA", "RALA", "InLineAttention"])
def test_linear_mixers_train(kind):
    options = {"rope": False} if kind != "InLineAttention" else {}
    model = ViT()
    patch_timm_vit(model, kind, **options)
    model(torch.randn(1, 3, 12, 16)).square().sum().backward()
    mixer = model.blocks[0].attn.mixer
    local = mixer.residual[-1] if kind == "InLineAttention" else mixer.lepe
    assert (local.weight == 0).all()
    assert all(p.grad is not None for p in model.parameters())


def test_the_model_is_not_changed_by_errors():
    model = ViT()
    for mixer, options, error, message in (
        ("NeighbourhoodAttention", {}, ValueError, "did you mean 'NeighborhoodAttention'"),
        ("HiLoAttention", {}, ValueError, "takes no prefix tokens, and the model has 2"),
        (lambda d, h: BiLevelRoutingAttention(d, h, qk_dim=8), {}, ValueError, "cannot start from"),
        (NeighborhoodAttention, {"kernel_size": 3}, TypeError, "not for a function"),
    ):
        with pytest.raises(error, match=message):
            patch_timm_vit(model, mixer, **options)
        assert all(type(block.attn) is Attention for block in model.blocks)
        assert not model.patch_embed._forward_pre_hooks
    with pytest.raises(TypeError, match="Linear has no blocks"):
        patch_timm_vit(nn.Linear(2, 2), "MALA")
    with pytest.raises(ValueError, match="has a q_norm"):
        patch_timm_vit(ViT(norm=True), "MALA")


def test_masks_and_other_grids_are_refused():
    model = ViT()
    patched = patch_timm_vit(model, "NeighborhoodAttention", kernel_size=3)
    model(torch.randn(1, 3, 12, 16))
    with pytest.raises(ValueError, match="mask"):
        patched.layers[0](torch.randn(1, 14, 16), is_causal=True)
    with pytest.raises(RuntimeError, match="8 grid tokens"):
        patched.layers[0](torch.randn(1, 10, 16))
