"""Which steps are dense: counted through pipelines, for every way in which they count steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FluxImg2ImgPipeline,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from torch import nn

import vidattn
from tests.patches.tiny_pipelines import build, ddim, denoiser, inputs, model_of, run
from vidattn.patches import routes
from vidattn.patterns import Neighborhood

SMALL = Neighborhood(3)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each forward of the denoiser whether its layers were sparse, seen from the sparse core."""
    seen: list[bool] = []
    real = routes.attention

    def noted(*args: Any, **options: Any) -> torch.Tensor:
        seen[-1] = True
        return real(*args, **options)

    monkeypatch.setattr(routes, "attention", noted)
    return seen


def watch(model: nn.Module, seen: list[bool]) -> None:
    model.register_forward_pre_hook(lambda module, args: seen.append(False))


def test_the_first_and_last_steps(forwards):
    pipe = build("flux")
    watch(model_of(pipe), forwards)
    vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=2, dense_last_steps=1)
    run("flux", pipe, num_inference_steps=6)
    assert forwards == [False, False, True, True, True, False]
    forwards.clear()
    run("flux", pipe, num_inference_steps=4)  # a model for few steps, in the same patch
    assert forwards == [False, False, True, False]
    forwards.clear()
    run("flux", pipe, num_inference_steps=2)  # all steps of a shorter run
    assert forwards == [False, False]


@pytest.mark.parametrize(
    ("name", "options"),
    [("flux", {"true_cfg_scale": 2.0, "negative_prompt": "a dog"}), ("wan", {"guidance_scale": 3.0})],
)
def test_guidance_in_two_forwards_is_one_step(name, options, forwards):
    pipe = build(name)
    watch(model_of(pipe), forwards)
    vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=1, dense_last_steps=1)
    run(name, pipe, num_inference_steps=4, **options)
    assert forwards == [False, False, True, True, True, True, False, False]


@pytest.mark.parametrize("kind", ["flux", "sd"])
def test_image_to_image_starts_in_the_middle_of_the_schedule(kind, forwards):
    base = build(kind)
    cls = FluxImg2ImgPipeline if kind == "flux" else StableDiffusionImg2ImgPipeline
    options = {} if kind == "flux" else {"requires_safety_checker": False}
    pipe = cls(**base.components, **options)
    pipe.set_progress_bar_config(disable=True)
    watch(model_of(pipe), forwards)
    vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=1, dense_last_steps=1)
    call = {"image": torch.rand(1, 3, 64, 96), "strength": 0.5, "num_inference_steps": 8}
    arguments = {"prompt": "a dog", "output_type": "latent", **call}
    arguments |= {"height": 64, "width": 96, "max_sequence_length": 16} if kind == "flux" else {}
    pipe(**arguments, generator=torch.Generator().manual_seed(1))
    assert forwards == [False, True, True, False]


SCHEDULERS = {
    "ddim": (ddim, 5),
    "euler": (EulerDiscreteScheduler, 5),
    "pndm": (
        lambda: PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        6,
    ),  # its second timestep comes twice
    "heun": (HeunDiscreteScheduler, 9),
    "dpm++": (DPMSolverMultistepScheduler, 5),
    "unipc": (UniPCMultistepScheduler, 5),
    "lcm": (lambda: LCMScheduler(original_inference_steps=50), 5),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(scheduler, forwards):
    make, evaluations = SCHEDULERS[scheduler]
    pipe = build("sd")
    vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=2, dense_last_steps=1)
    pipe.scheduler = make()  # swapped after patching
    watch(model_of(pipe), forwards)
    for _ in range(2):
        forwards.clear()
        run("sd", pipe, num_inference_steps=5)
        assert forwards == [False, False] + [True] * (evaluations - 3) + [False]


def test_flow_matching_heun(forwards):
    pipe = build("wan")
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    watch(model_of(pipe), forwards)
    vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=1)
    run("wan", pipe, num_inference_steps=3, guidance_scale=1.0)
    assert forwards == [False] + [True] * 4


def test_sdxl_stops_before_the_end_of_its_schedule(forwards):
    pipe = build("sdxl")
    watch(model_of(pipe), forwards)
    vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=1, dense_last_steps=1)
    run("sdxl", pipe, num_inference_steps=10, denoising_end=0.5)
    assert forwards == [False, True, True, True, False]
    forwards.clear()
    run("sdxl", pipe, num_inference_steps=4)
    assert forwards == [False, True, True, False]


def test_a_model_alone_counts_values_of_the_timestep(forwards):
    model = denoiser("wan")
    watch(model, forwards)
    vidattn.patch(model, SMALL, min_tokens=0, dense_steps=2)
    call = inputs("wan")
    with torch.no_grad():
        for value in (
            900,
            900,
            700,
            700,
            500,
            300,
            800,
            600,
            400,
        ):  # twice each with guidance, then a second run
            model(**call | {"timestep": torch.full((2,), value)})
    assert forwards == [False] * 4 + [True] * 2 + [False] * 2 + [True]
    assert {(row.steps, row.forwards) for row in vidattn.report(model).layers} == {
        ("first 2", 2),
        ("others", 1),
    }


def test_a_timestep_for_each_token(forwards):
    model = denoiser("wan")
    watch(model, forwards)
    vidattn.patch(model, SMALL, min_tokens=0, dense_steps=1)
    tokens = torch.zeros(2, 3 * 4 * 6)  # Wan 2.2's image-to-video: 0 on the given frame
    with torch.no_grad():
        for value in (900.0, 700.0, 500.0):
            tokens[:, 24:] = value
            model(**inputs("wan") | {"timestep": tokens.clone()})
    assert forwards == [False, True, True]


def test_no_steps_are_counted_when_none_matter(monkeypatch):
    from vidattn.patches import steps

    monkeypatch.setattr(steps, "_value", None)  # reading a timestep would wait for the device
    pipe = build("sd")
    vidattn.patch(pipe, SMALL, min_tokens=0)
    run("sd", pipe)
    assert {row.steps for row in vidattn.report(pipe).layers} == {"all"}


def test_schedulers_that_know_their_step_are_not_asked_for_values(monkeypatch):
    from vidattn.patches import steps

    monkeypatch.setattr(steps, "_value", None)
    pipe = build("flux")
    vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=1, dense_last_steps=1)
    run("flux", pipe, num_inference_steps=3)
    assert {row.steps for row in vidattn.report(pipe).layers} == {"first 1", "others", "last 1"}


def test_dense_last_steps_needs_a_pipeline():
    model = denoiser("wan")
    with pytest.raises(ValueError, match=r"dense_last_steps=1: a model on its own .* patch the pipeline"):
        vidattn.patch(model, SMALL, dense_last_steps=1)
    assert not vidattn.report(model).patched
