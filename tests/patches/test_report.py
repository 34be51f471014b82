"""What the report says, and every way in which a layer ends up dense."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import nn

import vidattn
from tests.patches.tiny_pipelines import build, denoiser, inputs, model_of, run
from vidattn import TokenLayout
from vidattn.patches import routes
from vidattn.patterns import Neighborhood

SMALL = Neighborhood(3)


def forward(model: nn.Module, name: str, **changed: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(name) | changed, return_dict=False)[0]


def reasons(target: Any) -> set[str]:
    return {row.reason for row in vidattn.report(target).layers}


def test_a_run_layer_by_layer():
    pipe = build("flux")
    assert str(vidattn.report(pipe)) == "not patched"
    handle = vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=1, dense_layers=[0, "single*.1.attn"])
    assert repr(handle) == "<vidattn patch: 1 model(s), 4 self-attention layers>"
    before = str(vidattn.report(pipe))
    assert before.startswith("patched; no forward yet")
    assert "neighborhood:window=3" in before
    run("flux", pipe, num_inference_steps=3)
    report = handle.report()
    rows = {(row.layer, row.steps): row for row in report.layers}
    assert len(report.layers) == 4 * 2
    sparse = rows["transformer_blocks.1.attn", "others"]
    density = SMALL.density(TokenLayout((1, 4, 6), text_before=16))
    assert (sparse.model, sparse.grid, sparse.text_tokens) == ("transformer", (1, 4, 6), 16)
    assert (sparse.pattern, sparse.backend, sparse.reason) == ("neighborhood:window=3", "torch", "")
    assert sparse.density == density
    assert sparse.forwards == 2
    assert rows["transformer_blocks.1.attn", "first 1"].reason == "dense_steps"
    assert rows["transformer_blocks.0.attn", "others"].reason == "dense_layers"
    assert rows["single_transformer_blocks.1.attn", "others"].pattern == "dense"
    # of 4 layers x 3 steps, 2 layers x 2 steps were sparse
    assert report.density == pytest.approx((4 * density + 8) / 12)
    table = str(report)
    assert f"density of the whole run: {report.density:.3f}" in table
    assert "single_transformer_blocks.0.attn" in table
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["grid"] == [1, 4, 6]


def test_equal_layers_share_a_line():
    model = denoiser("flux")
    vidattn.patch(model, SMALL, min_tokens=0)
    forward(model, "flux")
    lines = str(vidattn.report(model)).splitlines()
    assert [line.split()[1] for line in lines[1:3]] == [
        "transformer_blocks.0-1.attn",
        "single_transformer_blocks.0-1.attn",
    ]
    assert len(lines) == 4


def test_density_weighs_the_levels_of_a_unet_by_their_pairs():
    model = denoiser("sd")
    vidattn.patch(model, {"mid*": None, "*": SMALL}, min_tokens=0)
    forward(model, "sd", sample=torch.randn(1, 4, 8, 12), encoder_hidden_states=torch.randn(1, 7, 32))
    pairs = {96: 96**2, 24: 24**2}
    sparse = SMALL.density(TokenLayout((8, 12)))
    expected = (3 * pairs[96] * sparse + pairs[24]) / (3 * pairs[96] + pairs[24])
    assert vidattn.report(model).density == pytest.approx(expected)
    assert {row.grid: row.reason for row in vidattn.report(model).layers} == {
        (1, 8, 12): "",
        (1, 4, 6): "no pattern for this layer",
    }


def test_a_new_run_starts_a_new_report():
    pipe = build("sd")
    vidattn.patch(pipe, SMALL, min_tokens=0)
    run("sd", pipe)
    run("sd", pipe, height=96, num_inference_steps=3)
    rows = vidattn.report(pipe).layers
    assert {row.grid for row in rows} == {(1, 12, 12), (1, 6, 6)}
    assert {row.forwards for row in rows} == {3}


# ------------------------------------------------------------------ fallbacks
def test_few_tokens(sparse_calls):
    model = denoiser("wan")
    vidattn.patch(model, SMALL)
    forward(model, "wan")
    (reason,) = reasons(model)
    assert re.fullmatch(
        r"dense is as fast: predicted .* us a call, neighborhood.* [um]s by torch \(cpu, .*\)", reason
    )
    vidattn.patch(model, SMALL, min_tokens=73)
    forward(model, "wan")
    assert reasons(model) == {"72 tokens, under min_tokens 73"}
    assert not sparse_calls
    vidattn.patch(model, SMALL, min_tokens=72)
    forward(model, "wan")
    assert reasons(model) == {""}
    assert sparse_calls


def test_dense_enough_is_dense_by_default(sparse_calls):
    model = denoiser("sd")
    vidattn.patch(model, Neighborhood(61))
    large = {"sample": torch.randn(1, 4, 64, 66), "encoder_hidden_states": torch.randn(1, 7, 32)}
    forward(model, "sd", **large)
    assert any(r.startswith("dense is as fast: predicted") and "window=61" in r for r in reasons(model))
    assert not sparse_calls
    vidattn.patch(model, Neighborhood(9))
    forward(model, "sd", **large)
    assert "" in reasons(model)
    assert {grid for _, grid in sparse_calls} == {(1, 64, 66)}  # the lower level has too few tokens


def test_the_full_pattern_is_the_models_own_attention(sparse_calls):
    model = denoiser("flux")
    dense = forward(model, "flux")
    for pattern in ("full", "dense", vidattn.patterns.Full()):
        vidattn.patch(model, pattern, min_tokens=0, strict=True)
        assert torch.equal(forward(model, "flux"), dense)
        assert reasons(model) == {"the pattern is full"}
    assert not sparse_calls


def test_attention_masks(sparse_calls):
    model = denoiser("flux")
    mask = {"attention_mask": torch.ones(1, 1, 31, 31).tril().bool()}
    dense = forward(model, "flux", joint_attention_kwargs=mask)
    vidattn.patch(model, SMALL, min_tokens=0)
    assert torch.equal(forward(model, "flux", joint_attention_kwargs=mask), dense)
    assert reasons(model) == {"an attention mask is given"}
    assert not sparse_calls


def test_ids_without_a_raster(sparse_calls):
    model = denoiser("flux")
    ids = torch.randn(24, 3)
    dense = forward(model, "flux", img_ids=ids)
    vidattn.patch(model, SMALL, min_tokens=0)
    assert torch.equal(forward(model, "flux", img_ids=ids), dense)
    assert reasons(model) == {"img_ids is no raster grid"}
    forward(model, "flux")
    assert sparse_calls


@pytest.mark.parametrize("how", ["AttnProcessor", "SlicedAttnProcessor"])
def test_processors_with_attention_of_their_own(how, sparse_calls):
    model = denoiser("sd")
    vidattn.patch(model, SMALL, min_tokens=0)
    if how == "AttnProcessor":
        model.set_attn_processor(AttnProcessor())
    else:
        model.set_attention_slice(1)
    got = forward(model, "sd")
    assert reasons(model) == {f"{how} computes attention in its own way"}
    assert vidattn.report(model).density == 1.0
    assert not sparse_calls
    model.set_attn_processor(AttnProcessor2_0())
    assert not torch.equal(forward(model, "sd"), got)
    assert sparse_calls


class ForeignKeys(AttnProcessor2_0):
    """As reference-only processors do: the layer's own keys and those of another picture."""

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **rest: Any
    ) -> Any:
        if encoder_hidden_states is None:
            encoder_hidden_states = torch.cat([hidden_states, hidden_states], 1)
        return super().__call__(attn, hidden_states, encoder_hidden_states, **rest)


