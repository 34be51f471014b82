"""Guidance's arithmetic against the schedulers' own, and the low-pass filter."""

import math
from types import SimpleNamespace

import diffusers
import pytest
import torch

from vidattn.pipelines.guidance import cosine, levels, low_pass

SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {}, "epsilon"),
    "ddim-v": (diffusers.DDIMScheduler, {"prediction_type": "v_prediction"}, "v_prediction"),
    "euler": (diffusers.EulerDiscreteScheduler, {}, "epsilon"),
    "euler-v": (diffusers.EulerDiscreteScheduler, {"prediction_type": "v_prediction"}, "v_prediction"),
    "euler-x0": (diffusers.EulerDiscreteScheduler, {"prediction_type": "sample"}, "sample"),
    "dpm": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, "epsilon"),
    "unipc": (diffusers.UniPCMultistepScheduler, {"prediction_type": "v_prediction"}, "v_prediction"),
    "flow": (diffusers.FlowMatchEulerDiscreteScheduler, {"shift": 3.0}, "flow"),
    "unipc-flow": (
        diffusers.UniPCMultistepScheduler,
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        "flow",
    ),
}


@pytest.mark.parametrize(("cls", "config", "kind"), SCHEDULERS.values(), ids=SCHEDULERS)
def test_the_clean_picture_behind_an_output(cls, config, kind):
    """Samples are noised by the scheduler itself; the outputs are what a perfect model would say."""
    scheduler = cls(**config)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=generator).double()
    time = scheduler.timesteps[4]
    add = getattr(scheduler, "scale_noise", None) or scheduler.add_noise
    times = time.repeat(2)
    sample = add(clean, times, noise) if hasattr(scheduler, "scale_noise") else add(clean, noise, times)
    # alpha and sigma of variance-preserving noise, from what the scheduler did to one entry
    level = levels(scheduler, time)
    alpha, sigma = torch.linalg.lstsq(
        torch.stack([clean.flatten(), noise.flatten()], 1), sample.flatten()
    ).solution
    assert (level.alpha, level.sigma) == pytest.approx((float(alpha), float(sigma)), rel=1e-5)
    norm = math.hypot(alpha, sigma)
    velocity = (alpha * noise - sigma * clean) / norm
    if alpha > 0.999:  # Euler's samples are variance-preserving ones times norm
        velocity = (noise - sigma * clean) / norm
    outputs = {"epsilon": noise, "sample": clean, "flow": noise - clean, "v_prediction": velocity}
    output = outputs[kind]
    assert (level.clean(output, sample) - clean).abs().max() < 1e-4
    assert (level.output(clean, sample) - output).abs().max() < 1e-4


def test_low_pass_keeps_what_the_small_picture_holds():
    x = torch.arange(64, dtype=torch.float32)
    slow, fast = (
        torch.sin(2 * math.pi * x / 32).expand(1, 1, 64, 64),
        torch.sin(2 * math.pi * x / 3).expand(1, 1, 64, 64),
    )
    middle = (..., slice(8, -8))
    assert (low_pass(slow, 2) - slow)[middle].abs().max() < 0.05
    assert low_pass(fast, 4)[middle].abs().max() < 0.05
    assert (low_pass(torch.full((1, 2, 3, 9, 7), 2.5), 3) - 2.5).abs().max() < 1e-5
    assert low_pass(fast, 1) is fast


def test_unknown_schedulers_are_refused():
    scheduler = SimpleNamespace(config={"prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="guidance=None"):
        levels(scheduler, 0)


def test_the_weight_falls_from_one_to_zero():
    assert [cosine(t, 1000) for t in (1000, 500, 0)] == pytest.approx([1, 0.5, 0])
