"""The shipped adapter: its figures are there, and it does what it was trained for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vidattn
from tests.patches.tiny_pipelines import image_ids

MODELS = Path(__file__).parents[2] / "demos" / "models"
ADAPTER = MODELS / "adapters" / "emoji-flux-clear"


@pytest.mark.skipif(not (MODELS / "emoji-flux").is_dir(), reason="the demo model is not in this checkout")
def test_clear_on_emoji_flux_is_nearer_to_dense_with_the_adapter():
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(str(MODELS / "emoji-flux"))
    words, pooled, _ = pipe.encode_prompt(
        ["noto panda on a red background", "two flat robot on a blue to orange gradient"],
        None,
        max_sequence_length=32,
    )
    arguments = {
        "hidden_states": torch.randn(2, 256, 32, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.ones(2),  # all noise: what a run begins with
        "encoder_hidden_states": words,
        "pooled_projections": pooled,
        "txt_ids": torch.zeros(32, 3),
        "img_ids": image_ids(16, 16),
        "return_dict": False,
    }
    outs = {}
    with torch.no_grad():
        outs["dense"] = pipe.transformer(**arguments)[0]
        for name, pattern in (("untrained", "clear:radius=4"), ("trained", ADAPTER / "recipe.json")):
            with vidattn.patched(pipe, pattern, min_tokens=0):
                outs[name] = pipe.transformer(**arguments)[0]
        assert torch.equal(pipe.transformer(**arguments)[0], outs["dense"])
    errors = {name: (out - outs["dense"]).square().mean() for name, out in outs.items()}
    assert errors["trained"] < 0.5 * errors["untrained"]
    measured = json.loads((ADAPTER / "about.json").read_text(encoding="utf-8"))["measured"]
    assert measured["after"]["psnr"] > measured["before"]["psnr"] + 2
