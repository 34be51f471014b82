"""Patching leaves nothing behind: not after unpatch, not in other models, not after an exception."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import vidattn
from tests.patches.tiny_pipelines import NAMES, build, denoiser, inputs, model_of, run
from vidattn.patterns import Neighborhood

SMALL = Neighborhood(3)


def attributes(model: nn.Module) -> dict[str, tuple]:
    """Names in every module's ``__dict__``, with hooks counted."""
    hooks = "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks"
    return {
        name: (tuple(sorted(vars(module))), *(len(vars(module)[hook]) for hook in hooks))
        for name, module in model.named_modules()
    }


def namespaces() -> dict[str, Any]:
    """Every name in diffusers' modules and every method of its processor classes."""
    found: dict[str, Any] = {}
    for module_name, module in list(sys.modules.items()):
        # lazy modules would import everything if they were asked
        if not module_name.startswith("diffusers.models") or module is None:
            continue
        for name, value in list(vars(module).items()):
            found[f"{module_name}.{name}"] = value
            if isinstance(value, type) and "Processor" in name:
                found |= {
                    f"{module_name}.{name}.{k}": v
                    for k, v in vars(value).items()
                    if k in ("__call__", "forward")
                }
    return found


@pytest.fixture
def clean_namespaces() -> dict[str, Any]:
    """``namespaces()`` while no model is patched: those that other tests dropped are collected first."""
    gc.collect()
    with vidattn.patched(denoiser("wan"), SMALL):
        pass
    return namespaces()


def changed(names: dict[str, Any]) -> set[str]:
    """What is not as in ``names``."""
    now = namespaces()
    return {name for name, value in names.items() if now[name] is not value}


def forward(model: nn.Module, name: str, **sizes: int) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(name, **sizes), return_dict=False)[0]


@pytest.mark.parametrize("name", NAMES)
def test_unpatch_restores_outputs_attributes_keys_and_namespaces(name, sparse_calls, clean_namespaces):
    pipe = build(name)
    model = model_of(pipe)
    before = run(name, pipe)
    attributes_before, keys, config = attributes(model), list(model.state_dict()), dict(model.config)
    vidattn.patch(pipe, SMALL, min_tokens=0)
    assert changed(clean_namespaces)
    assert list(model.state_dict()) == keys
    assert dict(model.config) == config
    run(name, pipe)
    assert sparse_calls
    vidattn.unpatch(pipe)
    assert torch.equal(run(name, pipe), before)
    assert attributes(model) == attributes_before
    assert not changed(clean_namespaces)


