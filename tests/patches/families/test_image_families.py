"""Every image family: which layers, which grid, which side the text is on, what masks mean.

The oracle is brute force: torch's own attention gets ``pattern.mask(layout)``, with layouts written by hand,
on the model without a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

import vidattn
from tests.patches.families.image_models import CASES, TEXT, build, inputs, output, z_image_control
from vidattn import TokenLayout
from vidattn.patches import routes
from vidattn.patches.slots import CURRENT, SLOT
from vidattn.patterns import Neighborhood, Pattern

SMALL = Neighborhood((1, 3))  # not as high as wide: rows taken for columns would show
CLASSES = {
    "sd3": {"SD3Transformer2DModel", "SD3ControlNetModel"},
    "pixart": {"PixArtTransformer2DModel"},
    "hunyuan_dit": {"HunyuanDiT2DModel", "HunyuanDiT2DControlNetModel"},
    "dit": {"DiTTransformer2DModel"},
    "auraflow": {"AuraFlowTransformer2DModel"},
    "qwen_image": {"QwenImageTransformer2DModel", "QwenImageControlNetModel"},
    "chroma": {"ChromaTransformer2DModel"},
    "flux2": {"Flux2Transformer2DModel"},
    "cogview4": {"CogView4Transformer2DModel"},
    "cogview3": {"CogView3PlusTransformer2DModel"},
    "lumina2": {"Lumina2Transformer2DModel"},
    "hunyuan_image": {"HunyuanImageTransformer2DModel"},
    "z_image": {"ZImageTransformer2DModel", "ZImageControlNetModel"},
    "omnigen": {"OmniGenTransformer2DModel"},
    "longcat_image": {"LongCatImageTransformer2DModel"},
    "ovis_image": {"OvisImageTransformer2DModel"},
    "hidream": {"HiDreamImageTransformer2DModel"},
}


class Calls(list):
    """(layer's name, queries) of each call of the sparse core."""

    @property
    def layers(self) -> list[str]:
        return [name for name, _ in self]


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls, real = Calls(), routes.attention

    def noted(query: Tensor, *rest: Any, **options: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            calls.append((CURRENT.layer.name, query.detach()))
        return real(query, *rest, **options)

    monkeypatch.setattr(routes, "attention", noted)
    return calls


@contextmanager
def planted(pattern: Pattern, layouts: list[TokenLayout]) -> Iterator[list[int]]:
    """Give torch's attention the pattern's mask wherever the sequence is that of a layout."""
    real, masks, seen = F.scaled_dot_product_attention, {x.tokens: pattern.mask(x) for x in layouts}, []

    def masked(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
    ) -> Tensor:
        length = query.shape[-2]
        if length == key.shape[-2] and length in masks:
            if attn_mask is not None and attn_mask.is_floating_point():  # added: OmniGen's
                assert set(attn_mask.unique().tolist()) <= {0.0, torch.finfo(attn_mask.dtype).min}
                attn_mask = attn_mask == 0
            padding = attn_mask if attn_mask is not None else torch.ones((), dtype=torch.bool)
            if padding.ndim == 2:
                padding = padding[:, None, None]
            attn_mask = masks[length] & padding
            seen.append(length)
        return real(query, key, value, attn_mask, *rest, **options)

    F.scaled_dot_product_attention = masked
    try:
        yield seen
    finally:
        F.scaled_dot_product_attention = real


def run(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return output(model, arguments)


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=3e-5 * float(wanted.detach().abs().max()))


def brute_force(name: str, model: nn.Module, arguments: dict[str, Any], height: int, width: int) -> Tensor:
    """The unpatched model under the mask of ``SMALL``, which must differ from the model without."""
    layouts = CASES[name].layouts(height, width)
    with planted(SMALL, layouts) as seen:
        wanted = run(model, arguments)
    assert seen == [layout.tokens for layout in layouts]
    dense = run(model, arguments)
    assert (wanted - dense).abs().max() > 1e-3 * dense.abs().max(), "the oracle could not tell it from dense"
    return wanted


def test_the_families_are_listed():
    listed = vidattn.supported()
    assert {name: set(listed[name]) for name in CLASSES} == CLASSES
    assert {type(case.build()).__name__ for case in CASES.values()} >= set().union(*CLASSES.values())


@pytest.mark.parametrize("name", CASES)
def test_windows_of_any_size_and_back(name, core):
    case, model = CASES[name], build(name)
    given = {size: inputs(name, *size) for size in case.sizes}
    before = {size: run(model, given[size]) for size in case.sizes}
    wanted = {size: brute_force(name, model, given[size], *size) for size in case.sizes}

    vidattn.patch(model, "neighborhood", window=99, min_tokens=0, strict=True)
    close(run(model, given[case.sizes[0]]), before[case.sizes[0]])
    assert core.layers == list(case.layers)

    vidattn.patch(model, SMALL, min_tokens=0, strict=True)
    for size in case.sizes:
        core.clear()
        close(run(model, given[size]), wanted[size])
        assert core.layers == list(case.layers)
        grids = {row.layer: (row.grid, row.text_tokens) for row in vidattn.report(model).layers}
        expected = [(layout.grid, layout.text_tokens) for layout in case.layouts(*size)]
        assert [grids[layer] for layer in case.layers] == expected
    single = inputs(name, *case.sizes[0], batch=1)
    assert torch.isfinite(run(model, single)).all()

    vidattn.unpatch(model)
    core.clear()
    for size in case.sizes:
        assert torch.equal(run(model, given[size]), before[size])
    assert not core


def error_of(model: nn.Module, arguments: dict[str, Any]) -> tuple[type, str] | None:
    try:
        run(model, arguments)
    except Exception as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize("name", CASES)
def test_a_missing_argument_is_the_model_s_own_error(name):
    model, arguments = build(name), inputs(name, *CASES[name].sizes[0])
    incomplete = [{k: v for k, v in arguments.items() if k != key} for key in arguments]
    incomplete += [{**arguments, key: None} for key in arguments]
    before = [error_of(model, few) for few in incomplete]
    assert any(before)
    vidattn.patch(model, SMALL, min_tokens=0)
    assert [error_of(model, few) for few in incomplete] == before


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.poke is not None])
def test_a_token_of_the_picture_is_the_row_that_its_layout_says(name, core):
    case, model = CASES[name], build(name)
    height, width = case.sizes[-1]
    vidattn.patch(model, SMALL, min_tokens=0)
    arguments = inputs(name, height, width)
    run(model, arguments)
    layer, plain = core[0]
    before = case.layouts(height, width)[case.layers.index(layer)].text_before
    for y, x in ((0, 1), (2, 0), (height - 1, width - 1)):
        core.clear()
        arguments = inputs(name, height, width)
        case.poke(arguments, y, x)
        run(model, arguments)
        moved = (core[0][1] - plain).abs().amax((2, 3)) > 1e-4
        assert moved.nonzero().tolist() == [[0, before + y * width + x]]


