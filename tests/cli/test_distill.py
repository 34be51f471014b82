"""vidattn distill."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from safetensors.torch import load_file

from tests.patches.tiny_pipelines import TEXT


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red dog\n\na photo\n")
    return path


def test_distil_go_on_and_generate(vidattn_command, tiny_flux, prompts, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_flux, model)
    (model / "vidattn.json").write_text(json.dumps({"defaults": {"max_sequence_length": TEXT}}))
    run = tmp_path / "run"
    words = [
        "distill",
        "--model",
        model,
        "--pattern",
        "clear:radius=2",
        "--output",
        run,
        "--device",
        "cpu",
    ]
    words += ["--prompts", prompts, "--samples", 2, "--sample-steps", 1, "--size", "32x48", "--batch", 1]
    words += ["--validation-prompts", prompts, "--dense-layers", "0", "--checkpoint-every", 1, "--steps", 2]
    status, printed, errors = vidattn_command(*words)
    assert status == 0, errors
    assert f"weights  {run / 'adapter.safetensors'}" in printed
    assert re.search(r"^psnr +\d+\.\d+ ", printed, re.MULTILINE)
    tensors = load_file(run / "adapter.safetensors")
    assert tensors
    assert not any(name.startswith("transformer_blocks.0.") for name in tensors)
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe == {"pattern": "clear:radius=2", "weights": "adapter.safetensors", "dense_layers": [0]}
    assert vidattn_command(*words)[0] == 0  # finished already
    status, printed, errors = vidattn_command(
        "generate", "--model", model, "--prompt", "a dog", "--pattern", run / "recipe.json",
        "--size", "32x48", "--steps", 1, "--min-tokens", 0, "--device", "cpu", "--output", tmp_path / "a.png",
    )  # fmt: skip
    assert status == 0, errors
    assert "disc:radius=2" in printed
    status, _, errors = vidattn_command(*words, "--learning-rate", "1")
    assert status == 2
    assert "argument --output" in errors
    assert "learning_rate" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--pattern claer --prompts {p}",
            "argument --pattern: unknown pattern 'claer': did you mean 'clear'",
        ),
        ("--pattern clear", "argument --prompts: give either prompts"),
        ("--pattern clear --prompts {p} --images x", "argument --prompts: give either prompts"),
        ("--pattern clear --prompts nowhere.txt", "argument --prompts: cannot read 'nowhere.txt'"),
        ("--pattern clear --prompts {p} --size 40", "argument --size: height=40"),
        ("--pattern clear --prompts {p} --ema-decay 1", "argument --ema-decay: ema_decay=1.0"),
        (
            "--pattern linfusion --prompts {p} --size 32",
            "argument --pattern: preset 'linfusion' is for unet models",
        ),
        ("--pattern clear --prompts {p} --size 32 --train modules", "argument --train: nothing to train"),
    ],
)
def test_bad_arguments(vidattn_command, tiny_flux, prompts, tmp_path, words, message):
    given = words.format(p=prompts).split()
    more = ["--samples", 1, "--sample-steps", 1, "--device", "cpu", "--output", tmp_path / "run"]
    status, printed, errors = vidattn_command("distill", "--model", tiny_flux, *given, *more)
    assert status == 2
    assert message in errors
    assert len([line for line in errors.splitlines() if "error" in line]) == 1
    assert printed == ""
