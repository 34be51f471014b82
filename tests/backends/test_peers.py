"""The backends that call other packages: FlexAttention on the CPU, NATTEN where it is installed, and xFormers
through a stand-in that computes its function by definition.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from vidattn import TokenLayout, attention, backends, na2d
from vidattn.backends import flex, xformers
from vidattn.backends.problem import Problem
from vidattn.patterns import Disc, Full, Groups, Neighborhood, PerHead, Radial, SlidingTile, from_text
from vidattn.testing import reference_attention

IMAGE, VIDEO = (12, 18), (3, 8, 10)


def inputs(tokens: int, heads: int = 2, key_heads: int = 2, size: int = 8, width: int = 8, batch: int = 2):
    shapes = (heads, size), (key_heads, size), (key_heads, width)
    return [torch.randn(batch, tokens, *shape) for shape in shapes]


def check(backend, pattern, layout, tensors, **options):
    """Output and log-sum-exp against the float64 definition."""
    out, lse = attention(*tensors, pattern, layout, return_lse=True, backend=backend, **options)
    mask = pattern.mask(layout)
    if isinstance(pattern, PerHead):
        mask = mask[None]
    right, logs = reference_attention(*tensors, mask, options.get("scale"))
    torch.testing.assert_close(out.double(), right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse.double(), logs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("neighborhood:window=5x7", IMAGE),
        ("neighborhood:window=2x4x6,stride=1x2x3,dilation=1x2x1,causal=truexfalsexfalse", VIDEO),
        ("sliding:base=6x8", IMAGE),
        ("disc:radius=4", IMAGE),
        ("groups:size=1x4x4,region=cross", IMAGE),
        ("groups:size=2x4x4,region=blocks", VIDEO),
        ("radial:decay=0.5", VIDEO),
        ("sta:tile=1x4x4", VIDEO),
        ("spatial", VIDEO),
        ("temporal", VIDEO),
        ("full", IMAGE),
    ],
)
def test_flex_runs_every_pattern(text, grid):
    layout = TokenLayout(grid, text_before=3, text_after=2)
    check("flex", from_text(text), layout, inputs(layout.tokens))


def test_flex_with_padded_text_shared_keys_and_a_scale_for_each_head():
    layout = TokenLayout(IMAGE, text_before=4, text_after=3, text_valid=(2, 7))
    tensors = inputs(layout.tokens, heads=4, key_heads=2, size=12, width=20)
    check("flex", Neighborhood(5), layout, tensors, scale=torch.tensor([0.1, 0.2, 0.3, 0.4]))


def test_flex_with_patterns_for_each_head_and_additional_keys():
    layout = TokenLayout(IMAGE)
    pattern = PerHead([Neighborhood(5), Disc(4)], (0, 1, 0))
    tensors = inputs(layout.tokens, heads=3, key_heads=3)
    check("flex", pattern, layout, tensors)
    grid = [t.unflatten(1, IMAGE) for t in tensors]
    more = {"additional_keys": tensors[1][:, :5], "additional_values": tensors[2][:, :5]}
    one, other = (na2d(*grid, kernel_size=5, **more, backend=name) for name in ("flex", "torch"))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "pattern", [Neighborhood((17, 35)), Groups((1, 4, 8)), SlidingTile((1, 4, 8), (1, 3, 3))]
)
def test_the_block_mask_is_that_of_the_pairs(pattern, monkeypatch):
    monkeypatch.setitem(flex._PAIRS, "cpu", 1)  # one row of blocks at a time
    layout = TokenLayout((1, 20, 40), text_before=7)
    made = flex._mask(pattern, layout, 0, torch.device("cpu"))
    dense = pattern.mask(layout)[made.order][:, made.order]
    blocks = torch.zeros(896, 896, dtype=torch.bool)  # 807 tokens in 7 blocks
    blocks[:807, :807] = dense
    some = blocks.view(7, 128, 7, 128).any(3).any(1)
    # behind the end nothing counts
    blocks[807:] = blocks[806:807]
    blocks[:, 807:] = blocks[:, 806:807]
    every = blocks.view(7, 128, 7, 128).all(3).all(1)
    number, rows = made.blocks.kv_num_blocks[0, 0], made.blocks.kv_indices[0, 0]
    full_number, full_rows = made.blocks.full_kv_num_blocks[0, 0], made.blocks.full_kv_indices[0, 0]
    assert 0 < full_number.sum() < number.sum() + full_number.sum() <= 49
    for row in range(7):
        assert set(rows[row, : number[row]].tolist()) == set((some & ~every)[row].nonzero()[:, 0].tolist())
        assert set(full_rows[row, : full_number[row]].tolist()) == set(every[row].nonzero()[:, 0].tolist())


def test_tile_order_visits_fewer_blocks_than_raster_order():
    layout, pattern = TokenLayout((32, 128)), Neighborhood(17)
    made = flex._mask(pattern, layout, 0, torch.device("cpu"))
    raster = pattern.mask(layout).view(32, 128, 32, 128).any(3).any(1).sum()
    assert made.blocks.kv_num_blocks.sum() + made.blocks.full_kv_num_blocks.sum() < raster


def test_flex_says_why_it_cannot():
    q, k, v = inputs(16)
    with pytest.raises(NotImplementedError, match="'flex' cannot run this call: it has no backward on CPUs"):
        attention(q.requires_grad_(), k, v, Neighborhood(3), TokenLayout((4, 4)), backend="flex")
    layout = TokenLayout((600, 600))
    long = torch.empty(1, 1, 1, 8).expand(1, layout.tokens, 1, 8)
    with pytest.raises(NotImplementedError, match="360000 tokens"):
        attention(long, long, long, Neighborhood(3), layout, backend="flex")
    q, k, v = inputs(64)
    with pytest.raises(NotImplementedError, match="the pattern was chosen from the data"):
        attention(q, k, v, from_text("topk:keep=0.5,tile=1x4x4"), TokenLayout((8, 8)), backend="flex")
    assert backends.reasons("mps")["flex"] == ["FlexAttention runs on CPUs and CUDA, not on mps"]


# ---------------------------------------------------------------------- NATTEN
@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("neighborhood:window=5x4,stride=1x2", IMAGE),
        ("neighborhood:window=2x4x6,dilation=1x2x1,causal=truexfalsexfalse", VIDEO),
        ("sliding:base=4x6", IMAGE),
        ("neighborhood:window=1x1x6", (1, 1, 40)),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_natten(text, grid):
    pytest.importorskip("natten")
    for layout in (TokenLayout(grid), TokenLayout(grid, text_before=3, text_after=2)):
        tensors = inputs(layout.tokens, heads=4, key_heads=2)
        check("natten", from_text(text), layout, tensors, scale=torch.tensor([0.1, 0.2, 0.3, 0.4]))
        out = attention(*tensors, from_text(text), layout, backend="natten")
        right, _ = reference_attention(*tensors, from_text(text).mask(layout))
        torch.testing.assert_close(out.double(), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "layout", "words"),
    [
        (Disc(3), TokenLayout((8, 8)), "NATTEN has no pattern 'disc'"),
        (Neighborhood((1, 5)), TokenLayout((8, 8)), "no window of 1 on an axis"),
        (Neighborhood(3), TokenLayout((8, 8), 2, 0, (1, 2)), "cannot hide padded text"),
        (Neighborhood(3), TokenLayout((8, 8)), "powers of two from 8 on, not 12"),
    ],
)
def test_natten_says_why_it_cannot(pattern, layout, words, monkeypatch):
    monkeypatch.setattr("vidattn.backends.natten.importlib.util.find_spec", lambda name: SimpleNamespace())
    with pytest.raises(NotImplementedError, match=words):
        attention(*inputs(layout.tokens, size=12, width=12), pattern, layout, backend="natten")


# ---------------------------------------------------------------------- xFormers
@pytest.fixture
def stand_in(monkeypatch):
    """A package with xFormers' function: (B, S, H, D), a bias that is added and needs aligned rows."""

    def memory_efficient_attention(query, key, value, attn_bias=None, scale=None):
        scores = torch.einsum("bshd,bthd->bhst", query, key) * scale
        if attn_bias is not None:
            assert attn_bias.shape == scores.shape
            assert attn_bias.stride(2) % 8 == 0
            scores = scores + attn_bias
        return torch.einsum("bhst,bthd->bshd", scores.softmax(-1), value)

    ops = ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("pattern", [Full(), Neighborhood(3), Radial()], ids=str)
