"""DRA-Ctrl against attention with the mask written out, positions and adapters computed plainly."""

import copy

import pytest
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers import transformer_hunyuan_video as module
from PIL import Image
from safetensors.torch import save_file

from tests.pipelines.hunyuan_i2v import build
from vidattn.pipelines import image_from_video_model, transition_frames

WORDS = {"a cat in snow": 5, "a cat": 3}
TARGET, CONDITION = WORDS
FRAME = 6  # tokens of a latent frame, 2 x 3
CALL = {"height": 32, "width": 48, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe():
    return build(WORDS)


@pytest.fixture(scope="module")
def picture():
    values = torch.randint(0, 256, (32, 48, 3), generator=torch.Generator().manual_seed(3))
    return Image.fromarray(values.to(torch.uint8).numpy())


@pytest.fixture(scope="module")
def lora():
    """As the authors' files name it; on frames, texts, both, and the modulation."""
    generator = torch.Generator().manual_seed(4)
    sizes = {
        "transformer_blocks.0.attn.to_q": (20, 20),
        "transformer_blocks.0.attn.add_k_proj": (20, 20),
        "transformer_blocks.0.norm1.linear": (20, 120),
        "single_transformer_blocks.0.attn.to_v": (20, 20),
        "single_transformer_blocks.0.proj_out": (100, 20),
    }
    made = {}
    for name, (width, out) in sizes.items():
        made[f"{name}.lora_A.weight"] = torch.randn(2, width, generator=generator)
        made[f"{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    return made


def run(pipe, picture, *prompts, **options):
    """(result, arguments of the first forward, its output, latents at the end)."""
    seen, ends = [], []
    hook = lambda m, args, kwargs, output: seen.append((kwargs, output[0]))  # noqa: E731
    handle = pipe.transformer.register_forward_hook(hook, with_kwargs=True)
    note = lambda p, step, time, tensors: ends.append(tensors["latents"]) or {}  # noqa: E731
    try:
        made = image_from_video_model(pipe, picture, *prompts, **CALL, callback_on_step_end=note, **options)
    finally:
        handle.remove()
    return made, *seen[0], ends[-1]


def allowed(condition_text):
    """Kinds: condition 0, generated 1, target's text 2, condition's text 3."""
    kind = torch.tensor([0] * FRAME + [1] * 3 * FRAME + [2] * 5 + [3] * condition_text)
    sees = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]]).bool()
    return sees[kind[:, None], kind]


def plain(pipe, kwargs, monkeypatch, condition_text, gap=12, lora=None, stronger=0.0):
    """The first forward by diffusers' code with the mask, the positions and the adapters written out."""
    mask, model = allowed(condition_text), copy.deepcopy(pipe.transformer)

    def attend(query, key, value, attn_mask=None, **rest):
        mine = mask if query.shape[1] == len(mask) else attn_mask
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        if (
            stronger and mine is mask
        ):  # per pair: the frames' logits at the words, 2 tokens behind the text's start
            words = slice(4 * FRAME + 2, 4 * FRAME + 5)
            extra = torch.zeros(1, 2, len(mask), len(mask))
            extra[:, :, FRAME : 4 * FRAME, words] = (
                stronger * k[:, :, words].abs().mean() * q[:, :, FRAME : 4 * FRAME].sum(-1, keepdim=True)
            ) / q.shape[-1] ** 0.5
            mine = extra.masked_fill(~mask, float("-inf"))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mine).transpose(1, 2)

    def rope(states):
        sizes = states.shape[2], states.shape[3] // 2, states.shape[4] // 2
        axes = torch.meshgrid(*(torch.arange(n).float() for n in sizes), indexing="ij")
        places = axes[0].flatten() * gap, axes[1].flatten(), axes[2].flatten()
        pairs = [
            get_1d_rotary_pos_embed(width, place, 256.0, use_real=True)
            for width, place in zip((2, 4, 4), places, strict=True)
        ]
        return tuple(torch.cat([pair[i] for pair in pairs], 1) for i in (0, 1))

    refine = model.context_embedder.forward

    def alone(states, time, real):
        parts = [refine(states[:, :5], time, real[:, :5])]
        if condition_text:
            parts.append(refine(states[:, 5:], time * 0, real[:, 5:]))
        return torch.cat(parts, 1)

    for name in {key.rsplit(".lora", 1)[0] for key in lora or {}}:
        layer = model.get_submodule(name)
        down, up = (lora[f"{name}.lora_{side}.weight"] for side in "AB")

        def adapted(x, forward=layer.forward, down=down, up=up, text="add_" in name):
            extra = x @ down.T @ up.T
            if x.ndim == 2:
                return forward(x)
            place = torch.arange(x.shape[1])
            frames = (place >= FRAME) & (place < 4 * FRAME) & torch.tensor(not text)
            return forward(x) + extra * ~frames[:, None]

        layer.forward = adapted
    model.rope.forward, model.context_embedder.forward = rope, alone
    with monkeypatch.context() as patches, torch.no_grad():
        patches.setattr(module, "dispatch_attention_fn", attend)
        return model(**kwargs)[0]


