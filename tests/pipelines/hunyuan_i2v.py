"""A tiny HunyuanVideo I2V pipeline that replaces tokens, without its language models."""

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoTransformer3DModel,
)


def build(words: dict[str, int]) -> HunyuanVideoImageToVideoPipeline:
    """Random weights; prompts have as many tokens as ``words`` says, or 4."""
    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=False,
        text_embed_dim=16,
        pooled_projection_dim=32,
        rope_axes_dim=(2, 4, 4),
        image_condition_type="token_replace",
    ).eval()
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    ).eval()
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    made = HunyuanVideoImageToVideoPipeline(
        transformer=transformer, vae=vae, scheduler=scheduler, image_processor=None, **parts
    )
    made.set_progress_bar_config(disable=True)

    def encode(image, prompt=None, prompt_embeds=None, image_embed_interleave=None, **rest):
        given = rest.get("pooled_prompt_embeds"), rest.get("prompt_attention_mask")
        if prompt_embeds is not None:
            return prompt_embeds, *given
        generator = torch.Generator().manual_seed(len(prompt))  # stands for the language model
        embeds, pooled = (torch.randn(1, *size, generator=generator) for size in ((8, 16), (32,)))
        return embeds, pooled, (torch.arange(8) < words.get(prompt, 4)).long()[None]

    made.encode_prompt = encode
    return made
