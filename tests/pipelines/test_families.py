"""Families whose latents are held in other ways: stages against diffusers' image-to-image pipelines."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_img2img

from tests.patches.tiny_pipelines import image_vae
from vidattn.pipelines import upscale_generate

STEPS = 4


def flow() -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def sd3() -> tuple[Any, dict[str, Any]]:
    model = diffusers.SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=96,
    )
    vae = image_vae(shift_factor=0.1, scaling_factor=0.4)
    pipe = diffusers.StableDiffusion3Pipeline(model, flow(), vae, *[None] * 6)
    texts = {"prompt_embeds": torch.randn(1, 7, 32), "pooled_prompt_embeds": torch.randn(1, 64)}
    return pipe, texts | {f"negative_{name}": torch.randn_like(text) for name, text in texts.items()}


def qwen() -> tuple[Any, dict[str, Any]]:
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    pipe = diffusers.QwenImagePipeline(flow(), vae, None, None, model)
    mask = torch.ones(1, 7, dtype=torch.long)
    return pipe, {"prompt_embeds": torch.randn(1, 7, 16), "prompt_embeds_mask": mask, "true_cfg_scale": 1.0}


def z_image() -> tuple[Any, dict[str, Any]]:
    model = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 64, 64],
    )
    torch.nn.init.zeros_(model.x_pad_token)
    torch.nn.init.zeros_(model.cap_pad_token)
    vae = image_vae(shift_factor=0.1, scaling_factor=0.4)
    pipe = diffusers.ZImagePipeline(flow(), vae, None, None, model)
    texts = ("prompt_embeds", "negative_prompt_embeds")
    return pipe, {name: [torch.randn(7, 16)] for name in texts}


def start(name: str, pipe: Any, pictures: torch.Tensor) -> torch.Tensor:
    """What the image-to-image pipeline is given: latents, encoded here without chance, or the picture."""
    if name == "qwen":  # only takes pictures
        return pictures
    with torch.no_grad():
        found = pipe.vae.encode(pictures * 2 - 1).latent_dist.mode()
    return (found - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor


FAMILIES = {
    "sd3": (sd3, diffusers.StableDiffusion3Img2ImgPipeline),
    "qwen": (qwen, diffusers.QwenImageImg2ImgPipeline),
    "z_image": (z_image, diffusers.ZImageImg2ImgPipeline),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stage_is_image_to_image(name, monkeypatch):
    # the one that encodes by itself draws its latents at random
    monkeypatch.setattr(
        pipeline_qwenimage_img2img, "retrieve_latents", lambda encoded, **_: encoded.latent_dist.mode()
    )
    build, cls = FAMILIES[name]
    torch.manual_seed(0)
    pipe, texts = build()
    pipe.transformer.eval()
    other = cls(**pipe.components)
    for each in (pipe, other):
        each.set_progress_bar_config(disable=True)
    call = {**texts, "num_inference_steps": STEPS}
    plain = {"pattern": None, "guidance": None, "ntk": None, "proportional": False, "progress": False}
    made = upscale_generate(pipe, None, size=(64, 96), base=(32, 48), strength=0.5, seed=3, **plain, **call)
    generator = torch.Generator().manual_seed(3)
    small = pipe(height=32, width=48, generator=generator, output_type="pt", **call).images
    small = (small.clamp(0, 1) * 255).round() / 255
    large = torch.nn.functional.interpolate(small, size=(64, 96), mode="bicubic", antialias=True).clamp(0, 1)
    given = {"image": start(name, pipe, large), "strength": 0.5, "generator": generator}
    expected = other(height=64, width=96, output_type="pt", **given, **call).images.clamp(0, 1)
    off = made.frames[:, 0].movedim(-1, 1).float() / 255 - expected
    assert off.abs().max() < 0.51 / 255 + 1e-4
    assert expected.std() > 0.005
    assert made.stages[1].grid == (1, 4, 6)
