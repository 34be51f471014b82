"""vidattn.linear_attention against its equation, forward and gradients."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.linear.cases import PHI, exact, inputs, quadratic, with_gradients
from vidattn import linear_attention
from vidattn.linear import FEATURE_MAPS, chunks
from vidattn.linear.functional import linear_attention_op
from vidattn.testing import assert_no_worse_than_eager


@pytest.mark.parametrize("feature_map", sorted(FEATURE_MAPS))
@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_quadratic_form(feature_map, normalize, monkeypatch):
    monkeypatch.setitem(chunks._RUN, "cpu", 1)  # runs of 64 tokens, the last one cut
    tensors = inputs((2, 9, 150, 3, 5, 4), torch.float64)
    options = {"feature_map": feature_map, "normalize": normalize}
    got = with_gradients(linear_attention, tensors, **options)
    for one, truth in zip(got, exact(tensors, **options), strict=True):
        torch.testing.assert_close(one, truth)


def test_every_feature_map_has_its_definition_tested():
    assert set(PHI) == set(FEATURE_MAPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_as_precise_as_plain_code(dtype):
    tensors = inputs((2, 40, 70, 2, 12, 20), dtype, heads_first=True)
    eager, truth = with_gradients(quadratic, tensors), exact(tensors)
    for one, plain, right in zip(with_gradients(linear_attention, tensors), eager, truth, strict=True):
        assert_no_worse_than_eager(one, plain, right)


def test_half_precision_holds_a_million_large_tokens():
    key = torch.full((1, 1_000_000, 1, 8), 1000.0, dtype=torch.float16)
    torch.testing.assert_close(linear_attention(key[:, :9], key, key), key[:, :9], rtol=1e-3, atol=0)


def test_small_features_keep_their_digits():
    """elu(x) + 1 in float32 has no digits left at x = -17; the mean over keys is defined all the same."""
    query, key, value, _ = inputs((1, 3, 8, 1, 4, 4))
    low = linear_attention(query - 17, key - 17, value, eps=0.0)
    right = quadratic(query.double() - 17, key.double() - 17, value.double(), eps=0.0)
    torch.testing.assert_close(low.double(), right, rtol=1e-4, atol=1e-5)


def test_batches_and_sequences_of_no_query():
    query, key, value, _ = inputs((2, 4, 5, 2, 3, 7))
    assert linear_attention(query[:, :0], key, value).shape == (2, 0, 2, 7)
    assert linear_attention(query[:0], key[:0], value[:0]).shape == (0, 4, 2, 7)


def test_the_operator_is_well_formed():
    tensors = [t.requires_grad_() for t in inputs((1, 5, 9, 2, 4, 6))[:3]]
    options = ("elu1", True, 1e-4, "auto")
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(linear_attention_op, (*tensors, *options), test_utils=tests)


def test_compiles_as_one_graph_for_all_sizes():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(linear_attention, backend=counter, fullgraph=True, dynamic=True)
    seen = set()
    for tokens in (6, 9, 13):
        tensors = inputs((1, tokens, tokens, 2, 4, 5))
        for one, other in zip(
            with_gradients(compiled, tensors), with_gradients(linear_attention, tensors), strict=True
        ):
            assert torch.equal(one, other)
        seen.add(counter.frame_count)
    assert len(seen) == 1  # nothing is compiled after the first size
    assert seen != {0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"feature_map": "soft-max"}, "did you mean 'softmax'"),
        ({"backend": "dense"}, "backend='dense'.*Known: auto, torch, triton"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"key": torch.zeros(1, 5, 2, 4)}, "key has shape"),
        ({"value": torch.zeros(1, 4, 2)}, "value has shape"),
        ({"key": torch.zeros(1, 0, 2, 4), "value": torch.zeros(1, 0, 2, 4)}, "at least one token"),
    ],
)
def test_bad_arguments_are_named(change, words):
    given = {n: torch.zeros(1, 4, 2, 4) for n in ("query", "key", "value")} | change
    with pytest.raises(ValueError, match=words):
        linear_attention(**given)


def test_an_explicit_backend_never_falls_back():
    zeros = torch.zeros(1, 4, 2, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="backend='triton' cannot run this call: float64 inputs"):
        linear_attention(zeros, zeros, zeros, backend="triton")
    wide = torch.zeros(1, 4, 1, 300)
    with pytest.raises(ValueError, match="head sizes 4 and 300: 1 to 256"):
        linear_attention(wide[..., :4], wide[..., :4], wide, backend="triton")
