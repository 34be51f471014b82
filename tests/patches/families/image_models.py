"""Tiny image models with random weights, and what is known of each by hand: layers, layouts, sizes.

Nothing here is read from ``vidattn.patches.families``: it is what those files are tested against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from vidattn import TokenLayout

TEXT = 7
"""Text tokens per item, padding included, in the models that take one length."""
SIZES = ((4, 6), (6, 5))
SQUARES = ((4, 4), (6, 6))


@dataclass(frozen=True)
class Case:
    """One model.

    Args:
        build: makes it.
        inputs: (height, width, batch), in tokens, to the arguments of a forward.
        layers: names of the self-attention layers over the grid, in the order they run.
        layouts: (height, width) to the layout of each layer.
        poke: adds 1 to what token (y, x) of item 0 is made of; its arguments are (inputs, y, x). None where
            that spreads before the first attention.
        sizes: grids to try, with one patch.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int, int], dict[str, Any]]
    layers: tuple[str, ...]
    layouts: Callable[[int, int], list[TokenLayout]]
    poke: Callable[[dict[str, Any], int, int], None] | None
    sizes: tuple[tuple[int, int], ...] = SIZES


def text(batch: int, width: int, length: int = TEXT) -> Tensor:
    return torch.randn(batch, length, width)


def steps(batch: int, value: float = 500.0) -> Tensor:
    return torch.full((batch,), value)


def of_all(layers: tuple[str, ...], **text_sides: int) -> Callable[[int, int], list[TokenLayout]]:
    return lambda h, w: [TokenLayout((1, h, w), **text_sides) for _ in layers]


def poke_latent(patch: int, key: str = "hidden_states") -> Callable[[dict[str, Any], int, int], None]:
    def poke(inputs: dict[str, Any], y: int, x: int) -> None:
        inputs[key][0][..., y * patch : (y + 1) * patch, x * patch : (x + 1) * patch] += 1

    return poke


def poke_tokens(width_of: Callable[[dict[str, Any]], int]) -> Callable[[dict[str, Any], int, int], None]:
    def poke(inputs: dict[str, Any], y: int, x: int) -> None:
        inputs["hidden_states"][0, y * width_of(inputs) + x] += 1

    return poke


def names(stack: str, count: int, attention: str) -> tuple[str, ...]:
    return tuple(f"{stack}.{i}.{attention}" for i in range(count))


# ------------------------------------------------------------------ joint attention, text last
def sd3(**options: Any) -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
        **options,
    )


def sd3_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": text(batch, 32),
        "pooled_projections": torch.randn(batch, 64),
        "timestep": steps(batch),
    }


def sd3_control(text_width: int | None = 32, **options: Any) -> nn.Module:
    return diffusers.SD3ControlNetModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=text_width,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
        **options,
    )


def sd35_control_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, height * width, 32),
        "controlnet_cond": torch.randn(batch, 4, 2 * height, 2 * width),
        "pooled_projections": torch.randn(batch, 64),
        "timestep": steps(batch),
    }


def with_condition(
    of: Callable[[int, int, int], dict[str, Any]],
) -> Callable[[int, int, int], dict[str, Any]]:
    """The arguments of a ControlNet."""

    def made(height: int, width: int, batch: int) -> dict[str, Any]:
        arguments = of(height, width, batch)
        return {**arguments, "controlnet_cond": torch.randn_like(arguments["hidden_states"])}

    return made


SD3 = names("transformer_blocks", 3, "attn")
SD35 = ("transformer_blocks.0.attn", "transformer_blocks.0.attn2", *SD3[1:])


def sd35_layouts(height: int, width: int) -> list[TokenLayout]:
    joint = TokenLayout((1, height, width), text_after=TEXT)
    return [joint, TokenLayout((1, height, width)), joint, joint]


def hunyuan_image(second: bool = False) -> nn.Module:
    return diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=(1, 1),
        guidance_embeds=False,
        text_embed_dim=32,
        text_embed_2_dim=32 if second else None,
        rope_axes_dim=(4, 4),
    )


def hunyuan_image_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 4, height, width),
        "timestep": steps(batch),
        "encoder_hidden_states": text(batch, 32),
        "encoder_attention_mask": torch.ones(batch, TEXT, dtype=torch.long),
    }


def hunyuan_image_both_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    second = torch.ones(batch, 5, dtype=torch.long)
    second[0, :2] = 0  # anywhere: the model puts padding behind
    first = torch.ones(batch, TEXT, dtype=torch.long)
    first[-1, 4:] = 0
    return {
        **hunyuan_image_inputs(height, width, batch),
        "encoder_attention_mask": first,
        "encoder_hidden_states_2": text(batch, 32, 5),
        "encoder_attention_mask_2": second,
    }