@pytest.mark.parametrize("name", CASES)
def test_lora(name, core):
    case, model = CASES[name], build(name)
    height, width = case.sizes[0]
    arguments = inputs(name, height, width)
    # the single blocks of FLUX.2 have all projections in one
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v", "to_qkv_mlp_proj"])
    plain = run(model, arguments)
    vidattn.patch(model, SMALL, min_tokens=0, strict=True)
    inject_adapter_in_model(config, model)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.2)
    got = run(model, arguments)
    assert core.layers == list(case.layers)
    vidattn.unpatch(model)
    close(got, brute_force(name, model, arguments, height, width))
    assert (run(model, arguments) - plain).abs().max() > 1e-3


def test_control_layers_that_refine_run_over_the_image_and_over_all(core):
    torch.manual_seed(0)
    model = z_image_control("control_layers").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    arguments = inputs("z_image_control", 5, 7)
    arguments["cap_feats"] = [torch.randn(n, 16) for n in (7, 12)]  # as long when filled up
    alone, joint = TokenLayout((1, 5, 7), text_after=29), TokenLayout((1, 5, 7), text_after=61)
    with planted(SMALL, [alone, joint]) as seen:
        wanted = run(model, arguments)
    assert seen == [64, 64, 64, 96, 96]
    vidattn.patch(model, SMALL, min_tokens=0, strict=True)
    close(run(model, arguments), wanted)
    both = ["control_layers.0.attention", "control_layers.1.attention"]
    assert core.layers == [*both, "noise_refiner.0.attention", *both]
    arguments["cap_feats"] = [torch.randn(n, 16) for n in (7, 40)]
    with pytest.raises(RuntimeError, match="captions of different lengths in one batch, and layers"):
        run(model, arguments)


