"""A killed run goes on, bit for bit."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.patches import tiny_pipelines as tiny
from tests.pipelines.conftest import options
from vidattn.pipelines import upscale_generate

RUN = {"base": (32, 48), "size": (96, 144), "seed": 4, "patch_options": {"min_tokens": 0}, **options("flux")}
KILLED = """
import os, signal, sys, torch
torch.set_num_threads(THREADS)
from tests.patches import tiny_pipelines as tiny
from vidattn.pipelines import upscale_generate
sizes = []
def step_end(pipe, step, timestep, tensors):
    tokens = tensors["latents"].shape[1]
    if tokens == 54 and step == 0:  # the middle of the last of three stages
        os.kill(os.getpid(), signal.SIGKILL)
    return tensors
pipe, kept = tiny.build("flux"), sys.argv[1]
upscale_generate(pipe, tiny.PROMPT, checkpoint=kept, callback_on_step_end=step_end, **RUN)
"""


def test_kill_and_resume(tmp_path: Path):
    folder = tmp_path / "run"
    code = f"THREADS, RUN = {torch.get_num_threads()}, {RUN!r}" + KILLED
    killed = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert {path.name for path in folder.iterdir()} == {
        "run.json",
        "stage-0.safetensors",
        "stage-1.safetensors",
    }
    pipe = tiny.build("flux")
    resumed = upscale_generate(pipe, tiny.PROMPT, checkpoint=folder, **RUN)
    assert [stage.resumed for stage in resumed.stages] == [True, True, False]
    whole = upscale_generate(pipe, tiny.PROMPT, **RUN)
    assert torch.equal(resumed.frames, whole.frames)
    assert [(s.grid, s.tokens, s.steps, s.density) for s in resumed.stages] == [
        (s.grid, s.tokens, s.steps, s.density) for s in whole.stages
    ]
    # a finished run is read, not made again
    again = upscale_generate(tiny.build("flux"), tiny.PROMPT, checkpoint=folder, **RUN)
    assert all(stage.resumed for stage in again.stages)
    assert torch.equal(again.frames, whole.frames)


def test_another_run_is_refused(pipes, tmp_path):
    folder = tmp_path / "run"
    call = {"base": (32, 48), "size": (32, 48), **options("flux")}
    upscale_generate(pipes("flux"), tiny.PROMPT, checkpoint=folder, **call)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for change in ({"seed": 1}, {"num_inference_steps": 3}, {"guidance": None}):
        with pytest.raises(ValueError, match="other settings"):
            upscale_generate(pipes("flux"), tiny.PROMPT, checkpoint=folder, **call | change)
    other = tiny.build("flux")
    other.scheduler = pipes("flux").scheduler
    with torch.no_grad():
        next(other.transformer.parameters()).add_(1)
    with pytest.raises(ValueError, match="weights"):
        upscale_generate(other, tiny.PROMPT, checkpoint=folder, **call)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_with_something_else_is_refused(pipes, tmp_path):
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(ValueError, match="holds no run"):
        upscale_generate(pipes("flux"), tiny.PROMPT, checkpoint=tmp_path, base=32, size=32, **options("flux"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
