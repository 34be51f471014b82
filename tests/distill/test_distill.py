"""vidattn.distill: what it trains, that a killed run goes on as if nothing had been, and what it writes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import vidattn
from tests.patches.tiny_pipelines import TEXT, build, inputs, model_of, run
from vidattn.distill import Distillation, distill
from vidattn.distill.logs import read
from vidattn.distill.student import Student
from vidattn.distill.tasks import task_of

ROOT = Path(__file__).parents[2]
PATTERNS: dict[str, Any] = {
    "flux": {"radius": 2},
    "sd": {},
    "sdxl": {"mid_dim": 4},
    "wan": {"window": (1, 1, 3)},
}
PRESETS = {"flux": "clear", "sd": "linfusion", "sdxl": "linfusion", "wan": "neighborhood"}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """One order of sums, and no waiting between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(name: str, output: Path, **changes: Any) -> Distillation:
    size: dict[str, Any] = {"height": 32, "width": 48}
    if name == "wan":
        size["frames"] = 5
    call = {"num_inference_steps": 1} | ({"max_sequence_length": TEXT} if name in ("flux", "wan") else {})
    given: dict[str, Any] = {
        "patch": PATTERNS[name],
        "prompts": ["a red dog", "a photo"],
        "samples": 3,
        "call": call,
        "steps": 4,
        "batch_size": 2,
        "warmup": 1,
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
        **size,
    }
    return Distillation(PRESETS[name], output, **given | changes)


