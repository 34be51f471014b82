"""Presets choose their patterns by model and grid; layers are chosen by name or number."""

from __future__ import annotations

import pytest
import torch

import vidattn
from tests.patches.tiny_pipelines import denoiser, inputs, wan_transformer
from vidattn.patches.families import families, family_of
from vidattn.patches.presets import PRESETS, preset_rule, preset_text
from vidattn.patterns import Disc, Groups, Neighborhood, Radial, SlidingWindow, SparseVideoGen, TopK

RESOLVED = [
    ("neighborhood", (1, 64, 64), {}, Neighborhood((17, 17))),
    ("neighborhood", (1, 32, 96), {}, Neighborhood((17, 25))),
    ("neighborhood", (1, 16, 16), {}, Neighborhood((17, 17))),
    ("neighborhood", (21, 45, 80), {}, Neighborhood((17, 21))),
    ("neighborhood", (1, 64, 64), {"stride": 4}, Neighborhood((17, 17), stride=4)),
    ("neighborhood", (1, 64, 64), {"window": [5, 7]}, Neighborhood((5, 7))),
    ("sliding", (1, 128, 96), {}, SlidingWindow((30, 52))),
    ("sliding", (1, 128, 96), {"size": 9}, SlidingWindow((30, 52), 9)),
    ("clear", (1, 64, 64), {}, Disc(16)),
    ("clear", (1, 64, 64), {"radius": 8}, Disc(8)),
    ("grat-b", (1, 64, 64), {}, Groups((1, 16, 16))),
    ("grat-b", (21, 45, 80), {"reach": 2}, Groups((4, 8, 8), reach=2)),
    ("grat-x", (21, 45, 80), {}, Groups((4, 8, 8), region="cross")),
    ("radial", (21, 45, 80), {"decay": 0.2}, Radial(0.2)),
    ("clear", (1, 64, 64), {"pooled": 4}, Disc(16, pooled=4)),
    ("svg", (16, 45, 80), {}, SparseVideoGen(16 * (1 - 0.75**0.5))),
    ("svg", (16, 45, 80), {"width": 2, "sink": True}, SparseVideoGen(2, sink=True)),
    ("topk", (1, 64, 64), {}, TopK(0.2, (1, 8, 8))),
    ("topk", (21, 45, 80), {"score": "smooth"}, TopK(score="smooth")),
]


@pytest.mark.parametrize(("name", "grid", "options", "expected"), RESOLVED, ids=str)
def test_the_pattern_for_a_grid(name, grid, options, expected):
    kind = PRESETS[name].kinds[0]
    assert preset_rule(name, options, kind, (30, 52)).resolve(grid) == expected


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_why_and_its_options_have_names_of_the_pattern(name):
    preset = PRESETS[name]
    assert preset.why
    assert set(preset.kinds) <= {"image", "video"}
    assert not set(preset.options()) & set(preset.fixed)
    assert preset_text(name.upper()) == (name, {})


def test_the_text_form_of_a_preset():
    assert preset_text("clear:radius=8") == ("clear", {"radius": 8})
    assert preset_text("neighborhood:stride=2,causal=true") == ("neighborhood", {"stride": 2, "causal": True})
    assert preset_text("grat-x:cross=lines,size=2x4x4") == ("grat-x", {"cross": "lines", "size": (2, 4, 4)})


def test_one_preset_takes_another_window_at_another_size(sparse_calls):
    model = denoiser("sd")
    vidattn.patch(model, "neighborhood", min_tokens=1024)
    for height, width in ((32, 32), (40, 96)):
        call = inputs("sd", height=height, width=width, batch=1)
        with torch.no_grad():
            model(**call)
    assert set(sparse_calls) == {
        ("neighborhood:window=17x17", (1, 32, 32)),
        ("neighborhood:window=17x25", (1, 40, 96)),
    }


def test_sliding_takes_the_training_size_of_each_level(sparse_calls):
    model = denoiser("sd")  # sample_size 8: 8 x 8 above, 4 x 4 below
    vidattn.patch(model, "sliding", min_tokens=0)
    with torch.no_grad():
        model(**inputs("sd", height=16, width=20, batch=1))
    assert set(sparse_calls) == {("sliding:base=8x8", (1, 16, 20)), ("sliding:base=4x4", (1, 8, 10))}


