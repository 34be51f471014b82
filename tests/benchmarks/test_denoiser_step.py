"""The benchmark of one denoiser step, at tiny sizes."""

import inspect
from dataclasses import replace

import diffusers
import pytest
import torch

from benchmarks import denoiser_step
from benchmarks.denoiser_step import STEPS, Step
from vidattn.cli.full_size import MODELS

CPU = torch.device("cpu")
TINY = {
    "flux-1024": {
        "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16,
        "in_channels": 8, "joint_attention_dim": 16, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6),
    },
    "wan-14b-720p": {
        "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 16, "text_dim": 16,
        "in_channels": 4, "out_channels": 4, "freq_dim": 16,
    },
    "hunyuan-720p": {
        "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 2,
        "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_embed_dim": 16,
        "pooled_projection_dim": 16, "rope_axes_dim": (4, 6, 6),
    },
}  # fmt: skip


def tiny(name: str) -> Step:
    step = STEPS[name]
    frames = 5 if step.frames > 1 else 1
    return replace(step, config=TINY[name], size=(96, 128), frames=frames, pattern="neighborhood:window=3x3")


@pytest.mark.parametrize("name", TINY)
def test_every_family_runs_dense_and_patched(name):
    rows = denoiser_step.measure(name, tiny(name), CPU, torch.float32, compiled=False)
    assert [row["way"] for row in rows] == ["dense, default", "patched, neighborhood:window=3x3"]
    assert all(row["ms"] > 0 and row["times default"] > 0 for row in rows), rows
    assert 0 < rows[1]["density"] < 1


def test_a_patch_that_disagrees_is_not_reported(monkeypatch):
    monkeypatch.setattr(denoiser_step, "disagreement", lambda *_: float("nan"))
    rows = denoiser_step.measure("flux-1024", tiny("flux-1024"), CPU, torch.float32, compiled=False)
    assert "ms" in rows[0]
    assert "ms" not in rows[1]
    assert "a full window differs from dense by nan" in rows[1]["note"]


@pytest.mark.parametrize("name", STEPS)
def test_the_steps_are_full_size(name):
    step = STEPS[name]
    model = MODELS[
        {"flux": "flux", "hunyuan": "hunyuan-video"}.get(name.partition("-")[0], name[: name.rindex("-")])
    ]
    defaults = inspect.signature(getattr(diffusers, step.cls).__init__).parameters
    stack = model.stacks[0]
    for key, value in (("num_attention_heads", stack.heads), ("attention_head_dim", stack.head_dim)):
        assert step.config.get(key, defaults[key].default) == value