HUNYUAN_IMAGE = ("transformer_blocks.0.attn", *names("single_transformer_blocks", 2, "attn"))


# ------------------------------------------------------------------ self-attention without text
def pixart() -> nn.Module:
    return diffusers.PixArtTransformer2DModel(
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        caption_channels=16,
        sample_size=16,
        norm_num_groups=4,
        use_additional_conditions=False,
    )


def pixart_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    mask = torch.ones(batch, TEXT)
    mask[-1, 3:] = 0  # of the cross-attention
    return {
        "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": text(batch, 16),
        "timestep": steps(batch),
        "encoder_attention_mask": mask,
    }


def hunyuan_dit() -> nn.Module:
    return diffusers.HunyuanDiT2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=32,
        num_layers=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        text_len=TEXT,
        text_len_t5=TEXT,
        use_style_cond_and_image_meta_size=False,
    )


def hunyuan_dit_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    angle = torch.arange(height * width)[:, None] * torch.rand(8)
    return {
        "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
        "timestep": steps(batch),
        "encoder_hidden_states": text(batch, 32),
        "text_embedding_mask": torch.ones(batch, TEXT),
        "encoder_hidden_states_t5": text(batch, 32),
        "text_embedding_mask_t5": torch.ones(batch, TEXT),
        "image_rotary_emb": (angle.cos(), angle.sin()),
    }


def hunyuan_control() -> nn.Module:
    return diffusers.HunyuanDiT2DControlNetModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=16,
        hidden_size=32,
        transformer_num_layers=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        text_len=TEXT,
        text_len_t5=TEXT,
        use_style_cond_and_image_meta_size=False,
    )


def dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=16,
        num_embeds_ada_norm=8,
        norm_num_groups=4,
    )


def dit_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
        "timestep": steps(batch).long(),
        "class_labels": torch.arange(batch),
    }


def kolors() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        encoder_hid_dim=24,
        encoder_hid_dim_type="text_proj",
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def kolors_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "sample": torch.randn(batch, 4, 2 * height, 2 * width),
        "timestep": 500,
        "encoder_hidden_states": text(batch, 24),
        "added_cond_kwargs": {"text_embeds": torch.randn(batch, 32), "time_ids": torch.ones(batch, 6)},
    }


KOLORS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1",
    "mid_block.attentions.0.transformer_blocks.0.attn1",
    "up_blocks.0.attentions.0.transformer_blocks.0.attn1",
    "up_blocks.0.attentions.1.transformer_blocks.0.attn1",
)


def union() -> nn.Module:
    return diffusers.ControlNetUnionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(8, 8),
        addition_time_embed_dim=8,
        num_control_type=2,
        num_trans_channel=16,
        num_trans_head=2,
        num_proj_channel=16,
    )


def union_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "sample": torch.randn(batch, 4, 2 * height, 2 * width),
        "timestep": 500,
        "encoder_hidden_states": text(batch, 32),
        "controlnet_cond": [torch.randn(batch, 3, 4 * height, 4 * width)],
        "control_type": torch.tensor([[0.0, 1.0]] * batch),
        "control_type_idx": [1],
        "conditioning_scale": [1.0],
    }


# ------------------------------------------------------------------ joint attention, text first
def auraflow() -> nn.Module:
    return diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )


def auraflow_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": text(batch, 32),
        "timestep": steps(batch, 0.5),
    }


AURAFLOW = ("joint_transformer_blocks.0.attn", *names("single_transformer_blocks", 2, "attn"))


def qwen(**options: Any) -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        **options,
    )


def qwen_inputs(height: int, width: int, batch: int, more: tuple[Any, ...] = ()) -> dict[str, Any]:
    tokens = height * width + sum(t * h * w for t, h, w in more)
    return {
        "hidden_states": torch.randn(batch, tokens, 16),
        "encoder_hidden_states": text(batch, 16),
        "encoder_hidden_states_mask": torch.ones(batch, TEXT, dtype=torch.long),
        "timestep": steps(batch, 0.5),
        "img_shapes": [[(1, height, width), *more] for _ in range(batch)],
    }


def qwen_control() -> nn.Module:
    return diffusers.QwenImageControlNetModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )


def qwen_layers_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    made = qwen_inputs(height, width, batch, ((1, height, width), (1, height, width), (1, 2, 3)))
    return {**made, "additional_t_cond": torch.zeros(batch, dtype=torch.long)}