def test_xformers_gets_the_mask(pattern):
    layout = TokenLayout((2, 5, 7), text_before=2, text_after=3, text_valid=(1, 5))
    tensors = inputs(layout.tokens, size=8, width=6)
    for one in (layout, TokenLayout(layout.grid, 2, 3)):
        valid = one.text_valid_tensor(2, torch.device("cpu"))
        problem = Problem(pattern, TokenLayout(one.grid, 2, 3), 0.3, torch.tensor([1.0, 2.0]), valid)
        out, lse = xformers.forward(problem, *tensors, True)
        right, logs = reference_attention(*tensors, pattern.mask(one), torch.tensor([0.3, 0.6]))
        torch.testing.assert_close(out.double(), right, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lse.double(), logs, rtol=1e-4, atol=1e-5)


def test_xformers_says_why_it_cannot():
    q, k, v = inputs(16)
    with pytest.raises(NotImplementedError, match="xformers"):
        attention(q, k, v, Neighborhood(3), TokenLayout((4, 4)), backend="xformers")
    layout = TokenLayout((100, 100))
    long = torch.empty(1, 1, 2, 8).expand(1, layout.tokens, 2, 8)
    found = "; ".join(xformers.reasons(Problem(Neighborhood(3), layout, 1.0), long, long[:, :, :1], long))
    assert "10000 tokens: its n x n mask is made for at most 8192" in found
    assert "1 key heads for 2 query heads" in found


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flex", "natten", "xformers"])
def test_on_a_gpu(backend):
    missing = backends.reasons("cuda")[backend]
    if missing:
        pytest.skip("; ".join(missing))
    layout, pattern = TokenLayout((24, 40), text_before=9), Neighborhood(7)
    tensors = [t.cuda().requires_grad_() for t in inputs(layout.tokens, size=32, width=32)]
    right, _ = reference_attention(*(t.cpu() for t in tensors), pattern.mask(layout))
    out = attention(*tensors, pattern, layout, backend=backend)
    torch.testing.assert_close(out.double().cpu(), right, rtol=2e-2, atol=2e-3)
    slopes = torch.randn_like(out)
    got = torch.autograd.grad(out, tensors, slopes)
    expected = torch.autograd.grad(right, tensors, slopes.double().cpu())
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-3)