def test_a_controlnet_with_modules_of_its_transformer(core):
    """Both are patched; each forward runs under its own decisions, at sizes that the other has not seen."""
    model = build("z_image")
    for parameter in (control := z_image_control("control_noise_refiner").eval()).parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    control = type(control).from_transformer(control, model)
    wanted = {}
    for size in ((4, 6), (6, 4)):  # as many tokens
        one, two = inputs("z_image", *size), inputs("z_image_control", *size)
        wanted[size] = [
            brute_force("z_image", model, one, *size),
            brute_force("z_image_control", control, two, *size),
        ]
    handles = [vidattn.patch(each, SMALL, min_tokens=0, strict=True) for each in (model, control)]
    for size in ((4, 6), (6, 4)):
        one, two = inputs("z_image", *size), inputs("z_image_control", *size)
        close(run(control, two), wanted[size][1])
        close(run(model, one), wanted[size][0])
    handles[0].unpatch()
    core.clear()
    close(run(control, two), wanted[size][1])
    handles[1].unpatch()
    assert not any(SLOT in vars(module) for each in (model, control) for module in each.modules())


# ---------------------------------------------------------------------- masks
def padding(*lengths: int) -> Tensor:
    return (torch.arange(TEXT) < torch.tensor(lengths)[:, None]).long()


PADDED = {"qwen_image": "encoder_hidden_states_mask", "hunyuan_image": "encoder_attention_mask"}


@pytest.mark.parametrize("name", PADDED)
def test_padded_prompts_run_sparse(name, core):
    case, model = CASES[name], build(name)
    height, width = case.sizes[0]
    plain = inputs(name, height, width)
    results = []
    for lengths in ((7, 7), (7, 3), (2, 5)):
        arguments = {**plain, PADDED[name]: padding(*lengths)}
        wanted = brute_force(name, model, arguments, height, width)
        with vidattn.patched(model, SMALL, min_tokens=0, strict=True):
            core.clear()
            got = run(model, arguments)
            assert core.layers == list(case.layers)
            results.append(got)
            garbage = dict(arguments)
            noise = 10 * (1 - padding(*lengths))[..., None]
            garbage["encoder_hidden_states"] = arguments["encoder_hidden_states"] + noise
            if name == "qwen_image":  # the other's refiner sees padding
                close(run(model, garbage), got)
        close(got, wanted)
    assert (results[0][1] - results[1][1]).abs().max() > 1e-3
    torch.testing.assert_close(results[0][0], results[1][0])


def float_mask(arguments: dict[str, Any]) -> None:
    arguments["attention_mask"] = torch.cat([padding(7, 3), torch.ones(2, 24)], 1)


def prompt_mask(arguments: dict[str, Any]) -> None:
    arguments["attention_mask"] = padding(7, 3)


def image_mask(arguments: dict[str, Any]) -> None:
    arguments["attention_mask"] = torch.ones(2, 24)
    arguments["attention_mask"][1, :4] = 0


