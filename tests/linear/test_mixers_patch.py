"""Linear attention, hybrids and gates through vidattn.patch, and CLEAR's weights and aids."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

import vidattn
from tests.patches.tiny_pipelines import build, denoiser, inputs, model_of, run
from vidattn import TokenLayout
from vidattn.linear import FeatureMapAttention
from vidattn.patches.model_patch import patch_of
from vidattn.patterns import Disc


def forward(model: nn.Module, name: str, **sizes: int) -> Tensor:
    with torch.no_grad():
        return model(**inputs(name, **sizes), return_dict=False)[0]


def assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def mixers(model: nn.Module) -> dict[str, nn.Module]:
    found = patch_of(model)
    assert found is not None
    return {name: mixer for name, (_, mixer) in found.mixers.layers.items()}


@pytest.mark.parametrize("name", ["flux", "sd", "wan"])
def test_gates_and_sla_change_nothing_at_first(name):
    model = denoiser(name)
    dense = forward(model, name)
    before = set(model.state_dict())
    for pattern in ("gated", "gated:gate=elementwise", "sla:keep=1", "sla:keep=1,gate=headwise"):
        with vidattn.patched(model, pattern):
            assert_same(forward(model, name), dense)
            assert set(model.state_dict()) == before
            layers = mixers(model)
            assert layers
            for mixer in layers.values():  # they are there: other weights change the result
                for key, parameter in mixer.named_parameters():
                    if "gate" in key or "proj_l" in key:
                        nn.init.normal_(parameter)
            assert not torch.allclose(forward(model, name), dense)
    assert torch.equal(forward(model, name), dense)


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_linear_attention_is_computed_in_the_layer(name, monkeypatch):
    """The whole model with attention replaced by hand at the function that diffusers calls."""
    model = denoiser(name)
    reference = FeatureMapAttention(2, 16 if name == "flux" else 8, "softmax")
    from diffusers.models import attention_processor
    from diffusers.models.transformers import transformer_flux

    def linear(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        return reference(q, k, v, TokenLayout((1, 1, q.shape[1])))

    real = torch.nn.functional.scaled_dot_product_attention

    def sdpa(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        if q.shape[2] != k.shape[2]:
            return real(q, k, v, **options)
        return linear(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    with monkeypatch.context() as patching:
        if name == "flux":
            patching.setattr(transformer_flux, "dispatch_attention_fn", linear)
        else:
            patching.setattr(attention_processor.F, "scaled_dot_product_attention", sdpa)
        expected = forward(model, name)
    vidattn.patch(model, "linear", feature_map="softmax")
    assert_same(forward(model, name), expected)
    assert {r.density for r in vidattn.report(model).layers} == {0.0}


@pytest.mark.parametrize("pattern", ["linear:feature_map=hedgehog", "lolcats:size=1x2x2", "sla:keep=0.3"])
def test_trained_modules_are_loaded_and_train(tmp_path, pattern):
    model = denoiser("wan").train()
    vidattn.patch(model, pattern)
    assert ("need distillation" in str(vidattn.report(model))) is True
    model(**inputs("wan"), return_dict=False)[0].square().mean().backward()
    tensors = {}
    for layer, mixer in mixers(model).items():
        for key, parameter in mixer.named_parameters():
            assert parameter.grad is not None
            nn.init.normal_(parameter)
            tensors[f"{layer}.{key}"] = parameter.detach().clone()
    expected = forward(model, "wan")
    vidattn.unpatch(model)
    save_file(tensors, tmp_path / "w.safetensors")
    vidattn.patch(model, pattern, weights=tmp_path / "w.safetensors")
    assert torch.equal(forward(model, "wan"), expected)
    save_file(dict(list(tensors.items())[1:]), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors has no 'blocks\.0\.attn1\."):
        vidattn.patch(model, pattern, weights=tmp_path / "w.safetensors")
    if pattern.startswith("linear"):
        torch._dynamo.reset()
        vidattn.patch(model, "lolcats", size=(1, 2, 2), gate="headwise")
        block = model.blocks[0]
        eager = forward(model, "wan")
        block.compile(backend="eager", fullgraph=True)
        assert_same(forward(model, "wan"), eager)
        torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "pattern", "words"),
    [
        ("sd", "linear:feature_map=eluu", "feature_map='eluu'"),
        ("sd", "gated:gate=x", "gate='x'"),
        ("sd", "sla:keep=2", "keep=2"),
        ("sd", "lolcats:size=0", "size"),
        ("flux", {"*": "linear"} | {"x": None}, "'x' matches no layer"),
        ("flux", "clear:ntk_factor=0", "ntk_factor=0: must be a number greater than 0"),
        ("sd", "clear:ntk_factor=10", "has no rotary positions"),
    ],
)
def test_bad_options_change_nothing(name, pattern, words):
    model = denoiser(name)
    with pytest.raises(ValueError, match=words):
        vidattn.patch(model, pattern)
    assert not vidattn.report(model).patched


# ------------------------------------------------------------------ CLEAR
def flux_weights(model: nn.Module, f: int = 0) -> dict[str, Tensor]:
    """What CLEAR trains: the picture's projections of every layer, and the pooling weights."""
    torch.manual_seed(9)
    ends = tuple(f"attn.{p}.{k}" for p in ("to_q", "to_k", "to_v", "to_out.0") for k in ("weight", "bias"))
    state = model.state_dict()
    made = {name: torch.randn_like(state[name]) * 0.2 for name in state if name.endswith(ends)}
    if f:
        layers = [n for n, m in model.named_modules() if n.endswith("attn")]
        weights = {f"{n}.processor.spatial_weight": torch.rand(1, 1, 1, f, 1, f, 1) for n in layers}
        made |= weights
    return made


