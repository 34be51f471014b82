"""Staged generation against diffusers' own image-to-image pipelines, and what it leaves behind."""

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.patches import tiny_pipelines as tiny
from vidattn.pipelines import upscale_generate

PLAIN = {"pattern": None, "guidance": None, "ntk": None, "proportional": False, "progress": False}
STEPS = 4
SIZES = {"base": (32, 48), "size": (64, 96)}


def options(name: str) -> dict:
    made = {"num_inference_steps": STEPS, "progress": False}
    if name in ("flux", "wan"):
        made["max_sequence_length"] = tiny.TEXT
    if name == "wan":
        made["num_frames"] = 5
    return made


@pytest.fixture(scope="module")
def pipes():
    made = {}

    def get(name: str):
        if name not in made:
            made[name] = tiny.build(name)
            if (
                name == "flux"
            ):  # diffusers shifts image-to-image runs by the new size; a fixed shift is the same in both
                made[name].scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        return made[name]

    return get


def reference(name: str, pipe, strength: float) -> torch.Tensor:
    """The second stage by diffusers' image-to-image (video-to-video) pipeline, from latents encoded here."""
    classes = {
        "flux": diffusers.FluxImg2ImgPipeline,
        "sd": diffusers.StableDiffusionImg2ImgPipeline,
        "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
    }
    call = {k: v for k, v in options(name).items() if k != "progress"} | {"prompt": tiny.PROMPT}
    generator = torch.Generator().manual_seed(3)
    small = pipe(**call, height=32, width=48, generator=generator, output_type="pt").images
    # stages hand on pictures of 8 bits, as files do
    small = (small.clamp(0, 1) * 255).round() / 255
    large = torch.nn.functional.interpolate(small, size=(64, 96), mode="bicubic", antialias=True).clamp(0, 1)
    config = pipe.vae.config
    with torch.no_grad():
        latents = pipe.vae.encode(large * 2 - 1).latent_dist.mode()
    latents = (latents - (config.shift_factor or 0)) * config.scaling_factor
    other = classes[name].from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    sizes = {"height": 64, "width": 96} if name == "flux" else {}
    result = other(**call, **sizes, image=latents, strength=strength, generator=generator, output_type="pt")
    return result.images.clamp(0, 1)


@pytest.mark.parametrize("name", ["flux", "sd", "sdxl"])
def test_a_stage_is_image_to_image(pipes, name):
    """As diffusers' pipeline for that: start, noise level, number of steps and all values."""
    pipe = pipes(name)
    expected = reference(name, pipe, 0.5)
    made = upscale_generate(pipe, tiny.PROMPT, **SIZES, strength=0.5, seed=3, **{**PLAIN, **options(name)})
    assert [stage.steps for stage in made.stages] == [STEPS, STEPS // 2]
    off = made.frames[:, 0].movedim(-1, 1).float() / 255 - expected
    # rounding to 8 bits is half a step; the rest is the noise of float32, added in another order
    assert off.abs().max() < 0.51 / 255 + 1e-4
    assert expected.std() > 0.02


@pytest.mark.parametrize("scheduler", ["heun", "unipc", "pndm"])
def test_other_schedulers_start_later_too(pipes, scheduler):
    pipe = pipes("sd")
    own = pipe.scheduler
    classes = {
        "heun": diffusers.HeunDiscreteScheduler,
        "unipc": diffusers.UniPCMultistepScheduler,
        "pndm": diffusers.PNDMScheduler,
    }
    pipe.scheduler = classes[scheduler].from_config(
        own.config, **({"skip_prk_steps": True} if scheduler == "pndm" else {})
    )
    try:
        expected = reference("sd", pipe, 0.5)
        made = upscale_generate(
            pipe, tiny.PROMPT, **SIZES, strength=0.5, seed=3, **{**PLAIN, **options("sd")}
        )
    finally:
        pipe.scheduler = own
    off = made.frames[:, 0].movedim(-1, 1).float() / 255 - expected
    assert off.abs().max() < 0.51 / 255 + 1e-4
