"""Every video family: its sparse layers see the grid that they should, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.loaders import PeftAdapterMixin
from peft import LoraConfig
from torch import Tensor, nn

import vidattn
from tests.patches.families.video_models import CASES, SANA, SIZES, Case, Grid
from vidattn import TokenLayout
from vidattn.patches.model_patch import patch_of
from vidattn.patterns import Groups, Neighborhood, Pattern

SMALL = Neighborhood((2, 1, 3))
PATTERNS = [SMALL, Neighborhood((1, 3, 3), causal=(True, False, False)), Groups((1, 2, 2))]

all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def cases(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [CASES[name] for name in names], ids=names)


@contextmanager
def planted_masks(pattern: Pattern, layouts: list[TokenLayout]) -> Iterator[list[int]]:
    """Brute force: torch's own attention gets the pattern's mask, on top of the model's, at these lengths."""
    real, masks, seen = F.scaled_dot_product_attention, {x.tokens: pattern.mask(x) for x in layouts}, []

    def masked(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options
    ) -> Tensor:
        length = query.shape[-2]
        if length == key.shape[-2] and length in masks:
            assert attn_mask is None or attn_mask.dtype == torch.bool
            attn_mask = masks[length] if attn_mask is None else attn_mask & masks[length]
            seen.append(length)
        return real(query, key, value, attn_mask=attn_mask, **options)

    F.scaled_dot_product_attention = masked
    try:
        yield seen
    finally:
        F.scaled_dot_product_attention = real


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_all_classes_are_listed():
    listed = {name for classes in vidattn.supported().values() for name in classes}
    assert {case.model for case in CASES.values()} <= listed


@all_cases
def test_the_layers_are_those_that_attend_over_the_grid(case: Case):
    model = case.build()
    vidattn.patch(model, SMALL)
    assert tuple(planned.layer.name for planned in patch_of(model).planned) == case.layers
    modules = dict(model.named_modules())
    assert all(planned.layer.module is modules[planned.layer.name] for planned in patch_of(model).planned)


@all_cases
def test_a_window_as_large_as_the_grid_changes_nothing(case: Case, sparse_calls):
    model = case.build()
    runs = [(grid, batch) for grid in case.sizes for batch in (2, 1)]
    before = [case.run(model, *run) for run in runs]
    vidattn.patch(model, Neighborhood(99), min_tokens=0)
    for run, expected in zip(runs, before, strict=True):
        sparse_calls.clear()
        close(case.run(model, *run), expected)
        assert len(sparse_calls) == case.calls(run[1])
    vidattn.unpatch(model)
    for run, expected in zip(runs, before, strict=True):
        assert torch.equal(case.run(model, *run), expected)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@all_cases
def test_patched_equals_brute_force_with_the_mask(case: Case, pattern: Pattern, sparse_calls):
    model, patched = case.build(), case.build()
    vidattn.patch(patched, pattern, min_tokens=0)  # once, for all sizes
    for grid, batch in [(grid, batch) for grid in case.sizes for batch in (2, 1)]:
        before, layouts = case.run(model, grid, batch), case.layouts(grid, batch)
        with planted_masks(pattern, layouts) as seen:
            expected = case.run(model, grid, batch)
        assert len(seen) == case.calls(batch)
        sparse_calls.clear()
        got = case.run(patched, grid, batch)
        assert len(sparse_calls) == len(seen)
        assert {grid for _, grid in sparse_calls} == {layout.grid for layout in layouts}
        close(got, expected)
        if not all(pattern.covers(layout.grid) for layout in layouts):
            far = (expected - before).abs().max()
            assert far > 20 * (got - expected).abs().max(), (
                "the oracle could not tell this pattern from dense"
            )


ADAPTED = [
    name for name, case in CASES.items() if issubclass(getattr(diffusers, case.model), PeftAdapterMixin)
]


@cases(*ADAPTED)
def test_adapters_follow_the_pattern_too(case: Case, sparse_calls):
    model, grid = case.build(), case.sizes[0]
    vidattn.patch(model, SMALL, min_tokens=0)
    before = case.run(model, grid)
    config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    model.add_adapter(config)
    sparse_calls.clear()
    got = case.run(model, grid)
    assert len(sparse_calls) == case.calls(2)
    vidattn.unpatch(model)
    with planted_masks(SMALL, case.layouts(grid, 2)):
        expected = case.run(model, grid)
    close(got, expected)
    assert (expected - before).abs().max() > 20 * (got - expected).abs().max()