def by_hand(
    q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], text: int, radius: float, w: Tensor
) -> Tensor:
    """CLEAR with pooled keys: one mask over [text, picture, pooled]."""
    f, (h, width) = w.shape[0], grid

    def pool(t: Tensor) -> Tensor:
        cells = t[:, text:].unflatten(1, (h // f, f, width // f, f))
        return torch.einsum("bifjghd,fg->bijhd", cells, w).flatten(1, 2)

    keys, values = (torch.cat([t, pool(t)], 1) for t in (k, v))
    mask = torch.ones(q.shape[1], keys.shape[1], dtype=torch.bool)
    for a in range(h * width):
        for b in range(h * width):
            near = (a // width - b // width) ** 2 + (a % width - b % width) ** 2 < radius**2
            mask[text + a, text + b] = near
    mask[:text, q.shape[1] :] = False
    scores = torch.einsum("bshd,bthd->bhst", q, keys) / math.sqrt(q.shape[-1])
    return torch.einsum("bhst,bthd->bshd", scores.masked_fill(~mask, -torch.inf).softmax(-1), values)


def test_clear_with_pooled_keys_loads_its_weights(tmp_path, monkeypatch):
    model = denoiser("flux")
    dense = forward(model, "flux")
    tensors = flux_weights(model, 2)
    save_file(tensors, tmp_path / "clear.safetensors")
    from diffusers.models.transformers import transformer_flux

    trained = denoiser("flux")
    trained.load_state_dict({k: t for k, t in tensors.items() if "spatial" not in k}, strict=False)
    cells = iter([t.view(2, 2) for k, t in sorted(tensors.items()) if "spatial" in k and k.startswith("tr")])
    singles = [t.view(2, 2) for k, t in sorted(tensors.items()) if "spatial" in k and k.startswith("si")]
    order = iter([*cells, *singles])
    with monkeypatch.context() as patching:
        patching.setattr(
            transformer_flux,
            "dispatch_attention_fn",
            lambda q, k, v, **_: by_hand(q, k, v, (4, 6), 7, 2, next(order)),
        )
        expected = forward(trained, "flux")
    weights = tmp_path / "clear.safetensors"
    vidattn.patch(model, "clear", radius=2, pooled=2, weights=weights, min_tokens=0)
    assert_same(forward(model, "flux"), expected)
    assert {r.pattern for r in vidattn.report(model).layers} == {"clear:radius=2,pooled=2"}
    vidattn.unpatch(model)
    assert torch.equal(forward(model, "flux"), dense)
    vidattn.patch(model, "clear", radius=2, pooled=2, min_tokens=0)
    untrained = forward(model, "flux")
    vidattn.patch(model, Disc(2, pooled=2), min_tokens=0)
    assert_same(untrained, forward(model, "flux"))
    save_file(
        {k: t for k, t in tensors.items() if "single_transformer_blocks.1" not in k},
        tmp_path / "c.safetensors",
    )
    with pytest.raises(
        ValueError, match=r"has no 'single_transformer_blocks\.1\.attn\.processor\.spatial_weight'"
    ):
        vidattn.patch(model, "clear", radius=2, pooled=2, weights=tmp_path / "c.safetensors")


def test_lora_files_are_merged(tmp_path):
    model = denoiser("flux")
    dense = forward(model, "flux")
    config = LoraConfig(r=3, lora_alpha=3, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    other = denoiser("flux")
    other.add_adapter(config)
    pairs = {k.replace(".default", ""): t.detach() for k, t in other.state_dict().items() if "lora" in k}
    save_file(pairs, tmp_path / "lora.safetensors")
    vidattn.patch(other, "clear", radius=2, min_tokens=0)
    vidattn.patch(model, "clear", radius=2, min_tokens=0, weights=tmp_path / "lora.safetensors")
    assert_same(forward(model, "flux"), forward(other, "flux"))
    vidattn.patch(model, "clear", radius=2, min_tokens=0, weights=tmp_path / "lora.safetensors")  # not twice
    assert_same(forward(model, "flux"), forward(other, "flux"))
    vidattn.unpatch(model)
    assert torch.equal(forward(model, "flux"), dense)
    half = {k: t for k, t in pairs.items() if "lora_A" in k}
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="only one half of the LoRA pair"):
        vidattn.patch(model, "clear", weights=tmp_path / "half.safetensors")


def test_ntk_factor_is_undone():
    pipe = build("flux")
    model = model_of(pipe)
    dense = run("flux", pipe)
    theta = model.pos_embed.theta
    model.pos_embed.theta = 10 * theta
    expected = run("flux", pipe)
    model.pos_embed.theta = theta
    assert not torch.equal(expected, dense)
    with vidattn.patched(pipe, "clear", radius=99, ntk_factor=10, min_tokens=0):
        assert model.pos_embed.theta == theta
        assert_same(run("flux", pipe), expected)
    assert model.pos_embed.theta == theta
    assert torch.equal(run("flux", pipe), dense)
    with vidattn.patched(pipe, "clear", radius=99, ntk_factor=10, min_tokens=0, dense_steps=2):
        assert torch.equal(run("flux", pipe), dense)


@pytest.mark.parametrize("pooled", [0, 2])
def test_proportional_scale(monkeypatch, pooled):
    """Scores times sqrt(log N / log N0), N0 = 64^2 + text; with pooled keys of 10 N."""
    model = denoiser("flux")
    tokens = 4 * 6 + 7
    factor = math.sqrt(math.log(tokens * (10 if pooled else 1)) / math.log(4096 + 7))
    vidattn.patch(model, "clear", radius=3, pooled=pooled, min_tokens=0)
    from vidattn.patches import routes, substitute_kinds

    with monkeypatch.context() as patching:  # the same through queries that are scaled by hand
        for module, name in ((routes, "attention"), (substitute_kinds, "attention_with_pooled")):
            real = getattr(module, name)
            patching.setattr(module, name, lambda q, *a, real=real, **k: real(q * factor, *a, **k))
        expected = forward(model, "flux")
    plain = forward(model, "flux")
    vidattn.patch(model, "clear", radius=3, pooled=pooled, proportional=True, min_tokens=0)
    assert_same(forward(model, "flux"), expected)
    assert not torch.allclose(expected, plain)
