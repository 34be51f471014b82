"""Tiny video models with random weights, one of each kind that a family knows, and what is known about them.

The layouts, and the names of the layers that attend over the grid, are written down by hand.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn import TokenLayout

Grid = tuple[int, int, int]
TEXT = 7
"""Text tokens of a prompt, padding included."""
REAL = (4, 7)
"""How many of them are real, in the prompts of a batch of models that mask the others."""
SIZES: tuple[Grid, ...] = ((3, 4, 6), (5, 6, 4))
"""Grids in tokens: odd numbers of frames, pictures that are not square."""


@dataclass(frozen=True)
class Case:
    """One model.

    Args:
        model: name of the class.
        config: its arguments.
        inputs: (grid, batch) to the arguments of a forward.
        layouts: (grid, batch) to the layouts that its sparse layers see.
        layers: names of the sparse layers.
        alone: items of a batch attend in calls of their own.
        sizes: grids that it can run at.
    """

    model: str
    config: dict[str, Any]
    inputs: Callable[[Grid, int], dict[str, Any]]
    layouts: Callable[[Grid, int], list[TokenLayout]]
    layers: tuple[str, ...]
    alone: bool = False
    sizes: tuple[Grid, ...] = SIZES

    def build(self) -> nn.Module:
        """The model, always with the same weights."""
        torch.manual_seed(0)
        if self.model == "CosmosControlNetModel":
            provide_resize()
        model = getattr(diffusers, self.model)(**self.config).eval()
        for parameter in model.parameters():  # what starts at zero would hide the attention
            if not parameter.any():
                nn.init.normal_(parameter, std=0.2)
        return model

    def run(self, model: nn.Module, grid: Grid, batch: int = 2) -> Tensor:
        """The output for inputs of a grid, always the same ones."""
        with torch.no_grad():
            out, *more = model(**self.made(grid, batch), return_dict=False)
        # ControlNets give a list, and the middle's output
        return torch.cat([part.flatten() for part in (*out, *more)]) if isinstance(out, list) else out

    def calls(self, batch: int) -> int:
        """Sparse calls of a forward."""
        return len(self.layers) * (batch if self.alone else 1)

    def made(self, grid: Grid, batch: int = 2) -> dict[str, Any]:
        """The arguments of a forward, always the same."""
        torch.manual_seed(2)
        return self.inputs(grid, batch)


def provide_resize() -> None:
    """The one function of torchvision that Cosmos' ControlNet calls, where torchvision is missing."""
    module = importlib.import_module("diffusers.models.controlnets.controlnet_cosmos")
    if not hasattr(module, "transforms"):
        functional = SimpleNamespace(resize=lambda mask, size, interpolation: F.interpolate(mask, size))
        modes = SimpleNamespace(NEAREST="nearest")
        module.transforms = SimpleNamespace(functional=functional, InterpolationMode=modes)


def heads(size: int = 8) -> dict[str, int]:
    return {"num_attention_heads": 2, "attention_head_dim": size}


def words(batch: int, width: int = 16, tokens: int = TEXT) -> Tensor:
    return torch.randn(batch, tokens, width)


def latent(grid: Grid, batch: int, channels: int = 4, patch: Grid = (1, 2, 2)) -> Tensor:
    """(B, C, T, H, W)."""
    frames, height, width = (n * p for n, p in zip(grid, patch, strict=True))
    return torch.randn(batch, channels, frames, height, width)


def times(batch: int) -> Tensor:
    return torch.full((batch,), 500.0)


def named(stack: str, attention: str = "attn1", count: int = 2) -> tuple[str, ...]:
    return tuple(f"{stack}.{i}.{attention}" for i in range(count))


def plain(grid: Grid, batch: int) -> list[TokenLayout]:
    return [TokenLayout(grid)]


def text_first(grid: Grid, batch: int) -> list[TokenLayout]:
    return [TokenLayout(grid, text_before=TEXT)]


def per_frame(grid: Grid, batch: int) -> list[TokenLayout]:
    return [TokenLayout((1, *grid[1:]))]


def text_last(grid: Grid, batch: int) -> list[TokenLayout]:
    return [TokenLayout(grid, text_after=TEXT)]


def each_text(grid: Grid, batch: int) -> list[TokenLayout]:
    return [TokenLayout(grid, text_after=real) for real in REAL[:batch]]


def history_and_text(grid: Grid, batch: int) -> list[TokenLayout]:
    """2 frames and 10 older ones are 48 + 6 + 4 tokens, a picture 3; a prompt alone is not padded."""
    return [TokenLayout(grid, text_before=58, text_after=3 + (REAL[0] if batch == 1 else TEXT))]


