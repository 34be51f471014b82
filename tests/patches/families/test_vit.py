"""Image encoders of transformers, and a stand-in with timm's names: patterns on the grid, prefix global."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import vidattn
from vidattn import TokenLayout
from vidattn.patterns import from_text

SMALL = "neighborhood:window=3x3"
SETTINGS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 40,
    "patch_size": 8,
}


class Attention(nn.Module):
    """The attention of timm, by its names."""

    def __init__(self, dim: int, heads: int, fused: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused_attn = heads, dim // heads, fused
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if self.fused_attn:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        else:
            out = (q @ k.transpose(-1, -2) * self.head_dim**-0.5).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).flatten(2))


class VisionTransformer(nn.Module):
    """timm's ViT, by its names, with a class token and two registers."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.num_prefix_tokens = 3
        self.patch_embed = nn.Module()
        self.patch_embed.patch_size, self.patch_embed.grid_size = (8, 8), (5, 5)
        self.patch_embed.proj = nn.Conv2d(3, 16, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, 3, 16))
        self.blocks = nn.Sequential(*(nn.Module() for _ in range(2)))
        for block in self.blocks:
            block.attn = Attention(16, 2, fused)
            block.norm1 = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = x + block.attn(block.norm1(x), attn_mask=None, is_causal=False)
        return x


class Distilled(VisionTransformer):
    """A class below timm's, as its DeiT is."""


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (lambda: ViTModel(ViTConfig(**SETTINGS)), 1),
    "vit-classifier": (lambda: ViTForImageClassification(ViTConfig(**SETTINGS, num_labels=3)), 1),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**SETTINGS)), 1),
    "dinov2-registers": (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SETTINGS)), 5),
    "dinov3": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**SETTINGS, num_register_tokens=2)), 3),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**SETTINGS)), 0),
    "timm": (Distilled, 3),
}


def build(name: str) -> nn.Module:
    model = MODELS[name][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def run(model: nn.Module, image: Tensor) -> Tensor:
    out = model(image)
    return out if isinstance(out, Tensor) else out[0]


@contextmanager
def masked(layout: TokenLayout, seen: list[int]) -> Iterator[None]:
    """torch's attention with the pattern's mask, wherever a call is on the layout's tokens."""
    # torch's own module: the name F of this file is rebound while models are patched, for the stand-in's sake
    torch_functional = torch.nn.functional
    mask, real = from_text(SMALL).mask(layout), torch_functional.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options) -> Tensor:
        assert attn_mask is None
        seen.append(q.shape[-2])
        return real(q, k, v, attn_mask=mask, **options)

    torch_functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        torch_functional.scaled_dot_product_attention = real


@pytest.mark.parametrize("name", MODELS)
def test_patched_is_masked(name):
    model, image = build(name), torch.randn(2, 3, 40, 40)
    dense = run(model, image)
    layout, seen = TokenLayout((1, 5, 5), text_before=MODELS[name][1]), []
    with masked(layout, seen):
        expected = run(model, image)
    assert seen == [layout.tokens] * 2
    handle = vidattn.patch(model, SMALL, min_tokens=1)
    torch.testing.assert_close(run(model, image), expected, rtol=1e-4, atol=1e-4)
    assert (expected - dense).abs().max() > 1e-2
    lines = str(handle.report())
    assert "1x5x5" in lines
    assert SMALL in lines
    handle.unpatch()
    assert torch.equal(run(model, image), dense)
    assert not any(key.startswith("_vidattn") for m in model.modules() for key in vars(m))


def test_other_image_sizes():
    model, image = build("dinov2"), torch.randn(1, 3, 56, 24)
    vidattn.patch(model, SMALL, min_tokens=1)
    got, report = run(model, image), str(vidattn.report(model))
    vidattn.unpatch(model)
    with masked(TokenLayout((1, 7, 3), text_before=1), []):
        torch.testing.assert_close(got, run(model, image), rtol=1e-4, atol=1e-4)
    assert "1x7x3" in report


def test_two_models_of_a_class_are_apart():
    one, other = build("vit"), build("vit")
    image = torch.randn(1, 3, 40, 40)
    before = run(other, image)
    vidattn.patch(one, SMALL, min_tokens=1)
    assert torch.equal(run(other, image), before)
    vidattn.unpatch(one)


def test_implementations_that_are_not_reached_are_told():
    model, image = build("vit"), torch.randn(1, 3, 40, 40)
    model.set_attn_implementation("eager")
    dense = run(model, image)
    with vidattn.patched(model, SMALL, min_tokens=1) as handle:
        assert torch.equal(run(model, image), dense)
        assert "ViTAttention computes attention in its own way" in str(handle.report())
    plain = VisionTransformer(fused=False).eval()
    dense = run(plain, image)
    with vidattn.patched(plain, SMALL, min_tokens=1) as handle:
        assert torch.equal(run(plain, image), dense)
        assert "Attention computes attention in its own way" in str(handle.report())


def test_gradient_checkpointing():
    model, image = build("vit"), torch.randn(1, 3, 40, 40)
    vidattn.patch(model, SMALL, min_tokens=1)
    model.train()
    gradients = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        model.zero_grad()
        run(model, image).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
    vidattn.unpatch(model)


def test_compiled():
    model, image = build("timm"), torch.randn(1, 3, 40, 40)
    vidattn.patch(model, SMALL, min_tokens=1)
    expected = run(model, image)
    torch.compiler.reset()
    with torch.no_grad():
        got = torch.compile(model, fullgraph=True, backend="eager")(image)
    torch.testing.assert_close(got, expected)
    vidattn.unpatch(model)
    torch.compiler.reset()


def test_no_image_no_grid():
    model = build("timm")
    model.forward = lambda x: x
    with vidattn.patched(model, SMALL, min_tokens=1) as handle:
        model(torch.randn(1, 3, 40))
        assert "no (batch, channels, height, width) image" in str(handle.report())


def test_it_is_listed():
    assert {"ViTModel", "VisionTransformer", "SiglipVisionModel"} <= set(vidattn.supported()["vit"])