def qwen_width(inputs: dict[str, Any]) -> int:
    return inputs["img_shapes"][0][0][2]


QWEN = names("transformer_blocks", 2, "attn")


def image_ids(height: int, width: int, axes: int, group: int = 0) -> Tensor:
    ids = torch.zeros(height, width, axes)
    ids[..., 0] = group
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)
    return ids.reshape(-1, axes)


def ids_width(inputs: dict[str, Any]) -> int:
    ids = inputs["img_ids"].reshape(-1, inputs["img_ids"].shape[-1])
    columns = ids[ids[:, 0] == ids[0, 0], 2]
    return int(columns.max() - columns.min()) + 1


def chroma() -> nn.Module:
    return diffusers.ChromaTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )


def chroma_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, height * width, 4),
        "encoder_hidden_states": text(batch, 32),
        "timestep": steps(batch, 0.5),
        "img_ids": image_ids(height, width, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }


FLUX = ("transformer_blocks.0.attn", *names("single_transformer_blocks", 2, "attn"))


def flux2() -> nn.Module:
    return diffusers.Flux2Transformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )


def flux2_inputs(height: int, width: int, batch: int, reference: bool = True) -> dict[str, Any]:
    ids = image_ids(height, width, 4)
    if reference:
        ids = torch.cat([ids, image_ids(2, 2, 4, group=10)])
    return {
        "hidden_states": torch.randn(batch, len(ids), 4),
        "encoder_hidden_states": text(batch, 32),
        "timestep": steps(batch, 0.5),
        "guidance": torch.ones(batch),
        "img_ids": ids.expand(batch, -1, -1),
        "txt_ids": torch.zeros(batch, TEXT, 4),
    }


def cogview4() -> nn.Module:
    return diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=4,
        sample_size=16,
        rope_axes_dim=(16, 16),
    )


def cogview3() -> nn.Module:
    return diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=4,
        sample_size=16,
        pos_embed_max_size=16,
    )


def cogview_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": text(batch, 32),
        "timestep": steps(batch),
        **{key: torch.ones(batch, 2) for key in ("original_size", "target_size", "crop_coords")},
    }


COGVIEW = names("transformer_blocks", 2, "attn1")


def lumina2() -> nn.Module:
    return diffusers.Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 32, 32),
        cap_feat_dim=16,
    )


def lumina2_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    mask = torch.ones(batch, TEXT, dtype=torch.long)
    mask[:, 5:] = 0  # dropped by the model
    return {
        "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
        "timestep": steps(batch, 0.5),
        "encoder_hidden_states": text(batch, 16),
        "encoder_attention_mask": mask,
    }


def lumina2_layouts(height: int, width: int) -> list[TokenLayout]:
    grid = (1, height, width)
    return [TokenLayout(grid), TokenLayout(grid, text_before=5), TokenLayout(grid, text_before=5)]


# ------------------------------------------------------------------ joint attention, filled-up sequences
def z_image() -> nn.Module:
    return diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )


def z_image_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    lengths = [TEXT, 40, 12][:batch]  # 32, 64 and 32 with their fill
    return {
        "x": [torch.randn(4, 1, 2 * height, 2 * width) for _ in range(batch)],
        "t": steps(batch, 0.5),
        "cap_feats": [torch.randn(n, 16) for n in lengths],
    }


def z_image_layouts(height: int, width: int) -> list[TokenLayout]:
    grid, fill = (1, height, width), -(height * width) % 32
    alone, joint = TokenLayout(grid, text_after=fill), TokenLayout(grid, text_after=fill + 64)
    return [alone, joint, joint]


def hidream() -> nn.Module:
    return diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 16],
        text_emb_dim=64,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=[0, 1, 1],
        force_inference_output=True,
    )


def hidream_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
        "timesteps": steps(batch),
        "encoder_hidden_states_t5": text(batch, 32, 4),
        "encoder_hidden_states_llama3": torch.randn(2, batch, 3, 16),
        "pooled_embeds": torch.randn(batch, 64),
    }


HIDREAM = ("double_stream_blocks.0.block.attn1", *names("single_stream_blocks", 2, "block.attn1"))


def hidream_layouts(height: int, width: int) -> list[TokenLayout]:
    fill = 0 if height == width else 64 - height * width
    return [TokenLayout((1, height, width), text_after=fill + 4 + 2 * 3)] * 3


