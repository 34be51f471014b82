"""What the app makes and measures, on tiny pipelines with random weights; and that its page builds."""

from __future__ import annotations

import io
import json
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from demos.gui import attention, generate, heatmap, highres, memory
from demos.gui.catalog import Catalog, Facts
from demos.gui.clips import clip_url, frame_of
from demos.gui.engine import Cancelled, Engine, Job, Step
from demos.gui.order import Order
from demos.gui.snippet import loading_lines, python_lines
from vidattn import TokenLayout
from vidattn.patches.model_patch import patch_of
from vidattn.patterns import Disc, Full, Neighborhood
from vidattn.pipelines import Stage

PROMPT = "a photo of a red dog"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a FLUX and a Wan pipeline."""
    from tests.patches import tiny_pipelines

    root = tmp_path_factory.mktemp("models")
    for name, defaults in (("flux", {"true_cfg_scale": 3.0, "negative_prompt": ""}), ("wan", {})):
        tiny_pipelines.build(name).save_pretrained(root / name)
        hints = {"defaults": {"max_sequence_length": 16} | defaults}
        (root / name / "vidattn.json").write_text(json.dumps(hints))
    return root


@pytest.fixture(scope="module")
def catalog(models: Path) -> Catalog:
    return Catalog([models], device="cpu")


def job() -> Job:
    """One that nobody stops."""
    return Job("a", lambda _: 0)


def order(models: Path, name: str = "flux", **change: Any) -> Order:
    given = {"height": 64, "width": 96, "steps": 2, "seed": 3, "pattern": Neighborhood(3)}
    return Order(model=str(models / name), prompt=PROMPT, **given | change)


def news(of: Job) -> list[Any]:
    found = []
    while not of._news.empty():
        found.append(of._news.get())
    return found


# ---------------------------------------------------------------------- generating
@pytest.mark.parametrize(("name", "frames"), [("flux", None), ("wan", 9)])
def test_both_runs_and_the_python_lines_that_make_the_first_again(
    models: Path, catalog: Catalog, name: str, frames: int | None
):
    mine, asked = job(), order(models, name, frames=frames, dense_steps=1)
    result = generate.run_order(mine, catalog, asked)
    patched, dense, gap = (result.frames(which) for which in ("patched", "dense", "difference"))
    assert len(patched) == len(dense) == len(gap) == (frames or 1)
    assert patched[0].size == (96, 64)
    a, b = (np.asarray(x[0]).astype(int) for x in (patched, dense))
    assert (result.outcome.sparse.frames != result.outcome.dense.frames).any()
    assert (
        np.abs(np.asarray(gap[0]) - np.clip(np.abs(a - b) * generate.GAIN, 0, 255)).max() <= generate.GAIN + 1
    )
    assert patched[0].info["seed"] == "3"
    assert 0 < result.density < 1
    assert "neighborhood:window=3" in result.report
    assert set(result.peaks) == {"patched", "dense"}
    assert [step.done for step in news(mine) if isinstance(step, Step) and step.what == "patched"] == [
        0,
        1,
        2,
    ]
    names: dict[str, Any] = {}
    exec(python_lines(catalog, asked, result.call), names)
    again = np.stack([np.asarray(x) for x in (names["frames"] if frames else [names["image"]])])
    again = np.rint(again * 255) if again.dtype != np.uint8 else again
    assert np.array_equal(again, np.stack([np.asarray(x) for x in patched]))


def test_without_comparison_nothing_runs_dense(models: Path, catalog: Catalog):
    result = generate.run_order(job(), catalog, order(models, compare=False))
    assert result.outcome.dense is None
    assert set(result.peaks) == {"patched"}


def test_a_stopped_run_ends_at_the_next_step_and_leaves_the_pipeline_as_it_was(
    models: Path, catalog: Catalog
):
    model = catalog.load(str(models / "flux")).pipe.transformer
    before = dict(model._forward_pre_hooks)
    mine, forwards = job(), []
    counted = model.register_forward_hook(lambda *_: forwards.append(1))
    mine.tell = lambda told: mine.cancel() if isinstance(told, Step) and told.done == 2 else None
    try:
        with pytest.raises(Cancelled):
            generate.run_order(mine, catalog, order(models, steps=30))
    finally:
        counted.remove()
    assert len(forwards) <= 2 * 3  # two passes a step, and at most one step of warming up
    assert patch_of(model) is None
    assert dict(model._forward_pre_hooks) == before


def test_two_persons_take_turns_on_one_pipeline(models: Path, catalog: Catalog):
    engine = Engine()
    asked = [
        order(models, seed=seed, pattern=pattern) for seed, pattern in ((1, Neighborhood(3)), (2, Disc(2)))
    ]
    alone = [generate.run_order(job(), catalog, each).frames("patched")[0] for each in asked]
    jobs = [
        engine.submit(name, lambda mine, each=each: generate.run_order(mine, catalog, each))
        for name, each in zip("ab", asked, strict=True)
    ]
    for each, mine in zip(alone, jobs, strict=True):
        assert np.array_equal(np.asarray(mine.future.result(60).frames("patched")[0]), np.asarray(each))
    engine.close()


# ---------------------------------------------------------------------- memory
def test_sizes_that_memory_does_not_hold_are_refused(models: Path, catalog: Catalog, monkeypatch):
    pipe = catalog.load(str(models / "flux")).pipe
    small, large = (memory.needed(pipe, side, side) for side in (256, 512))
    assert large == 4 * small
    monkeypatch.setattr(memory, "available", lambda device: small)
    memory.check(pipe, 256, 256)
    with pytest.raises(ValueError, match=r"512x512 needs about .* choose at most about 256x256"):
        generate.run_order(job(), catalog, order(models, height=512, width=512))


def test_the_highest_memory_is_seen():
    with memory.Peak(torch.device("cpu")) as idle:
        pass
    with memory.Peak(torch.device("cpu")) as busy:
        large = torch.ones(1 << 26)  # 256 MiB
        threading.Event().wait(0.1)
    assert large.numel() * 4 * 0.8 < busy.bytes - idle.bytes < large.numel() * 4 * 1.5


# ---------------------------------------------------------------------- attention
def test_head_stats_against_brute_force():
    layout = TokenLayout((2, 5, 6), text_before=4, text_valid=(4, 3))
    q, k = torch.randn(2, 64, 4, 8), torch.randn(2, 64, 2, 8)
    stats = attention.head_stats("x", q, k, layout, 0.7)
    place = [(n // 6 % 5, n % 6) for n in range(60)]
    for head in range(4):
        scores = 0.7 * q[1, 4:, head].double() @ k[1, :, head // 2].double().T
        scores[:, 3] = -torch.inf  # the second prompt has three tokens
        weights = scores.softmax(-1)
        picture = weights[:, 4:] / weights[:, 4:].sum(-1, keepdim=True)
        assert stats.text[head].item() == pytest.approx(weights[:, :4].sum(-1).mean().item(), abs=1e-5)
        spread = (-(picture * picture.log()).sum(-1)).exp().mean().item() / 60
        assert stats.spread[head].item() == pytest.approx(spread, abs=1e-5)
        for i, radius in enumerate(attention.RADII):
            near = torch.tensor([[max(abs(a - c), abs(b - d)) <= radius for c, d in place] for a, b in place])
            assert stats.mass[i, head].item() == pytest.approx(
                (picture * near).sum(-1).mean().item(), abs=1e-5
            )
            assert stats.area[i] == pytest.approx(near.double().mean().item())
        left = sum(
            picture[n, m]
            for n, (a, b) in enumerate(place)
            for m, (c, d) in enumerate(place)
            if (c, d) == (a, b - 1)
        )
        middle = attention.REACH
        assert stats.around[head, middle, middle - 1].item() == pytest.approx(float(left) / 60, abs=1e-5)
    assert stats.around.sum((1, 2)).allclose(torch.ones(4), atol=1e-5)  # the grid is smaller than the map


def test_measuring_one_step_and_drawing_it(models: Path, catalog: Catalog):
    pipe, mine = catalog.load(str(models / "flux")).pipe, job()
    energy = attention.measure(mine, catalog, order(models, steps=4, pattern=Full()), 3)
    assert [stats.layer for stats in energy.layers] == [
        *(f"transformer_blocks.{i}.attn" for i in range(2)),
        *(f"single_transformer_blocks.{i}.attn" for i in range(2)),
    ]
    assert max(step.done for step in news(mine)) == 2  # the third step was seen, and not finished
    assert not pipe.transformer._forward_hooks
    assert patch_of(pipe.transformer) is None
    first = attention.measure(job(), catalog, order(models, steps=4, pattern=Full()), 1)
    assert not torch.equal(first.layers[0].mass, energy.layers[0].mass)
    image = heatmap.draw(energy, "in 3x3", (1, 0))
    assert heatmap.cell_at((image.width - 2, image.height - 2), energy) == (3, 1)
    assert heatmap.cell_at((0, 0), energy) == (0, 0)
    assert heatmap.draw_head(energy, (1, 1)).width >= 2 * attention.REACH + 1
    assert "3x3 window" in heatmap.sentence(energy, "in 3x3")
    with pytest.raises(ValueError, match="step=5: must be 1 to 4"):
        attention.measure(job(), catalog, order(models, steps=4), 5)
    with pytest.raises(ValueError, match="measure='x'"):
        heatmap.draw(energy, "x")


# ---------------------------------------------------------------------- high resolution, video
def test_stages_appear_as_they_finish_and_can_be_made_again(models: Path, catalog: Catalog):
    mine, asked = job(), order(models, height=256, width=256, steps=2, pattern=Full())
    made = highres.run_stages(mine, catalog, asked, "frequency")
    told = [each for each in news(mine) if isinstance(each, highres.Stages)]
    assert len(told) == made.total + 1  # one for each stage, one for the picture made at once
    assert all(isinstance(stage, Stage) for stage, _ in made.done)
    assert made.done[-1][1].size == (256, 256)
    assert made.direct[0].size == (256, 256)
    head = loading_lines(catalog, asked, "from vidattn.pipelines import upscale_generate")
    names: dict[str, Any] = {}
    exec(highres.lines(catalog, made, head).replace('made.images[0].save("picture.png")', ""), names)
    assert np.array_equal(np.asarray(names["made"].images[0]), np.asarray(made.done[-1][1]))
    with pytest.raises(ValueError, match="guidance='magic'"):
        highres.run_stages(job(), catalog, asked, "magic")


def test_the_first_stage_has_the_size_that_the_model_is_at_home_at():
    facts = Facts("m", "P", 16, 0, "", {"height": 256, "width": 256})
    assert highres.first_size(facts, 1024, 1024) == (256, 256)
    assert highres.first_size(facts, 512, 1024) == (176, 368)
    assert highres.first_size(facts, 256, 256) is None
    assert highres.first_size(Facts("m", "P", 16, 0, "", {}), 1024, 1024) is None


def test_clips_are_addresses_that_hold_them():
    frames = [Image.new("RGB", (32, 16), (40 * i, 0, 0)) for i in range(5)]
    with urllib.request.urlopen(clip_url(frames)) as answer:
        clip = Image.open(io.BytesIO(answer.read()))
    assert (clip.n_frames, clip.size) == (5, (32, 16))
    pairs = list(zip(frames, frames[::-1], strict=True))
    assert frame_of(pairs, 2.0) == (frames[1], frames[3])
    assert frame_of(pairs, 99) == (frames[4], frames[0])
    assert frame_of(None, 1) is None
