"""vidattn.patch(pipe, "linfusion"): against UNets whose attn1 modules are replaced by hand."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

import vidattn
from tests.patches.tiny_pipelines import build, denoiser, inputs, model_of, run
from vidattn.linear import LinFusionAttention


def attn1(model: nn.Module) -> list[str]:
    """In the order of the modules, which is that of published files."""
    return [name for name, _ in model.named_modules() if name.endswith("attn1")]


class Replaced(LinFusionAttention):
    """Takes what a transformer block passes to attn1."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(hidden_states)


def replaced(
    model: nn.Module, tensors: dict[str, Tensor] | None = None, mid_dim: int | None = None
) -> nn.Module:
    """A copy of the model with LinFusion modules, pretrained or with published tensors."""
    made = copy.deepcopy(model)
    for number, name in enumerate(attn1(made)):
        module = Replaced.from_pretrained_attention(made.get_submodule(name), mid_dim)
        if tensors is not None:
            prefix = f"{number}."
            module.load_state_dict({k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)})
        head, _, tail = name.rpartition(".")
        setattr(made.get_submodule(head), tail, module)
    return made


def published(model: nn.Module, mid_dim: int | None = None) -> dict[str, Tensor]:
    """Random weights in the authors' layout."""
    torch.manual_seed(5)
    made = {}
    for number, name in enumerate(attn1(model)):
        attn: Any = model.get_submodule(name)
        module = LinFusionAttention(attn.to_q.in_features, attn.heads, mid_dim)
        made |= {f"{number}.{key}": tensor for key, tensor in module.state_dict().items()}
    return made


def forward(model: nn.Module, name: str = "sd", **sizes: int) -> Tensor:
    with torch.no_grad():
        return model(**inputs(name, **sizes), return_dict=False)[0]


def assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "mid_dim"), [("sd", None), ("sdxl", 2)])
def test_starts_as_linear_attention_on_the_pretrained_projections(name, mid_dim):
    model = denoiser(name)
    dense = forward(model, name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    handle = vidattn.patch(model, "linfusion")
    assert "need distillation" in str(handle.report())
    assert_same(forward(model, name), forward(replaced(model, mid_dim=mid_dim), name))
    assert_same(forward(model, name, height=6, width=10), forward(replaced(model), name, height=6, width=10))
    report = vidattn.report(model)
    assert {(row.pattern, row.backend, row.density) for row in report.layers} == {
        ("linfusion", "linear", 0.0)
    }
    assert "need distillation" in str(report)
    assert model.state_dict().keys() == before.keys()
    vidattn.unpatch(model)
    assert torch.equal(forward(model, name), dense)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not [m for m in model.modules() if any(key.startswith("_vidattn") for key in vars(m))]


@pytest.mark.parametrize("layout", ["in order", "by config.json", "our names"])
@pytest.mark.parametrize(("name", "mid_dim"), [("sd", None), ("sdxl", 3), ("sd", -1)])
def test_published_weights_load(tmp_path, layout, name, mid_dim):
    model = denoiser(name)
    dense, tensors = forward(model, name), published(model, mid_dim)
    expected = forward(replaced(model, tensors, mid_dim), name)
    names = attn1(model)
    if layout == "by config.json":
        order = list(reversed(range(len(names))))
        tensors = {f"{order[int(k[0])]}{k[1:]}": t for k, t in tensors.items()}
        listed = [{"module_name": names[i]} for i in order]
        (tmp_path / "config.json").write_text(json.dumps({"modules_list": listed}))
    elif layout == "our names":
        tensors = {f"{names[int(k[0])]}{k[1:]}": t for k, t in tensors.items()}
    file = tmp_path / "w.safetensors"
    save_file(tensors, file)
    vidattn.patch(model, "linfusion", weights=file)
    assert_same(forward(model, name), expected)
    assert "distillation" not in str(vidattn.report(model))
    vidattn.unpatch(model)
    assert torch.equal(forward(model, name), dense)


def test_layers_and_steps_that_are_dense_have_their_own_weights(tmp_path):
    pipe = build("sd")
    model = model_of(pipe)
    dense, latents = forward(model), run("sd", pipe)
    save_file(published(model), tmp_path / "w.safetensors")
    weights = {"weights": tmp_path / "w.safetensors"}
    with vidattn.patched(pipe, "linfusion", dense_layers="*", **weights):
        assert torch.equal(forward(model), dense)
    with vidattn.patched(pipe, "linfusion", dense_steps=2, **weights):
        assert torch.equal(run("sd", pipe), latents)
    with vidattn.patched(pipe, "linfusion", min_tokens=1000, **weights):
        assert torch.equal(forward(model), dense)
    linear = {}
    for steps in (0, 1):
        with vidattn.patched(pipe, "linfusion", dense_steps=steps, **weights):
            linear[steps] = run("sd", pipe)
            rows = vidattn.report(pipe).layers
            assert {row.pattern for row in rows} == ({"linfusion"} if steps == 0 else {"linfusion", "dense"})
    assert len({*map(lambda t: float(t.sum()), (latents, *linear.values()))}) == 3  # noqa: C417
    assert torch.equal(run("sd", pipe), latents)
    first = vidattn.report(vidattn.patch(pipe, "linfusion", dense_layers=0, **weights) and pipe)
    assert [p for _, _, p in first.planned] == ["dense", *["linfusion"] * 3]
    forward(model)
    vidattn.unpatch(pipe)
    assert torch.equal(forward(model), dense)


def test_wrong_weights_change_nothing(tmp_path):
    model = denoiser("sd")
    good = published(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    nan = good["1.to_v.weight"].clone()
    nan[0, 0] = float("nan")
    kept = lambda test: {k: t for k, t in good.items() if test(k)}  # noqa: E731
    fewer = "holds 3 layers and UNet2DConditionModel has 4"
    broken = "'1.to_v.weight' in nan.safetensors holds values that are not finite"
    files: dict[str, tuple[dict[str, Tensor], str]] = {
        "other": ({k: t for k, t in published(denoiser("sdxl")).items() if k[0] < "4"}, "has shape"),
        "fewer": (kept(lambda k: k[0] != "3"), fewer),
        "missing": (kept(lambda k: k != "2.to_q.weight"), "has no '.*attn1.to_q.weight'"),
        "network": (kept(lambda k: k != "2.to_q_.3.bias"), "has no '.*attn1.to_q_.3.bias'"),
        "more": (good | {"0.to_w.weight": torch.ones(1)}, r"holds '.*attn1\.to_w\.weight'"),
        "nan": (good | {"1.to_v.weight": nan}, broken),
        "shape": (good | {"0.to_v.weight": torch.ones(3, 3)}, r"shape \(3, 3\)"),
        "clear": ({k: t for k, t in before.items() if "attn1.to_q" in k}, r"has no '.*attn1\.to_k\.weight'"),
    }  # fmt: skip
    for name, (tensors, message) in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=message):
            vidattn.patch(model, "linfusion", weights=tmp_path / f"{name}.safetensors")
    (tmp_path / "pickled.safetensors").write_bytes(pickle.dumps(good))
    torch.save(good, tmp_path / "w.bin")
    for file, message in (
        ("pickled.safetensors", "not readable"),
        ("w.bin", "only .safetensors files are read"),
    ):
        with pytest.raises(ValueError, match=message):
            vidattn.patch(model, "linfusion", weights=tmp_path / file)
    assert not vidattn.report(model).patched
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="preset 'linfusion' is for unet models, not for flux"):
        vidattn.patch(denoiser("flux"), "linfusion")
    with pytest.raises(ValueError, match="preset 'linfusion' has no option 'middim'"):
        vidattn.patch(denoiser("sd"), "linfusion", middim=3)
    with pytest.raises(ValueError, match="mid_dim=0"):
        vidattn.patch(denoiser("sd"), "linfusion:mid_dim=0")
    with pytest.raises(ValueError, match="runs in both branches"):
        vidattn.patch(build("sd"), {"pattern": "linfusion", "branch": "conditional"})


@pytest.mark.parametrize("first", ["patch", "lora"])
def test_lora_acts_on_the_trained_projections(tmp_path, first):
    model = denoiser("sd")
    tensors = published(model)
    save_file(tensors, tmp_path / "w.safetensors")
    config = LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    expected_model = replaced(model, tensors)
    for made in (expected_model, model):
        if made is model and first == "patch":
            vidattn.patch(model, "linfusion", weights=tmp_path / "w.safetensors")
        torch.manual_seed(3)
        made.add_adapter(config)
    if first == "lora":
        vidattn.patch(model, "linfusion", weights=tmp_path / "w.safetensors")
    lora = {k: v for k, v in model.state_dict().items() if ".lora_" in k}
    expected_model.load_state_dict(lora, strict=False)
    assert lora
    assert_same(forward(model), forward(expected_model))
    model.disable_adapters()
    assert_same(forward(model), forward(replaced(denoiser("sd"), tensors)))


