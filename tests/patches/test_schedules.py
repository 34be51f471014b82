"""Patterns by step range, by branch of guidance, and both by layer."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline
from torch import Tensor, nn

import vidattn
from tests.patches.tiny_pipelines import build, denoiser, inputs, model_of, run
from vidattn import TokenLayout
from vidattn.patches import routes
from vidattn.patches.families import CONDITIONAL_FIRST, UNCONDITIONAL_FIRST, families
from vidattn.patches.guidance import BranchReader
from vidattn.patches.steps import ALL, Moment
from vidattn.patterns import Neighborhood

A, B = Neighborhood(3), Neighborhood(1)
NAMES = {str(A): "A", str(B): "B"}


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """For each forward of a watched model the patterns of its sparse calls, in order: "A", "B", or ""."""
    seen: list[str] = []
    real = routes.attention

    def noted(query: Tensor, key: Tensor, value: Tensor, pattern: Any, *rest: Any, **options: Any) -> Tensor:
        seen[-1] += NAMES[str(pattern)]
        return real(query, key, value, pattern, *rest, **options)

    monkeypatch.setattr(routes, "attention", noted)
    return seen


def watch(model: nn.Module, seen: list[str]) -> None:
    model.register_forward_pre_hook(lambda module, args: seen.append(""))


def first(seen: list[str]) -> list[str]:
    return [calls[:1] for calls in seen]


# ------------------------------------------------------------------ steps
BY_STEPS = [{"pattern": "full", "steps": (0, 0.2)}, {"pattern": A, "steps": (0.2, 0.7)}, B]


@pytest.mark.parametrize(
    ("steps", "expected"), [(10, "--AAAAABBB"), (5, "-AAAB"), (4, "-AAB"), (2, "-A"), (1, "-")]
)
def test_shares_of_runs_of_any_length(steps, expected, forwards):
    pipe = build("flux")
    watch(model_of(pipe), forwards)
    vidattn.patch(pipe, BY_STEPS, min_tokens=0)
    run("flux", pipe, num_inference_steps=steps)
    assert "".join(calls[:1] or "-" for calls in forwards) == expected


def test_image_to_image_starts_where_its_run_starts(forwards):
    pipe = FluxImg2ImgPipeline(**build("flux").components)
    pipe.set_progress_bar_config(disable=True)
    watch(model_of(pipe), forwards)
    vidattn.patch(pipe, BY_STEPS, min_tokens=0)
    call = {"image": torch.rand(1, 3, 64, 96), "strength": 0.5, "num_inference_steps": 8}
    pipe(prompt="a dog", output_type="latent", height=64, width=96, max_sequence_length=16, **call)
    assert first(forwards) == ["", "A", "A", "B"]


def test_by_layer_and_step_with_dense_steps_at_the_ends_and_the_density_of_the_run(forwards):
    pipe = build("flux")
    watch(model_of(pipe), forwards)
    schedule = {"single*": [{"pattern": A, "steps": [0, 0.5]}], "transformer_blocks.1.*": B}
    handle = vidattn.patch(pipe, schedule, min_tokens=0, dense_last_steps=1)
    assert [p[2] for p in handle.report().planned] == ["dense", str(B), *[f"{A} (0 to 0.5)"] * 2]
    run("flux", pipe, num_inference_steps=4)
    assert forwards == ["BAA", "BAA", "B", ""]
    report = vidattn.report(pipe)
    rows = {(row.layer, row.steps): (row.pattern, row.reason, row.forwards) for row in report.layers}
    single = "single_transformer_blocks.0.attn"
    assert rows[single, "0 to 0.5"] == (str(A), "", 2)
    assert rows[single, "others"] == ("dense", "no stage for this part of the run", 1)
    assert rows[single, "last 1"] == ("dense", "dense_last_steps", 1)
    layout = TokenLayout((1, 4, 6), text_before=16)
    a, b = A.density(layout), B.density(layout)
    shares = [1.0] * 4 + [b] * 3 + [1.0] + ([a] * 2 + [1.0] * 2) * 2
    assert report.density == pytest.approx(sum(shares) / 16)


# ------------------------------------------------------------------ branches
@pytest.mark.parametrize(
    ("name", "options"),
    [("wan", {"guidance_scale": 3.0}), ("flux", {"true_cfg_scale": 2.0, "negative_prompt": "a dog"})],
)
def test_branches_in_calls_of_their_own(name, options, forwards):
    pipe = build(name)
    watch(model_of(pipe), forwards)
    stages = [
        {"pattern": A, "branch": "conditional", "steps": (0.3, 1)},
        {"pattern": B, "branch": "unconditional"},
    ]
    vidattn.patch(pipe, stages, min_tokens=0)
    run(name, pipe, num_inference_steps=3, **options)
    assert first(forwards) == ["", "B", "A", "B", "A", "B"]
    forwards.clear()
    unguided = {key: 1.0 for key, value in options.items() if value != "a dog"}
    run(name, pipe, num_inference_steps=3, **unguided)
    assert first(forwards) == ["", "A", "A"]
    labels = {row.steps for row in vidattn.report(pipe).layers}
    assert labels == {"0.3 to 1 conditional", "others"}


def test_branches_in_one_batch(forwards):
    """The unconditional half comes first; each half is what it would be alone."""
    pipe, plain = build("sd"), denoiser("sd")
    model, seen = model_of(pipe), []
    watch(model, forwards)
    model.register_forward_hook(lambda m, a, k, out: seen.append((a, k, out[0])), with_kwargs=True)
    plain.load_state_dict(model.state_dict())
    vidattn.patch(pipe, {"pattern": A, "branch": "conditional"}, min_tokens=0, strict=True)
    run("sd", pipe, guidance_scale=5.0, num_images_per_prompt=2)
    assert forwards == ["AAAA"] * 2
    rows = {(row.steps, row.pattern, row.forwards) for row in vidattn.report(pipe).layers}
    assert rows == {("conditional", str(A), 2), ("others", "dense", 2)}
    args, kwargs, got = seen[-1]
    with torch.no_grad():
        dense = plain(*args, **kwargs)[0]
        vidattn.patch(plain, A, min_tokens=0)
        sparse = plain(*args, **kwargs)[0]
    assert len(got) == 4
    assert (dense - sparse).abs().max() > 1e-4
    torch.testing.assert_close(got, torch.cat([dense[:2], sparse[2:]]), rtol=1e-5, atol=1e-5)

    forwards.clear()
    run("sd", pipe, guidance_scale=1.0, num_images_per_prompt=2)  # no guidance: two conditional pictures
    assert forwards == ["AAAA"] * 2
    assert {row.steps for row in vidattn.report(pipe).layers} == {"conditional"}


def test_both_branches_sparse_and_compiled_in_one_graph(forwards, monkeypatch):
    pipe, graphs = build("sd"), []
    vidattn.patch(pipe, [{"pattern": A, "branch": "conditional"}, B], min_tokens=0)
    watch(model_of(pipe), forwards)
    expected = run("sd", pipe, guidance_scale=5.0)
    assert forwards == ["BA" * 4] * 2
    fine, coarse = TokenLayout((1, 8, 12)), TokenLayout((1, 4, 6))
    sparse = sum(3 * 96**2 * p.density(fine) + 24**2 * p.density(coarse) for p in (A, B))
    assert vidattn.report(pipe).density == pytest.approx(sparse / (2 * (3 * 96**2 + 24**2)))
    torch._dynamo.reset()
    model_of(pipe)._forward_pre_hooks.popitem()  # watchers write to a list, which graphs would look at
    monkeypatch.undo()

    def count(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    model_of(pipe).compile(backend=count, fullgraph=True)
    torch.testing.assert_close(run("sd", pipe, guidance_scale=5.0), expected, rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_padded_prompts_in_one_batch():
    """Masks and counts of real text tokens go with their halves."""
    from tests.patches.families.video_models import CASES

    case = CASES["hunyuan-video"]
    model, grid = case.build(), case.sizes[0]
    dense = case.run(model, grid)
    handle = vidattn.patch(model, A, min_tokens=0)
    sparse = case.run(model, grid)
    handle.unpatch()
    pipe = Guided(True)
    pipe.components = {"transformer": model}
    pipe.scheduler = SimpleNamespace(timesteps=torch.tensor([500.0]))
    vidattn.patch(pipe, {"pattern": A, "branch": "unconditional"}, min_tokens=0)
    patch = model.__dict__["_vidattn_patch"]
    patch._branches.order = UNCONDITIONAL_FIRST
    got = case.run(model, grid)
    torch.testing.assert_close(got, torch.cat([sparse[:1], dense[1:]]), rtol=1e-5, atol=1e-5)
    assert (sparse - dense).abs().amax((1, 2, 3, 4)).min() > 1e-4


# ------------------------------------------------------------------ how branches are told
class Guided:
    """A pipeline that says whether it guides."""

    def __init__(self, guided: bool | None) -> None:
        if guided is not None:
            self.do_classifier_free_guidance = guided


PAIR = torch.arange(4.0).reshape(2, 2).repeat(2, 1)


def branches(order: tuple[str, ...], pipe: Any, *calls: tuple[int, Any]) -> list[Any]:
    reader = BranchReader(order)
    return [reader.read(pipe, Moment(ALL, step, 9, 1), {"hidden_states": latent}) for step, latent in calls]


def test_a_pipeline_that_does_not_say_so_shows_it_by_equal_halves():
    once = torch.arange(8.0).reshape(4, 2)
    assert branches(UNCONDITIONAL_FIRST, Guided(None), (0, PAIR), (1, PAIR)) == [UNCONDITIONAL_FIRST] * 2
    assert branches(CONDITIONAL_FIRST, Guided(None), (0, PAIR)) == [CONDITIONAL_FIRST]
    assert branches(UNCONDITIONAL_FIRST, Guided(None), (0, once)) == [("conditional",)]
    assert branches(UNCONDITIONAL_FIRST, Guided(None), (0, once[:3])) == [("conditional",)]
    assert branches(UNCONDITIONAL_FIRST, Guided(False), (0, PAIR)) == [("conditional",)]
    assert branches(UNCONDITIONAL_FIRST, Guided(True), (0, once)) == [UNCONDITIONAL_FIRST]
    assert branches(CONDITIONAL_FIRST, Guided(None), (0, [*once[:2], *once[:2]])) == [CONDITIONAL_FIRST]


def test_further_calls_in_a_step_and_the_end_of_guidance():
    # skipped layers: SD3 calls the model again for the conditional branch
    seen = branches(UNCONDITIONAL_FIRST, Guided(True), (0, PAIR), (0, PAIR[:2]), (1, PAIR))
    assert seen == [UNCONDITIONAL_FIRST, ("conditional",), UNCONDITIONAL_FIRST]
    # Z-Image stops guiding: the batch is half of what it was
    seen = branches(CONDITIONAL_FIRST, Guided(True), (0, PAIR), (1, PAIR), (2, PAIR[:2]))
    assert seen == [CONDITIONAL_FIRST, CONDITIONAL_FIRST, ("conditional",)]


def test_more_than_two_branches_are_dense_with_a_reason():
    pipe = build("sd")
    pipe.do_perturbed_attention_guidance = True
    vidattn.patch(pipe, {"pattern": A, "branch": "conditional"}, min_tokens=0)
    run("sd", pipe, guidance_scale=5.0)
    reasons = {row.reason for row in vidattn.report(pipe).layers}
    assert reasons == {"StableDiffusionPipeline has more branches than two"}
    vidattn.patch(pipe, {"pattern": A, "branch": "conditional"}, min_tokens=0, strict=True)
    with pytest.raises(RuntimeError, match=r"strict=True: .* more branches than two"):
        run("sd", pipe, guidance_scale=5.0)


def test_families_know_their_order_of_branches():
    """As the pipelines of diffusers 0.42.1 stack prompts; families without an order call the model twice."""
    orders = {family.name: family.guidance for family in families()}
    assert {n for n, order in orders.items() if order == CONDITIONAL_FIRST} == {"dit", "omnigen", "z_image"}
    twice = {n for n, order in orders.items() if not order}
    assert twice >= {"chroma", "cogview4", "cosmos", "flux", "flux2", "framepack", "hunyuan_image", "lumina2"}
    assert twice >= {"hunyuan_video", "hunyuan_video15", "qwen_image", "skyreels", "wan"}
    assert not twice & {"sd3", "unet", "pixart", "cogvideox", "ltx", "mochi", "allegro", "latte", "svd"}


# ------------------------------------------------------------------ writing schedules down
def test_a_recipe_with_stages(tmp_path, forwards):
    stages = {
        "blocks.0.*": [{"pattern": A.to_dict(), "steps": [0, 0.5]}, {"pattern": None}],
        "*": "neighborhood:window=1",
    }
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"pattern": stages, "min_tokens": 0}))
    pipe = build("wan")
    watch(model_of(pipe), forwards)
    vidattn.patch(pipe, path)
    run("wan", pipe, guidance_scale=1.0, num_inference_steps=2)
    assert forwards == ["AB", "B"]


WRONG = [
    ([], ValueError, "give at least one stage"),
    ([[A]], TypeError, "stage .*: give a pattern, or a dictionary"),
    ({"steps": (0, 1)}, ValueError, "'pattern' is missing; None is dense"),
    (
        {"pattern": A, "steps": (0, 1), "branches": "x"},
        ValueError,
        "unknown key 'branches': did you mean 'branch'",
    ),
    ({"pattern": A, "steps": 0.2}, TypeError, r"steps=0.2: give \(start, end\), shares of the run"),
    ({"pattern": A, "steps": (0, "1")}, TypeError, r"steps=\(0, '1'\)"),
    ({"pattern": A, "steps": (2, 10)}, ValueError, r"steps=\(2, 10\): .* for a number of dense steps"),
    ({"pattern": A, "steps": (0.5, 0.5)}, ValueError, "0 <= start < end <= 1"),
    ({"pattern": A, "steps": (float("nan"), 1)}, ValueError, "0 <= start < end <= 1"),
    ({"pattern": A, "branch": "conditonal"}, ValueError, "branch='conditonal': did you mean 'conditional'"),
    ({"pattern": A, "branch": 1}, TypeError, "branch=1: must be 'conditional' or 'unconditional'"),
    ([A, {"pattern": "nope", "steps": (0, 1)}], ValueError, "unknown pattern or preset 'nope'"),
]


@pytest.mark.parametrize(("pattern", "error", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_wrong_stages_change_nothing(pattern, error, message):
    pipe = build("wan")
    for given in (pattern, {"*": pattern}):
        with pytest.raises(error, match=message):
            vidattn.patch(pipe, given)
    assert not vidattn.report(pipe).patched


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ({"pattern": A, "steps": (0.2, 1)}, r"steps=\(0.2, 1.0\)"),
        ({"pattern": A, "branch": "conditional"}, "branch"),
    ],
)
def test_stages_need_a_pipeline(stage, name):
    model = denoiser("wan")
    with pytest.raises(ValueError, match=f"{name}.*a model on its own .* patch the pipeline"):
        vidattn.patch(model, stage)
    with pytest.raises(ValueError, match="options window: not together with stages"):
        vidattn.patch(model, {"pattern": "neighborhood", "steps": (0, 1)}, window=3)
    vidattn.patch(model, [{"pattern": A, "steps": (0, 1)}], min_tokens=0)  # the whole run is any model's
    with torch.no_grad():
        model(**inputs("wan"))
    assert {row.pattern for row in vidattn.report(model).layers} == {str(A)}
