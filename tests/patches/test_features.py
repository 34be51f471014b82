"""diffusers' other features, before and after patching."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, FluxControlNetPipeline, StableDiffusionControlNetPipeline
from diffusers.models.attention_processor import AttnProcessor2_0, SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxIPAdapterAttnProcessor
from peft import LoraConfig
from torch import Tensor, nn

import vidattn
from tests.patches.families.image_models import build as image_model
from tests.patches.families.image_models import inputs as image_inputs
from tests.patches.tiny_pipelines import (
    NAMES,
    TEXT,
    FluxControlNetModel,
    WanVACETransformer3DModel,
    build,
    denoiser,
    flux_transformer,
    image_ids,
    inputs,
    model_of,
    run,
    wan_transformer,
)
from vidattn import TokenLayout
from vidattn.patterns import Neighborhood

SMALL = Neighborhood(3)
LORA = {"flux": ["to_q", "to_v"], "wan": ["to_q", "to_v"], "sd": ["to_q", "to_v"], "sdxl": ["to_q", "to_v"]}


def forward(model: nn.Module, name: str, **sizes: int) -> Tensor:
    with torch.no_grad():
        return model(**inputs(name, **sizes), return_dict=False)[0]


def assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", NAMES)
def test_fused_projections(name, order, sparse_calls):
    model = denoiser(name)
    vidattn.patch(model, SMALL, min_tokens=0)
    expected, calls = forward(model, name), len(sparse_calls)
    vidattn.unpatch(model)
    if order == "before":
        model.fuse_qkv_projections()
    vidattn.patch(model, SMALL, min_tokens=0)
    if order == "after":
        model.fuse_qkv_projections()
    assert_same(forward(model, name), expected)
    assert len(sparse_calls) == 2 * calls


class OwnProcessor(FluxAttnProcessor):
    """A user's subclass."""


class OwnFullProcessor(AttnProcessor2_0):
    """A user's subclass with a __call__ of its own."""

    def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Tensor:
        return super().__call__(attn, *args, **kwargs)


@pytest.mark.parametrize(("name", "processor"), [("flux", OwnProcessor), ("sd", OwnFullProcessor)])
def test_processors_set_after_patching(name, processor, sparse_calls):
    model = denoiser(name)
    vidattn.patch(model, SMALL, min_tokens=0)
    expected, calls = forward(model, name), len(sparse_calls)
    model.set_attn_processor(processor())
    assert torch.equal(forward(model, name), expected)
    assert len(sparse_calls) == 2 * calls
    assert {row.reason for row in vidattn.report(model).layers} == {""}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", NAMES)
def test_lora(name, order, sparse_calls):
    config = LoraConfig(r=2, target_modules=LORA[name], init_lora_weights=False)

    def adapted(patch_first: bool) -> nn.Module:
        model = denoiser(name)
        if patch_first:
            vidattn.patch(model, SMALL, min_tokens=0)
        torch.manual_seed(3)
        model.add_adapter(config)
        if not patch_first:
            vidattn.patch(model, SMALL, min_tokens=0)
        return model.eval()

    plain = denoiser(name)
    vidattn.patch(plain, SMALL, min_tokens=0)
    model = adapted(order == "after")
    got = forward(model, name)
    assert sparse_calls
    assert not torch.equal(got, forward(plain, name))
    assert torch.equal(got, forward(adapted(order != "after"), name))
    model.disable_adapters()
    assert_same(forward(model, name), forward(plain, name))


def test_flux_ip_adapter_keeps_the_patch_and_its_own_call_dense(sparse_calls):
    def adapted(model: nn.Module) -> nn.Module:
        torch.manual_seed(4)
        for block in model.transformer_blocks:
            block.attn.set_processor(FluxIPAdapterAttnProcessor(32, 32))
        return model.eval()

    def with_image(model: nn.Module) -> Tensor:
        torch.manual_seed(5)
        image = {"ip_hidden_states": [torch.randn(2, 4, 32)]}
        with torch.no_grad():
            return model(**inputs("flux"), joint_attention_kwargs=image, return_dict=False)[0]

    model = adapted(denoiser("flux"))
    dense = with_image(model)
    vidattn.patch(model, "neighborhood", window=99, min_tokens=0)
    assert_same(with_image(model), dense)
    after = denoiser("flux")
    vidattn.patch(after, SMALL, min_tokens=0)
    adapted(after)
    sparse_calls.clear()
    assert not torch.equal(with_image(after), dense)
    assert len(sparse_calls) == 4
    assert all(not row.reason for row in vidattn.report(after).layers)