@pytest.mark.parametrize("condition_text", [0, 3])
def test_table_positions_and_texts(pipe, picture, monkeypatch, condition_text):
    prompts = [TARGET, CONDITION] if condition_text else [TARGET]
    made, kwargs, output, latents = run(pipe, picture, *prompts)
    assert kwargs["hidden_states"].shape == (
        1,
        4,
        4,
        4,
        6,
    )  # the condition, 8 frames of transition, the picture
    assert made.stages[0].density == pytest.approx(allowed(condition_text).float().mean().item())
    expected = plain(pipe, kwargs, monkeypatch, condition_text)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    near = plain(pipe, kwargs, monkeypatch, condition_text, gap=1)  # the positions tell
    with torch.no_grad():
        whole = pipe.transformer(**kwargs)[0]  # put back, and the table tells
    for other in (near, whole):
        assert (other - expected).abs().max() > 100 * (output - expected).abs().max()
    with torch.no_grad():
        alone = pipe.vae.decode(latents[:, :, -1:] / pipe.vae.config.scaling_factor).sample[0, :, 0]
    pixels = ((alone / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert made.frames.shape == (1, 1, 32, 48, 3)
    assert torch.equal(made.frames[0, 0], pixels.permute(1, 2, 0))
    assert made.images[0].size == (48, 32)


def test_frames_and_gap_are_asked_for(pipe, picture):
    made, kwargs, _, _ = run(pipe, picture, TARGET, transitions=0, frame_gap=4)
    assert kwargs["hidden_states"].shape[2] == 2
    again = image_from_video_model(pipe, picture, TARGET, transitions=0, frame_gap=4, **CALL)
    assert torch.equal(made.frames, again.frames)
    assert (again.settings["transitions"], again.settings["frame_gap"]) == (0, 4)


def test_adapter_leaves_generated_frames_alone(pipe, picture, lora, monkeypatch, tmp_path):
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    save_file(lora, tmp_path / "canny.safetensors")
    _, kwargs, output, _ = run(pipe, picture, TARGET, CONDITION, lora=str(tmp_path / "canny.safetensors"))
    after = pipe.transformer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    expected = plain(pipe, kwargs, monkeypatch, 3, lora=lora)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    bare = plain(pipe, kwargs, monkeypatch, 3)
    assert (bare - expected).abs().max() > 100 * (output - expected).abs().max()
    named = {f"transformer.{key}": value for key, value in lora.items()}
    assert torch.equal(run(pipe, picture, TARGET, CONDITION, lora=named)[2], output)
    pipe.load_lora_weights(named, adapter_name="mine")  # by the user: the same, and left where it is
    try:
        assert torch.equal(run(pipe, picture, TARGET, CONDITION)[2], output)
        assert list(pipe.transformer.peft_config) == ["mine"]
        with pytest.raises(ValueError, match=r"has adapters already, \['mine'\]"):
            image_from_video_model(pipe, picture, TARGET, lora=lora, **CALL)
        pipe.fuse_lora()
        with pytest.raises(ValueError, match="fused into the weights"):
            image_from_video_model(pipe, picture, TARGET, **CALL)
        pipe.unfuse_lora()
    finally:
        pipe.unload_lora_weights()


@pytest.mark.parametrize("condition_text", [0, 3])
def test_words_are_stronger_for_the_frames_only(pipe, picture, monkeypatch, condition_text):
    template = {"template": "{}", "image_emb_len": 8}  # 2 of them are kept
    prompts = [TARGET, CONDITION] if condition_text else [TARGET]
    _, kwargs, output, _ = run(pipe, picture, *prompts, stronger_words=0.6, prompt_template=template)
    expected = plain(pipe, kwargs, monkeypatch, condition_text, stronger=0.6)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    bare = plain(pipe, kwargs, monkeypatch, condition_text)
    assert (bare - expected).abs().max() > 100 * (output - expected).abs().max()


def test_everything_is_put_back_after_an_error(pipe, picture, lora):
    names = [name for name, _ in pipe.transformer.named_modules()]

    def fail(*args):
        raise RuntimeError("stopped")

    options = {"lora": lora, "stronger_words": 0.6, "prompt_template": {"template": "{}", "image_emb_len": 8}}
    with pytest.raises(RuntimeError, match="stopped"):
        image_from_video_model(pipe, picture, TARGET, CONDITION, callback_on_step_end=fail, **options, **CALL)
    assert [name for name, _ in pipe.transformer.named_modules()] == names
    for each in pipe.transformer.modules():
        assert len(each._forward_hooks) + len(each._forward_pre_hooks) == 0
        assert "forward" not in each.__dict__
    assert not getattr(pipe.transformer, "peft_config", None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image": "cat.png"}, TypeError, "image: must be a PIL image, not str"),
        ({"prompt": [TARGET]}, TypeError, "prompt=.*one text"),
        ({"condition_prompt": 3}, TypeError, "condition_prompt=3"),
        ({"stronger_words": "much"}, TypeError, "stronger_words='much'"),
        ({"height": 40}, ValueError, "40x48.*multiples of 16"),
        ({"transitions": 6}, ValueError, "transitions=6: must be a multiple of 4"),
        ({"frame_gap": 0}, ValueError, "frame_gap=0: must be a multiple of 4, at least 4"),
        ({"num_frames": 9}, TypeError, "num_frames is set"),
        ({"steps": 9}, TypeError, "takes no 'steps'"),
        ({"negative_prompt": "dark"}, ValueError, "negative_prompt='dark'"),
        ({"true_cfg_scale": 2.0}, ValueError, "true_cfg_scale=2.0"),
        ({"lora": {"unet.lora_A.weight": torch.ones(1)}}, ValueError, "nothing for the transformer"),
    ],
)
def test_bad_input(pipe, picture, options, error, message):
    with pytest.raises(error, match=message):
        image_from_video_model(pipe, **{"image": picture, "prompt": TARGET, **CALL, **options})


def test_other_models_are_refused(pipe, pipes, picture):
    with pytest.raises(TypeError, match=r"FluxPipeline.*drives a HunyuanVideoImageToVideoPipeline"):
        image_from_video_model(pipes("flux"), picture, TARGET)
    pipe.transformer.register_to_config(image_condition_type="latent_concat")
    try:
        with pytest.raises(ValueError, match="image_condition_type='latent_concat'"):
            image_from_video_model(pipe, picture, TARGET)
    finally:
        pipe.transformer.register_to_config(image_condition_type="token_replace")


def test_transition_frames_mix_light():
    first, last = torch.rand(2, 2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    made = transition_frames(first, last)
    assert made.shape == (2, 8, 3, 4, 5)
    for number in range(8):
        a = (number + 1) / 9
        b = a * a * (3 - 2 * a)
        expected = ((1 - b) * first**2.2 + b * last**2.2) ** (1 / 2.2)
        torch.testing.assert_close(made[:, number], expected, rtol=1e-12, atol=0)
    mirrored = transition_frames(last, first).flip(1)
    torch.testing.assert_close(made, mirrored, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(3, 4, 4)}, "same shape"),
        ({"target": torch.full((3, 4, 5), 1.5)}, r"target: must be in \[0, 1\].*1.5"),
        ({"count": 0}, "count=0"),
        ({"gamma": 0.0}, "gamma=0.0"),
    ],
)
def test_bad_transitions(change, message):
    given = {"condition": torch.zeros(3, 4, 5), "target": torch.ones(3, 4, 5), **change}
    with pytest.raises(ValueError, match=message):
        transition_frames(**given)