def middle(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update({key: padding(7, 3).flip(1)})


def qwen_padding(arguments: dict[str, Any]) -> None:
    arguments["encoder_hidden_states_mask"] = padding(7, 3)


def captions(arguments: dict[str, Any]) -> None:
    arguments["encoder_attention_mask"] = padding(7, 3)


def extract(arguments: dict[str, Any]) -> None:
    arguments["kv_cache_mode"] = "extract"


def shapes(arguments: dict[str, Any]) -> None:
    arguments["x"][1] = arguments["x"][1].transpose(2, 3)


def blocked(arguments: dict[str, Any]) -> None:
    arguments["attention_mask"][:, -1, -3] = 0


def gap(arguments: dict[str, Any]) -> None:
    arguments["attention_mask"][:, TEXT + 1 :, 5] = 0


DENSE = [
    ("omnigen", blocked, "does not let the image see all of itself"),
    ("omnigen", gap, "hides text behind other text"),
    ("chroma", float_mask, "added to the scores"),
    ("cogview4", prompt_mask, "added to the scores"),
    ("pixart", image_mask, "an attention mask is given"),
    ("qwen_image", middle("encoder_hidden_states_mask"), "hides tokens in front"),
    ("hunyuan_image", middle("encoder_attention_mask"), "hides tokens in front"),
    ("qwen_edit", qwen_padding, "no padding stand behind the grid"),
    ("flux2", extract, "kv_cache_mode='extract'"),
    ("z_image", shapes, "different sizes"),
    ("lumina2", captions, "captions of different lengths"),
]


@pytest.mark.parametrize(("name", "change", "reason"), DENSE, ids=[f"{n}-{r[:12]}" for n, _, r in DENSE])
def test_what_no_layout_says_is_dense_with_a_reason(name, change, reason, core):
    model, arguments = build(name), inputs(name, 4, 6)
    change(arguments)
    if name == "z_image":
        output_of = lambda: torch.cat([x.flatten() for x in model(**arguments, return_dict=False)[0]])  # noqa: E731
    else:
        output_of = lambda: output(model, arguments)  # noqa: E731
    with torch.no_grad():
        before = output_of()
        vidattn.patch(model, SMALL, min_tokens=0)
        if name == "lumina2":  # its noise refiner does not see the captions
            output_of()
            assert core.layers == ["noise_refiner.0.attn"]
        else:
            assert torch.equal(output_of(), before)
            assert not core
        assert any(reason in row.reason for row in vidattn.report(model).layers)
        vidattn.patch(model, SMALL, min_tokens=0, strict=True)
        with pytest.raises(RuntimeError, match="strict"):
            output_of()


@pytest.mark.parametrize("name", ["chroma", "cogview4"])
def test_a_mask_of_ones_that_is_added_changes_nothing(name, core):
    model, arguments = build(name), inputs(name, 4, 6)
    wanted = brute_force(name, model, arguments, 4, 6)
    arguments["attention_mask"] = torch.ones(2, TEXT + (24 if name == "chroma" else 0))
    vidattn.patch(model, SMALL, min_tokens=0, strict=True)
    close(run(model, arguments), wanted)
    assert core.layers == list(CASES[name].layers)


# ---------------------------------------------------------------------- steps, compiling, training
@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("sd3", "timestep", (900.0, 500.0, 100.0)),
        ("lumina2", "timestep", (0.1, 0.5, 0.9)),  # 1 - t / 1000
        ("z_image", "t", (0.1, 0.5, 0.9)),
        ("hidream", "timesteps", (900.0, 500.0, 100.0)),
    ],
)
def test_dense_steps_count_from_the_noisy_end(name, key, values, core):
    model, arguments = build(name), inputs(name, *CASES[name].sizes[0])
    vidattn.patch(model, SMALL, min_tokens=0, dense_steps=1)
    sparse = []
    for value in (*values, values[0]):
        core.clear()
        run(model, {**arguments, key: torch.full((2,), value)})
        sparse.append(bool(core))
    assert sparse == [False, True, True, False]


DOWN, UP = (1.0, 0.75, 0.5, 0.25), (0.0, 0.25, 0.5, 0.75)
PASSED = {
    "sd3": ("timestep", (1000.0, 750.0, 500.0, 250.0)),
    "hidream": ("timesteps", (1000.0, 750.0, 500.0, 250.0)),
    "lumina2": ("timestep", UP),
    "z_image": ("t", UP),
    **dict.fromkeys(("qwen_image", "chroma", "flux2", "auraflow"), ("timestep", DOWN)),
}


