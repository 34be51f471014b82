"""TopK against a brute-force selection in plain loops, and block lists against their mask."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.patterns.exact import assert_exact, gradients, tensors
from tests.strategies import grids, topks
from vidattn import TokenLayout, attention
from vidattn.backends import blocks
from vidattn.backends.problem import Problem
from vidattn.lists import BlockLists
from vidattn.patterns import Full, SemanticClusters, SparseVideoGen, TopK
from vidattn.patterns.boxes import box_means, box_tokens
from vidattn.testing import assert_no_worse_than_eager, eager_attention, reference_attention


def tiles_of(grid, tile):
    """Grid token numbers of each tile, in raster order of the tiles."""
    starts = itertools.product(*(range(0, n, s) for n, s in zip(grid, tile, strict=True)))
    for start in starts:
        axes = [range(a, min(a + s, n)) for a, s, n in zip(start, tile, grid, strict=True)]
        yield [(t * grid[1] + y) * grid[2] + x for t, y, x in itertools.product(*axes)]


def chosen(pattern, queries, keys, scale, grid):
    """bool (N, N) for one item and head, as the papers say it."""
    tiles = list(tiles_of(grid, [min(t, n) for t, n in zip(pattern.tile, grid, strict=True)]))
    if pattern.score != "mean":
        keys = keys - keys.mean(0)
    score = torch.tensor(
        [[float(queries[a].mean(0) @ keys[b].mean(0)) * scale for b in tiles] for a in tiles]
    )

    def alike(tokens):
        cosines = torch.nn.functional.cosine_similarity(tokens[:, None], tokens[None], dim=-1)
        return pattern.similarity is None or cosines.mean() > pattern.similarity

    fixed = [not alike(keys[b]) for b in tiles]
    score[:, torch.tensor(fixed)] = -math.inf
    exact = pattern.keep * len(tiles)
    most = max(1, math.floor(exact + 1e-9)) if pattern.score == "smooth" else math.ceil(exact - 1e-9)
    mask = torch.zeros(math.prod(grid), math.prod(grid), dtype=torch.bool)
    for a, row in zip(tiles, score, strict=True):
        best = sorted(range(len(tiles)), key=lambda b: (-row[b], b))[:most]
        if pattern.score == "mass":
            share, held, kept = row.double().softmax(-1), 0.0, []
            for b in best:
                if held >= pattern.mass and kept:
                    break
                kept.append(b)
                held += float(share[b])
            best = kept
        if not alike(queries[a]):
            best = range(len(tiles))
        for b in {*best, *(b for b, forced in enumerate(fixed) if forced)}:
            mask[torch.tensor(a)[:, None], torch.tensor(tiles[b])] = True
    return mask


@settings(max_examples=20, deadline=None)
@given(topks(), st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), st.integers(0, 9))
def test_selection_is_the_papers(pattern, grid, seed):
    layout = TokenLayout(grid, 1, 2)
    query, key, _ = (t.detach() for t in tensors(layout, batch=1, heads=2, key_heads=1, seed=seed))
    if pattern.similarity is not None and pattern.score == "mean":
        key = key + 0.5  # alike enough that some tiles pass
    mask = pattern.mask_for(query, key, layout)
    assert mask[..., :1].all()
    assert mask[..., -2:].all()
    assert mask[..., :1, :].all()
    for head in range(2):
        sides = query[0, 1:-2, head], key[0, 1:-2, 0]
        assert torch.equal(mask[0, head, 1:-2, 1:-2], chosen(pattern, *sides, 12**-0.5, grid))


@settings(max_examples=12, deadline=None)
@given(topks(), grids().filter(lambda g: math.prod(g) < 120), st.data())
def test_attention_equals_the_chosen_mask(pattern, grid, data):
    valid = data.draw(st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3)))
    layout = TokenLayout(grid, 1, 2, valid)
    scale = data.draw(st.sampled_from([None, 0.5, "heads"]))
    if scale == "heads":
        scale = torch.tensor([0.1, 0.7, 0.3, 0.2], dtype=torch.float64).requires_grad_()
    inputs = tensors(layout)
    mask = pattern.mask_for(*inputs[:2], layout, scale=scale)
    assert_exact(pattern, layout, inputs, mask, scale=scale)


def test_density_is_the_share_that_runs():
    layout = TokenLayout((4, 8, 8), text_after=5)
    query, key, _ = tensors(layout)
    for pattern in (TopK(0.3, (2, 2, 2)), TopK(0.3, (2, 2, 2), "smooth")):
        share = pattern.mask_for(query, key, layout).double().mean().item()
        assert pattern.density(layout) == pytest.approx(share, abs=1e-12)
        assert pattern.visited(layout) == pattern.kept(layout.grid) / 32
    assert TopK(0.3, (2, 2, 2)).kept(layout.grid) == 10  # VSA rounds up, SLA down
    assert TopK(0.3, (2, 2, 2), "smooth").kept(layout.grid) == 9
    for pattern in (TopK(0.5, (2, 2, 2), "mass", 0.3), TopK(0.4, (3, 3, 5)), TopK(0.3, 3, similarity=0.1)):
        assert pattern.density(layout) >= pattern.mask_for(query, key, layout).double().mean()
    assert TopK(1.0).covers(layout.grid)
    assert TopK(0.1, (1, 1, 1)).kept((1, 1, 30)) == 3  # 0.1 * 30 is over 3 in floating point


def test_there_is_no_mask_without_data():
    for ask in (TopK().mask, TopK().plan):
        with pytest.raises(ValueError, match=r"depends on the data: ask (mask_for|choose)\("):
            ask(TokenLayout((4, 4, 4)))


@pytest.mark.parametrize(
    "options", [{"keep": 0}, {"keep": 1.5}, {"mass": True}, {"score": "max"}, {"tile": 0}, {"similarity": 2}]
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        TopK(**options)


# ------------------------------------------------------------------ block lists
def lists_of(grid, tile, block, shape, slots, seed=0):
    """Random lists with some empty slots, and at least one block in use."""
    make = torch.Generator().manual_seed(seed)
    tiles, count = len(list(tiles_of(grid, tile))), len(list(tiles_of(grid, block)))
    index = torch.rand(*shape, tiles, count, generator=make).argsort(-1)[..., :slots].to(torch.int32)
    used = torch.randint(1, slots + 1, (*shape, tiles), generator=make, dtype=torch.int32)
    return BlockLists(grid, tile, block, index, used)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 4), (2, 4)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_lists_for_all_or_for_each(shape, device):
    """Lists may serve every item or head; query tiles and key blocks may differ; in half precision."""
    grid, layout = (3, 5, 4), TokenLayout((3, 5, 4), 2, 0)
    lists = lists_of(grid, (1, 3, 2), (2, 2, 3), shape, 4)
    lists = replace(lists, index=lists.index.to(device), count=lists.count.to(device))
    inputs = tensors(layout, value_size=12, dtype=torch.float16, device=device)
    problem = Problem(Full(), layout, 12**-0.5)
    out, lse = blocks.forward(problem, lists, *(t.detach() for t in inputs))
    mask = torch.ones(2, 4, 62, 62, dtype=torch.bool, device=device)
    mask[..., 2:, 2:] = lists.mask()
    exact, plain = reference_attention(*inputs, mask), eager_attention(*inputs, mask)
    assert_no_worse_than_eager(out, plain[0], exact[0])
    torch.testing.assert_close(lse.double(), exact[1], rtol=0, atol=2e-3)


def test_nothing_waits_for_the_device():
    """Fake tensors have no data: to read a value, or to need a size that depends on one, would raise."""
    layout = TokenLayout((3, 8, 8), 2, 3)
    with FakeTensorMode():
        x = torch.empty(2, layout.tokens, 4, 16)
        valid = torch.empty(2, dtype=torch.int64)
        for pattern in (TopK(0.3, (2, 2, 2)), TopK(0.5, (2, 3, 2), "mass", 0.5, 0.2)):
            lists = pattern.choose(x, x, x, layout, None, valid).rule
            problem = Problem(pattern, layout, 0.25, None, valid)
            out, lse = blocks.forward(problem, lists, x, x, x)
            grads = blocks.backward(problem, lists, (x, x, x, out, lse), out, lse)
            assert [g.shape for g in grads] == [x.shape] * 3


@pytest.mark.gpu
@pytest.mark.parametrize(
    "pattern",
    [TopK(0.3, (2, 4, 4)), SparseVideoGen(0.6), SemanticClusters(9, 20, tile=32)],
    ids=lambda p: p.name,
)
def test_a_gpu_is_never_waited_for(pattern):
    layout = TokenLayout((4, 8, 8), 3)
    inputs = tensors(layout, dtype=torch.float16, device="cuda")
    expected = attention(*inputs, pattern, layout)  # what is made once and kept may wait
    gradients([expected], inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = attention(*inputs, pattern, layout)
        again.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, expected)


def test_memory_is_linear_in_tokens():
    """At 4,096 tokens the largest tensor of a call is far smaller than the matrix of all pairs."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    Largest.size = max(Largest.size, tensor.numel())
            return result

    layout = TokenLayout((4, 32, 32))
    x = torch.randn(1, layout.tokens, 1, 8)
    pattern = TopK(0.1)
    with Largest():
        choice = pattern.choose(x, x, x, layout)
        blocks.forward(Problem(pattern, layout, 0.3), choice.rule, x, x, x)
    assert Largest.size < layout.tokens**2 / 8


