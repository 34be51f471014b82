"""Complete diffusers pipelines with random weights, built in code: no files, no hub, quick on a CPU.

``build(name)`` makes a pipeline, ``run(name, pipe)`` its latents; ``denoiser(name)`` and ``inputs(name)`` are
one model and the arguments of one forward, for tests that need no pipeline.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ("a", "of", "red", "dog", "photo")
PROMPT = "a photo of a red dog"
NAMES = ("flux", "wan", "sd", "sdxl")
TEXT = 16
"""Text tokens of the T5 prompts."""


# ------------------------------------------------------------------ text
def clip_tokenizer() -> CLIPTokenizer:
    letters = [chr(c) for c in range(33, 127)]
    vocab = {token: i for i, token in enumerate(letters + [c + "</w>" for c in letters])}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -2.0)]
    pieces += [("\u2581" + word, -3.0) for word in WORDS] + [("\u2581", -4.0)]
    pieces += [(c, -6.0) for c in string.ascii_letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def clip_encoder(tokenizer: CLIPTokenizer, cls: type = CLIPTextModel) -> nn.Module:
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        projection_dim=32,
        **ids,
    )
    return cls(config).eval()


def t5_encoder(cls: type = T5EncoderModel, config: type = T5Config) -> nn.Module:
    made = config(
        vocab_size=len(t5_tokenizer()),
        d_model=32,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return cls(made).eval()


# ------------------------------------------------------------------ denoisers
def image_vae(**options: Any) -> AutoencoderKL:
    """Shrinks by 8."""
    return AutoencoderKL(
        latent_channels=4,
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        **options,
    ).eval()


def flux_transformer(cls: type = FluxTransformer2DModel, **options: Any) -> nn.Module:
    sizes: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": [4, 4, 8],
    }
    return cls(**{**sizes, **options}).eval()


def wan_transformer(cls: type = WanTransformer3DModel, **options: Any) -> nn.Module:
    return cls(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=64,
        **options,
    ).eval()


def sd_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def sdxl_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 32,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()


# ------------------------------------------------------------------ pipelines
def ddim() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )


def _flux() -> FluxPipeline:
    tokenizer = clip_tokenizer()
    vae = image_vae(shift_factor=0.1, scaling_factor=0.36, use_quant_conv=False, use_post_quant_conv=False)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=clip_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=flux_transformer(),
    )


def _wan() -> WanPipeline:
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(UMT5EncoderModel, UMT5Config),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=wan_transformer(),
    )


def _sd() -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=image_vae(),
        text_encoder=clip_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=sd_unet(),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    one, two = clip_tokenizer(), clip_tokenizer()
    return StableDiffusionXLPipeline(
        vae=image_vae(),
        text_encoder=clip_encoder(one),
        text_encoder_2=clip_encoder(two, CLIPTextModelWithProjection),
        tokenizer=one,
        tokenizer_2=two,
        unet=sdxl_unet(),
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )


_BUILDERS: dict[str, Callable[[], Any]] = {"flux": _flux, "wan": _wan, "sd": _sd, "sdxl": _sdxl}


def build(name: str) -> Any:
    """A pipeline, always with the same weights."""
    torch.manual_seed(0)
    pipe = _BUILDERS[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser(name: str) -> nn.Module:
    """The model of a pipeline that is patched, alone."""
    torch.manual_seed(0)
    makers = {"flux": flux_transformer, "wan": wan_transformer, "sd": sd_unet, "sdxl": sdxl_unet}
    return makers[name]()


def model_of(pipe: Any) -> nn.Module:
    """The denoiser of a pipeline."""
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def run(name: str, pipe: Any, **options: Any) -> Tensor:
    """Latents for the prompt: two steps at 64 x 96 px (Wan: 32 x 48 px, 9 frames)."""
    call: dict[str, Any] = {"prompt": PROMPT, "num_inference_steps": 2, "output_type": "latent"}
    call |= {"height": 64, "width": 96} if name != "wan" else {"height": 32, "width": 48, "num_frames": 9}
    if name in ("flux", "wan"):
        call["max_sequence_length"] = TEXT
    return pipe(**{**call, **options}, generator=torch.Generator().manual_seed(1))[0]


def image_ids(height: int, width: int, group: int = 0) -> Tensor:
    """FLUX's positions of a raster."""
    ids = torch.zeros(height, width, 3)
    ids[..., 0] = group
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)
    return ids.reshape(-1, 3)


def inputs(name: str, height: int = 4, width: int = 6, batch: int = 2, text: int = 7) -> dict[str, Any]:
    """Arguments of one forward; height and width in tokens of the finest grid, 3 frames for Wan."""
    torch.manual_seed(2)
    words = torch.randn(batch, text, 64 if name == "sdxl" else 32)
    if name == "flux":
        return {
            "hidden_states": torch.randn(batch, height * width, 16),
            "encoder_hidden_states": words,
            "pooled_projections": torch.randn(batch, 32),
            "timestep": torch.full((batch,), 0.5),
            "img_ids": image_ids(height, width),
            "txt_ids": torch.zeros(text, 3),
        }
    if name == "wan":
        latent = torch.randn(batch, 16, 3, 2 * height, 2 * width)
        return {
            "hidden_states": latent,
            "timestep": torch.full((batch,), 500),
            "encoder_hidden_states": words,
        }
    made = {"sample": torch.randn(batch, 4, height, width), "timestep": 500, "encoder_hidden_states": words}
    if name == "sdxl":
        condition = {"text_embeds": torch.randn(batch, 32), "time_ids": torch.ones(batch, 6)}
        made["added_cond_kwargs"] = condition
    return made


__all__ = [
    "NAMES",
    "TEXT",
    "FluxControlNetModel",
    "WanVACETransformer3DModel",
    "build",
    "ddim",
    "denoiser",
    "flux_transformer",
    "image_ids",
    "inputs",
    "model_of",
    "run",
    "wan_transformer",
]