def omnigen() -> nn.Module:
    return diffusers.OmniGenTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        num_layers=2,
        pad_token_id=0,
        vocab_size=20,
        pos_embed_max_size=16,
        time_step_dim=16,
        rope_scaling={"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
    )


def omnigen_mask(image: int, real: list[int], reference: slice = slice(0)) -> Tensor:
    """(B, S, S): text and the time token see what is before them, the image sees all but padding in front,
    and rows of padding see everything. A reference image within the text sees all of itself.
    """
    mask = torch.ones(len(real), TEXT + 1 + image, TEXT + 1 + image).tril()
    mask[:, TEXT + 1 :] = 1
    mask[:, reference, reference] = 1
    for item, count in zip(mask, real, strict=True):
        item[:, : TEXT - count] = 0
        item[: TEXT - count] = 1
    return mask


def omnigen_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(batch, 4, 2 * height, 2 * width),
        "timestep": steps(batch, 0.5),
        "input_ids": torch.randint(1, 20, (batch, TEXT)),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": omnigen_mask(height * width, [TEXT, TEXT - 3][:batch], slice(4, 6)),
        "position_ids": torch.arange(TEXT + 1 + height * width).expand(batch, -1),
    }


def longcat() -> nn.Module:
    return diffusers.LongCatImageTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )


def longcat_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    """Rows and columns count from 512, and the target is picture 1."""
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    ids = torch.stack([torch.ones_like(rows), rows + 512, columns + 512], -1).reshape(-1, 3)
    return {
        "hidden_states": torch.randn(batch, height * width, 4),
        "encoder_hidden_states": text(batch, 32),
        "timestep": steps(batch, 0.5),
        "img_ids": ids,
        "txt_ids": torch.arange(float(TEXT))[:, None] * torch.tensor([0.0, 1.0, 1.0]),
    }


def ovis() -> nn.Module:
    return diffusers.OvisImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
    )


