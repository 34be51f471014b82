"""The demo networks, at shipped ("full") and test ("tiny") size, built from diffusers classes."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)

SIZES = ("full", "tiny")
TEXT = {"full": {"width": 192, "layers": 3}, "tiny": {"width": 64, "layers": 1}}


def image_vae(size: str) -> AutoencoderKL:
    """4x smaller latents with 8 channels; no attention."""
    blocks = {"full": (32, 64, 96), "tiny": (16, 16, 16)}[size]
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=blocks,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=16,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,  # FluxPipeline needs a number; training sets it and scaling_factor
        sample_size=256,
    )


def flux_transformer(size: str) -> FluxTransformer2DModel:
    """2x2 packed latents, so one token is 8x8 pixels; the residual branches and the output start at zero."""
    text = TEXT[size]["width"]
    heads, double, single = {"full": (4, 2, 6), "tiny": (1, 1, 1)}[size]
    net = FluxTransformer2DModel(
        patch_size=1,
        in_channels=32,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=64,
        num_attention_heads=heads,
        joint_attention_dim=text,
        pooled_projection_dim=text,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )
    for block in [*net.transformer_blocks, *net.single_transformer_blocks]:
        for name in ("norm1", "norm1_context", "norm"):
            if hasattr(block, name):
                torch.nn.init.zeros_(getattr(block, name).linear.weight)
                torch.nn.init.zeros_(getattr(block, name).linear.bias)
    for layer in (net.norm_out.linear, net.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return net


def sd_unet(size: str) -> UNet2DConditionModel:
    """A Stable-Diffusion UNet with attention at all three levels, heads 64 wide."""
    blocks, heads = {"full": ((64, 128, 192), (1, 2, 3)), "tiny": ((64, 64, 64), (1, 1, 1))}[size]
    net = UNet2DConditionModel(
        sample_size=64,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=blocks,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=TEXT[size]["width"],
        attention_head_dim=heads,
        norm_num_groups=16,
    )
    torch.nn.init.zeros_(net.conv_out.weight)
    torch.nn.init.zeros_(net.conv_out.bias)
    return net


def video_vae(size: str) -> AutoencoderKLWan:
    """4x smaller in space and 2x in time (1 + 2k frames -> 1 + k), 8 channels."""
    return AutoencoderKLWan(
        base_dim={"full": 16, "tiny": 8}[size],
        z_dim=8,
        dim_mult=[1, 2, 4] if size == "full" else [1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 8,
        latents_std=[1.0] * 8,
        scale_factor_temporal=2,
        scale_factor_spatial=4,
    )


def wan_transformer(size: str) -> WanTransformer3DModel:
    """1x2x2 patches, so one token is 2 frames of 8x8 pixels; the output layer starts at zero."""
    heads, layers = {"full": (4, 10), "tiny": (1, 1)}[size]
    net = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=64,
        in_channels=8,
        out_channels=8,
        text_dim=TEXT[size]["width"],
        freq_dim=256,
        ffn_dim=256 * heads,
        num_layers=layers,
    )
    torch.nn.init.zeros_(net.proj_out.weight)
    torch.nn.init.zeros_(net.proj_out.bias)
    return net


def flux_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Flux's own: the noise schedule moves with the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def wan_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """A fixed shift of 3, as Wan uses at small resolutions."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def sd_scheduler() -> DDIMScheduler:
    """v-prediction with zero signal at the last step, so that flat black or white backgrounds stay flat."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def parameters(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())