def test_unet_ip_adapter_loaded_before_and_after(sparse_calls):
    """diffusers' own loader swaps all processors; the picture's call is cross-attention and stays dense."""

    def adapted(model: nn.Module) -> nn.Module:
        torch.manual_seed(4)
        modules = dict(model.named_modules())
        names = [name for name in modules if name.endswith("attn2")]
        names.sort(key=[n.removesuffix(".processor") for n in model.attn_processors].index)
        weights = {
            f"{2 * i + 1}.to_{x}_ip.weight": 0.3 * torch.randn(modules[name].to_k.out_features, 32)
            for i, name in enumerate(names)
            for x in "kv"
        }
        proj = {"proj.weight": torch.randn(4 * 32, 8), "proj.bias": torch.zeros(4 * 32)}
        norm = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
        model._load_ip_adapter_weights([{"image_proj": {**proj, **norm}, "ip_adapter": weights}])
        return model.eval()

    def with_image(model: nn.Module) -> Tensor:
        torch.manual_seed(5)
        image = {"image_embeds": [torch.randn(2, 1, 8)]}
        with torch.no_grad():
            return model(**inputs("sd"), added_cond_kwargs=image, return_dict=False)[0]

    model = adapted(denoiser("sd"))
    dense = with_image(model)
    vidattn.patch(model, "neighborhood", window=99, min_tokens=0, strict=True)
    assert_same(with_image(model), dense)
    before = denoiser("sd")
    vidattn.patch(before, SMALL, min_tokens=0, strict=True)
    vidattn.patch(model, SMALL, min_tokens=0, strict=True)
    sparse_calls.clear()
    assert_same(with_image(adapted(before)), with_image(model))
    assert len(sparse_calls) == 2 * 4
    assert (with_image(model) - dense).abs().max() > 1e-4
    vidattn.unpatch(model)
    assert torch.equal(with_image(model), dense)


def test_sd3_ip_adapter_keeps_the_patch(sparse_calls):
    def with_image(model: nn.Module) -> Tensor:
        torch.manual_seed(5)
        image = {"ip_hidden_states": torch.randn(2, 4, 16), "temb": torch.randn(2, 32)}
        with torch.no_grad():
            return model(**image_inputs("sd3", 4, 6), joint_attention_kwargs=image, return_dict=False)[0]

    model = image_model("sd3")
    vidattn.patch(model, SMALL, min_tokens=0, strict=True)
    torch.manual_seed(4)
    for block in model.transformer_blocks:
        block.attn.set_processor(SD3IPAdapterJointAttnProcessor2_0(32, 16, 8, 32).eval())
    small, calls = with_image(model), len(sparse_calls)
    assert calls == 3
    vidattn.patch(model, "neighborhood", window=99, min_tokens=0, strict=True)
    whole = with_image(model)
    vidattn.unpatch(model)
    assert_same(whole, with_image(model))
    assert (small - whole).abs().max() > 1e-4
    assert not torch.equal(whole, with_image_off(model))


def with_image_off(model: nn.Module) -> Tensor:
    with torch.no_grad():
        image = {"ip_hidden_states": torch.zeros(2, 4, 16), "temb": torch.zeros(2, 32)}
        return model(**image_inputs("sd3", 4, 6), joint_attention_kwargs=image, return_dict=False)[0]


def test_flux_controlnet_in_a_pipeline(sparse_calls):
    base = build("flux")
    torch.manual_seed(6)
    controlnet = flux_transformer(FluxControlNetModel, num_layers=1, num_single_layers=1)
    for parameter in [
        *controlnet.controlnet_blocks.parameters(),
        *controlnet.controlnet_single_blocks.parameters(),
    ]:
        nn.init.normal_(parameter, std=0.5)  # they start at zero, which would hide the ControlNet
    pipe = FluxControlNetPipeline(**base.components | {"controlnet": controlnet})
    pipe.set_progress_bar_config(disable=True)
    control = {"control_image": torch.rand(1, 3, 64, 96), "controlnet_conditioning_scale": 1.0}
    dense = run("flux", pipe, **control)
    vidattn.patch(pipe, "neighborhood", window=99, min_tokens=0)
    assert_same(run("flux", pipe, **control), dense)
    assert len(sparse_calls) == 2 * (4 + 2)
    assert {row.model for row in vidattn.report(pipe).layers} == {"transformer", "controlnet"}
    vidattn.patch(pipe, {"controlnet.*": None, "*": SMALL}, min_tokens=0)
    sparse_calls.clear()
    assert not torch.equal(run("flux", pipe, **control), dense)
    assert len(sparse_calls) == 2 * 4


def test_a_union_controlnet_has_one_more_token_before_the_text(sparse_calls):
    torch.manual_seed(6)
    model = flux_transformer(FluxControlNetModel, num_layers=1, num_single_layers=1, num_mode=2)
    mode = {"controlnet_cond": torch.randn(2, 24, 16), "controlnet_mode": torch.tensor([[1], [1]])}
    vidattn.patch(model, SMALL, min_tokens=0, strict=True)
    with torch.no_grad():
        model(**inputs("flux"), **mode)
    assert len(sparse_calls) == 2
    assert vidattn.report(model).layers[0].text_tokens == 8