def test_saving_does_not_see_the_patch(tmp_path):
    model = denoiser("wan")
    model.save_pretrained(tmp_path / "before")
    vidattn.patch(model, SMALL)
    model.save_pretrained(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_patching_twice_is_patching_once(name, sparse_calls):
    model = denoiser(name)
    before = attributes(model)
    vidattn.patch(model, SMALL, min_tokens=0)
    once, attributes_once, calls = forward(model, name), attributes(model), len(sparse_calls)
    vidattn.patch(model, SMALL, min_tokens=0)
    assert torch.equal(forward(model, name), once)
    assert attributes(model) == attributes_once
    assert len(sparse_calls) == 2 * calls
    vidattn.unpatch(model)
    assert attributes(model) == before


def test_the_second_patch_replaces_the_first():
    model, other = denoiser("flux"), denoiser("flux")
    vidattn.patch(model, "neighborhood", window=1, min_tokens=0, dense_layers=[0])
    vidattn.patch(model, SMALL, min_tokens=0)
    vidattn.patch(other, SMALL, min_tokens=0)
    assert torch.equal(forward(model, "flux"), forward(other, "flux"))


def test_two_patched_pipelines_do_not_affect_each_other(sparse_calls):
    one, two, plain = build("flux"), build("flux"), build("flux")
    dense = run("flux", plain)
    vidattn.patch(one, SMALL, min_tokens=0)
    alone = run("flux", one)
    vidattn.patch(two, "disc:radius=1.5", min_tokens=0)
    other = run("flux", two)
    assert torch.equal(run("flux", one), alone)
    assert torch.equal(run("flux", plain), dense)
    assert not torch.equal(alone, other)
    vidattn.unpatch(two)
    assert torch.equal(run("flux", two), dense)
    assert torch.equal(run("flux", one), alone)
    assert {text for text, _ in sparse_calls} == {"neighborhood:window=3", "disc:radius=1.5"}


def test_the_users_random_state_is_untouched():
    pipe = build("wan")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    vidattn.patch(pipe, SMALL, min_tokens=0)
    model_of(pipe)(**inputs_without_seed(), return_dict=False)
    str(vidattn.report(pipe))
    vidattn.unpatch(pipe)
    assert torch.equal(torch.get_rng_state(), state)


def inputs_without_seed() -> dict[str, Any]:
    state = torch.get_rng_state()
    made = inputs("wan")
    torch.set_rng_state(state)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_unpatching_what_is_not_patched_does_nothing(name):
    pipe = build(name)
    before, names = attributes(model_of(pipe)), namespaces()
    vidattn.unpatch(pipe)
    vidattn.unpatch(model_of(pipe))
    vidattn.unpatch(nn.Linear(2, 2))
    assert attributes(model_of(pipe)) == before
    assert not changed(names)


def test_patched_restores_also_after_an_exception(sparse_calls, clean_namespaces):
    pipe = build("flux")
    model = model_of(pipe)
    plain = run("flux", pipe)
    before = attributes(model)

    def fail(*args: Any) -> None:
        raise RuntimeError("in the middle")

    handle = model.single_transformer_blocks[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"), vidattn.patched(pipe, SMALL, min_tokens=0):
        run("flux", pipe)
    handle.remove()
    assert sparse_calls
    assert attributes(model) == before
    assert not changed(clean_namespaces)
    assert torch.equal(run("flux", pipe), plain)


def test_an_exception_inside_a_layer_leaves_nothing_running():
    patched, plain = denoiser("flux"), denoiser("flux")
    expected = forward(plain, "flux")
    vidattn.patch(patched, SMALL, min_tokens=0)
    first = forward(patched, "flux")
    linear = patched.transformer_blocks[0].attn.to_out[0]
    linear.weight, kept = nn.Parameter(torch.ones(3, 3)), linear.weight
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        forward(patched, "flux")
    linear.weight = kept
    # this thread is not inside the failed layer any more
    assert torch.equal(forward(plain, "flux"), expected)
    assert torch.equal(forward(patched, "flux"), first)


def test_patched_puts_an_earlier_patch_back():
    model = denoiser("flux")
    vidattn.patch(model, SMALL, min_tokens=0)
    before = forward(model, "flux")
    with vidattn.patched(model, "disc:radius=1", min_tokens=0):
        assert not torch.equal(forward(model, "flux"), before)
    assert torch.equal(forward(model, "flux"), before)
    with vidattn.patched(model, SMALL, min_tokens=0) as handle:
        handle.unpatch()
    assert torch.equal(forward(model, "flux"), before)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", NAMES)
def test_copies_are_patched_models_of_their_own(name, how, sparse_calls):
    model = denoiser(name)
    dense = forward(model, name)
    vidattn.patch(model, SMALL, min_tokens=0)
    sparse = forward(model, name)
    forward(model, name, height=6)  # whatever the original knows by now is not the copy's
    copied = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    sparse_calls.clear()
    assert torch.equal(forward(copied, name), sparse)
    assert sparse_calls
    vidattn.unpatch(model)
    assert torch.equal(forward(model, name), dense)
    assert torch.equal(forward(copied, name), sparse)
    assert vidattn.report(copied).layers
    vidattn.unpatch(copied)
    assert torch.equal(forward(copied, name), dense)


def test_copies_of_a_pipeline_have_their_own_schedule():
    pipe = build("flux")
    vidattn.patch(pipe, SMALL, min_tokens=0, dense_last_steps=1)
    run("flux", pipe)
    copied = copy.deepcopy(pipe)
    run("flux", copied, num_inference_steps=4)
    forwards = {row.steps: row.forwards for row in vidattn.report(copied).layers}
    assert forwards == {"others": 3, "last 1": 1}
    assert {row.steps: row.forwards for row in vidattn.report(pipe).layers} == {"others": 1, "last 1": 1}


def test_a_patched_model_that_is_dropped_does_not_keep_the_routes(clean_namespaces):
    model = denoiser("wan")
    vidattn.patch(model, SMALL)
    assert changed(clean_namespaces)
    del model
    gc.collect()
    other = denoiser("wan")
    vidattn.patch(other, SMALL)
    vidattn.unpatch(other)
    assert not changed(clean_namespaces)


def test_a_patched_model_can_be_loaded_in_a_new_process(tmp_path):
    model = denoiser("wan")
    vidattn.patch(model, SMALL, min_tokens=0)
    expected = forward(model, "wan")
    torch.save({"model": model, "inputs": inputs("wan"), "expected": expected}, tmp_path / "patched.pt")
    code = f"""
import torch
data = torch.load({str(tmp_path / "patched.pt")!r}, weights_only=False)
with torch.no_grad():
    got = data["model"](**data["inputs"]).sample
torch.testing.assert_close(got, data["expected"])
import vidattn
assert {{row.reason for row in vidattn.report(data["model"]).layers}} == {{""}}
vidattn.unpatch(data["model"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
