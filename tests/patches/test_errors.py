"""Wrong arguments: one clear error each, and nothing changed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import SanaTransformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

import vidattn
from tests.patches.tiny_pipelines import build, denoiser, inputs, model_of
from vidattn.patterns import Neighborhood

SMALL = Neighborhood(3)

WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "wan",
        {"pattern": "neighbourhood"},
        ValueError,
        "unknown pattern or preset 'neighbourhood': did you mean 'neighborhood'?",
    ),
    (
        "wan",
        {"pattern": "svgx"},
        ValueError,
        "unknown pattern or preset 'svgx': .*Known: clear, dense, disc, full",
    ),
    ("wan", {"pattern": "svgx:window=3"}, ValueError, "unknown pattern or preset 'svgx'"),
    ("wan", {"pattern": "neighborhood:windw=3"}, ValueError, "no option 'windw': did you mean 'window'?"),
    ("wan", {"pattern": "disc:radus=3"}, ValueError, "no parameter 'radus': did you mean 'radius'?"),
    ("wan", {"pattern": "neighborhood:window=0"}, ValueError, "window=0"),
    ("wan", {"pattern": "neighborhood:window=3x"}, ValueError, "window='3x'"),
    ("wan", {"pattern": "neighborhood", "window": -1}, ValueError, "window=-1"),
    ("wan", {"pattern": "neighborhood", "window": (3, 3, 3, 3)}, ValueError, "window="),
    (
        "wan",
        {"pattern": "neighborhood", "window": 3, "stride": 5},
        ValueError,
        "stride=5: larger than window=3",
    ),
    (
        "wan",
        {"pattern": "neighborhood", "radius": 3},
        ValueError,
        "no option 'radius'; its options are: window, stride",
    ),
    ("wan", {"pattern": "neighborhood:window=3", "window": 5}, ValueError, "'window' is given twice"),
    ("wan", {"pattern": "full", "window": 5}, ValueError, "no option 'window'; its options are: none"),
    ("wan", {"pattern": "grat-b", "region": "cross"}, ValueError, "no option 'region'"),
    (
        "wan",
        {"pattern": SMALL, "window": 5},
        ValueError,
        "options window: only a preset's name takes options",
    ),
    ("wan", {"pattern": "clear"}, ValueError, "preset 'clear' is for image models; for video: dense, full"),
    ("flux", {"pattern": "radial"}, ValueError, "preset 'radial' is for video models; for image: clear"),
    ("wan", {"pattern": 3}, TypeError, "pattern=3: give a Pattern, its text form, a preset's name"),
    ("wan", {"pattern": None, "window": 3}, ValueError, "options window"),
    (
        "wan",
        {"pattern": {"blocks.7.*": SMALL}},
        ValueError,
        "'blocks.7.\\*' matches no layer: .*blocks.0.attn1",
    ),
    ("wan", {"pattern": {3: SMALL}}, TypeError, "glob 3: must be a string"),
    ("wan", {"pattern": {"*": "nope"}}, ValueError, "unknown pattern or preset 'nope'"),
    ("wan", {"pattern": {"*": SMALL}, "window": 3}, ValueError, "not together with a pattern for each layer"),
    ("wan", {"pattern": {"pattern": "neighborhood"}}, ValueError, "pattern 'neighborhood' needs window"),
    ("wan", {"dense_steps": -1}, ValueError, "dense_steps=-1: must be at least 0"),
    ("wan", {"dense_steps": 1.5}, TypeError, "dense_steps=1.5: must be an integer"),
    ("wan", {"dense_last_steps": True}, TypeError, "dense_last_steps=True: must be an integer"),
    ("wan", {"dense_layers": [2]}, ValueError, "there is no layer 2; numbers go from 0 to 1"),
    ("wan", {"dense_layers": [-3]}, ValueError, "there is no layer -3"),
    ("wan", {"dense_layers": "attn2*"}, ValueError, "'attn2\\*' matches no layer"),
    ("wan", {"dense_layers": [1.0]}, TypeError, "1.0 is neither a layer number nor a layer name glob"),
    ("wan", {"dense_layers": 1.0}, TypeError, "dense_layers=1.0: give layer numbers or layer name globs"),
    ("wan", {"min_tokens": "few"}, TypeError, "min_tokens='few': must be an integer or 'auto'"),
    ("wan", {"min_tokens": -5}, ValueError, "min_tokens=-5: must be at least 0"),
    ("wan", {"backend": "tritn"}, ValueError, "backend='tritn'"),
    ("wan", {"backend": None}, TypeError, "backend=None: must be a string"),
    ("wan", {"strict": 1}, TypeError, "strict=1: must be True or False"),
    ("wan", {"weights": "x.safetensors"}, FileNotFoundError, "there is no such file"),
    (
        "flux",
        {"pattern": "clear", "weights": 5},
        TypeError,
        "weights=5: give the path of a .safetensors file",
    ),
    ("flux", {"pattern": "clear", "weights": "gone.safetensors"}, FileNotFoundError, "there is no such file"),
    ("flux", {"pattern": "gone.json"}, FileNotFoundError, "recipe 'gone.json': there is no such file"),
]


@pytest.mark.parametrize(("name", "arguments", "error", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_wrong_arguments_change_nothing(name, arguments, error, message):
    model = denoiser(name)
    vidattn.patch(model, "neighborhood", window=5, min_tokens=0)
    kept = dict(vars(model)), [dict(vars(m)) for m in model.modules()]
    with pytest.raises(error, match=message):
        vidattn.patch(model, **{"pattern": SMALL, **arguments})
    assert (dict(vars(model)), [dict(vars(m)) for m in model.modules()]) == kept
    with pytest.raises(error, match=message), vidattn.patched(model, **{"pattern": SMALL, **arguments}):
        raise AssertionError("must not be entered")
    assert vidattn.report(model).planned[0][2] == "neighborhood, window=5"


def test_what_cannot_be_patched():
    listed = "supported: .*flux: FluxTransformer2DModel, FluxControlNetModel; .*wan: WanTransformer3DModel"
    model = SanaTransformer2DModel(  # its attention is linear
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
    )
    with pytest.raises(TypeError, match=f"nothing to patch in SanaTransformer2DModel .*{listed}"):
        vidattn.patch(model, SMALL)
    pipe = build("flux")
    pipe.register_modules(transformer=model)
    with pytest.raises(
        TypeError, match=rf"nothing to patch in FluxPipeline \(.*transformer: SanaTransf.*{listed}"
    ):
        vidattn.patch(pipe, SMALL)
    for thing in ("a string", None, 3):
        for function in (lambda x: vidattn.patch(x, SMALL), vidattn.unpatch, vidattn.report):
            with pytest.raises(TypeError, match=f"is neither a pipeline nor a model of diffusers; {listed}"):
                function(thing)


def test_a_unet_without_attention():
    model = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        mid_block_type=None,
        norm_num_groups=4,
        cross_attention_dim=8,
    )
    with pytest.raises(ValueError, match="UNet2DConditionModel has no self-attention layer"):
        vidattn.patch(model, SMALL)


def test_supported_lists_families_and_classes():
    listed = vidattn.supported()
    assert listed["flux"] == ("FluxTransformer2DModel", "FluxControlNetModel")
    assert list(listed) == sorted(listed)
    classes = [name for names in listed.values() for name in names]
    assert len(set(classes)) == len(classes)
    encoders = set(listed["vit"])  # of transformers and timm
    assert [name for name in classes if name not in encoders and not hasattr(diffusers, name)] == []


# ------------------------------------------------------------------ recipes
def recipe(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_a_recipe_is_patchs_arguments(tmp_path):
    model = denoiser("wan")
    data = {"pattern": "neighborhood", "window": [2, 3], "min_tokens": 0, "dense_layers": [0]}
    path = recipe(tmp_path / "r.json", data)
    for given in (path, str(path)):
        vidattn.patch(model, given)
        assert [p[2] for p in vidattn.report(model).planned] == ["dense", "neighborhood, window=(2, 3)"]
    with torch.no_grad():
        model(**inputs("wan"))
    assert {row.reason for row in vidattn.report(model).layers} == {"dense_layers", ""}
    vidattn.patch(model, path, window=5, dense_layers=[1])  # the call wins
    assert [p[2] for p in vidattn.report(model).planned] == ["neighborhood, window=5", "dense"]
    recipe(path, {"pattern": {"blocks.1.*": Neighborhood((1, 3)).to_dict()}})
    vidattn.patch(model, path)
    assert [p[2] for p in vidattn.report(model).planned] == ["dense", "neighborhood:window=1x3"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "must be an object with 'pattern'"),
        ({"dense_steps": 2}, "must be an object with 'pattern'"),
        (
            {"pattern": "neighborhood", "dense_step": 2},
            "unknown argument 'dense_step': did you mean 'dense_steps'?",
        ),
        ({"pattern": "neighborhood", "dense_steps": -2}, "dense_steps=-2"),
        ({"pattern": "other.json"}, "its pattern is another recipe"),
        ({"pattern": "nope"}, "unknown pattern or preset 'nope'"),
    ],
    ids=str,
)
def test_wrong_recipes(tmp_path, data, message):
    model = denoiser("wan")
    with pytest.raises(ValueError, match=message):
        vidattn.patch(model, recipe(tmp_path / "r.json", data))
    assert not vidattn.report(model).patched


# ------------------------------------------------------------------ weights
def some_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(9)
    names = [n for n in model.state_dict() if n.endswith(("attn.to_q.weight", "attn.to_out.0.bias"))]
    return {name: torch.randn_like(model.state_dict()[name]) for name in names}


@pytest.mark.parametrize("lora", [False, True])
def test_weights_come_with_the_patch_and_go_with_it(tmp_path, lora, sparse_calls):
    pipe = build("flux")
    model = model_of(pipe)
    tensors = some_weights(model)
    save_file(tensors, tmp_path / "clear.safetensors")
    if lora:
        from peft import LoraConfig

        model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    addresses = {k: v.data_ptr() for k, v in model.state_dict().items()}
    vidattn.patch(pipe, "clear", radius=2, weights=tmp_path / "clear.safetensors", min_tokens=0)
    now = {k.replace(".base_layer", ""): v for k, v in model.state_dict().items()}
    assert all(torch.equal(now[name], tensor) for name, tensor in tensors.items())
    with torch.no_grad():
        model(**inputs("flux"))
    assert sparse_calls
    with vidattn.patched(pipe, "neighborhood", window=3):
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(now := model.state_dict()[next(k for k in before if k.endswith("to_out.0.bias"))], now)
    loaded = {k.replace(".base_layer", ""): v for k, v in model.state_dict().items()}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    vidattn.unpatch(pipe)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == addresses


def test_wrong_weights_change_nothing(tmp_path):
    model = denoiser("flux")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    name, tensor = next(iter(some_weights(model).items()))
    files: dict[str, tuple[Any, str]] = {
        "unknown.safetensors": (
            {"blocks.0.attn.to_q.weight": tensor},
            "which FluxTransformer2DModel does not have",
        ),
        "pooled.safetensors": (
            {name: tensor, "transformer_blocks.0.attn.processor.spatial_weight": torch.ones(2)},
            "'transformer_blocks.0.attn.processor.spatial_weight', which",
        ),
        "shape.safetensors": (
            {name: tensor[1:]},
            r"has shape \(31, 32\) in shape.safetensors and \(32, 32\)",
        ),
        "empty.safetensors": ({}, "holds no tensors"),
    }
    for file, (tensors, message) in files.items():
        save_file(tensors, tmp_path / file)
        with pytest.raises(ValueError, match=message):
            vidattn.patch(model, "clear", weights=tmp_path / file)
    (tmp_path / "pickled.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="not readable as safetensors"):
        vidattn.patch(model, "clear", weights=tmp_path / "pickled.safetensors")
    for suffix in ("bin", "pt", "ckpt"):
        torch.save({name: tensor}, tmp_path / f"w.{suffix}")
        with pytest.raises(
            ValueError, match=r"only \.safetensors files are read; pickled files can run code"
        ):
            vidattn.patch(model, "clear", weights=tmp_path / f"w.{suffix}")
    save_file({name: tensor}, tmp_path / "good.safetensors")
    model.fuse_qkv_projections()
    with pytest.raises(ValueError, match="projections are fused"):
        vidattn.patch(model, "clear", weights=tmp_path / "good.safetensors")
    assert not vidattn.report(model).patched
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if k in before)