def test_kontext_reference_tokens_are_seen_by_all(sparse_calls):
    model = denoiser("flux")
    call = inputs("flux")
    call["img_ids"] = torch.cat([image_ids(4, 6), image_ids(3, 5, group=1)])
    call["hidden_states"] = torch.randn(2, 24 + 15, 16)
    with torch.no_grad():
        dense = model(**call).sample
        vidattn.patch(model, "neighborhood", window=99, min_tokens=0)
        assert_same(model(**call).sample, dense)
        vidattn.patch(model, SMALL, min_tokens=0, strict=True)
        assert not torch.equal(model(**call).sample, dense)
    row = vidattn.report(model).layers[0]
    assert row.grid == (1, 4, 6)
    assert row.text_tokens == 7 + 15
    assert "15 reference tokens see all and are seen by all" in str(vidattn.report(model))
    assert row.density == SMALL.density(TokenLayout((1, 4, 6), text_before=7, text_after=15))


def test_wan_vace_and_two_transformers(sparse_calls):
    torch.manual_seed(0)
    model = wan_transformer(WanVACETransformer3DModel, vace_layers=[0], vace_in_channels=16)
    call = inputs("wan") | {"control_hidden_states": torch.randn(2, 16, 3, 8, 12)}
    vidattn.patch(model, SMALL, min_tokens=0, strict=True)
    with torch.no_grad():
        model(**call)
    assert len(sparse_calls) == 3
    pipe = build("wan")
    pipe.register_modules(transformer_2=denoiser("wan"))
    pipe.register_to_config(boundary_ratio=0.9)
    handle = vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=1)
    assert len(handle.models) == 2
    run("wan", pipe, num_inference_steps=4, guidance_scale=1.0)
    seen = {(row.model, row.steps): row.forwards for row in vidattn.report(pipe).layers}
    assert {model for model, _ in seen} == {"transformer", "transformer_2"}
    assert seen["transformer", "first 1"] == 1
    assert sum(seen.values()) == 4
    assert ("transformer_2", "first 1") not in seen


@pytest.mark.parametrize("name", NAMES)
def test_gradients_with_checkpointing_equal_those_without(name, sparse_calls):
    model = denoiser(name).train()
    vidattn.patch(model, SMALL, min_tokens=0)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        # two forwards of different sizes before the backward: each must be recomputed as it ran
        wide = model(**inputs(name, height=4, width=6), return_dict=False)[0]
        tall = model(**inputs(name, height=6, width=4), return_dict=False)[0]
        (wide.square().mean() + tall.square().mean()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected, calls = gradients(), len(sparse_calls)
    model.enable_gradient_checkpointing()
    got = gradients()
    assert len(sparse_calls) == 3 * calls  # forward, and forward with recomputation
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()) + 1e-9)
    model.disable_gradient_checkpointing()
    vidattn.unpatch(model)
    assert not any("_Carrying" in type(v).__name__ for m in model.modules() for v in vars(m).values())


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_group_offload_hooks(name, kind, order, sparse_calls):
    from diffusers.hooks import apply_group_offloading

    model = denoiser(name)
    vidattn.patch(model, SMALL, min_tokens=0)
    expected, calls = forward(model, name), len(sparse_calls)
    vidattn.unpatch(model)
    cpu = torch.device("cpu")
    if order == "after":
        vidattn.patch(model, SMALL, min_tokens=0)
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(model, cpu, cpu, offload_type=kind, **blocks)
    if order == "before":
        vidattn.patch(model, SMALL, min_tokens=0)
    sparse_calls.clear()
    assert torch.equal(forward(model, name), expected)
    assert len(sparse_calls) == calls


def test_threads_share_one_patched_model():
    model, plain = denoiser("flux"), denoiser("flux")
    vidattn.patch(model, SMALL, min_tokens=0)
    sizes = [(4, 6), (6, 4), (5, 5), (3, 8)]
    expected = [forward(model, "flux", height=h, width=w) for h, w in sizes]
    dense = forward(plain, "flux")
    arguments = [inputs("flux", height=h, width=w) for h, w in sizes]
    same = inputs("flux")
    wrong: list[str] = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(15):
                got = model(**arguments[number], return_dict=False)[0]
                if not torch.equal(got, expected[number]):
                    wrong.append(f"size {sizes[number]}")
                if not torch.equal(plain(**same, return_dict=False)[0], dense):
                    wrong.append("the unpatched model")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_training_changes_the_same_weights(sparse_calls):
    model = denoiser("flux").train()
    vidattn.patch(model, SMALL, min_tokens=0)
    model(**inputs("flux"), return_dict=False)[0].square().mean().backward()
    assert sparse_calls
    assert all(b.attn.to_q.weight.grad.abs().max() > 0 for b in model.transformer_blocks)