def test_equal_calls_give_equal_bits_and_ties_go_to_the_first():
    layout = TokenLayout((2, 4, 4))
    query, key, value = (t.detach() for t in tensors(layout, dtype=torch.float32))
    first, second = (attention(query, key, value, TopK(0.3, (1, 2, 2)), layout) for _ in range(2))
    assert torch.equal(first, second)
    same = torch.ones_like(query)
    index = TopK(0.3, (1, 2, 2)).choose(same, same, same, layout).rule.index
    assert (index == torch.arange(3)).all()


@pytest.mark.parametrize("pattern", [TopK(0.3, (2, 2, 2)), TopK(0.5, (2, 2, 2), "mass", 0.5, 0.0)])
def test_compiles_to_one_graph_with_gradients(pattern):
    layout = TokenLayout((3, 4, 4), 2, text_valid=(2, 1))
    inputs = tensors(layout, dtype=torch.float32)
    call = torch.compile(lambda *x: attention(*x, pattern, layout), fullgraph=True, backend="aot_eager")
    got, expected = call(*inputs), attention(*inputs, pattern, layout)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients([got], inputs), gradients([expected], inputs))


@settings(max_examples=30, deadline=None)
@given(st.tuples(*(st.integers(1, 7) for _ in range(3))), st.tuples(*(st.integers(1, 4) for _ in range(3))))
def test_box_means_and_tokens(grid, box):
    tiles = list(tiles_of(grid, box))
    x = torch.randn(2, math.prod(grid), 1, 3, dtype=torch.float64)
    expected = torch.stack([x[:, tile].mean(1) for tile in tiles], 1)
    torch.testing.assert_close(box_means(x, grid, box), expected)
    numbers, real = box_tokens(grid, box, torch.device("cpu"))
    assert [row[keep].tolist() for row, keep in zip(numbers, real, strict=True)] == tiles
    assert numbers.max() < math.prod(grid)