def test_foreign_keys(sparse_calls):
    model = denoiser("sd")
    vidattn.patch(model, SMALL, min_tokens=0)
    model.set_attn_processor(ForeignKeys())
    forward(model, "sd")
    assert reasons(model) == {"its keys are not those of its queries"}
    assert not sparse_calls


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"is_causal": True}, "the call is causal"),
        ({"dropout_p": 0.5}, "attention dropout is on"),
        ({"attn_mask": torch.ones(1, 1, 31, 31, dtype=torch.bool)}, "an attention mask is given"),
    ],
)
def test_calls_that_cannot_be_sparse(option, reason, sparse_calls, monkeypatch):
    model = denoiser("flux")
    vidattn.patch(model, SMALL, min_tokens=0)
    real = routes._dispatch_router
    module = "diffusers.models.transformers.transformer_flux.dispatch_attention_fn"
    monkeypatch.setattr(module, lambda *args, **kwargs: real(*args, **{**kwargs, **option}))
    forward(model, "flux")
    assert reasons(model) == {reason}
    assert not sparse_calls


def test_context_parallelism_stays_with_diffusers(sparse_calls, monkeypatch):
    model = denoiser("wan")
    vidattn.patch(model, SMALL, min_tokens=0)
    given: list[Any] = []

    def original(query: torch.Tensor, *args: Any, parallel_config: Any = None, **kwargs: Any) -> torch.Tensor:
        given.append(parallel_config)
        return query

    monkeypatch.setattr(routes, "_original_dispatch", original)
    config = object()
    for block in model.blocks:
        block.attn1.processor._parallel_config = config
    forward(model, "wan")
    assert reasons(model) == {"context parallelism splits the sequence"}
    assert given.count(config) == 2
    assert not sparse_calls


def test_another_length_than_the_grid_says(sparse_calls):
    model = denoiser("flux")
    vidattn.patch(model, SMALL, min_tokens=0)
    block = model.single_transformer_blocks[0]
    forward(model, "flux")
    sparse_calls.clear()
    with torch.no_grad():
        block.attn(hidden_states=torch.randn(1, 13, 32))
    assert not sparse_calls
    assert "the sequence length is not that of the token grid" in reasons(model)


# ------------------------------------------------------------------ strict
@pytest.mark.parametrize("name", ["flux", "sd"])
def test_strict_raises_before_the_forward(name):
    model = denoiser(name)
    vidattn.patch(model, SMALL, strict=True)
    with pytest.raises(RuntimeError, match="dense is as fast: predicted"):
        forward(model, name)
    vidattn.patch(model, SMALL, strict=True, min_tokens=0, dense_steps=1, dense_layers=[0])
    forward(model, name)  # what is asked for is no fallback


def test_strict_raises_inside_a_layer():
    model = denoiser("sd")
    vidattn.patch(model, SMALL, strict=True, min_tokens=0)
    model.set_attn_processor(AttnProcessor())
    with pytest.raises(RuntimeError, match=r"ran dense although strict=True: AttnProcessor computes"):
        forward(model, "sd")
    flux = denoiser("flux")
    vidattn.patch(flux, SMALL, strict=True, min_tokens=0)
    mask = torch.ones(1, 1, 31, 31, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="an attention mask is given"):
        forward(flux, "flux", joint_attention_kwargs={"attention_mask": mask})


def test_the_handle_reports_and_unpatches():
    pipe = build("wan")
    handle = vidattn.patch(pipe, SMALL, min_tokens=0)
    assert handle.models == [model_of(pipe)]
    assert isinstance(model_of(pipe).blocks[0].attn1.processor, object)
    handle.unpatch()
    assert str(handle.report()) == "not patched"
    assert FluxAttnProcessor.__call__.__module__ == "diffusers.models.transformers.transformer_flux"