def gradients(case: Case, model: nn.Module) -> dict[str, Tensor]:
    model(**case.made(case.sizes[0]), return_dict=False)[0].square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@cases("cogvideox-1.5", "ltx", "hunyuan-video")
def test_gradients_with_checkpointing(case: Case, sparse_calls):
    plain, patched, saving = (case.build() for _ in range(3))
    with planted_masks(SMALL, case.layouts(case.sizes[0], 2)):
        expected = gradients(case, plain)
    for model in (patched, saving):
        vidattn.patch(model, SMALL, min_tokens=0)
    saving.train().enable_gradient_checkpointing()
    for model, calls in ((patched, 1), (saving, 2)):
        sparse_calls.clear()
        got = gradients(case, model)
        assert len(sparse_calls) == calls * case.calls(2)
        assert got.keys() == expected.keys()
        for name, gradient in got.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "batch"),
    [("cogvideox-1.5", 2), ("ltx", 2), ("hunyuan-video", 2), ("mochi", 2), ("framepack", 2)],
)
def test_compiled_in_one_graph(name: str, batch: int):
    torch._dynamo.reset()
    graphs, case = 0, CASES[name]

    def count(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable:
        nonlocal graphs
        graphs += 1
        return graph.forward

    model = case.build()
    vidattn.patch(model, SMALL, min_tokens=0)
    expected = [case.run(model, grid, batch) for grid in case.sizes]
    fast = torch.compile(model, backend=count, fullgraph=True)
    for grid, wanted in zip(case.sizes, expected, strict=True):
        close(case.run(fast, grid, batch), wanted)
    assert graphs == 2  # sizes that are seen a second time become symbols
    torch._dynamo.reset()


def test_compiled_with_padding_that_is_dropped():
    torch._dynamo.reset()
    case = CASES["framepack"]
    model = case.build()
    vidattn.patch(model, SMALL, min_tokens=0)
    expected = [case.run(model, grid, 1) for grid in case.sizes]
    # not in one graph: lengths of query and key depend on the prompt, each in its own way to a graph
    fast = torch.compile(model, backend="eager")
    for grid, wanted in zip(case.sizes, expected, strict=True):
        close(case.run(fast, grid, 1), wanted)
    torch._dynamo.reset()


# ------------------------------------------------------------------ forwards with more tokens, or dense ones
def places(grid: Grid, start: float = 0.0) -> Tensor:
    """LTX-Video's coordinates (1, 3, N) of a raster, in seconds and pixels."""
    frames, height, width = (torch.arange(float(n)) for n in grid)
    axes = torch.meshgrid(start + (8 * frames - 7).clamp(min=0) / 25, 32 * height, 32 * width, indexing="ij")
    return torch.stack(axes).reshape(1, 3, -1)


def ltx_conditions(grid: Grid) -> tuple[dict[str, Any], TokenLayout]:
    """A picture and a clip of a later time, in front of the video; no sizes are given."""
    picture, clip = (1, *grid[1:]), (2, *grid[1:])
    coords = torch.cat([places(picture, 4.0), places(clip, 0.32), places(grid)], dim=2)
    more = 3 * grid[1] * grid[2]
    return {"video_coords": coords.expand(2, -1, -1)}, TokenLayout(grid, text_before=more)


def ltx2_conditions(grid: Grid) -> tuple[dict[str, Any], TokenLayout]:
    """Five tokens behind the video."""
    return {"video_coords": torch.rand(2, 3, prod(grid) + 5, 2)}, TokenLayout(grid, text_after=5)


@pytest.mark.parametrize("grid", SIZES)
@pytest.mark.parametrize(("name", "conditions"), [("ltx", ltx_conditions), ("ltx-2", ltx2_conditions)])
def test_condition_tokens_see_all_and_are_seen_by_all(name, conditions, grid, sparse_calls):
    more, layout = conditions(grid)
    model, inputs = CASES[name].build(), {**CASES[name].made(grid), **more}
    if name == "ltx":
        inputs |= {"num_frames": None, "height": None, "width": None}
    inputs["hidden_states"] = torch.randn(2, layout.tokens, 4)
    with torch.no_grad(), planted_masks(SMALL, [layout]) as seen:
        expected = model(**inputs, return_dict=False)[0]
    vidattn.patch(model, SMALL, min_tokens=0)
    with torch.no_grad():
        got = model(**inputs, return_dict=False)[0]
    assert sparse_calls == [(str(SMALL), grid)] * 2
    assert len(seen) == 2
    close(got, expected)
    assert f"{layout.text_tokens} condition tokens see all" in str(vidattn.report(model))


MASKED = "an attention mask is given"


@pytest.mark.parametrize(
    ("name", "config", "changes", "reason"),
    [
        ("skyreels", {"num_frame_per_block": 3}, {}, MASKED),
        ("allegro", {}, {"attention_mask": torch.ones(2, 3, 8, 12).tril()}, MASKED),
        ("ltx-2", {}, {"video_self_attention_mask": torch.ones(2, 72, 72).tril()}, MASKED),
        (
            "ltx-2",
            {},
            {"num_frames": 4, "video_coords": torch.rand(2, 3, 72, 2)},
            "72 tokens are no grid of 4 x 4 x 6",
        ),
        ("ltx", {}, {"video_coords": torch.rand(1, 3, 72).expand(2, -1, -1)}, "ends in no raster"),
        ("ltx", {}, {"video_coords": torch.rand(2, 3, 72)}, "video_coords differs within the batch"),
    ],
)
def test_what_cannot_be_told_runs_dense_with_a_reason(name, config, changes, reason, sparse_calls):
    case = CASES[name]
    case = replace(case, config={**case.config, **config})
    model, inputs = case.build(), {**case.made(case.sizes[0]), **changes}
    with torch.no_grad():
        expected = model(**inputs, return_dict=False)[0]
        vidattn.patch(model, SMALL, min_tokens=0)
        assert torch.equal(model(**inputs, return_dict=False)[0], expected)
    assert not sparse_calls
    assert all(reason in row.reason for row in vidattn.report(model).layers)
    vidattn.patch(model, SMALL, min_tokens=0, strict=True)
    with pytest.raises(RuntimeError, match=reason):
        model(**inputs)


def test_linear_attention_is_refused_with_the_reason():
    model = diffusers.SanaVideoTransformer3DModel(**SANA)
    with pytest.raises(TypeError, match=r"nothing to patch in SanaVideo.*self-attention is linear already"):
        vidattn.patch(model, SMALL)


# ------------------------------------------------------------------ steps
class Pipeline:
    """As much of a pipeline as counting steps needs."""

    def __init__(self, transformer: nn.Module, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        self.transformer, self.scheduler = transformer, scheduler
        self.components = {"transformer": transformer, "scheduler": scheduler}


def as_given(scheduler: FlowMatchEulerDiscreteScheduler, i: int) -> float:
    return float(scheduler.timesteps[i])


def as_cosmos_2(scheduler: FlowMatchEulerDiscreteScheduler, i: int) -> float:
    return float(scheduler.sigmas[i] / (scheduler.sigmas[i] + 1))


@pytest.mark.parametrize(
    ("name", "options", "timestep"),
    [
        ("mochi", {"invert_sigmas": True}, as_given),
        ("cosmos", {"use_karras_sigmas": True}, as_cosmos_2),
        ("hunyuan-video", {}, as_given),
    ],
)
def test_first_and_last_steps_stay_dense(name, options, timestep, sparse_calls):
    case, scheduler = CASES[name], FlowMatchEulerDiscreteScheduler(**options)
    model, grid = case.build(), case.sizes[0]
    pipe = Pipeline(model, scheduler)
    vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=1, dense_last_steps=2)
    for _ in range(2):
        scheduler.set_timesteps(5)
        scheduler.set_begin_index(None)
        calls = []
        for i, time in enumerate(scheduler.timesteps):
            sparse_calls.clear()
            inputs = {**case.made(grid), "timestep": torch.full((2,), timestep(scheduler, i))}
            with torch.no_grad():
                change = model(**inputs, return_dict=False)[0]
            scheduler.step(change, time, inputs["hidden_states"])
            calls.append(len(sparse_calls))
        assert calls == [0, case.calls(2), case.calls(2), 0, 0]


@cases("mochi", "cosmos")
def test_steps_without_a_pipeline(case: Case, sparse_calls):
    model, grid = case.build(), case.sizes[0]
    vidattn.patch(model, SMALL, min_tokens=0, dense_steps=2)
    rising = [0.0, 200.0, 500.0, 800.0]
    for _ in range(2):
        calls = []
        for value in rising if case is CASES["mochi"] else rising[::-1]:
            sparse_calls.clear()
            with torch.no_grad():
                model(**{**case.made(grid), "timestep": torch.full((2,), value)})
            calls.append(len(sparse_calls))
        assert calls == [0, 0, case.calls(2), case.calls(2)]