def test_the_first_glob_that_matches_counts(sparse_calls):
    model = denoiser("flux")
    layers = {
        "single*.0.attn": None,
        "single*": "disc:radius=1.5",
        "transformer_blocks.[1-9].*": "clear:radius=2",
    }
    vidattn.patch(model, layers, min_tokens=0)
    with torch.no_grad():
        model(**inputs("flux"))
    rows = {row.layer: (row.pattern, row.reason) for row in vidattn.report(model).layers}
    assert rows == {
        "transformer_blocks.0.attn": ("dense", "no pattern for this layer"),
        "transformer_blocks.1.attn": ("disc:radius=2", ""),
        "single_transformer_blocks.0.attn": ("dense", "no pattern for this layer"),
        "single_transformer_blocks.1.attn": ("disc:radius=1.5", ""),
    }


@pytest.mark.parametrize("layers", [[0, -1], (0, 3), ["transformer_blocks.0.attn", 3], "*.0.attn"])
def test_dense_layers(layers):
    model = denoiser("flux")
    vidattn.patch(model, "clear", dense_layers=layers)
    dense = [layer for _, layer, pattern in vidattn.report(model).planned if pattern == "dense"]
    last = (
        "single_transformer_blocks.0.attn" if isinstance(layers, str) else "single_transformer_blocks.1.attn"
    )
    assert dense == ["transformer_blocks.0.attn", last]


# ------------------------------------------------------------------ grids
def test_unet_layers_run_in_the_order_they_are_listed():
    for name in ("sd", "sdxl"):
        model = denoiser(name)
        listed = [layer.name for layer in family_of(model).layers(model)]
        ran: list[str] = []
        for module_name, module in model.named_modules():
            if module_name.endswith("attn1"):
                module.register_forward_pre_hook(lambda m, args, n=module_name, to=ran: to.append(n))
        with torch.no_grad():
            model(**inputs(name))
        assert ran == listed


@pytest.mark.parametrize("name", ["flux", "wan", "sd", "sdxl"])
@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (7, 7), (9, 2)])
def test_the_grid_read_is_the_length_that_every_layer_sees(name, height, width):
    model = denoiser(name)
    family = family_of(model)
    call = inputs(name, height=height, width=width)
    layouts = family.read(model, call).layouts
    lengths: dict[str, int] = {}

    def note(label: str):
        def hook(module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            extra = kwargs.get("encoder_hidden_states")
            lengths[label] = hidden.shape[1] + (extra.shape[1] if extra is not None else 0)

        return hook

    for layer in family.layers(model):
        layer.module.register_forward_pre_hook(note(layer.name), with_kwargs=True)
    with torch.no_grad():
        model(**call)
    assert lengths == {layer.name: layouts[layer.group].tokens for layer in family.layers(model)}


def test_flux_reads_rasters_of_all_kinds():
    from vidattn.patches.families.flux import _find_target

    def ids(height: int, width: int) -> torch.Tensor:
        made = torch.zeros(height, width, 3)
        made[..., 1], made[..., 2] = torch.arange(height)[:, None], torch.arange(width)
        return made.reshape(-1, 3)

    assert _find_target(ids(4, 6)) == (4, 6)
    assert _find_target(ids(1, 6)) == (1, 6)
    assert _find_target(ids(6, 1)) == (6, 1)
    assert _find_target(ids(4, 6) * 0.5 + 3) == (4, 6)  # interpolated and moved
    assert _find_target(ids(300, 290).bfloat16()) == (300, 290)  # pipelines keep ids in the model's dtype
    assert _find_target(ids(4, 6)[None]) == (4, 6)
    for wrong in (
        torch.zeros(24, 3),
        torch.rand(24, 3),
        ids(4, 6).flip(0),
        ids(4, 6)[:-1],
        ids(4, 6)[:, [0, 2, 1]],
    ):
        assert _find_target(wrong) == "img_ids is no raster grid"
    assert _find_target(ids(4, 6)[:, :2]) == "img_ids of shape (24, 2) is no table of positions"
    assert _find_target(ids(4, 6).to("meta")) == "img_ids holds no values (meta device)"


def test_flux_ids_changed_in_place_are_read_again():
    model = denoiser("flux")
    vidattn.patch(model, Neighborhood(3), min_tokens=0)
    call = inputs("flux", height=4, width=6)
    other = inputs("flux", height=6, width=4)["img_ids"]
    with torch.no_grad():
        model(**call)
        call["img_ids"].copy_(other)
        model(**call)
    with torch.inference_mode():
        model(**{k: v.clone() for k, v in call.items()})
    rows = vidattn.report(model).layers
    assert {row.grid: row.forwards for row in rows} == {(1, 4, 6): 1, (1, 6, 4): 2}


def test_subclasses_belong_to_the_family():
    from diffusers import WanTransformer3DModel

    class Own(WanTransformer3DModel):
        pass

    assert family_of(wan_transformer(Own)).name == "wan"
    assert {"flux", "unet", "wan"} <= {f.name for f in families()}
