"""na1d, na2d and na3d against the NumPy oracle of NATTEN's rules, and what they refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vidattn
from tests import na_oracle

FUNCTIONS = {1: vidattn.na1d, 2: vidattn.na2d, 3: vidattn.na3d}


@st.composite
def problems(draw):
    rank = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, {1: 24, 2: 8, 3: 5}[rank])) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, n)) for n in shape)
    window = tuple(draw(st.integers(1, n // d)) for n, d in zip(shape, dilation, strict=True))
    stride = tuple(draw(st.integers(1, k)) for k in window)
    causal = tuple(draw(st.booleans()) for _ in shape)
    key_heads, shared = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2)]))
    sizes = draw(st.sampled_from([3, 8])), draw(st.sampled_from([3, 5, 8]))
    extra = draw(st.sampled_from([0, 0, 1, 4]))
    return (
        shape,
        window,
        stride,
        dilation,
        causal,
        (key_heads * shared, key_heads),
        sizes,
        extra,
        draw(st.integers(0, 99)),
    )


def inputs(shape, heads, sizes, extra, seed, batch=2):
    make = torch.Generator().manual_seed(seed)
    tails = [(*shape, heads[0], sizes[0]), (*shape, heads[1], sizes[0]), (*shape, heads[1], sizes[1])]
    tails += [(extra, heads[1], sizes[0]), (extra, heads[1], sizes[1])] if extra else []
    return [torch.randn(batch, *t, generator=make, dtype=torch.float64, requires_grad=True) for t in tails]


@settings(max_examples=150, deadline=None)
@given(problems())
def test_every_legal_setting_equals_the_oracle_with_gradients(problem):
    shape, window, stride, dilation, causal, heads, sizes, extra, seed = problem
    given = inputs(shape, heads, sizes, extra, seed)
    more = dict(zip(("additional_keys", "additional_values"), given[3:], strict=False))
    out, lse = FUNCTIONS[len(shape)](*given[:3], window, stride, dilation, causal, return_lse=True, **more)
    grads = [torch.randn(t.shape, dtype=t.dtype) for t in (out, lse)]
    got = torch.autograd.grad([out, lse], given, grads)
    arrays = [t.detach().numpy() for t in (*given, *grads)]
    rest = arrays[3:-2] or [None, None]
    # the oracle's own checks refuse windows of 1, which we allow
    expected = na_oracle._run(*arrays[:3], window, stride, dilation, causal, None, *rest, *arrays[-2:])
    np.testing.assert_allclose(out.detach().numpy(), expected[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(lse.detach().numpy(), expected[1], rtol=0, atol=1e-10)
    names = ("dq", "dk", "dv", "dadd_k", "dadd_v")[: len(given)]
    for name, one in zip(names, got, strict=True):
        np.testing.assert_allclose(one.numpy(), expected[2][name], rtol=0, atol=1e-9, err_msg=name)
    for backend in ("auto", "dense"):
        plain = FUNCTIONS[len(shape)](*given[:3], window, stride, dilation, causal, backend=backend, **more)
        np.testing.assert_allclose(plain.detach().numpy(), expected[0], rtol=0, atol=1e-10)


@pytest.fixture(autouse=True)
def _oracle_allows_windows_of_one(monkeypatch):
    monkeypatch.setattr(na_oracle, "check_args", lambda shape, *arguments: arguments)


def test_short_arguments():
    q = torch.randn(1, 6, 7, 2, 8)
    full = vidattn.na2d(q, q, q, (3, 3), (2, 2), (1, 1), (False, False))
    assert torch.equal(vidattn.na2d(q, q, q, 3, 2), full)
    assert torch.equal(vidattn.na2d(q, q, q, [3, 3], stride=2, dilation=None, is_causal=None), full)
    # NATTEN reads a scale of 0 as the default
    assert torch.equal(vidattn.na2d(q, q, q, 3, 2, scale=0.0), full)
    assert not torch.equal(vidattn.na2d(q, q, q, 3, 2, scale=1.0), full)
    assert full.dtype == q.dtype
    assert full.shape == q.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel_size": 0}, "kernel_size=0"),
        ({"kernel_size": 7}, r"kernel_size=\(7, 7\).* exceeds the extent 6 of axis 0"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size="),
        ({"kernel_size": "3"}, "kernel_size='3'"),
        ({"kernel_size": np.int64(3)}, "kernel_size="),
        ({"kernel_size": 3.0}, "kernel_size=3.0"),
        ({"kernel_size": None}, "kernel_size=None"),
        ({"stride": 4}, r"stride=\(4, 4\)"),
        ({"stride": 0}, "stride=0"),
        ({"stride": True}, "stride=True"),
        ({"dilation": 3}, r"dilation=\(3, 3\)"),
        ({"dilation": -1}, "dilation=-1"),
        ({"is_causal": 1}, "is_causal=1"),
        ({"is_causal": (True,)}, "is_causal="),
        ({"key": torch.zeros(1, 6, 6, 2, 8)}, "key has the grid"),
        ({"query": torch.zeros(1, 6, 2, 8)}, "query must be a tensor of 5 axes"),
        ({"query": np.zeros((1, 6, 7, 2, 8))}, "query must be a tensor"),
        ({"value": torch.zeros(1, 6, 7, 1, 8)}, "value has 1 heads"),
        ({"key": torch.zeros(1, 6, 7, 2, 8).half()}, "key.dtype"),
        ({"query": torch.zeros(1, 6, 7, 3, 8)}, "must divide"),
        ({"additional_keys": torch.zeros(1, 2, 2, 8)}, "additional_keys was given without additional_values"),
        (
            {"additional_values": torch.zeros(1, 2, 2, 8)},
            "additional_values was given without additional_keys",
        ),
        (
            {"additional_keys": torch.zeros(1, 2, 1, 8), "additional_values": torch.zeros(1, 2, 2, 8)},
            "additional_keys has",
        ),
        (
            {"additional_keys": torch.zeros(1, 2, 2, 8), "additional_values": torch.zeros(1, 3, 2, 8)},
            "2 tokens",
        ),
        (
            {"additional_keys": torch.zeros(3, 2, 2, 8), "additional_values": torch.zeros(3, 2, 2, 8)},
            "additional_keys has",
        ),
        ({"backend": "cutlass-fna"}, "backend='cutlass-fna'"),
    ],
)
def test_what_natten_refuses_we_refuse_by_name(change, words):
    given = {n: torch.zeros(1, 6, 7, 2, 8) for n in ("query", "key", "value")} | {"kernel_size": 3} | change
    with pytest.raises(ValueError, match=words):
        vidattn.na2d(**given)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_names_and_documentation(rank):
    function = FUNCTIONS[rank]
    assert function.__name__ == f"na{rank}d"
    assert f"{rank}-D grid" in function.__doc__


def test_compiles_whole():
    q = torch.randn(1, 6, 7, 2, 8)
    compiled = torch.compile(lambda x: vidattn.na2d(x, x, x, 3, dilation=2), fullgraph=True, backend="eager")
    assert torch.equal(compiled(q), vidattn.na2d(q, q, q, 3, dilation=2))