def z_image_control(refining: str | None) -> nn.Module:
    model = diffusers.ZImageControlNetModel(
        control_layers_places=[0, 1],
        control_refiner_layers_places=[0],
        control_in_dim=4,
        add_control_noise_refiner=refining,
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    return diffusers.ZImageControlNetModel.from_transformer(model, z_image())


def z_image_control_inputs(height: int, width: int, batch: int) -> dict[str, Any]:
    arguments = z_image_inputs(height, width, batch)
    context = [torch.randn(4, 1, 2 * height, 2 * width) for _ in range(batch)]
    return {**arguments, "control_context": context}


def z_image_control_layouts(height: int, width: int) -> list[TokenLayout]:
    alone, joint, _ = z_image_layouts(height, width)
    return [alone, alone, joint, joint]


PIXART = names("transformer_blocks", 2, "attn1")
HUNYUAN_DIT = names("blocks", 4, "attn1")
LATENT = poke_latent(2)
OMNIGEN = names("layers", 2, "self_attn")
LONGCAT = ("transformer_blocks.0.attn", *names("single_transformer_blocks", 2, "attn"))

CASES: dict[str, Case] = {
    "sd3": Case(sd3, sd3_inputs, SD3, of_all(SD3, text_after=TEXT), LATENT),
    "sd3.5": Case(
        lambda: sd3(dual_attention_layers=(0,), qk_norm="rms_norm"), sd3_inputs, SD35, sd35_layouts, LATENT
    ),
    "sd3_control": Case(sd3_control, with_condition(sd3_inputs), SD3, of_all(SD3, text_after=TEXT), LATENT),
    "sd3.5_control": Case(
        lambda: sd3_control(None, use_pos_embed=False),
        sd35_control_inputs,
        SD3,
        of_all(SD3),
        poke_latent(2, "controlnet_cond"),
    ),
    "pixart": Case(pixart, pixart_inputs, PIXART, of_all(PIXART), LATENT),
    "hunyuan_dit": Case(hunyuan_dit, hunyuan_dit_inputs, HUNYUAN_DIT, of_all(HUNYUAN_DIT), LATENT),
    "hunyuan_dit_control": Case(
        hunyuan_control, with_condition(hunyuan_dit_inputs), HUNYUAN_DIT[:1], of_all(HUNYUAN_DIT[:1]), LATENT
    ),
    "dit": Case(dit, dit_inputs, PIXART, of_all(PIXART), LATENT, SQUARES),
    "auraflow": Case(auraflow, auraflow_inputs, AURAFLOW, of_all(AURAFLOW, text_before=8 + TEXT), LATENT),
    "qwen_image": Case(qwen, qwen_inputs, QWEN, of_all(QWEN, text_before=TEXT), poke_tokens(qwen_width)),
    "qwen_control": Case(
        qwen_control,
        with_condition(qwen_inputs),
        QWEN,
        of_all(QWEN, text_before=TEXT),
        poke_tokens(qwen_width),
    ),
    "qwen_edit": Case(
        lambda: qwen(zero_cond_t=True),
        lambda h, w, b: qwen_inputs(h, w, b, ((1, 4, 3), (1, h, w))),
        QWEN,
        lambda h, w: [TokenLayout((1, h, w), TEXT, 12 + h * w)] * 2,
        poke_tokens(qwen_width),
    ),
    "qwen_layered": Case(
        lambda: qwen(use_layer3d_rope=True, use_additional_t_cond=True),
        qwen_layers_inputs,
        QWEN,
        lambda h, w: [TokenLayout((3, h, w), TEXT, 6)] * 2,
        poke_tokens(qwen_width),
    ),
    "chroma": Case(chroma, chroma_inputs, FLUX, of_all(FLUX, text_before=TEXT), poke_tokens(ids_width)),
    "flux2": Case(
        flux2, flux2_inputs, FLUX, of_all(FLUX, text_before=TEXT, text_after=4), poke_tokens(ids_width)
    ),
    "kolors": Case(kolors, kolors_inputs, KOLORS, of_all(KOLORS), None),
    "union_control": Case(union, union_inputs, KOLORS[:2], of_all(KOLORS[:2]), None),
    "cogview4": Case(cogview4, cogview_inputs, COGVIEW, of_all(COGVIEW, text_before=TEXT), LATENT),
    "cogview3": Case(cogview3, cogview_inputs, COGVIEW, of_all(COGVIEW, text_before=TEXT), LATENT),
    "lumina2": Case(
        lumina2,
        lumina2_inputs,
        ("noise_refiner.0.attn", *names("layers", 2, "attn")),
        lumina2_layouts,
        LATENT,
    ),
    "hunyuan_image": Case(
        hunyuan_image,
        hunyuan_image_inputs,
        HUNYUAN_IMAGE,
        of_all(HUNYUAN_IMAGE, text_after=TEXT),
        poke_latent(1),
    ),
    "hunyuan_image_2": Case(
        lambda: hunyuan_image(second=True),
        hunyuan_image_both_inputs,
        HUNYUAN_IMAGE,
        of_all(HUNYUAN_IMAGE, text_after=TEXT + 5),
        poke_latent(1),
    ),
    "z_image": Case(
        z_image,
        z_image_inputs,
        ("noise_refiner.0.attention", *names("layers", 2, "attention")),
        z_image_layouts,
        poke_latent(2, "x"),
    ),
    "z_image_control": Case(
        lambda: z_image_control("control_noise_refiner"),
        z_image_control_inputs,
        (
            "control_noise_refiner.0.attention",
            "noise_refiner.0.attention",
            *names("control_layers", 2, "attention"),
        ),
        z_image_control_layouts,
        None,
    ),
    "omnigen": Case(omnigen, omnigen_inputs, OMNIGEN, of_all(OMNIGEN, text_before=TEXT + 1), LATENT),
    "longcat": Case(
        longcat, longcat_inputs, LONGCAT, of_all(LONGCAT, text_before=TEXT), poke_tokens(ids_width)
    ),
    "ovis": Case(ovis, longcat_inputs, LONGCAT, of_all(LONGCAT, text_before=TEXT), poke_tokens(ids_width)),
    "hidream": Case(hidream, hidream_inputs, HIDREAM, hidream_layouts, LATENT, (*SQUARES[:1], *SIZES)),
}


def build(name: str) -> nn.Module:
    """The model, always with the same weights: none zero, so that every part changes the output."""
    torch.manual_seed(0)
    model = CASES[name].build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.5))
    return model


def inputs(name: str, height: int, width: int, batch: int = 2) -> dict[str, Any]:
    """Arguments of one forward."""
    torch.manual_seed(1)
    return CASES[name].inputs(height, width, batch)


def output(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """What a forward returns, as one tensor."""
    if isinstance(model, diffusers.ZImageControlNetModel):  # a dictionary by layer
        return torch.stack(tuple(model(**arguments).values()))
    found = model(**arguments, return_dict=False)[0]
    if not isinstance(found, list | tuple):
        return found
    alike = len({part.shape for part in found}) == 1  # those of a UNet's levels are not
    return torch.stack(tuple(found)) if alike else torch.cat([part.flatten() for part in found])
