"""The kernels of linear attention: in Triton's interpreter on the CPU, and on a GPU in every dtype."""

import pytest
import torch

from tests.linear.cases import exact, inputs, quadratic, with_gradients
from vidattn import linear_attention
from vidattn.testing import assert_no_worse_than_eager

pytest.importorskip("triton")
from vidattn.kernels import linear

interpreter = pytest.mark.skipif(not linear.interpreted(), reason="needs TRITON_INTERPRET=1")
NAMES = ("output", "dq", "dk", "dv")

# (B, S, Sk, H, D, Dv): one aligned; ragged in everything, with several runs of tokens a head; one token; a
# state that is cut along Dv
SHAPES = [(1, 64, 64, 1, 16, 16), (2, 70, 300, 2, 20, 40), (1, 1, 1, 3, 40, 24), (1, 33, 40, 1, 8, 140)]
MAPS = [("elu1", True), ("softmax", True), ("relu", False), ("identity", False)]


def check(tensors, **options):
    """Output and gradients against the float64 equation, by what plain code in the same dtype achieves."""
    got = with_gradients(linear_attention, tensors, backend="triton", **options)
    eager = with_gradients(quadratic, tensors, **options)
    for name, one, plain, right in zip(NAMES, got, eager, exact(tensors, **options), strict=True):
        try:
            assert_no_worse_than_eager(one, plain, right)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "case"), zip(SHAPES, MAPS, strict=True), ids=str)
def test_against_float64(shape, case, dtype):
    check(inputs(shape, dtype, heads_first=shape[0] == 2), feature_map=case[0], normalize=case[1])


@interpreter
@pytest.mark.parametrize("case", MAPS[1:], ids=str)
def test_maps_on_ragged_shapes(case):
    check(inputs((1, 70, 150, 1, 20, 18)), feature_map=case[0], normalize=case[1])


@interpreter
def test_every_element_is_written(monkeypatch):
    """Buffers come full of NaN."""

    def poisoned(*shape, dtype, device=None):
        return torch.full(shape[0] if isinstance(shape[0], torch.Size) else shape, torch.nan, dtype=dtype)

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda t, *shape, **_: poisoned(*shape, dtype=t.dtype))
    monkeypatch.setattr(torch, "empty", poisoned)
    query, key, value, slope = inputs((1, 70, 130, 2, 20, 18))
    out, state = linear.forward(query, key, value, "elu1", True, 1e-4)
    grads = linear.backward(slope, query, key, value, state, "elu1", True, 1e-4)
    assert all(torch.isfinite(t).all() for t in (out, state, *grads))


@interpreter
def test_half_precision_at_large_values():
    """Products of values of 1e3 leave float16's range; so does a gradient over a small denominator."""
    query, key, value, slope = inputs((1, 66, 200, 1, 16, 16), torch.float16)
    tensors = [query * 300, key * 300, value * 300, slope]
    assert tensors[2].abs().max() > 1000 or tensors[1].abs().max() > 1000
    got = with_gradients(linear_attention, tensors, backend="triton")
    for name, one, right in zip(NAMES, got, exact(tensors), strict=True):
        # norms: the largest features decide the state, the small ones are below its rounding
        error = (one.double() - right).norm() / right.norm()
        assert error < 2e-3, f"{name}: {error}"


@interpreter
def test_small_features_keep_their_digits_in_half_precision():
    query, key, value, slope = inputs((1, 20, 40, 1, 16, 16), torch.float16)
    tensors = [query - 14, key - 14, value, slope]
    got = with_gradients(linear_attention, tensors, backend="triton", eps=0.0)
    for name, one, right in zip(NAMES, got, exact(tensors, eps=0.0), strict=True):
        assert (one.double() - right).norm() < 2e-3 * right.norm(), name


@interpreter
def test_a_wrong_factor_is_caught(monkeypatch):
    right = linear._sum
    monkeypatch.setattr(linear, "_sum", lambda part, factor: right(part, factor * 1.01))
    with pytest.raises(AssertionError, match="output"):
        check(inputs(SHAPES[0]), feature_map="relu", normalize=False)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", MAPS, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 1000, 777, 3, 64, 64),
        (1, 2048, 2048, 2, 128, 128),
        (1, 300, 500, 1, 72, 40),
        (1, 130, 257, 1, 256, 256),
    ],
    ids=str,
)
def test_on_a_gpu(shape, case, dtype):
    check(inputs(shape, dtype, "cuda", heads_first=shape[0] == 2), feature_map=case[0], normalize=case[1])


@pytest.mark.gpu
def test_a_million_large_tokens_on_a_gpu():
    key = torch.randn(1, 1_000_000, 2, 64, device="cuda") * 1000
    query, key, value = key[:, :500].half(), key.half(), key.flip(1).half()
    out = linear_attention(query, key, value, backend="triton").double()
    phi = [torch.where(t > 0, t.double() + 1, t.double().clamp(max=0).exp()) for t in (query, key)]
    state = torch.einsum("bshd,bshe->bhde", phi[1] / key.shape[1], value.double())
    right = torch.einsum("bshd,bhde->bshe", phi[0], state)
    right /= (torch.einsum("bshd,bhd->bsh", phi[0], phi[1].mean(1)) + 1e-4)[..., None]
    assert torch.isfinite(out).all()
    # the sum over keys of random values nearly cancels: errors count against the values' own size
    assert (out - right).norm() / right.norm() < 0.05
    assert (out - right).abs().max() < 1e-3 * 1000


@pytest.mark.gpu
def test_repeats_bit_for_bit_on_a_gpu():
    tensors = inputs((1, 20_000, 20_000, 2, 64, 64), torch.bfloat16, "cuda")
    first, second = (with_gradients(linear_attention, tensors, backend="triton") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.gpu
def test_no_synchronisation_and_no_copy_on_a_gpu():
    tensors = inputs((1, 4096, 4096, 4, 64, 64), torch.bfloat16, "cuda", heads_first=True)[:3]
    linear_attention(*tensors)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = linear_attention(*tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    states = torch.cuda.get_device_properties(0).multi_processor_count * 2 * (64 * 64 + 64) * 4
    assert torch.cuda.max_memory_allocated() - before < out.numel() * 2 + 2 * states
