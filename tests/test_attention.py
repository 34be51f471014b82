"""vidattn.attention and merge_attentions against float64 brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from tests.strategies import grids, patterns
from vidattn import TokenLayout, attention, merge_attentions
from vidattn.attention import compute
from vidattn.backends.problem import Problem
from vidattn.ops import attention_op
from vidattn.patterns import Disc, Full, Groups, Neighborhood, PerHead, Radial, Spatial, Temporal
from vidattn.testing import assert_no_worse_than_eager, eager_attention, reference_attention

CASES = [
    (Neighborhood((3, 5, 4), stride=(2, 3, 1), dilation=(1, 2, 1), causal=(True, False, False)), (5, 11, 9)),
    (Neighborhood(7), (1, 19, 21)),
    (Disc(4), (2, 11, 9)),
    (Groups((2, 4, 4), "cross"), (5, 9, 7)),
    (Radial(variant="release", block=8), (7, 4, 5)),
    (Full(), (2, 5, 7)),
]
IDS = [c[0].name for c in CASES]


def tensors(
    layout, batch=2, heads=4, key_heads=2, size=12, value_size=7, dtype=torch.float64, device="cpu", seed=0
):
    make = torch.Generator().manual_seed(seed)
    shapes = ((heads, size), (key_heads, size), (key_heads, value_size))
    return [
        torch.randn(batch, layout.tokens, *shape, generator=make, dtype=torch.float64)
        .to(device, dtype)
        .requires_grad_()
        for shape in shapes
    ]


def gradients(outputs, inputs, seed=1):
    make = torch.Generator().manual_seed(seed)
    given = [torch.randn(o.shape, generator=make, dtype=torch.float64).to(o.device, o.dtype) for o in outputs]
    return torch.autograd.grad(outputs, inputs, given)


@settings(max_examples=60, deadline=None)
@given(
    patterns(),
    grids(),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["auto", "torch", "dense"]),
    st.data(),
)
def test_any_pattern_equals_brute_force_with_gradients(pattern, grid, before, after, backend, data):
    valid = data.draw(st.none() | st.tuples(*(st.integers(0, before + after) for _ in range(2))))
    layout = TokenLayout(grid, before, after, valid)
    inputs = tensors(layout)
    got = attention(*inputs, pattern, layout, return_lse=True, backend=backend)
    expected = reference_attention(*inputs, pattern.mask(layout))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    pairs = zip(gradients(got, inputs), gradients(expected, inputs), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("pattern", "grid"), CASES, ids=IDS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"]
)
@pytest.mark.parametrize("value_size", [16, 24], ids=["fused", "explicit"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_low_precision_is_no_worse_than_eager(pattern, grid, dtype, value_size, device):
    layout = TokenLayout(grid, text_before=3, text_valid=(1, 3))
    inputs = tensors(layout, size=16, value_size=value_size, dtype=dtype, device=device)
    mask = pattern.mask(layout)
    exact, plain = reference_attention(*inputs, mask), eager_attention(*inputs, mask)
    got = attention(*inputs, pattern, layout, return_lse=True, backend="torch")
    assert got[1].dtype == torch.float32
    assert_no_worse_than_eager(got[0], plain[0], exact[0])
    torch.testing.assert_close(got[1].double(), exact[1], rtol=0, atol=8 * torch.finfo(dtype).eps)
    for one, other, truth in zip(*(gradients(o[:1], inputs) for o in (got, plain, exact)), strict=True):
        assert_no_worse_than_eager(one, other, truth)


def test_backends_agree_and_the_dense_one_is_pytorchs():
    pattern, layout = Neighborhood(5), TokenLayout((1, 12, 13), 2, 3, (4, 5))
    inputs = tensors(layout, dtype=torch.float32)
    expected, _ = reference_attention(*inputs, pattern.mask(layout))
    for backend in ("torch", "dense"):
        torch.testing.assert_close(
            attention(*inputs, pattern, layout, backend=backend).double(), expected, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("backend", ["torch", "dense"])
def test_scale_per_head_and_its_gradient(backend):
    pattern, layout = Neighborhood(5), TokenLayout((1, 9, 7), 2)
    inputs = [*tensors(layout), torch.tensor([0.3, -0.2, 1.0, 0.5], dtype=torch.float64, requires_grad=True)]
    got = attention(*inputs[:3], pattern, layout, scale=inputs[3], backend=backend)
    expected, _ = reference_attention(*inputs[:3], pattern.mask(layout), scale=inputs[3])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    for one, other in zip(gradients([got], inputs), gradients([expected], inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("backend", ["auto", "torch", "dense"])
def test_a_pattern_for_each_head(backend):
    layout = TokenLayout((4, 5, 6), 2, 0, (1, 2))
    pattern = PerHead([Spatial(0.5), Full(), Temporal(0.7, sink=True)], assign=(2, 0, 0, 1))
    inputs = [*tensors(layout), torch.rand(4, dtype=torch.float64, requires_grad=True)]
    got = attention(*inputs[:3], pattern, layout, scale=inputs[3], return_lse=True, backend=backend)
    expected = reference_attention(*inputs[:3], pattern.mask(layout), scale=inputs[3])
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    for one, other in zip(gradients(got, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="assigns 4 heads, but query has 2"):
        attention(*(t[:, :, :2] for t in inputs[:3]), pattern, layout)


def test_large_scores_do_not_overflow():
    layout = TokenLayout((1, 8, 8))
    query = torch.full((1, 64, 1, 16), 60.0, dtype=torch.float16)
    got, lse = attention(query, query, query, Neighborhood(3), layout, return_lse=True, backend="torch")
    torch.testing.assert_close(got, query)
    torch.testing.assert_close(lse, torch.full_like(lse, 60.0 * 60 * 4 + math.log(9)), rtol=1e-6, atol=0)


def test_strided_inputs_and_gradcheck():
    layout, pattern = TokenLayout((1, 4, 5), 1), Neighborhood(3, causal=(False, True, False))
    packed = torch.randn(2, layout.tokens, 3, 2, 4, dtype=torch.float64, requires_grad=True)

    def loss(x):
        return attention(*x.unbind(2), pattern, layout, return_lse=True, backend="torch")

    torch.autograd.gradcheck(loss, packed)
    heads_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in packed.unbind(2)]
    torch.testing.assert_close(attention(*heads_first, pattern, layout), loss(packed)[0])


def test_a_row_of_a_batch_equals_the_row_alone():
    layout, pattern = TokenLayout((1, 13, 11), 3), Disc(5)
    inputs = tensors(layout, batch=3, dtype=torch.float32)
    whole = attention(*inputs, pattern, layout)
    for i in range(3):
        alone = attention(*(t[i : i + 1] for t in inputs), pattern, layout)
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=0, atol=1e-6)


def test_padding_is_not_seen():
    layout, pattern = TokenLayout((1, 9, 9), 4, text_valid=(2, 4)), Neighborhood(5)
    query, key, value = (t.detach() for t in tensors(layout))
    base = attention(query, key, value, pattern, layout)
    changed = value.clone()
    changed[0, 2:4] = 1e6
    torch.testing.assert_close(attention(query, key, changed, pattern, layout), base)
    changed[1, 3] = 1e6
    assert (attention(query, key, changed, pattern, layout)[1] - base[1]).abs().max() > 1


def test_empty_batch():
    layout = TokenLayout((1, 4, 4))
    empty = torch.zeros(0, 16, 2, 8)
    assert attention(empty, empty, empty, Neighborhood(3), layout).shape == (0, 16, 2, 8)


def test_opcheck():
    layout = TokenLayout((1, 6, 5), 2)
    inputs = tensors(layout, dtype=torch.float32)
    valid = torch.tensor([1, 2])
    arguments = (
        *inputs,
        None,
        valid,
        None,
        None,
        Neighborhood(3).encoded,
        layout.grid,
        (2, 0),
        (),
        0.3,
        "auto",
    )
    torch.library.opcheck(attention_op, arguments)


def test_compiles_whole_with_gradients_and_one_graph_for_all_prompt_lengths():
    graphs = []

    def count(module, _):
        graphs.append(module)
        return module.forward

    def model(query, key, value, valid):
        layout = TokenLayout((1, 8, 8), 5, text_valid=valid)
        return attention(query, key, value, Neighborhood(3), layout)

    inputs = tensors(TokenLayout((1, 8, 8), 5), dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend=count)
    for lengths in ((5, 5), (1, 3), (2, 4)):
        valid = torch.tensor(lengths)
        torch.testing.assert_close(compiled(*inputs, valid), model(*inputs, valid))
    assert len(graphs) == 1
    aot = torch.compile(model, fullgraph=True, backend="aot_eager")
    valid = torch.tensor([2, 4])
    for one, other in zip(
        gradients([aot(*inputs, valid)], inputs), gradients([model(*inputs, valid)], inputs), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_one_graph_serves_every_size():
    graphs = []

    def count(module, _):
        graphs.append(module)
        return module.forward

    def model(image, pattern):
        height, width = image.shape[1:3]
        tokens = image.flatten(1, 2)
        return attention(tokens, tokens, tokens, pattern, TokenLayout((1, height, width)), backend="torch")

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    for height, width in ((9, 10), (11, 7), (13, 16)):
        image = torch.randn(1, height, width, 2, 8)
        torch.testing.assert_close(compiled(image, Neighborhood(3)), model(image, Neighborhood(3)))
    assert len(graphs) == 1


def test_gradient_checkpointing():
    layout, pattern = TokenLayout((1, 9, 8), 2), Neighborhood(3)
    inputs = tensors(layout)
    plain = attention(*inputs, pattern, layout, backend="torch")
    again = checkpoint(
        lambda *t: attention(*t, pattern, layout, backend="torch"), *inputs, use_reentrant=False
    )
    for one, other in zip(gradients([plain], inputs), gradients([again], inputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query": torch.zeros(1, 16, 8)}, "query has shape"),
        ({"key": torch.zeros(1, 15, 2, 8)}, "key has 15 tokens, but the layout has 16"),
        ({"value": torch.zeros(1, 16, 1, 8)}, "value has 1 heads"),
        ({"key": torch.zeros(1, 16, 2, 4)}, "key has head_dim 4"),
        ({"key": torch.zeros(2, 16, 2, 8)}, "key has batch 2"),
        ({"value": torch.zeros(1, 16, 2, 8).half()}, "value.dtype"),
        ({"query": torch.zeros(1, 16, 3, 8)}, "must divide"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"scale": torch.ones(3)}, "scale of shape"),
        ({"backend": "trition"}, "backend='trition'"),
    ],
)
def test_bad_arguments_are_named(change, words):
    given = {n: torch.zeros(1, 16, 2, 8) for n in ("query", "key", "value")} | change
    with pytest.raises(ValueError, match=words):
        attention(pattern=Neighborhood(3), layout=TokenLayout((4, 4)), **given)


def test_bad_kinds_are_named():
    query = torch.zeros(1, 16, 2, 8)
    with pytest.raises(TypeError, match="pattern='full'"):
        attention(query, query, query, "full", TokenLayout((4, 4)))
    with pytest.raises(TypeError, match="layout="):
        attention(query, query, query, Full(), (4, 4))


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_merging_parts_equals_one_attention(parts):
    make = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 3, 8, generator=make, dtype=torch.float64, requires_grad=True)
    key, value = (
        torch.randn(2, 20, 3, 8, generator=make, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    inputs = [query, key, value]
    seen = torch.ones(6, 20, dtype=torch.bool)
    whole = reference_attention(*inputs, seen)
    pieces = zip(*(t.tensor_split(parts, 1) for t in (key, value)), strict=True)
    done = [reference_attention(query, k, v, torch.ones(6, k.shape[1], dtype=torch.bool)) for k, v in pieces]
    merged = merge_attentions(*zip(*done, strict=True))
    for one, other in zip(merged, whole, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(gradients(merged, inputs), gradients(whole, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_merging_a_pattern_with_extra_keys():
    layout, pattern = TokenLayout((1, 9, 8)), Neighborhood(3)
    query, key, value = tensors(layout, key_heads=4, value_size=12)
    extra = torch.randn(2, 5, 4, 12, dtype=torch.float64)
    near = attention(query, key, value, pattern, layout, return_lse=True)
    far = reference_attention(query, extra, extra, torch.ones(layout.tokens, 5, dtype=torch.bool))
    both = [torch.cat([t, extra], 1) for t in (key, value)]
    problem = Problem(pattern, layout, 12**-0.5, extra=5)
    expected = compute(problem, query, *both, return_lse=True, backend="torch")
    for one, other in zip(merge_attentions(*zip(near, far, strict=True)), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_merging_parts_that_saw_nothing():
    out, lse = torch.ones(1, 2, 1, 3), torch.tensor([0.0, -math.inf]).view(1, 2, 1)
    merged, logs = merge_attentions([out, out * 3], [lse, torch.full_like(lse, -math.inf)])
    assert merged[0, :, 0].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert logs.flatten().tolist() == [0, -math.inf]


@pytest.mark.parametrize(
    ("outputs", "lses"),
    [([], []), ([torch.zeros(1, 2, 3, 4)], []), ([torch.zeros(1, 2, 3, 4)], [torch.zeros(1, 2, 4)])],
)
def test_merging_refuses_parts_that_do_not_fit(outputs, lses):
    with pytest.raises(ValueError, match=r"outputs has|parts of shape"):
        merge_attentions(outputs, lses)
