"""The dual path against one written with plain hooks, forward by forward."""

import contextlib

import pytest
import torch

import vidattn
from tests.patches import tiny_pipelines as tiny
from tests.pipelines.conftest import options
from vidattn.patterns import SlidingWindow
from vidattn.pipelines import dual_path_video, upscale_generate
from vidattn.pipelines.dual_path import CrossCache

CALL = {"height": 64, "width": 96, "frames": 5, "base": (32, 48), "patch_options": {"min_tokens": 0}}
CALL |= {k: v for k, v in options("wan").items() if k != "num_frames"}


def recorded(pipe, **change):
    """(arguments, output) of every forward of the second stage."""
    seen = []

    def after(module, args, kwargs, output):
        if kwargs["hidden_states"].shape[-1] == 12:
            seen.append((kwargs, output[0].clone()))

    handle = pipe.transformer.register_forward_hook(after, with_kwargs=True)
    try:
        made = dual_path_video(pipe, **{"prompt": [tiny.PROMPT, "a dog"], "strength": 0.75, **CALL, **change})
    finally:
        handle.remove()
    return made, seen


@pytest.fixture
def scaled(pipes):
    """The same pipe with the paper's scale, 6 tokens in a frame, in the weights of its query norms."""
    model = pipes("wan").transformer
    factor = (torch.tensor(12.0).log() / torch.tensor(6.0).log()).sqrt()
    norms = [block.attn1.norm_q.weight for block in model.blocks]
    with torch.no_grad():
        for weight in norms:
            weight.mul_(factor)
    yield model
    with torch.no_grad():
        for weight in norms:
            weight.div_(factor)


def cross_outputs(model, kwargs):
    """A dense forward's output, and those of its cross-attention layers."""
    kept = []
    handles = [b.attn2.register_forward_hook(lambda m, a, out: kept.append(out)) for b in model.blocks]
    with torch.no_grad():
        output = model(**kwargs)[0]
    for handle in handles:
        handle.remove()
    return output, kept


def window_forward(model, kwargs, cross=None):
    """A forward with windows; its cross-attention replaced by ``cross``."""
    handles = []
    if cross is not None:
        for block, given in zip(model.blocks, cross, strict=True):
            handles.append(block.attn2.register_forward_hook(lambda m, a, out, given=given: given))
    with torch.no_grad(), vidattn.patched(model, SlidingWindow((2, 3)), min_tokens=0):
        output = model(**kwargs)[0]
    for handle in handles:
        handle.remove()
    return output


def test_each_forward_is_freeswims(pipes, request):
    pipe = pipes("wan")
    made, seen = recorded(pipe)
    # 3 steps: full path, window path, negative prompt; window path, negative prompt; and the first again
    assert len(seen) == 3 + 2 + 3
    model = request.getfixturevalue("scaled")
    steps = [seen[:3], [None, *seen[3:5]], seen[5:]]
    for full, window, negative in steps:
        if full is not None:
            expected, cross = cross_outputs(model, full[0])
            torch.testing.assert_close(full[1], expected, rtol=1e-4, atol=1e-5)
        guided = window_forward(model, window[0], cross)
        torch.testing.assert_close(window[1], guided, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(negative[1], window_forward(model, negative[0]), rtol=1e-4, atol=1e-5)
        alone = window_forward(model, window[0])
        assert (guided - alone).abs().max() > 100 * (window[1] - guided).abs().max()  # the guide tells
    assert made.frames.shape == (2, 5, 64, 96, 3)
    assert "full-attention path: 2 of 3 steps" in made.stages[1].report
    assert made.stages[1].density < 0.6


def test_what_is_left_behind(pipes):
    pipe = pipes("wan")
    before = tiny.run("wan", pipe)
    for callback in (None, lambda *a: 1 / 0):
        with contextlib.suppress(ZeroDivisionError):
            dual_path_video(pipe, tiny.PROMPT, **CALL, callback=callback)
    assert not any("forward" in m.__dict__ or m._forward_pre_hooks for m in pipe.transformer.modules())
    assert torch.equal(tiny.run("wan", pipe), before)


@pytest.mark.parametrize("kind", ["cpu", "fp8"])
def test_caches(pipes, kind):
    pipe = pipes("wan")
    frames = {c: dual_path_video(pipe, tiny.PROMPT, **CALL, cache=c).frames.float() for c in ("device", kind)}
    off = (frames["device"] - frames[kind]).square().mean().sqrt()
    assert off == 0 if kind == "cpu" else off < 1  # of 255 steps


def test_a_cache_takes_what_fits():
    output = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(0))  # 3 layers are 1920 bytes
    for budget, kind in ((None, "device"), (1920, "device"), (1919, "fp8"), (480, "fp8"), (479, "cpu")):
        cache = CrossCache("auto", budget)
        cache.choose(3, output)
        assert cache.kind == kind
    cache = CrossCache("fp8", None)
    cache.store(0, output)
    # 3 bits of mantissa: half a step is 1/16; tokens have their own scale
    assert (
        (cache.load(0, output) - output).abs() <= output.abs() / 16 + output.abs().amax(-1, True) / 2**14
    ).all()


def test_progressive_stages_and_one_that_needs_none(pipes):
    pipe = pipes("wan")
    made = dual_path_video(pipe, tiny.PROMPT, **CALL | {"stages": [(48, 64), (64, 96)], "refresh": 3})
    assert [(s.height, s.width) for s in made.stages] == [(32, 48), (48, 64), (64, 96)]
    alone = dual_path_video(pipe, tiny.PROMPT, **CALL | {"height": 32, "width": 48})
    plain = upscale_generate(pipe, tiny.PROMPT, base=(32, 48), size=(32, 48), **options("wan"))
    assert torch.equal(alone.frames, plain.frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 1080, "width": 1920}, "multiples of 16.*1072x1920 and 1088x1920"),
        ({"frames": 80}, "as 77 or 81"),
        ({"refresh": 0}, "at least 1"),
        ({"cache": "disk"}, "auto, device, fp8, cpu"),
        ({"max_memory": "1KiB"}, "too little"),
    ],
)
def test_wrong_values(pipes, change, message):
    with pytest.raises(ValueError, match=message):
        dual_path_video(pipes("wan"), tiny.PROMPT, **CALL | change)


def test_other_pipelines_are_refused(pipes):
    with pytest.raises(TypeError, match="WanPipeline with one transformer"):
        dual_path_video(pipes("flux"), tiny.PROMPT)
