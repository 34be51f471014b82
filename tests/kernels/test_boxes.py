"""Box kernels in Triton's interpreter against float64 brute force: outputs, lse and all gradients."""

import pytest
import torch

from tests.kernels.cases import Case, tiny_tiles
from vidattn.backends import triton as backend
from vidattn.backends import triton_windows
from vidattn.lists import BlockLists
from vidattn.patterns import Disc, Full, Groups, Neighborhood, Radial, SlidingTile, Spatial, Temporal

pytestmark = pytest.mark.skipif(
    bool(backend.missing(torch.device("cpu"))), reason="needs TRITON_INTERPRET=1, which a GPU session has not"
)


def block_lists(heads: int) -> BlockLists:
    """Lists per item and head, in cells that are no powers of two, one of them empty."""
    make = torch.Generator().manual_seed(0)
    index = torch.rand(2, heads, 12, 6, generator=make).argsort(-1)[..., :5].int()
    count = torch.randint(1, 6, (2, heads, 12), generator=make).int()
    count[0, 0, 3] = 0
    return BlockLists((2, 5, 6), (1, 2, 3), (2, 2, 3), index, count)


WINDOWS = {
    "2d": Case(Neighborhood(3), (1, 5, 7), size=12),
    "text, padding and extra keys": Case(Neighborhood((3, 4)), (1, 5, 6), 3, 2, (1, 4), extra=3, batch=2),
    "3d causal and strided, heads first": Case(
        Neighborhood((3, 4, 5), (2, 1, 3), causal=(True, False, True)), (3, 4, 5), value_size=24, scale=-0.3,
        heads_first=True,
    ),
    "dilated, scale per head": Case(
        Neighborhood((2, 3, 2), dilation=(1, 2, 3)), (1, 5, 7), 2, 1, batch=1, head_scale=(0.5, -2.0)
    ),
    "sliding tiles": Case(SlidingTile((2, 3, 3), (3, 1, 3)), (2, 4, 7), 0, 2, key_heads=2, heads_first=True),
    "1d, mostly text": Case(Neighborhood(5), (1, 1, 11), 0, 20, (18,)),
    "full": Case(Full(), (1, 1, 21), extra=4),
}  # fmt: skip
LISTS = {
    "disc": Case(Disc(3), (1, 6, 7), 2),
    "cross": Case(Groups((2, 3, 4), "cross"), (3, 3, 5), heads=1),
    "radial": Case(Radial(), (5, 2, 5), heads=1),
    "radial as released": Case(Radial(variant="release", block=4), (6, 2, 4), heads=1),
    "temporal": Case(Temporal(0.4, sink=True), (4, 2, 5), heads=1, heads_first=True),
    "spatial": Case(Spatial(0.4), (4, 2, 5), 0, 2, (1,), heads=1),
    "dynamic": Case(Full(), (2, 5, 6), 2, 0, (1, 2), batch=2, lists=block_lists(2)),
}


@pytest.mark.parametrize("case", (WINDOWS | LISTS).values(), ids=(WINDOWS | LISTS).keys())
def test_float32(case):
    with tiny_tiles():
        case.check()


@pytest.mark.parametrize("name", ["text, padding and extra keys", "disc"])
def test_float16(name):
    with tiny_tiles():
        (WINDOWS | LISTS)[name].check(torch.float16)


def test_a_window_that_is_off_by_one_is_caught(monkeypatch):
    right = triton_windows.windows

    def wrong(pattern, grid):
        (t, y, (first, stop)), step = right(pattern, grid)
        return (t, y, (first, (stop + 1).clamp(max=grid[2]))), step

    monkeypatch.setattr(triton_windows, "windows", wrong)
    triton_windows.window_visits.cache_clear()
    with tiny_tiles(), pytest.raises(AssertionError, match=r"^out: max error"):
        WINDOWS["2d"].check()
    triton_windows.window_visits.cache_clear()


def test_rows_that_see_no_key_are_zero():
    make = torch.Generator().manual_seed(0)
    lists = BlockLists(
        (1, 4, 8), (1, 4, 4), (1, 4, 4), torch.zeros(1, 1, 2, 1).int(), torch.tensor([[[1, 0]]]).int()
    )
    query = torch.randn(1, 32, 1, 16, generator=make, requires_grad=True)
    case = Case(Full(), (1, 4, 8), heads=1, lists=lists)
    with tiny_tiles():
        out, lse = case.run([query, query, query])
        (grad,) = torch.autograd.grad(out.sum(), query)
    far = torch.arange(32) % 8 >= 4
    assert not out[0, far].any()
    assert out[0, ~far].all()
    assert torch.isneginf(lse[0, far]).all()
    assert torch.isfinite(lse[0, ~far]).all()
    assert torch.isfinite(grad).all()