def test_fused_projections_processors_and_copies():
    model = denoiser("sd")
    vidattn.patch(model, "linfusion")
    expected = forward(model)
    model.set_attn_processor(AttnProcessor2_0())
    assert torch.equal(forward(model), expected)
    twin = copy.deepcopy(model)
    assert torch.equal(forward(twin), expected)
    model.fuse_qkv_projections()
    assert_same(forward(model), expected)
    model.double()
    double = {k: v.double() if isinstance(v, Tensor) else v for k, v in inputs("sd").items()}
    with torch.no_grad():
        assert_same(model(**double, return_dict=False)[0].float(), expected)


class Identity:
    """As perturbed attention guidance has it."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return attn.to_out[0](attn.to_v(hidden_states))


def test_processors_with_a_meaning_of_their_own_stay(tmp_path):
    model = denoiser("sd")
    name = attn1(model)[0]
    model.get_submodule(name).set_processor(Identity())
    vidattn.patch(model, "linfusion")
    forward(model)
    row = next(r for r in vidattn.report(model).layers if r.layer == name)
    assert (row.pattern, row.reason) == ("dense", "Identity computes attention in its own way")
    save_file(published(model), tmp_path / "w.safetensors")
    vidattn.patch(model, "linfusion", weights=tmp_path / "w.safetensors")
    with pytest.raises(RuntimeError, match="linfusion cannot run in a layer: Identity"):
        forward(model)


def test_beside_a_controlnet(tmp_path):
    pipe = build("sd")
    torch.manual_seed(6)
    net = ControlNetModel.from_unet(pipe.unet, conditioning_channels=3).eval()
    for parameter in net.controlnet_down_blocks.parameters():
        nn.init.normal_(parameter, std=0.5)  # they start at zero, which would hide the ControlNet
    tensors = published(pipe.unet)
    save_file(tensors, tmp_path / "w.safetensors")
    parts = {**pipe.components, "controlnet": net, "safety_checker": None, "feature_extractor": None}
    guided = StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    guided.set_progress_bar_config(disable=True)
    picture = {"image": torch.rand(1, 3, 64, 96)}
    vidattn.patch(guided, "linfusion", weights=tmp_path / "w.safetensors")
    got = run("sd", guided, **picture)
    reasons = {row.model: row.reason for row in vidattn.report(guided).layers}
    assert reasons == {"unet": "", "controlnet": "linfusion is for the model, not for its ControlNet"}
    vidattn.unpatch(guided)
    guided.unet = replaced(pipe.unet, tensors)
    assert_same(got, run("sd", guided, **picture))


def test_trains_under_gradient_checkpointing():
    model = denoiser("sd").train()
    model.enable_gradient_checkpointing()
    vidattn.patch(model, "linfusion")
    name = attn1(model)[0]
    model(**inputs("sd"), return_dict=False)[0].square().mean().backward()
    got = model.get_submodule(name).to_q.weight.grad.clone()
    other = replaced(denoiser("sd")).train()
    other(**inputs("sd"), return_dict=False)[0].square().mean().backward()
    torch.testing.assert_close(got, other.get_submodule(name).to_q.weight.grad, rtol=1e-3, atol=1e-8)


def test_compiles_in_one_graph():
    torch._dynamo.reset()
    model = denoiser("sd")
    vidattn.patch(model, "linfusion")
    expected = forward(model)
    block = model.get_submodule(attn1(model)[0].rpartition(".")[0])
    block.compile(backend="eager", fullgraph=True)  # a whole UNet takes long to trace
    assert_same(forward(model), expected)
    torch._dynamo.reset()


def test_saving_does_not_see_the_patch(tmp_path):
    model = denoiser("sd")
    model.save_pretrained(tmp_path / "before")
    vidattn.patch(model, "linfusion")
    forward(model)
    model.save_pretrained(tmp_path / "patched")
    files = [sorted(p.name for p in (tmp_path / d).iterdir()) for d in ("before", "patched")]
    assert files[0] == files[1]
    for name in files[0]:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "patched" / name).read_bytes()