class Pipe:
    """A pipeline whose scheduler does not count its steps, so that the timestep must tell."""

    def __init__(self, model: nn.Module) -> None:
        self.components = {"transformer": model}
        self.scheduler = SimpleNamespace(timesteps=torch.tensor([1000.0, 750.0, 500.0, 250.0]))


@pytest.mark.parametrize("name", PASSED)
def test_the_place_in_a_schedule_follows_from_the_timestep_that_the_pipeline_passes(name, core):
    model, (key, passed) = build(name), PASSED[name]
    pipe, arguments = Pipe(model), inputs(name, *CASES[name].sizes[0])
    vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=1, dense_last_steps=1)
    sparse = []
    for value in passed:
        core.clear()
        run(model, {**arguments, key: torch.full((2,), value)})
        sparse.append(bool(core))
    assert sparse == [False, True, True, False]


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("name", "sizes"), [("sd3.5", 2), ("pixart", 1), ("flux2", 2)])
def test_compiled_in_one_graph(name, sizes, fresh_dynamo):
    case, model = CASES[name], build(name)
    given = [inputs(name, *size) for size in case.sizes[:sizes]]
    wanted = [brute_force(name, model, a, *s) for a, s in zip(given, case.sizes, strict=False)]
    vidattn.patch(model, SMALL, min_tokens=0)
    fast = torch.compile(model, backend="eager", fullgraph=True)
    for arguments, right in zip(given, wanted, strict=True):
        close(run(fast, arguments), right)


def graphs_of(model: nn.Module) -> tuple[nn.Module, list[torch.fx.GraphModule]]:
    """The model compiled, and the list in which its graphs will be."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    return torch.compile(model, backend=backend, fullgraph=True), graphs


@pytest.mark.parametrize("name", PADDED)
def test_other_paddings_do_not_recompile(name, fresh_dynamo):
    model, plain = build(name), inputs(name, 4, 6)
    given = [{**plain, PADDED[name]: padding(*lengths)} for lengths in ((7, 3), (2, 5), (6, 6))]
    wanted = [brute_force(name, model, arguments, 4, 6) for arguments in given]
    vidattn.patch(model, SMALL, min_tokens=0)
    fast, graphs = graphs_of(model)
    for arguments, right in zip(given, wanted, strict=True):
        close(run(fast, arguments), right)
    assert len(graphs) == 1


@pytest.mark.parametrize("name", ["sd3", "auraflow"])  # text behind the picture, and in front
def test_other_prompt_lengths_recompile_once(name, fresh_dynamo):
    model, plain = build(name), inputs(name, 4, 6)
    vidattn.patch(model, SMALL, min_tokens=0)
    prompts = [torch.randn(2, length, 32) for length in (7, 9, 12, 5)]
    given = [{**plain, "encoder_hidden_states": prompt} for prompt in prompts]
    wanted = [run(model, arguments) for arguments in given]
    fast, graphs = graphs_of(model)
    for arguments, right in zip(given, wanted, strict=True):
        close(run(fast, arguments), right)
    assert len(graphs) == 2


@pytest.mark.parametrize("name", ["sd3.5", "qwen_image"])
def test_gradient_checkpointing_recomputes_under_the_masks_of_its_forward(name):
    case, model = CASES[name], build(name)
    first, second = inputs(name, *case.sizes[0]), inputs(name, *case.sizes[1])
    if name in PADDED:
        first[PADDED[name]], second[PADDED[name]] = padding(7, 3), padding(2, 5)

    def gradients(loss: Tensor) -> list[Tensor]:
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    with planted(SMALL, case.layouts(*case.sizes[0]) + case.layouts(*case.sizes[1])):
        wanted = gradients(output(model, first).square().mean() + output(model, second).square().mean())
    model.enable_gradient_checkpointing()
    model.train()
    vidattn.patch(model, SMALL, min_tokens=0, strict=True)
    # the first forward's blocks are computed again after the second forward
    got = gradients(output(model, first).square().mean() + output(model, second).square().mean())
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