def forward(name: str, pipe: Any) -> Tensor:
    with torch.no_grad():
        return model_of(pipe)(**inputs(name), return_dict=False)[0]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("flux", {"validation_prompts": ["a dog"], "accumulation": 2, "gradient_checkpointing": True}),
        ("flux", {"train": "lora", "rank": 2}),
        ("sd", {"transfer_weight": 0.3, "feature_weight": 0.2, "precision": "bf16"}),
        ("sdxl", {"train": "modules", "layer_weights": {"down_blocks.*": 2.0}}),
        ("wan", {"ema_decay": 0.0}),
    ],
    ids=["flux", "flux-lora", "sd", "sdxl-modules", "wan"],
)
def test_trains_and_leaves_the_pipeline_as_it_was(tmp_path, name, changes):
    pipe = build(name)
    model = model_of(pipe)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    dense = forward(name, pipe)
    done = distill(pipe, settings(name, tmp_path, **changes))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(forward(name, pipe), dense)
    assert not vidattn.report(pipe).patched

    rows = [row for row in read(tmp_path) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    parts = {"task": 1.0, "output": 0.5, "attention": 0.5, "transfer": 0.0, "feature": 0.0}
    parts |= {
        k[: -len("_weight")]: w for k, w in changes.items() if k in ("transfer_weight", "feature_weight")
    }
    for row in rows:
        total = sum(weight * row[part] for part, weight in parts.items() if part in row)
        assert row["loss"] == pytest.approx(total, rel=1e-5)
        assert row["output"] > 0
        assert row["attention"] > 0
    trained = load_file(done.weights)
    assert trained
    assert all(torch.isfinite(t).all() for t in trained.values())
    handle = vidattn.patch(pipe, done.recipe, min_tokens=0)
    patched = forward(name, pipe)
    handle.unpatch()
    untrained = vidattn.patch(pipe, PRESETS[name], min_tokens=0, **PATTERNS[name])
    assert not torch.equal(forward(name, pipe), patched)
    assert not torch.equal(patched, dense)
    untrained.unpatch()
    if "validation_prompts" in changes:
        assert sorted(p.name for p in (tmp_path / "validation").iterdir()) == [
            "step-000000.png",
            "step-000004.png",
        ]
        with Image.open(tmp_path / "validation" / "step-000004.png") as sheet:
            assert sheet.size == (48, 64)
        assert done.metrics.keys() == {"psnr", "ssim"}


def test_the_saved_weights_are_those_that_were_trained(tmp_path):
    """The patched model with the adapter gives what the student gave."""
    pipe = build("flux")
    config = settings("flux", tmp_path, ema_decay=0.0, steps=2)
    done = distill(pipe, config)
    vidattn.patch(pipe, done.recipe, min_tokens=0)
    got = forward("flux", pipe)
    vidattn.unpatch(pipe)
    state = load_file(tmp_path / "checkpoint.safetensors")
    student = Student(pipe, pipe.transformer, config)
    with torch.no_grad():
        for name, weight in student.named_weights().items():
            weight.copy_(state[f"weight:{name}"])
    torch.testing.assert_close(forward("flux", pipe), got)
    student.close()


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_the_losses_are_those_of_the_papers(tmp_path, name):
    """Recomputed from two separate models: the teacher, and a patched copy."""
    teacher, pipe = build(name), build(name)
    config = settings(name, tmp_path, task_weight=0.7, output_weight=0.3, attention_weight=0.2)
    student = Student(pipe, model_of(pipe), config)
    task = task_of(pipe, config)
    generator = torch.Generator().manual_seed(1)
    conditions = {k: v.detach() for k, v in task.conditions(["a red dog", ""]).items()}
    shape = (2, 6, 16) if name == "flux" else (2, 4, 4, 6)
    latents = torch.randn(shape, generator=generator)
    batch = task.batch(latents, conditions, generator)
    total, parts = student(batch.arguments, batch.target)

    outputs: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    predicted = {}
    for which, made in (("teacher", teacher), ("student", build(name))):
        if which == "student":
            vidattn.patch(made, PRESETS[name], min_tokens=0, **PATTERNS[name])
        for layer in student._attention:
            made_layer = model_of(made).get_submodule(layer)
            made_layer.register_forward_hook(
                lambda m, a, out, which=which: outputs[which].append(
                    torch.cat(out, 1) if isinstance(out, tuple) else out
                )
            )
        with torch.no_grad():
            predicted[which] = model_of(made)(**batch.arguments, return_dict=False)[0]
    expected = {
        "task": (predicted["student"] - batch.target).square().mean(),
        "output": (predicted["student"] - predicted["teacher"]).square().mean(),
        "attention": torch.stack(
            [(a - b).square().mean() for a, b in zip(outputs["student"], outputs["teacher"], strict=True)]
        ).mean(),
    }
    for part, value in expected.items():
        torch.testing.assert_close(parts[part], value, rtol=1e-4, atol=1e-8)
    weighted = 0.7 * expected["task"] + 0.3 * expected["output"] + 0.2 * expected["attention"]
    torch.testing.assert_close(total.detach(), weighted, rtol=1e-4, atol=1e-8)
    student.close()


def test_noise_and_targets():
    """Flow: x_t = (1 - s) x + s n, target n - x. Noise: what the scheduler's own formula gives."""
    flux = task_of(build("flux"), settings("flux", Path("x")))
    latents = torch.randn(2, 6, 16)
    words = {"words": torch.zeros(2, TEXT, 32), "pooled": torch.zeros(2, 32)}
    batch = flux.batch(latents, words, torch.Generator().manual_seed(0))
    sigma = batch.arguments["timestep"].view(2, 1, 1)
    noise = batch.target + latents
    torch.testing.assert_close(batch.arguments["hidden_states"], (1 - sigma) * latents + sigma * noise)
    assert batch.arguments["img_ids"].shape == (6, 3)
    assert noise.std() == pytest.approx(1, abs=0.2)

    pipe = build("sd")
    for kind in ("epsilon", "v_prediction"):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=kind)
        sd = task_of(pipe, settings("sd", Path("x")))
        x = torch.randn(2, 4, 4, 6)
        batch = sd.batch(x, {"words": torch.zeros(2, 77, 32)}, torch.Generator().manual_seed(0))
        alpha = pipe.scheduler.alphas_cumprod[batch.arguments["timestep"]].view(2, 1, 1, 1)
        noisy = batch.arguments["sample"]
        noise = (noisy - alpha.sqrt() * x) / (1 - alpha).sqrt()
        wanted = noise if kind == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * x
        torch.testing.assert_close(batch.target, wanted, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------ kill and resume
SCRIPT = """
import torch
from pathlib import Path
from tests.distill.test_distill import settings
from tests.patches.tiny_pipelines import build
from vidattn.distill import distill
torch.set_num_threads(1)
distill(build("flux"), settings("flux", Path({output!r}), steps=400, checkpoint_every=1))
"""


def test_a_killed_run_ends_as_an_unbroken_one(tmp_path):
    """kill -9 in the middle; then the same call again. 400 steps on the schedule, of which few are made."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(output=str(killed))],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 300
        while len(read(killed)) < 3 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    made = int(last_step(killed))
    assert 0 < made < 400
    steps = made + 2
    # the run is cut short for both by an exception after the same step, not by other settings
    for folder in (killed, whole):
        with pytest.raises(KeyboardInterrupt):
            distill_until(folder, steps)
    one, other = (load_file(folder / "checkpoint.safetensors") for folder in (killed, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    curves = [[(row["step"], row["loss"]) for row in read(folder)] for folder in (killed, whole)]
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == list(range(1, steps + 1))


def last_step(folder: Path) -> str:
    from safetensors import safe_open

    with safe_open(str(folder / "checkpoint.safetensors"), "pt") as opened:
        return opened.metadata()["step"]


def distill_until(folder: Path, steps: int) -> None:
    """Interrupted once the checkpoint after ``steps`` is written."""
    from vidattn.distill import checkpoints, trainer

    real = checkpoints.save

    def save(*args: Any) -> None:
        real(*args)
        if args[1] == steps:
            raise KeyboardInterrupt

    trainer.checkpoints.save = save
    try:
        distill(build("flux"), settings("flux", folder, steps=400, checkpoint_every=1))
    finally:
        trainer.checkpoints.save = real


def test_a_finished_run_is_only_written_again_and_other_settings_are_refused(tmp_path):
    pipe = build("flux")
    done = distill(pipe, settings("flux", tmp_path, steps=2))
    tensors = load_file(done.weights)
    again = distill(pipe, settings("flux", tmp_path, steps=2))
    assert again.steps == 2
    assert all(torch.equal(t, tensors[k]) for k, t in load_file(again.weights).items())
    with pytest.raises(ValueError, match="is of a run with other learning_rate, rank"):
        distill(pipe, settings("flux", tmp_path, steps=2, learning_rate=1.0, rank=3))
    with pytest.raises(ValueError, match="holds samples made with other height, seed"):
        distill(pipe, settings("flux", tmp_path, steps=2, height=64, seed=1))
    assert not vidattn.report(pipe).patched


# ------------------------------------------------------------------ data
def test_a_folder_of_pictures(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number, size in enumerate([(60, 40), (48, 32), (31, 80)]):
        values = np.full((size[1], size[0], 3), 80 * number, np.uint8)
        Image.fromarray(values).save(images / f"{number}.png")
    (images / "0.txt").write_text("a red dog\n")
    (images / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": f"{n}.png", "text": "a photo"}) for n in (1, 2))
    )
    pipe = build("flux")
    distill(pipe, settings("flux", tmp_path / "run", prompts=(), images=images, steps=1))
    found = [load_file(tmp_path / "run" / "data" / f"{n:06d}.safetensors") for n in range(3)]
    with torch.no_grad():
        gray = pipe.vae.encode(torch.full((1, 3, 32, 48), 80 / 127.5 - 1)).latent_dist.mode()
    gray = (gray - 0.1) * 0.36
    packed = gray.view(1, 4, 2, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(6, 16)
    torch.testing.assert_close(found[1]["latents"], packed)
    assert not torch.equal(found[0]["words"], found[1]["words"])
    assert torch.equal(found[2]["words"], found[1]["words"])
    (images / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match=r"1\.png has no caption"):
        distill(pipe, settings("flux", tmp_path / "other", prompts=(), images=images))
    with pytest.raises(ValueError, match="there is no such folder"):
        distill(pipe, settings("flux", tmp_path / "other", prompts=(), images=tmp_path / "none"))


# ------------------------------------------------------------------ bad settings
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": ()}, "give either prompts"),
        ({"images": "x"}, "give either prompts"),
        ({"steps": 0}, "steps=0: must be greater than 0"),
        ({"batch_size": 1.5}, "batch_size=1.5: must be a whole number"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"train": "all"}, "train='all': must be one of attention, lora, modules"),
        ({"ema_decay": 1.0}, r"ema_decay=1.0: must be in \[0, 1\)"),
        ({"task_weight": 0, "output_weight": 0, "attention_weight": 0}, "nothing would be learned"),
        ({"patch": {"weights": "x"}}, "give weights to start from as initial"),
    ],
)
def test_bad_settings_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        settings("flux", Path("x"), **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 40}, "height=40, width=48: must be multiples of 16"),
        ({"train": "modules"}, "nothing to train"),
        ({"patch": {"radius": 2, "dense_layers": "*"}}, "every layer is dense"),
        ({"layer_weights": {"blocks.*": 1.0}}, "fits none of the layers"),
        ({"patch": {"radius": -1}}, "radius=-1"),
    ],
)
def test_settings_that_do_not_fit_the_model(tmp_path, changes, words):
    pipe = build("flux")
    flags = [p.requires_grad for p in pipe.transformer.parameters()]
    with pytest.raises(ValueError, match=words):
        distill(pipe, settings("flux", tmp_path, samples=1, **changes))
    assert not vidattn.report(pipe).patched
    assert [p.requires_grad for p in pipe.transformer.parameters()] == flags
    assert run("flux", pipe).isfinite().all()


def test_other_pipelines_are_refused(tmp_path):
    class Other:
        transformer = torch.nn.Linear(1, 1)

    with pytest.raises(TypeError, match="Other cannot be distilled; models that can: FluxTransformer2DModel"):
        distill(Other(), settings("flux", tmp_path))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["flux", "sd"])
def test_trains_on_a_gpu_in_bfloat16(tmp_path, name):
    pipe = build(name).to("cuda", torch.bfloat16)
    done = distill(pipe, settings(name, tmp_path, precision="bf16", validation_prompts=["a dog"]))
    assert all(torch.isfinite(t).all() for t in load_file(done.weights).values())
