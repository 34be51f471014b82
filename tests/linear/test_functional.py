"""vidattn.linear_attention against its equation."""

import pytest
import torch

from vidattn import linear_attention
from vidattn.linear import FEATURE_MAPS


@pytest.mark.parametrize("feature_map", sorted(FEATURE_MAPS))
@pytest.mark.parametrize("normalize", [True, False])
def test_equals_the_quadratic_form(feature_map, normalize):
    make = torch.Generator().manual_seed(0)
    query, key = (
        torch.randn(2, 9, 3, 5, generator=make, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    value = torch.randn(2, 9, 3, 4, generator=make, dtype=torch.float64, requires_grad=True)
    phi = FEATURE_MAPS[feature_map]
    weights = torch.einsum("bshd,bthd->bhst", phi(query), phi(key)) / 9
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-4)
    expected = torch.einsum("bhst,bthe->bshe", weights, value)
    got = linear_attention(query, key, value, feature_map=feature_map, normalize=normalize)
    torch.testing.assert_close(got, expected)
    ones = torch.ones_like(got)
    inputs = [query, key, value]
    for one, other in zip(
        torch.autograd.grad(got, inputs, ones), torch.autograd.grad(expected, inputs, ones), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_half_precision_holds_many_large_tokens():
    key = torch.full((1, 20000, 1, 8), 100.0, dtype=torch.float16)
    assert torch.isfinite(linear_attention(key, key, key)).all()
    torch.testing.assert_close(linear_attention(key, key, key), key, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"feature_map": "soft-max"}, "did you mean 'softmax'"),
        ({"backend": "dense"}, "backend='dense'"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"key": torch.zeros(1, 5, 2, 4)}, "key has shape"),
        ({"value": torch.zeros(1, 4, 2)}, "value has shape"),
    ],
)
def test_bad_arguments_are_named(change, words):
    given = {n: torch.zeros(1, 4, 2, 4) for n in ("query", "key", "value")} | change
    with pytest.raises(ValueError, match=words):
        linear_attention(**given)
