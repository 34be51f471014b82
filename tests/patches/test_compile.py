"""torch.compile, with no graph break and no more graphs than the unpatched model has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import vidattn
from tests.patches.tiny_pipelines import build, denoiser, inputs, model_of, run
from vidattn.patches.slots import CURRENT
from vidattn.patterns import Neighborhood

SMALL = Neighborhood(3)


class Graphs:
    """A compiler backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: nn.Module, how: str, graphs: Graphs) -> nn.Module:
    if how == "torch.compile":
        return torch.compile(model, backend=graphs, fullgraph=True)
    if how == "model.compile":
        model.compile(backend=graphs, fullgraph=True)
    else:
        model.compile_repeated_blocks(backend=graphs, fullgraph=True)
    return model


def forward(model: nn.Module, name: str, **sizes: int) -> Tensor:
    with torch.no_grad():
        return model(**inputs(name, **sizes), return_dict=False)[0]


WAYS = [(name, "torch.compile") for name in ("flux", "wan", "sd")]
WAYS += [("flux", "model.compile"), ("flux", "repeated blocks"), ("sd", "repeated blocks")]


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_fullgraph_with_as_many_graphs_as_unpatched(name, how):
    counts = []
    for patched in (False, True):
        model, graphs = denoiser(name), Graphs()
        if patched:
            vidattn.patch(model, SMALL, min_tokens=0)
        eager = forward(model, name)
        torch._dynamo.reset()
        fast = compiled(model, how, graphs)
        torch.testing.assert_close(forward(fast, name), eager, rtol=0, atol=1e-5)
        forward(fast, name)
        assert CURRENT.slot is None  # or the next model's attention would be taken for this one's
        counts.append(graphs.count)
    assert counts[1] == counts[0] > 0


def test_prompts_of_other_lengths_do_not_recompile():
    model, graphs = denoiser("flux"), Graphs()
    vidattn.patch(model, SMALL, min_tokens=0)
    expected = {n: forward(model, "flux", text=n) for n in (7, 9, 12, 5)}
    fast = compiled(model, "torch.compile", graphs)
    for n, wanted in expected.items():
        torch.testing.assert_close(forward(fast, "flux", text=n), wanted, rtol=0, atol=1e-5)
    assert graphs.count == 2  # the first length, then all others


def test_dense_steps_make_one_graph_more():
    pipe, graphs = build("flux"), Graphs()
    vidattn.patch(pipe, SMALL, min_tokens=0, dense_steps=2)
    expected = run("flux", pipe, num_inference_steps=6)
    compiled(model_of(pipe), "model.compile", graphs)
    got = run("flux", pipe, num_inference_steps=6)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert graphs.count == 2
    report = vidattn.report(pipe)
    assert {(row.steps, row.pattern, row.forwards) for row in report.layers} == {
        ("first 2", "dense", 2),
        ("others", "neighborhood:window=3", 4),
    }


@pytest.mark.parametrize("name", ["flux"])
def test_patching_unpatching_and_repatching_a_compiled_model_is_noticed(name):
    model, graphs = denoiser(name), Graphs()
    dense = forward(model, name)
    fast = compiled(model, "model.compile", graphs)
    torch.testing.assert_close(forward(fast, name), dense, rtol=0, atol=1e-5)
    for pattern in (SMALL, Neighborhood(1)):
        vidattn.patch(model, pattern, min_tokens=0)
        plain = denoiser(name)
        vidattn.patch(plain, pattern, min_tokens=0)
        wanted = forward(plain, name)
        assert (wanted - dense).abs().max() > 1e-4
        torch.testing.assert_close(forward(fast, name), wanted, rtol=0, atol=1e-5)
    vidattn.unpatch(model)
    torch.testing.assert_close(forward(fast, name), dense, rtol=0, atol=1e-5)


def test_gradients_through_a_compiled_patched_model():
    def gradients(fast: bool) -> list[Tensor]:
        model = denoiser("wan")
        vidattn.patch(model, SMALL, min_tokens=0)
        if fast:
            model.compile(backend="aot_eager", fullgraph=True)
        model(**inputs("wan"), return_dict=False)[0].square().mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["flux", "sd"])
def test_new_sizes_do_not_recompile_for_ever(name):
    model, graphs = denoiser(name), Graphs()
    vidattn.patch(model, SMALL, min_tokens=0)
    sizes = [(4, 6), (6, 4), (8, 6), (10, 4), (6, 12), (8, 8)]
    if name == "flux":  # a UNet takes seconds for each
        sizes += [(12, 10), (14, 4), (6, 14)]
    expected = [forward(model, name, height=h, width=w) for h, w in sizes]
    fast = compiled(model, "torch.compile", graphs)
    for (height, width), wanted in zip(sizes, expected, strict=True):
        got = forward(fast, name, height=height, width=width)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    assert graphs.count <= 4  # sizes that happen to be equal make a graph of their own; dynamo's limit is 8


def test_gradient_checkpointing_in_a_compiled_model():
    def gradients(fast: bool) -> list[Tensor]:
        model = denoiser("wan").train()
        model.enable_gradient_checkpointing()
        vidattn.patch(model, SMALL, min_tokens=0)
        if fast:
            model.compile(backend="aot_eager")
        model(**inputs("wan"), return_dict=False)[0].square().mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for a, b in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
