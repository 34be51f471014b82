"""Feature maps and mixers against their equations, by brute force in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidattn import TokenLayout
from vidattn.linear import (
    FeatureMap,
    FeatureMapAttention,
    GatedAttention,
    HybridLinearAttention,
    SoftmaxAttention,
    SparseLinearAttention,
)
from vidattn.patterns import Groups, Neighborhood, Pattern
from vidattn.testing import reference_attention

LAYOUTS = [
    TokenLayout((1, 5, 7), text_before=3),
    TokenLayout((2, 4, 5), text_after=4, text_valid=(4, 2)),
    TokenLayout((1, 6, 6)),
]


def phi(kind: str, weight: Tensor | None, x: Tensor) -> Tensor:
    """The maps, written out per vector."""
    if weight is None:
        return {"elu1": lambda t: torch.where(t > 0, t + 1, t.exp()), "relu": lambda t: t.clamp(min=0)}.get(
            kind, lambda t: t.exp() / t.exp().sum(-1, keepdim=True)
        )(x)
    y = torch.stack([x[:, :, h] @ weight[h].double() for h in range(x.shape[2])], 2)
    if kind == "hedgehog-exp":
        return torch.cat([(y - y.max(-1, True).values).exp(), (y.min(-1, True).values - y).exp()], -1)
    if kind == "hedgehog":
        halves = [t.exp() / t.exp().sum(-1, keepdim=True) for t in (y, -y)]
        return torch.cat(halves, -1).clamp(min=1e-12)
    both = torch.cat([2 * y, -2 * y], -1).exp()
    return both / both.sum(-1, keepdim=True)


def some(layout: TokenLayout, heads: int = 2, dim: int = 4) -> list[Tensor]:
    return [torch.randn(2, layout.tokens, heads, dim, dtype=torch.float64) for _ in range(3)]


def real(layout: TokenLayout) -> Tensor:
    """bool (B, S)."""
    seen = torch.ones(2, layout.tokens, dtype=torch.bool)
    for item, count in enumerate(layout.text_valid or ()):
        seen[item, layout.text_before + layout.grid_tokens + count :] = False
    return seen


@pytest.mark.parametrize("kind", ["elu1", "relu", "softmax", "hedgehog", "hedgehog-joint", "hedgehog-exp"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_feature_map_attention(kind, layout):
    q, k, v = some(layout)
    module = FeatureMapAttention(2, 4, kind).double()
    weights = []
    for one in (module.feature_map_q, module.feature_map_k):
        if hasattr(one, "weight"):
            assert torch.equal(one.weight[0], torch.eye(4))
            torch.nn.init.normal_(one.weight)
        weights.append(getattr(one, "weight", None))
    fq, fk = phi(kind, weights[0], q), phi(kind, weights[1], k)
    scores = torch.einsum("bshf,bthf->bhst", fq, fk) * real(layout)[:, None, None]
    expected = torch.einsum("bhst,bthd->bshd", scores / (scores.sum(-1, keepdim=True) + 1e-300), v)
    torch.testing.assert_close(module(q, k, v, layout), expected, rtol=1e-6, atol=1e-8)
    half = module.half()(q.half(), k.half(), v.half(), layout)
    assert half.dtype == torch.float16


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_hybrid_is_normalised_as_one(layout, affine):
    q, k, v = (t.requires_grad_() for t in some(layout))
    module = HybridLinearAttention(2, 4, (1, 2, 3), 1, affine=affine).double()
    assert torch.allclose(module.window_factors.sigmoid(), torch.tensor(0.1).double(), atol=1e-3)
    torch.nn.init.normal_(module.window_factors)
    near = Groups((1, 2, 3), region="blocks", reach=1).mask(
        TokenLayout(layout.grid, layout.text_before, layout.text_after)
    )
    visible = real(layout)[:, None, None]
    logits = torch.einsum("bshd,bthd->bhst", q, k) * 0.5
    logits = logits.masked_fill(~(near & visible), -torch.inf)
    gamma = module.window_factors.sigmoid().view(1, 2, 1, 1)
    alpha = 1 - gamma if affine else 1.0
    maps = [phi("hedgehog", m.weight, t) for m, t in ((module.feature_map_q, q), (module.feature_map_k, k))]
    scores = torch.einsum("bshf,bthf->bhst", *maps) * (~near & visible)
    # m_i is the log-sum-exp of the near scores
    weights = gamma * (logits - logits.logsumexp(-1, keepdim=True)).exp() + alpha * scores
    expected = torch.einsum("bhst,bthd->bshd", weights / weights.sum(-1, keepdim=True), v)
    got = module(q, k, v, layout)
    torch.testing.assert_close(got, expected)
    probe = torch.randn_like(got)
    inputs = [q, k, v, module.window_factors, module.feature_map_k.weight]
    for one, other in zip(
        torch.autograd.grad((got * probe).sum(), inputs),
        torch.autograd.grad((expected * probe).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_sparse_linear_starts_sparse_and_adds_the_projected_linear_part(layout):
    q, k, v = some(layout)
    pattern: Pattern = Neighborhood(3)
    module = SparseLinearAttention(2, 4, pattern, "softmax").double()
    bare = TokenLayout(layout.grid, layout.text_before, layout.text_after)
    mask = pattern.mask(bare) & real(layout)[:, None]
    sparse, _ = reference_attention(q, k, v, mask)
    torch.testing.assert_close(module(q, k, v, layout), sparse)
    torch.nn.init.normal_(module.proj_l.weight)
    torch.nn.init.normal_(module.proj_l.bias)
    scores = torch.einsum("bshd,bthd->bhst", q.softmax(-1), k.softmax(-1)) * real(layout)[:, None, None]
    rest = torch.einsum("bhst,bthd->bshd", scores / scores.sum(-1, keepdim=True), v)
    expected = sparse + rest @ module.proj_l.weight.T + module.proj_l.bias
    torch.testing.assert_close(module(q, k, v, layout), expected)


@pytest.mark.parametrize("gate", ["headwise", "elementwise"])
def test_a_gate_changes_nothing_at_first(gate):
    layout = LAYOUTS[0]
    q, k, v = some(layout)
    module = GatedAttention(SoftmaxAttention(), 6, 2, 4, gate).double()
    plain, _ = reference_attention(q, k, v, torch.ones(layout.tokens, layout.tokens, dtype=torch.bool))
    x = torch.randn(2, layout.tokens, 6).double()
    torch.testing.assert_close(module(q, k, v, layout, inputs=x), plain)
    torch.nn.init.normal_(module.gate.weight)
    torch.nn.init.normal_(module.gate.bias)
    factor = 2 / (1 + (-(x @ module.gate.weight.T + module.gate.bias)).exp())
    factor = factor[..., None] if gate == "headwise" else factor.view(2, -1, 2, 4)
    torch.testing.assert_close(module(q, k, v, layout, inputs=x), plain * factor)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FeatureMap("hedgehog-join", 2, 4), "did you mean 'hedgehog-joint'"),
        (lambda: FeatureMap("hedgehog", 2, 4, 3), "feature_dim=3"),
        (lambda: FeatureMap("hedgehog", 2, 4, init="zeros"), "init='zeros'"),
        (lambda: GatedAttention(SoftmaxAttention(), 4, 2, 2, "none"), "gate='none'"),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
    assert FeatureMap("hedgehog", 2, 4, 3, init="kaiming")(torch.zeros(1, 2, 2, 4)).shape == (1, 2, 2, 6)