def two_levels(grid: Grid, batch: int) -> list[TokenLayout]:
    return [TokenLayout((1, *grid[1:])), TokenLayout((1, -(-grid[1] // 2), -(-grid[2] // 2)))]


# ------------------------------------------------------------------ inputs
def simple(grid: Grid, batch: int, **more: Any) -> dict[str, Any]:
    """What most models take."""
    made = {
        "hidden_states": latent(grid, batch),
        "timestep": times(batch),
        "encoder_hidden_states": words(batch),
    }
    return {**made, **more}


def cogvideox(grid: Grid, batch: int, frames: int = 1) -> dict[str, Any]:
    made = latent(grid, batch, patch=(frames, 2, 2)).transpose(1, 2)
    return simple(grid, batch, hidden_states=made)


def consisid(grid: Grid, batch: int) -> dict[str, Any]:
    return {
        **cogvideox(grid, batch),
        "id_vit_hidden": [torch.randn(batch, 2, 2)],
        "id_cond": torch.randn(batch, 2),
    }


def packed(grid: Grid, batch: int, more: int = 0) -> dict[str, Any]:
    frames, height, width = grid
    return {
        "hidden_states": torch.randn(batch, frames * height * width + more, 4),
        "encoder_hidden_states": words(batch),
        "encoder_attention_mask": torch.ones(batch, TEXT),
        "timestep": times(batch),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


def ltx2(grid: Grid, batch: int) -> dict[str, Any]:
    made = packed(grid, batch)
    sound = {
        "audio_hidden_states": torch.randn(batch, 9, 4),
        "audio_encoder_hidden_states": words(batch),
        "audio_num_frames": 9,
        "fps": 25.0,
        "sigma": times(batch),
    }
    return {**made, **sound}


def two_texts(grid: Grid, batch: int) -> dict[str, Any]:
    return simple(
        grid,
        batch,
        encoder_hidden_states=words(batch, tokens=4),
        encoder_hidden_states_t5=words(batch, tokens=3),
    )


def animate(grid: Grid, batch: int) -> dict[str, Any]:
    frames, height, width = grid
    return {
        **simple(grid, batch, hidden_states=latent(grid, batch, channels=12)),
        "encoder_hidden_states_image": words(batch),
        "pose_hidden_states": latent((frames - 1, height, width), batch),
        "face_pixel_values": torch.randn(batch, 3, 4 * (frames - 2) + 1, 16, 16),
    }


def vace(grid: Grid, batch: int) -> dict[str, Any]:
    return simple(grid, batch, control_hidden_states=latent(grid, batch))


def transfer(grid: Grid, batch: int) -> dict[str, Any]:
    """Cosmos' ControlNet makes the padding mask as large as the latent."""
    made = latent(grid, batch)
    return {
        "controls_latents": torch.randn_like(made),
        "latents": made,
        "timestep": times(batch),
        "encoder_hidden_states": words(batch),
        "condition_mask": torch.ones_like(made[:, :1]),
        "padding_mask": torch.zeros(1, 1, 16, 16),
    }


def motion(grid: Grid, batch: int) -> dict[str, Any]:
    text = words(batch * grid[0])
    return {"sample": latent(grid, batch, patch=(1, 1, 1)), "timestep": 500, "encoder_hidden_states": text}


def control(grid: Grid, batch: int) -> dict[str, Any]:
    made = motion(grid, batch)
    mask = torch.ones(batch, 1, *grid)
    return {**made, "controlnet_cond": torch.randn_like(made["sample"]), "conditioning_mask": mask}


def svd(grid: Grid, batch: int) -> dict[str, Any]:
    return {
        "sample": latent(grid, batch, patch=(1, 1, 1)).transpose(1, 2),
        "timestep": 500,
        "encoder_hidden_states": words(batch, tokens=1),
        "added_time_ids": torch.randn(batch, 3),
    }


def masked(grid: Grid, batch: int, **more: Any) -> dict[str, Any]:
    """With prompts of unequal lengths."""
    mask = torch.arange(TEXT) < torch.tensor(REAL[:batch])[:, None]
    return simple(grid, batch, encoder_attention_mask=mask.long(), **more)


def hunyuan(grid: Grid, batch: int) -> dict[str, Any]:
    pooled = {"pooled_projections": torch.randn(batch, 8), "guidance": times(batch)}
    return masked(grid, batch, **pooled)


def framepack(grid: Grid, batch: int) -> dict[str, Any]:
    frames, height, width = grid
    return {
        **hunyuan(grid, batch),
        "image_embeds": words(batch, tokens=3),
        "indices_latents": torch.arange(10, 10 + frames),
        "latents_clean": latent((2, height, width), batch),
        "indices_latents_clean": torch.arange(8, 10),
        "latents_history_2x": latent((2, height, width), batch),
        "indices_latents_history_2x": torch.arange(6, 8),
        "latents_history_4x": latent((8, height, width), batch),
        "indices_latents_history_4x": torch.arange(8),
    }


def hunyuan15(grid: Grid, batch: int, picture: float = 0.0) -> dict[str, Any]:
    """4 tokens, 3 of them real in the first prompt; 2, of which the first prompt has 1; a picture of 1."""
    mask, mask_2 = torch.ones(batch, 4), torch.ones(batch, 2)
    mask[0, 3] = mask_2[0, 1] = 0
    return simple(
        grid,
        batch,
        hidden_states=latent(grid, batch, patch=(1, 1, 1)),
        encoder_hidden_states=words(batch, tokens=4),
        encoder_attention_mask=mask,
        encoder_hidden_states_2=words(batch, tokens=2),
        encoder_attention_mask_2=mask_2,
        image_embeds=picture * words(batch, tokens=1),
    )


# ------------------------------------------------------------------ configurations
WAN = {
    **heads(12),
    "patch_size": (1, 2, 2),
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
COGVIDEOX = {
    **heads(),
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 2,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": TEXT,
}
CONSISID = {
    "cross_attn_interval": 1,
    "is_train_face": True,
    "cross_attn_dim_head": 1,
    "cross_attn_num_heads": 1,
    "LFE_id_dim": 2,
    "LFE_vit_dim": 2,
    "LFE_depth": 5,
    "LFE_dim_head": 8,
    "LFE_num_heads": 2,
    "LFE_num_id_token": 1,
    "LFE_num_querie": 1,
    "LFE_output_dim": 10,
    "LFE_ff_mult": 1,
    "LFE_num_scale": 1,
}
LTX = {
    **heads(),
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 16,
    "num_layers": 2,
    "caption_channels": 16,
}
LTX2 = {
    **LTX,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "rope_double_precision": False,
}
ALLEGRO = {
    **heads(),
    "num_layers": 2,
    "cross_attention_dim": 16,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 3,
    "caption_channels": 16,
}
LATTE = {
    **heads(),
    "sample_size": 8,
    "video_length": 3,
    "num_layers": 2,
    "patch_size": 2,
    "caption_channels": 16,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 16,
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}
EASYANIMATE = {
    **heads(16),
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "mmdit_layers": 1,
    "patch_size": 2,
    "text_embed_dim": 16,
    "text_embed_dim_t5": 16,
    "time_embed_dim": 8,
}
ANIMATE = {
    **WAN,
    "in_channels": 12,
    "latent_channels": 4,
    "image_dim": 16,
    "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
    "motion_encoder_size": 16,
    "motion_style_dim": 8,
    "motion_dim": 4,
    "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
}
COSMOS = {
    **heads(12),
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "mlp_ratio": 2,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (8, 32, 32),
    "patch_size": (1, 2, 2),
}
MOTION = {
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    "cross_attention_dim": 16,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "layers_per_block": 1,
    "sample_size": 8,
}
CONTROL = {
    **{name: MOTION[name] for name in ("block_out_channels", "norm_num_groups", "down_block_types")},
    "cross_attention_dim": 16,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "transformer_layers_per_mid_block": 1,
    "layers_per_block": 1,
    "conditioning_channels": 4,
    "use_simplified_condition_embedding": True,
}
SVD = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "cross_attention_dim": 16,
    "num_attention_heads": 2,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "sample_size": 8,
    "projection_class_embeddings_input_dim": 24,
    "addition_time_embed_dim": 8,
}
HUNYUAN = {
    **heads(10),
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "patch_size": 2,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}
FRAMEPACK = {"has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True}
HUNYUAN15 = {
    **heads(8),
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "text_embed_dim": 16,
    "text_embed_2_dim": 16,
    "image_embed_dim": 16,
    "rope_axes_dim": (2, 2, 4),
}
MOCHI = {
    **heads(),
    "num_layers": 2,
    "pooled_projection_dim": 16,
    "in_channels": 4,
    "text_embed_dim": 16,
    "time_embed_dim": 8,
    "max_sequence_length": TEXT,
}
HUNYUAN_LAYERS = (*named("transformer_blocks", "attn", 1), *named("single_transformer_blocks", "attn"))
UNET_LAYERS = tuple(
    f"{place}.transformer_blocks.0.attn1"
    for place in (
        "down_blocks.0.attentions.0",
        "mid_block.attentions.0",
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.1",
    )
)
SANA = {
    **heads(12),
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 12,
    "cross_attention_dim": 24,
    "caption_channels": 16,
    "sample_size": 8,
}
BLOCKS = named("transformer_blocks")

CASES: dict[str, Case] = {
    "cogvideox": Case(
        "CogVideoXTransformer3DModel", COGVIDEOX, cogvideox, text_first, BLOCKS, sizes=(SIZES[0],)
    ),
    "cogvideox-1.5": Case(
        "CogVideoXTransformer3DModel",
        {**COGVIDEOX, "patch_size_t": 2, "use_rotary_positional_embeddings": True, "patch_bias": False},
        lambda grid, batch: cogvideox(grid, batch, frames=2),
        text_first,
        BLOCKS,
    ),
    "consisid": Case(
        "ConsisIDTransformer3DModel",
        {**COGVIDEOX, **CONSISID, "use_rotary_positional_embeddings": True},
        consisid,
        text_first,
        BLOCKS,
    ),
    "ltx": Case("LTXVideoTransformer3DModel", LTX, packed, plain, BLOCKS),
    "ltx-2": Case("LTX2VideoTransformer3DModel", LTX2, ltx2, plain, BLOCKS),
    "allegro": Case("AllegroTransformer3DModel", ALLEGRO, simple, plain, BLOCKS),
    "latte": Case("LatteTransformer3DModel", LATTE, simple, per_frame, BLOCKS, sizes=((3, 4, 6), (3, 6, 4))),
    "easyanimate": Case("EasyAnimateTransformer3DModel", EASYANIMATE, two_texts, text_first, BLOCKS),
    "skyreels": Case("SkyReelsV2Transformer3DModel", WAN, simple, plain, named("blocks")),
    "chronoedit": Case("ChronoEditTransformer3DModel", WAN, simple, plain, named("blocks")),
    "wan-animate": Case("WanAnimateTransformer3DModel", ANIMATE, animate, plain, named("blocks")),
    "wan": Case("WanTransformer3DModel", WAN, simple, plain, named("blocks")),
    "wan-i2v": Case(
        "WanTransformer3DModel",
        {**WAN, "added_kv_proj_dim": 24, "image_dim": 16},
        lambda grid, batch: simple(grid, batch, encoder_hidden_states_image=words(batch, tokens=257)),
        plain,
        named("blocks"),
    ),
    "wan-vace": Case(
        "WanVACETransformer3DModel",
        {**WAN, "vace_layers": [0], "vace_in_channels": 4},
        vace,
        plain,
        ("vace_blocks.0.attn1", *named("blocks")),
    ),
    "cosmos-transfer": Case(
        "CosmosControlNetModel",
        {
            **{name: COSMOS[name] for name in COSMOS if name not in ("out_channels", "num_layers")},
            "in_channels": 6,
            "latent_channels": 6,
            "model_channels": 24,
            "n_controlnet_blocks": 2,
        },
        transfer,
        plain,
        named("control_blocks"),
    ),
    "cosmos": Case(
        "CosmosTransformer3DModel", {**COSMOS, "concat_padding_mask": False}, simple, plain, BLOCKS
    ),
    "mochi": Case("MochiTransformer3DModel", MOCHI, masked, each_text, BLOCKS, alone=True),
    "animatediff": Case(
        "UNetMotionModel", MOTION, motion, two_levels, UNET_LAYERS, sizes=(*SIZES, (3, 5, 7))
    ),
    "sparse-control": Case(
        "SparseControlNetModel",
        CONTROL,
        control,
        two_levels,
        UNET_LAYERS[:2],
        sizes=(*SIZES, (3, 5, 7)),
    ),
    "svd": Case(
        "UNetSpatioTemporalConditionModel", SVD, svd, two_levels, UNET_LAYERS, sizes=(*SIZES, (3, 5, 7))
    ),
    "hunyuan-video": Case("HunyuanVideoTransformer3DModel", HUNYUAN, hunyuan, text_last, HUNYUAN_LAYERS),
    "hunyuan-video-i2v": Case(
        "HunyuanVideoTransformer3DModel",
        {**HUNYUAN, "image_condition_type": "token_replace"},
        hunyuan,
        text_last,
        HUNYUAN_LAYERS,
    ),
    "framepack": Case(
        "HunyuanVideoFramepackTransformer3DModel",
        {**HUNYUAN, **FRAMEPACK},
        framepack,
        history_and_text,
        HUNYUAN_LAYERS,
    ),
    "hunyuan-video-1.5": Case(
        "HunyuanVideo15Transformer3DModel",
        HUNYUAN15,
        hunyuan15,
        text_last,
        named("transformer_blocks", "attn"),
    ),
    "hunyuan-video-1.5-i2v": Case(
        "HunyuanVideo15Transformer3DModel",
        HUNYUAN15,
        lambda grid, batch: hunyuan15(grid, batch, picture=1.0),
        text_last,
        named("transformer_blocks", "attn"),
    ),
}
