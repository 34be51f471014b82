"""Staged generation against diffusers' own image-to-image pipelines, and what it leaves behind."""

import diffusers
import numpy as np
import pytest
import torch

import vidattn
from tests.patches import tiny_pipelines as tiny
from tests.pipelines.conftest import STEPS, options
from vidattn.patterns import Disc
from vidattn.pipelines import upscale_generate
from vidattn.pipelines.guidance import low_pass
from vidattn.pipelines.latents import latents_of

PLAIN = {"pattern": None, "guidance": None, "ntk": None, "proportional": False}
SIZES = {"base": (32, 48), "size": (64, 96)}
IMAGE_TO_IMAGE = {
    "flux": diffusers.FluxImg2ImgPipeline,
    "sd": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
}


def enlarged(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (batch, 3, height, width), as stages hand them on: of 8 bits, as files are, and resized."""
    small = (pictures.clamp(0, 1) * 255).round() / 255
    return torch.nn.functional.interpolate(small, size=(64, 96), mode="bicubic", antialias=True).clamp(0, 1)


def by_diffusers(name: str, pipe, strength: float) -> torch.Tensor:
    """Both stages by diffusers' own pipelines, the second from latents encoded here."""
    call = {k: v for k, v in options(name).items() if k != "progress"} | {"prompt": tiny.PROMPT}
    generator = torch.Generator().manual_seed(3)
    small = pipe(**call, height=32, width=48, generator=generator, output_type="pt").images
    config = pipe.vae.config
    with torch.no_grad():
        latents = pipe.vae.encode(enlarged(small) * 2 - 1).latent_dist.mode()
    latents = (latents - (config.shift_factor or 0)) * config.scaling_factor
    other = IMAGE_TO_IMAGE[name].from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    sizes = {"height": 64, "width": 96} if name == "flux" else {}
    result = other(**call, **sizes, image=latents, strength=strength, generator=generator, output_type="pt")
    return result.images.clamp(0, 1)


def check_against_diffusers(name: str, pipe) -> None:
    expected = by_diffusers(name, pipe, 0.5)
    made = upscale_generate(pipe, tiny.PROMPT, **SIZES, strength=0.5, seed=3, **PLAIN, **options(name))
    off = made.frames[:, 0].movedim(-1, 1).float() / 255 - expected
    # rounding to 8 bits is half a step; the rest is float32, added up in another order
    assert off.abs().max() < 0.51 / 255 + 1e-4
    assert expected.std() > 0.02


@pytest.mark.parametrize("name", ["flux", "sd", "sdxl"])
def test_a_stage_is_image_to_image(pipes, name):
    """The start, the noise level, the number of steps: all values are those of diffusers' own pipeline."""
    check_against_diffusers(name, pipes(name))


@pytest.mark.parametrize("name", ["Heun", "UniPCMultistep", "PNDM", "DPMSolverMultistep"])
def test_other_schedulers_start_later_too(pipes, name, monkeypatch):
    pipe = pipes("sd")
    extra = {"skip_prk_steps": True} if name == "PNDM" else {}
    cls = getattr(diffusers, name + ("Discrete" if name == "Heun" else "") + "Scheduler")
    own, pipe.scheduler = pipe.scheduler, cls.from_config(pipe.scheduler.config, **extra)
    try:
        check_against_diffusers("sd", pipe)
    finally:
        pipe.scheduler = own


def test_wan_starts_as_video_to_video(pipes):
    """Against diffusers' pipeline for that, whose latents are encoded and noised by itself."""
    pipe, call = (
        pipes("wan"),
        {k: v for k, v in options("wan").items() if k not in ("progress", "num_frames")},
    )
    generator = torch.Generator().manual_seed(3)
    small = pipe(
        tiny.PROMPT, num_frames=5, height=32, width=48, generator=generator, output_type="pt", **call
    ).frames
    video = enlarged(small[0])[None]
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1)
        for x in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    with torch.no_grad():
        latents = (pipe.vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode() - mean) / std
    other = diffusers.WanVideoToVideoPipeline.from_pipe(pipe)
    other.scheduler.set_timesteps(STEPS)
    noise = torch.randn(latents.shape, generator=generator)
    sigma = other.scheduler.sigmas[STEPS // 2]
    given = {"latents": (1 - sigma) * latents + sigma * noise, "strength": 0.5, "output_type": "pt"}
    other.set_progress_bar_config(disable=True)
    # diffusers cleans prompts with ftfy here, which need not be installed: the embeddings are given
    texts = ("prompt_embeds", "negative_prompt_embeds")
    length = call.pop("max_sequence_length")
    given |= dict(zip(texts, pipe.encode_prompt(tiny.PROMPT, max_sequence_length=length), strict=True))
    expected = other(height=64, width=96, **given, **call).frames
    made = upscale_generate(pipe, tiny.PROMPT, **SIZES, strength=0.5, seed=3, **PLAIN, **options("wan"))
    off = made.frames.movedim(-1, 2).float() / 255 - expected.clamp(0, 1)
    assert off.abs().max() < 0.51 / 255 + 1e-4
    assert made.stages[1].grid == (2, 4, 6)


@pytest.mark.parametrize("name", ["flux", "sdxl", "wan"])
def test_guidance_keeps_the_picture(pipes, name):
    """From pure noise, nothing but the guidance knows the smaller picture; its latents are encoded here."""
    pipe, errors = pipes(name), {}
    for guidance in (None, "frequency", "latent"):
        ends, shown = [], []

        def step_end(pipe, step, timestep, tensors, ends=ends):
            ends.append(tensors["latents"])
            return tensors

        upscale_generate(
            pipe,
            tiny.PROMPT,
            **SIZES,
            **PLAIN | {"guidance": guidance},
            strength=1.0,
            guidance_weight=1e9,  # 1 at every step
            callback=lambda stage, index, total, images, shown=shown: shown.append((index, total, images)),
            callback_on_step_end=step_end,
            **options(name),
        )
        assert [(index, total) for index, total, _ in shown] == [(0, 2), (1, 2)]
        small = shown[0][2][0] if name == "wan" else shown[0][2]
        values = torch.stack([torch.from_numpy(np.array(image)).movedim(-1, 0) / 255 for image in small])
        latents = latents_of(pipe)
        reference = latents.encode(enlarged(values)[None])
        errors[guidance] = low_pass(latents.unpack(ends[-1], reference) - reference, 2).square().mean().item()
    assert errors["frequency"] < 0.05 * errors[None]
    assert errors["latent"] < 0.5 * errors[None]


def test_batches_prompts_and_seeds(pipes):
    pipe, prompts = pipes("flux"), ["a red dog", "a photo of a dog"]
    call = {**SIZES, **options("flux"), "patch_options": {"min_tokens": 0}}
    both = upscale_generate(pipe, prompts, seed=[5, 6], **call)
    assert both.frames.shape == (2, 1, 64, 96, 3)
    for i, prompt in enumerate(prompts):
        alone = upscale_generate(pipe, prompt, seed=5 + i, **call)
        assert (alone.frames[0].int() - both.frames[i].int()).abs().max() <= 1
    assert not torch.equal(both.frames[0], both.frames[1])
    assert both.images[1].size == (96, 64)
    stage = both.stages[1]
    assert (stage.grid, stage.tokens) == ((1, 4, 6), 24 + tiny.TEXT)
    # the window of the first stage, 2x3 tokens: 3x3 as it must be odd, and text sees and is seen by all
    assert stage.density == pytest.approx(
        vidattn.patterns.SlidingWindow((2, 3)).density(vidattn.TokenLayout((1, 4, 6), tiny.TEXT))
    )


def state_of(pipe) -> tuple:
    model = tiny.model_of(pipe)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    theta = getattr(getattr(model, "pos_embed", None), "theta", None)
    return pipe.scheduler, dict(pipe.config), hooks, theta, pipe._progress_bar_config, list(pipe.vae.__dict__)


class Stop(Exception):
    pass


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(pipes, fails):
    pipe = pipes("flux")
    vidattn.patch(pipe, Disc(2), min_tokens=0)
    before, plain = state_of(pipe), tiny.run("flux", pipe)
    calls, scales = [], set()

    def step_end(pipe, step, timestep, tensors):
        scales.add(pipe.transformer.pos_embed.theta)
        calls.append(step)
        if fails and len(calls) == STEPS + 1:
            raise Stop
        return tensors

    call = {**SIZES, **options("flux"), "callback_on_step_end": step_end}
    if fails:
        with pytest.raises(Stop):
            upscale_generate(pipe, tiny.PROMPT, **call)
    else:
        upscale_generate(pipe, tiny.PROMPT, **call)
    assert scales == {10000, 100000.0}  # both stages were reached, and NTK acted in the second
    assert state_of(pipe) == before
    assert torch.equal(tiny.run("flux", pipe), plain)
    vidattn.unpatch(pipe)


def test_a_time_shift_moves_the_start(pipes):
    """Half the steps of shift s begin at s * 0.5 / (1 + (s - 1) * 0.5), whatever the number of tokens."""
    pipe, starts = tiny.build("flux"), []

    def step_end(pipe, step, timestep, tensors):
        if step == 0:
            starts.append(float(pipe.scheduler.sigmas[0]))
        return tensors

    for shift in (None, 6.0):
        call = {**SIZES, **options("flux"), "callback_on_step_end": step_end, "time_shift": shift}
        upscale_generate(pipe, tiny.PROMPT, strength=0.5, **call)
    base_shift = 2.718281828459045 ** (
        0.5 + (6 - 256) * (1.15 - 0.5) / (4096 - 256)
    )  # 6 tokens, as FLUX says
    expected = [s * 0.5 / (1 + (s - 1) * 0.5) for s in (base_shift, 6.0)]
    assert [starts[1], starts[3]] == pytest.approx(expected, rel=1e-5)


WRONG = {
    "size 70x96": ({"size": (70, 96)}, "multiples of 16.*nearest are 64x96 and 80x96"),
    "base over size": ({"base": 128}, "larger than size"),
    "stages": ({"stages": [(48, 64)]}, "last must be size=64x96"),
    "no stages": ({"stages": 0}, "takes one at least"),
    "strength": ({"strength": 1.5}, r"in \(0, 1\]"),
    "strengths": ({"strength": [0.5, 0.5]}, "each of 1 stages"),
    "guidance": ({"guidance": "pixel"}, '"latent", "frequency" or None'),
    "weight": ({"guidance_weight": -1}, "0 or more"),
    "ntk": ({"ntk": 0}, "positive factor"),
    "shift": ({"time_shift": -3}, "positive number"),
    "seeds": ({"seed": [1, 2]}, "2 seeds for 1 pictures"),
    "pattern": ({"pattern": "nonsense"}, "nonsense"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_values(pipes, change, message):
    with pytest.raises(ValueError, match=message):
        upscale_generate(pipes("flux"), tiny.PROMPT, **SIZES | options("flux") | change)


WRONG_KINDS = {
    "size": ({"size": "large"}, "pair"),
    "stages": ({"stages": 2.5}, "number of stages"),
    "seed": ({"seed": 1.5}, "integer"),
    "proportional": ({"proportional": "yes"}, "True, False"),
    "argument": ({"colour": "red"}, "takes no 'colour'"),
    "latents": ({"latents": torch.zeros(1)}, "set for each stage"),
    "steps": ({"stage_options": {"num_inference_steps": 3}}, "set for each stage"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_KINDS.values(), ids=WRONG_KINDS)
def test_wrong_kinds(pipes, change, message):
    with pytest.raises(TypeError, match=message):
        upscale_generate(pipes("flux"), tiny.PROMPT, **SIZES | options("flux") | change)


def test_options_that_would_do_nothing_are_refused(pipes):
    with pytest.raises(ValueError, match="ntk=10"):
        upscale_generate(pipes("wan"), tiny.PROMPT, **SIZES, ntk=10, **options("wan"))
    with pytest.raises(ValueError, match="proportional=True"):
        upscale_generate(pipes("sd"), tiny.PROMPT, **SIZES, proportional=True, **options("sd"))
    with pytest.raises(ValueError, match="DDIMScheduler has no time shift"):
        upscale_generate(pipes("sd"), tiny.PROMPT, **SIZES, time_shift=3.0, **options("sd"))