def test_text_length_is_read_at_every_call(sparse_calls):
    model = denoiser("flux")
    dense = [forward(model, "flux", text=n) for n in (3, 9)]
    vidattn.patch(model, "neighborhood", window=99, min_tokens=0, strict=True)
    for n, expected in zip((3, 9), dense, strict=True):
        assert_same(forward(model, "flux", text=n), expected)
    assert {row.text_tokens for row in vidattn.report(model).layers} == {3, 9}
    assert TEXT not in {3, 9}


def test_a_model_inside_torch_compile_is_found():
    pipe = build("flux")
    inner = model_of(pipe)
    pipe.transformer = torch.compile(inner, backend="eager")
    handle = vidattn.patch(pipe, SMALL)
    assert handle.models == [inner]
    vidattn.unpatch(pipe)
    assert vidattn.report(pipe).patched is False


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_autocast(name, sparse_calls):
    model = denoiser(name)
    for module in model.modules():
        if module.__class__.__name__ in ("FluxAttention", "Attention"):
            # as on GPUs: autocast leaves norms in float32, and only attention brings the types together
            source = module.norm_q if name == "flux" else module.to_q
            source.register_forward_hook(lambda *a: a[2].float())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        dense = model(**inputs(name), return_dict=False)[0]
        vidattn.patch(model, "neighborhood", window=99, min_tokens=0, strict=True, backend="torch")
        got = model(**inputs(name), return_dict=False)[0]
    assert sparse_calls
    assert got.dtype == dense.dtype
    torch.testing.assert_close(got, dense, rtol=0, atol=3e-2 * float(dense.abs().max()))


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", ["flux", "wan", "sd"])
def test_accelerate_offload_hooks(name, order, sparse_calls):
    """Parameters are on the meta device between the calls of their modules."""
    from accelerate import cpu_offload

    model = denoiser(name)
    vidattn.patch(model, SMALL, min_tokens=0)
    expected, calls = forward(model, name), len(sparse_calls)
    vidattn.unpatch(model)
    if order == "after":
        vidattn.patch(model, SMALL, min_tokens=0)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    if order == "before":
        vidattn.patch(model, SMALL, min_tokens=0)
    sparse_calls.clear()
    assert torch.equal(forward(model, name), expected)
    assert len(sparse_calls) == calls
    vidattn.unpatch(model)
    assert not torch.equal(forward(model, name), expected)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_whole_models_moved_by_their_pipeline(name, sparse_calls):
    """As enable_model_cpu_offload does: accelerate replaces forward, and patching may come first or last."""
    from accelerate import cpu_offload_with_hook

    model = denoiser(name)
    vidattn.patch(model, SMALL, min_tokens=0)
    expected, calls = forward(model, name), len(sparse_calls)
    cpu_offload_with_hook(model, torch.device("cpu"))
    assert torch.equal(forward(model, name), expected)
    vidattn.patch(model, SMALL, min_tokens=0)
    assert torch.equal(forward(model, name), expected)
    assert len(sparse_calls) == 3 * calls


def test_own_processors_set_before_patching(sparse_calls):
    model = denoiser("sd")
    vidattn.patch(model, SMALL, min_tokens=0)
    expected = forward(model, "sd")
    vidattn.unpatch(model)
    model.set_attn_processor(OwnFullProcessor())
    gc.collect()
    with vidattn.patched(denoiser("wan"), SMALL):
        pass  # no patch is left anywhere, so diffusers' own classes are as they were
    vidattn.patch(model, SMALL, min_tokens=0)
    sparse_calls.clear()
    assert torch.equal(forward(model, "sd"), expected)
    assert len(sparse_calls) == 4
    assert {row.reason for row in vidattn.report(model).layers} == {""}


def test_sd_controlnet_in_a_pipeline(sparse_calls):
    base = build("sd")
    controlnet = ControlNetModel.from_unet(
        model_of(base), conditioning_embedding_out_channels=(8, 8, 8, 8)
    ).eval()
    torch.manual_seed(6)
    for block in [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]:
        nn.init.normal_(block.weight, std=0.5)
    pipe = StableDiffusionControlNetPipeline(
        **base.components | {"controlnet": controlnet}, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    picture = {"image": torch.rand(1, 3, 64, 96)}
    dense = run("sd", pipe, **picture)
    vidattn.patch(pipe, "neighborhood", window=99, min_tokens=0)
    assert_same(run("sd", pipe, **picture), dense)
    vidattn.patch(pipe, Neighborhood(1), min_tokens=0, strict=True)
    assert not torch.equal(run("sd", pipe, **picture), dense)
    assert {row.model for row in vidattn.report(pipe).layers} == {"unet", "controlnet"}
