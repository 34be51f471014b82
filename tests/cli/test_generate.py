"""``vidattn generate`` on tiny pipelines with random weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vidattn import demo_models, metrics
from vidattn.cli import generation
from vidattn.cli.pictures import read_settings

# Few text tokens, and sparse from the first token on: the tiny grids lie under the usual threshold.
SMALL = ("--size", "64x96", "--steps", 2, "--max-sequence-length", 16, "--min-tokens", 0)
PROMPT = 'a red dog, "quoted" and $5'


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def dog(model: Path, out: Path, *options: object) -> tuple[object, ...]:
    """The command for a small picture."""
    return ("generate", "--model", model, "--prompt", PROMPT, *SMALL, "--output", out, *options)


def test_a_picture_with_its_settings(vidattn_command, tiny_flux, tmp_path):
    out = tmp_path / "new folder" / "dog.png"
    options = ("--pattern", "neighborhood:window=3x3", "--seed", 7)
    status, printed, errors = vidattn_command(*dog(tiny_flux, out, *options))
    assert (status, "Traceback" in errors) == (0, False)
    assert pixels(out).shape == (64, 96, 3)
    settings = read_settings(out)
    assert settings["prompt"] == PROMPT
    assert settings["pattern"] == "neighborhood:window=3x3"
    assert {key: settings[key] for key in ("seed", "height", "width", "num_inference_steps")} == {
        "seed": "7",
        "height": "64",
        "width": "96",
        "num_inference_steps": "2",
    }
    for expected in ("neighborhood:window=3x3", "grid 1x4x6", "backend torch", "density 0.", str(out)):
        assert expected in printed
    assert [path.name for path in out.parent.iterdir()] == ["dog.png"]  # no partial file is left


def test_compare_writes_both_and_measures_them(vidattn_command, tiny_flux, tmp_path):
    out = tmp_path / "dog.png"
    options = ("--compare", "dense", "--pattern", "neighborhood:window=3x3")
    status, printed, _ = vidattn_command(*dog(tiny_flux, out, *options))
    assert status == 0
    sparse, dense, gap = (
        pixels(tmp_path / name) for name in ("dog.png", "dog-dense.png", "dog-difference.png")
    )
    a, b = (torch.from_numpy(x / 255.0).movedim(-1, -3) for x in (sparse, dense))
    settings = read_settings(out)
    # the files are rounded to bytes, the measured pictures are not: that moves the root of the mean square
    # error by less than the rounding's own, which is 0.41 steps for two pictures
    measured, of_files = (10 ** (-float(value) / 20) for value in (settings["psnr"], metrics.psnr(a, b)))
    assert abs(measured - of_files) < 0.45 / 255
    assert float(settings["ssim"]) == pytest.approx(metrics.ssim(a, b).item(), abs=0.005)
    assert f"PSNR {float(settings['psnr']):.2f} dB, SSIM {float(settings['ssim']):.4f}" in printed
    assert not np.array_equal(sparse, dense)
    expected = np.clip(np.abs(sparse.astype(float) - dense.astype(float)) * 4, 0, 255)
    assert np.abs(gap - expected).max() <= 5  # rounding: half a step in each picture, four times enlarged


def test_a_window_of_the_whole_grid_is_dense(vidattn_command, tiny_flux, tmp_path):
    out = tmp_path / "dog.png"
    options = ("--compare", "dense", "--pattern", "neighborhood:window=4x6", "--backend", "torch")
    status, _, _ = vidattn_command(*dog(tiny_flux, out, *options))
    assert status == 0
    assert float(read_settings(out)["psnr"]) > 100


def test_the_seed_decides(vidattn_command, tiny_flux, tmp_path):
    made = []
    for seed in (1, 1, 2):
        out = tmp_path / f"{len(made)}.png"
        assert vidattn_command(*dog(tiny_flux, out, "--pattern", "none", "--seed", seed))[0] == 0
        made.append(pixels(out))
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_a_clip(vidattn_command, tiny_wan, tmp_path):
    common = (
        "generate",
        "--model",
        tiny_wan,
        "--prompt",
        "a cat",
        "--size",
        "32x48",
        "--frames",
        5,
        "--steps",
        1,
    )
    common += ("--max-sequence-length", 16, "--min-tokens", 0, "--pattern", "radial")
    for name in ("cat.gif", "cat.png"):
        out = tmp_path / name
        status, printed, _ = vidattn_command(*common, "--output", out, "--compare", "dense")
        assert status == 0
        assert "grid 2x2x3" in printed
        with Image.open(out) as clip:
            assert (clip.n_frames, clip.size) == (5, (48, 32))
        assert (tmp_path / f"cat-difference{out.suffix}").exists()
    assert read_settings(tmp_path / "cat.png")["num_frames"] == "5"


def test_the_models_own_defaults(vidattn_command, tiny_flux, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_flux, model)
    defaults = {
        "max_sequence_length": 8,
        "num_inference_steps": 3,
        "height": 48,
        "width": 32,
        "true_cfg_scale": 2.0,
    }
    (model / "vidattn.json").write_text(json.dumps({"defaults": defaults}))
    out = tmp_path / "dog.png"
    words = (
        "generate",
        "--model",
        model,
        "--prompt",
        PROMPT,
        "--min-tokens",
        0,
        "--output",
        out,
        "--steps",
        2,
    )
    status, printed, _ = vidattn_command(*words)
    assert status == 0
    assert pixels(out).shape == (48, 32, 3)
    settings = read_settings(out)
    assert settings["num_inference_steps"] == "2"  # the command line wins
    assert settings["max_sequence_length"] == "8"
    assert "+ 8 text tokens" in printed

    assert vidattn_command(*words, "--guidance", 1.5)[0] == 0  # an undistilled FLUX is guided classically
    assert read_settings(out)["true_cfg_scale"] == "1.5"

    (model / "vidattn.json").write_text(json.dumps({"defaults": {"colour": 1}}))
    status, _, errors = vidattn_command(*words)
    assert status == 2
    assert "argument --model" in errors
    assert "'colour'" in errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--size", "12y"), ("--size", "'12y'", "384x512")),
        (("--size", 34), ("--size", "34x34", "multiples of 16")),
        (("--steps", 0), ("--steps", "'0'", "at least 1")),
        (("--seed", "-1"), ("--seed", "'-1'", "at least 0")),
        (("--guidance", "nan"), ("--guidance", "'nan'")),
        (("--frames", 5), ("--frames", "FluxPipeline has no num_frames")),
        (("--device", "gpu"), ("--device", "'gpu'")),
        (("--dtype", "int8"), ("--dtype", "'int8'", "bfloat16")),
        (("--backend", "tritn"), ("--backend", "'tritn'", "torch")),
        (("--pattern", "neighbourhod"), ("--pattern", "did you mean 'neighborhood'")),
        (("--pattern", "neighborhood:window=0"), ("--pattern", "window=0")),
        (("--pattern", "radial"), ("--pattern", "video models")),
        (("--dense-layers", "nosuch.*"), ("--dense-layers", "'nosuch.*'", "transformer_blocks.0.attn")),
        (("--dense-layers", "99"), ("--dense-layers", "99")),
        (("--pattern", "clear", "--weights", "x.bin"), ("--weights", "x.bin", "safetensors")),
        (("--output", "dog.jpg"), ("--output", "'dog.jpg'", ".png")),
        (("--output", "dog.gif"), ("--output", "'dog.gif'", ".png")),
        (("--compare", "sparse"), ("--compare", "'sparse'")),
        (("--model", "no-such-model"), ("--model", "'no-such-model'", "hub id")),
        (("--unknown", 1), ("--unknown",)),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_bad_arguments(vidattn_command, tiny_flux, options, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed, errors = vidattn_command("generate", "--model", tiny_flux, "--prompt", "x", *options)
    assert status == 2, errors
    line = errors.strip().splitlines()[-1]  # before it only a progress bar may stand
    for part in ("vidattn", "error: ", *expected):
        assert part in line
    assert printed == ""
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []  # nothing was written


def test_models_that_are_none(vidattn_command, tiny_flux, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    shutil.copytree(tiny_flux, broken)
    (broken / "model_index.json").write_text("{")
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_flux, pickled)
    weights = pickled / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_flux, damaged)
    (damaged / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"not safetensors")
    for model, expected in (
        (empty, "model_index.json"),
        (broken, "cannot read"),
        (pickled, "cannot be loaded"),
    ):
        status, _, errors = vidattn_command("generate", "--model", model, "--prompt", "x")
        assert status == 2, errors
        assert "argument --model" in errors
        assert expected in errors
    status, _, errors = vidattn_command("generate", "--model", damaged, "--prompt", "x")
    assert status in (1, 2)
    assert "Traceback" not in errors


def test_a_pipeline_of_another_family(vidattn_command, tiny_flux, tmp_path, monkeypatch):
    def no_family(*args: object, **kwargs: object) -> None:
        raise TypeError("OtherPipeline cannot be patched; supported: flux")

    monkeypatch.setattr("vidattn.patch", no_family, raising=False)
    words = ("generate", "--model", tiny_flux, "--prompt", "x", "--size", 64, "--max-sequence-length", 16)
    status, _, errors = vidattn_command(*words, "--output", tmp_path / "x.png")
    assert status == 2
    assert "argument --model: OtherPipeline cannot be patched; supported: flux" in errors


def test_a_failure_is_one_line_and_status_1(vidattn_command, tiny_flux, tmp_path, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(generation, "generate", fail)
    words = ("generate", "--model", tiny_flux, "--prompt", "x", "--size", 64, "--output", tmp_path / "x.png")
    status, _, errors = vidattn_command(*words)
    assert status == 1
    assert errors.strip().splitlines()[-1] == "vidattn generate: failed: RuntimeError: out of memory and more"
    assert "Traceback" not in errors
    status, _, errors = vidattn_command("--traceback", *words)
    assert status == 1
    assert "Traceback" in errors


def test_the_shipped_models_can_be_read():
    for name, folder in demo_models.shipped().items():
        assert name == folder.path.name
        assert folder.pipeline.endswith("Pipeline")


def test_upscale_in_stages_and_again_from_the_checkpoint(vidattn_command, tiny_flux, tmp_path):
    out, folder = tmp_path / "dog.png", tmp_path / "run"
    options = ("--size", "32x48", "--upscale", "64x96", "--checkpoint", folder, "--compare", "dense")
    words = [*dog(tiny_flux, out, "--pattern", "neighborhood:window=3x3"), *options]
    status, printed, errors = vidattn_command(*words)
    assert (status, "Traceback" in errors) == (0, False), errors
    assert pixels(out).shape == (64, 96, 3)
    assert "stage 1  32x48, 2 steps" in printed
    assert "stage 2  64x96, 1 steps" in printed
    assert not np.array_equal(pixels(out), pixels(tmp_path / "dog-dense.png"))
    assert (tmp_path / "dog-difference.png").exists()
    assert json.loads(read_settings(out)["upscale"]) == [64, 96]
    first = pixels(out)
    _, printed, _ = vidattn_command(*words)
    assert printed.count("(from the checkpoint)") == 2
    assert np.array_equal(pixels(out), first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--upscale", "70x96"), "--upscale: size=70x96"),
        (("--upscale", "32x48"), "--size: base=64x96 is larger"),
        (("--checkpoint", "run"), "--checkpoint: keeps finished stages"),
        (("--stages", "2"), "--stages: needs --upscale"),
    ],
)
def test_wrong_upscaling(vidattn_command, tiny_flux, tmp_path, options, message):
    status, _, errors = vidattn_command(*dog(tiny_flux, tmp_path / "dog.png", *options))
    assert status == 2
    assert message in errors


def test_mp4_with_its_settings_beside_it(vidattn_command, tiny_wan, tmp_path):
    av = pytest.importorskip("av")
    out = tmp_path / "dog.mp4"
    status, _, errors = vidattn_command(*dog(tiny_wan, out, "--frames", 5, "--pattern", "none", "--fps", 12))
    assert status == 0, errors
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.average_rate, stream.codec_context.name) == (12, "h264")
    assert [frame.shape for frame in frames] == [(64, 96, 3)] * 5
    settings = json.loads(out.with_suffix(".json").read_text())
    assert (settings["prompt"], settings["num_frames"]) == (PROMPT, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dog.json", "dog.mp4"]
