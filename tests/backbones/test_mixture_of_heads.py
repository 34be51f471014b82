"""Mixture-of-head attention."""

import math

import pytest
import torch

from tests.backbones.checks import check_mixer, close, softmax_attention
from vidattn.backbones.mixers import MixtureOfHeadAttention
from vidattn.backbones.mixers.mixture_of_heads import balance_loss, collect_balance, query_norm_gates


def token_gates(p, token, shared, routed):
    """Gates of one token, by definition."""
    gates = []
    if shared == 1:
        gates.append(torch.ones(1, dtype=token.dtype))
    if shared > 1:
        score = (p["wg_1.weight"] @ token).exp()
        gates.append(shared * score / score.sum())
    if routed:
        score = (p["wg.weight"] @ token).exp()
        on = sorted(range(len(score)), key=lambda e: -score[e].item())[:routed]
        total = sum(score[e] for e in on)
        gates.append(
            torch.stack([routed * score[e] / total if e in on else 0 * total for e in range(len(score))])
        )
    if shared and routed:
        weight = (p["wg_0.weight"] @ token).exp()
        gates = [2 * weight[i] / weight.sum() * gates[i] for i in (0, 1)]
    return torch.cat(gates)


def reference(heads, shared, routed):
    def call(p, x, prefix=None):
        grid, before = x.shape[1:-1], 0 if prefix is None else prefix.shape[1]
        tokens = x.flatten(1, -2) if prefix is None else torch.cat([prefix, x.flatten(1, -2)], 1)
        q, k, v = (
            t.unflatten(-1, (heads, -1)) for t in (tokens @ p["qkv.weight"].T + p["qkv.bias"]).chunk(3, -1)
        )
        y = softmax_attention(q, k, v, q.shape[-1] ** -0.5)
        gates = torch.stack(
            [torch.stack([token_gates(p, token, shared, routed) for token in image]) for image in tokens]
        )
        out = (y * gates[..., None]).flatten(-2) @ p["proj.weight"].T + p["proj.bias"]
        return (
            out.unflatten(1, grid) if before == 0 else (out[:, before:].unflatten(1, grid), out[:, :before])
        )

    return call


@pytest.mark.parametrize(
    ("grid", "prefix", "shared", "routed", "head_dim"),
    [
        ((3, 5), 0, 2, 1, None),
        ((2, 4), 2, 1, 2, 6),
        ((7,), 0, 0, 3, None),
        ((2, 2, 3), 0, 4, 0, None),
    ],
)
def test_the_mixer_is_its_equations(grid, prefix, shared, routed, head_dim):
    mixer = MixtureOfHeadAttention(16, 4, shared=shared, routed=routed, head_dim=head_dim)
    check_mixer(mixer, reference(4, shared, routed), grid, prefix)


def test_zero_routers_with_all_heads_on_are_softmax_attention():
    mixer = MixtureOfHeadAttention(8, 4, shared=2, routed=2).double()
    qkv, proj = torch.nn.Linear(8, 24).double(), torch.nn.Linear(8, 8).double()
    mixer.start_from(qkv, proj)
    x = torch.randn(1, 3, 4, 8, dtype=torch.float64)
    q, k, v = (t.unflatten(-1, (4, 2)) for t in qkv(x.flatten(1, 2)).chunk(3, -1))
    plain = proj(softmax_attention(q, k, v, 2**-0.5).flatten(-2)).unflatten(1, (3, 4))
    close(mixer(x).detach(), plain.detach(), "softmax attention")


def test_balance():
    """By counting: three heads, one on per token."""
    logits = torch.randn(2, 5, 3, dtype=torch.float64)
    rows = logits.flatten(0, 1).tolist()
    share = [[math.exp(a) / sum(map(math.exp, row)) for a in row] for row in rows]
    chosen = [row.index(max(row)) for row in rows]
    wanted = 3 * sum(sum(row[e] for row in share) / len(rows) * chosen.count(e) / len(rows) for e in range(3))
    assert balance_loss(logits, 1).item() == pytest.approx(wanted, rel=1e-12)
    assert balance_loss(torch.zeros(4, 6), 6).item() == pytest.approx(6)


def test_collected_balance_trains_the_router():
    mixer = MixtureOfHeadAttention(8, 4, shared=1, routed=2)
    model = torch.nn.Sequential(mixer, MixtureOfHeadAttention(8, 4, shared=4, routed=0))
    x = torch.randn(1, 3, 3, 8)
    with collect_balance(model) as losses:
        model(x)
    assert len(losses) == 1
    assert torch.equal(losses[0], balance_loss(mixer.wg(x), 2))
    losses[0].backward()
    assert mixer.wg.weight.grad.abs().sum() > 0
    model(x)
    assert len(losses) == 1
    with pytest.raises(ValueError, match="no MixtureOfHeadAttention"), collect_balance(model[1]):
        pass


def test_routing_by_the_norm_of_queries():
    query = torch.randn(2, 3, 8, 4)
    gates = query_norm_gates(query)
    assert gates[..., :4].eq(1).all()
    for b in range(2):
        for s in range(3):
            norms = query[b, s, 4:].square().sum(-1).tolist()
            on = sorted(range(4), key=lambda h: -norms[h])[:2]
            assert gates[b, s, 4:].tolist() == [float(h in on) for h in range(4)]
    with pytest.raises(ValueError, match=r"top=0\.75"):
        query_norm_gates(query, top=0.75)


def test_it_compiles_whole():
    mixer = MixtureOfHeadAttention(8, 4, shared=1, routed=2)
    x = torch.randn(1, 3, 4, 8)
    torch.compiler.reset()
    assert torch.allclose(torch.compile(mixer, fullgraph=True, backend="eager")(x), mixer(x), atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize(("shared", "routed"), [(5, 0), (2, 0), (2, 3), (-1, 2)])
def test_bad_arguments(shared, routed):
    with pytest.raises(ValueError, match=f"shared={shared}, routed={routed}"):
        MixtureOfHeadAttention(8, 4, shared=shared, routed=routed)
