"""The triton backend on a GPU, on shapes that the interpreter is too slow for."""

import pytest
import torch

from tests.kernels.cases import Case
from vidattn import TokenLayout, attention, backends
from vidattn.patterns import Disc, Full, Groups, Neighborhood, Radial, SlidingTile, Temporal, TopK

pytestmark = pytest.mark.gpu
# every case has tiles that are cut at the grid's ends
CASES = {
    "image": Case(
        Neighborhood(9), (1, 37, 50), 77, batch=2, valid=(13, 77), size=128, value_size=128, heads=4
    ),
    "video": Case(Neighborhood((3, 7, 7)), (5, 18, 22), 0, 40, size=64, value_size=64, heads_first=True),
    "causal, strided": Case(
        Neighborhood((3, 8, 8), (1, 4, 4), causal=(True, False, False)), (4, 17, 20), size=64, value_size=32
    ),
    "dilated": Case(Neighborhood(5, dilation=3), (1, 31, 29), 9, size=32, value_size=32),
    "1d, extra": Case(Neighborhood(65), (1, 1, 777), extra=33, size=128, value_size=128),
    "odd head size": Case(SlidingTile((2, 4, 4), (3, 3, 3)), (6, 14, 15), size=72, value_size=40),
    "head size 256": Case(Disc(4.5), (1, 25, 40), 20, size=256, value_size=256),
    "cross": Case(
        Groups((2, 8, 8), "cross"), (5, 17, 22), 8, size=128, value_size=128, head_scale=(0.1, -0.2)
    ),
    "radial": Case(Radial(), (9, 8, 21), 0, 30, (17,), size=128, value_size=128, key_heads=2),
    "temporal": Case(Temporal(0.6, sink=True), (9, 8, 21), size=64, value_size=64),
    "full": Case(Full(), (1, 20, 33), 300, size=128, value_size=128),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_against_float64(case, dtype):
    case.check(dtype, "cuda")


def test_dynamic_lists_equal_the_torch_backend():
    layout, pattern = TokenLayout((5, 16, 22), 30), TopK(0.3)
    inputs = torch.randn(3, 2, layout.tokens, 4, 64, device="cuda", dtype=torch.float16).unbind()
    leaves = [t.clone().requires_grad_() for t in inputs]
    results = []
    for name in ("triton", "torch"):
        out = attention(*leaves, pattern, layout, backend=name)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_auto_takes_the_kernels_and_repeats_bit_for_bit():
    layout, pattern = TokenLayout((1, 64, 64), 77), Neighborhood(17)
    assert backends.resolve("auto", pattern, layout, "cuda")[0] == "triton"
    query = torch.randn(1, layout.tokens, 4, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    runs = []
    for _ in range(2):
        out = attention(query, query, query, pattern, layout)
        runs.append((out, *torch.autograd.grad(out.float().square().sum(), query)))
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_no_call_waits_for_the_device():
    layout, pattern = TokenLayout((4, 16, 16), 33), Neighborhood((3, 5, 5))
    query = torch.randn(1, layout.tokens, 2, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    attention(query, query, query, pattern, layout, backend="triton").sum().backward()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention(query, query, query, pattern, layout, backend="triton").sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_memory_is_linear():
    layout, pattern = TokenLayout((1, 128, 128), 512), Neighborhood(33)
    query, key, value = torch.randn(3, 1, layout.tokens, 24, 128, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        attention(query, key, value, pattern, layout, backend="triton")
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        attention(query, key, value, pattern, layout, backend="triton")
        peak = torch.cuda.max_memory_allocated() - held
    one = query.numel() * query.element_size()
    assert peak <= one + 0.05 * 4 * one + query.numel() // 128 * 4
