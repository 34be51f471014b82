"""Shot-wise prompts against attention with the mask written out."""

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.models.transformers import transformer_hunyuan_video as module

from vidattn.pipelines import multi_shot_video

WORDS = {"a fox wakes": 3, "it runs far away": 5}


@pytest.fixture(scope="module")
def pipe():
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
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=32,
        rope_axes_dim=(2, 4, 4),
    ).eval()
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    made = HunyuanVideoPipeline(None, None, transformer, vae, scheduler, None, None)
    made.set_progress_bar_config(disable=True)

    def encode(
        prompt=None, prompt_embeds=None, pooled_prompt_embeds=None, prompt_attention_mask=None, **rest
    ):
        if prompt_embeds is None:  # stands for the language model: padded embeddings, some of them real
            generator = torch.Generator().manual_seed(len(prompt))
            prompt_embeds = torch.randn(1, 8, 16, generator=generator)
            pooled_prompt_embeds = torch.randn(1, 32, generator=generator)
            prompt_attention_mask = (torch.arange(8) < WORDS[prompt]).long()[None]
        return prompt_embeds, pooled_prompt_embeds, prompt_attention_mask

    made.encode_prompt = encode
    return made


CALL = {"height": 32, "width": 48, "num_inference_steps": 2}


def test_shots_see_their_own_text(pipe, monkeypatch):
    seen = []
    hook = lambda m, args, kwargs, output: seen.append((kwargs, output[0]))  # noqa: E731
    handle = pipe.transformer.register_forward_hook(hook, with_kwargs=True)
    made = multi_shot_video(pipe, list(WORDS), [5, 4], **CALL)
    handle.remove()
    assert made.frames.shape == (1, 9, 32, 48, 3)
    kwargs, output = seen[0]
    assert kwargs["encoder_hidden_states"].shape == (1, 8, 16)
    # 2 latent frames and 1, of 2x3 tokens, then 3 and 5 tokens of text
    shot = torch.tensor([0] * 12 + [1] * 6 + [0] * 3 + [1] * 5)
    text = torch.arange(26) >= 18
    allowed = (shot[:, None] == shot) | (~text[:, None] & ~text)
    assert made.stages[0].density == pytest.approx(allowed.float().mean().item())

    def masked(query, key, value, attn_mask=None, **rest):
        mask = allowed if query.shape[1] == 26 else attn_mask
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)

    monkeypatch.setattr(module, "dispatch_attention_fn", masked)
    refiner = pipe.transformer.context_embedder
    whole = refiner.forward

    def alone(states, timestep, mask):
        return torch.cat([whole(states[:, a:b], timestep, mask[:, a:b]) for a, b in ((0, 3), (3, 8))], 1)

    monkeypatch.setattr(refiner, "forward", alone)
    with torch.no_grad():
        expected = pipe.transformer(**kwargs)[0]
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.undo()
    with torch.no_grad():
        plain = pipe.transformer(**kwargs)[0]  # put back, and the segments tell
    assert (plain - expected).abs().max() > 100 * (output - expected).abs().max()


@pytest.mark.parametrize(
    ("shots", "message"),
    [
        ([5], "each of the 2 prompts"),
        ([4, 4], r"shots\[0\]=4.*as 1 or 5"),
        ([5, 5], r"shots\[1\]=5.*multiple of 4"),
    ],
)
def test_wrong_shots(pipe, shots, message):
    with pytest.raises(ValueError, match=message):
        multi_shot_video(pipe, list(WORDS), shots, **CALL)


def test_other_pipelines_are_refused(pipes):
    with pytest.raises(TypeError, match="HunyuanVideoPipeline"):
        multi_shot_video(pipes("flux"), list(WORDS), [5, 4])
