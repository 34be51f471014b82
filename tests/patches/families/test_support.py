"""What the table of support says, for every family: fused projections, one graph, gradient checkpointing.

Sizes, batches, undoing and LoRA are in the tests of image and video families.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import vidattn
from tests.patches.families.support import (
    DENSE_FAILS,
    FUSED,
    FUSING_FAILS,
    MODELS,
    classes,
    diffusion_families,
    families_of,
    representatives,
    with_feature,
)
from tests.support_matrix import BEGIN, PAGES, with_table


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=0, atol=3e-5 * float(wanted.detach().abs().max()))


def test_the_committed_tables_are_what_the_tests_say():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text == with_table(text), f"{page.name}: run python -m tests.support_matrix"
    assert BEGIN in PAGES[0].read_text(encoding="utf-8")


def test_every_class_of_every_family_has_a_model():
    tested = {cls.__name__ for cls in classes().values()} | {"FluxControlNetModel", "ControlNetModel"}
    assert tested == {name for family in diffusion_families() for name in family.classes}
    assert set(families_of().values()) == {family.name for family in diffusion_families()}


def fused(model: nn.Module) -> nn.Module:
    model.fuse_qkv_projections()
    return model


FUSE = "fuse_qkv_projections"
PIPELINES = ("flux", "sd", "sdxl", "wan")  # in test_features


@pytest.mark.parametrize("name", [name for name in FUSED if name not in PIPELINES])
def test_fused_projections(name, sparse_calls):
    model = MODELS[name]
    patched = model.build()
    vidattn.patch(patched, model.pattern, min_tokens=0, strict=True)
    with torch.no_grad():
        wanted, calls = model.forward(patched), len(sparse_calls)
        patched.fuse_qkv_projections()
        assert any(getattr(module, "fused_projections", False) for module in patched.modules())
        close(model.forward(patched), wanted)
    assert len(sparse_calls) == 2 * calls > 0


@pytest.mark.parametrize("name", [n for n in MODELS if n not in FUSED and hasattr(classes()[n], FUSE)])
def test_where_fusing_does_nothing_or_fails_it_is_not_the_patch(name):
    model = MODELS[name]
    plain = model.build()
    if name in FUSING_FAILS:
        with torch.no_grad(), pytest.raises((AttributeError, RuntimeError)):
            model.forward(fused(plain))
    else:
        assert not any(getattr(module, "fused_projections", False) for module in fused(plain).modules())


# in test_compile, and with more sizes in the tests of image and video families
COMPILED_ELSEWHERE = {"flux", "wan", "unet", "sd3", "pixart", "qwen_image", "flux2"}
COMPILED_ELSEWHERE |= {"auraflow", "hunyuan_image", "cogvideox", "ltx", "hunyuan_video", "mochi", "framepack"}
# a UNet for videos takes six seconds
SMALLER = {"animatediff": "sparse-control", "cosmos": "cosmos"}
GRAPHS = [SMALLER.get(f, name) for f, name in representatives().items() if f not in COMPILED_ELSEWHERE]


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", [name for name in GRAPHS if name not in DENSE_FAILS["one graph"]])
def test_compiled_in_one_graph(name, fresh_dynamo):
    model = MODELS[name]
    patched = model.build()
    vidattn.patch(patched, model.pattern, min_tokens=0)
    with torch.no_grad():
        wanted = model.forward(patched)
        patched.compile(backend="eager", fullgraph=True)
        close(model.forward(patched), wanted)


@pytest.mark.parametrize("name", [n for n in DENSE_FAILS["one graph"] if n in GRAPHS])
def test_models_that_break_the_graph_do_so_unpatched_too(name, fresh_dynamo):
    model = MODELS[name]
    plain = model.build()
    plain.compile(backend="eager", fullgraph=True)
    with torch.no_grad(), pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)):
        model.forward(plain)


def gradients(model: nn.Module, out: Tensor) -> list[Tensor]:
    out.square().mean().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


SAVING = [name for name in representatives().values() if name in with_feature("checkpointing")]


@pytest.mark.parametrize("name", [name for name in SAVING if name not in DENSE_FAILS["checkpointing"]])
def test_checkpointing_recomputes_under_the_pattern(name, sparse_calls):
    model = MODELS[name]
    plain, saving = model.build(), model.build()
    vidattn.patch(plain, model.pattern, min_tokens=0)
    wanted, calls = gradients(plain, model.forward(plain)), len(sparse_calls)
    vidattn.patch(saving, model.pattern, min_tokens=0, strict=True)
    saving.enable_gradient_checkpointing()
    got = gradients(saving, model.forward(saving))
    # forward, and forward with recomputation; some models save only some of their blocks
    assert 2 * calls < len(sparse_calls) <= 3 * calls
    assert len(got) == len(wanted) > 0
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-12)


@pytest.mark.parametrize("name", DENSE_FAILS["checkpointing"])
def test_models_that_cannot_checkpoint_cannot_unpatched(name):
    model = MODELS[name]
    plain = model.build()
    plain.enable_gradient_checkpointing()
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        model.forward(plain)
