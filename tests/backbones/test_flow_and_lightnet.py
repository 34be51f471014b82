"""Flow-attention and LightNet's attention."""

import math

import pytest
import torch

from tests.backbones.checks import check_mixer, close
from vidattn.backbones.mixers import FlowAttention, LightNetAttention
from vidattn.backbones.mixers.flow import flow_attention
from vidattn.backbones.mixers.lightnet import md_lrpe


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def framed(mix):
    def call(p, x, prefix=None):
        grid, before = x.shape[1:-1], 0 if prefix is None else prefix.shape[1]
        tokens = x.flatten(1, -2) if prefix is None else torch.cat([prefix, x.flatten(1, -2)], 1)
        out = mix(p, tokens, grid, before)
        mapped = out[:, before:].unflatten(1, grid)
        return (mapped, out[:, :before]) if before else mapped

    return call


def flow(q, k, v, bound):
    """All products as matrices over queries and keys."""
    e, queries, keys = 1e-6, q.shape[1], k.shape[1]
    q, k = sigmoid(q), sigmoid(k)

    def product(a, total):
        return ((a + e) * (total + e)).sum(-1, keepdim=True) + e

    incoming = product(q, k.sum(1, keepdim=True))
    outgoing = product(k, q.sum(1, keepdim=True))
    sinks = product(q, (k / outgoing).sum(1, keepdim=True))
    sources = product(k, (q / incoming).sum(1, keepdim=True))
    sources = torch.where(sources > bound, bound, sources).exp()
    share = (sources / sources.sum(1, keepdim=True))[..., 0].transpose(1, 2)[:, :, None]
    weights = torch.einsum("bihd,bjhd->bhij", q / incoming, k) * share * keys
    return sigmoid(sinks * queries / keys) * torch.einsum("bhij,bjhd->bihd", weights, v)


@pytest.mark.parametrize(
    ("grid", "prefix", "bound"), [((5, 3), 0, 5.0), ((2, 4), 2, 1.0), ((7,), 0, 5.0), ((2, 3, 2), 0, 1.0)]
)
def test_flow_attention_is_its_equations(grid, prefix, bound):
    def mix(p, tokens, grid, before):
        q, k, v = (
            t.unflatten(-1, (2, -1)) for t in (tokens @ p["qkv.weight"].T + p["qkv.bias"]).chunk(3, -1)
        )
        return flow(q, k, v, bound).flatten(-2) @ p["proj.weight"].T + p["proj.bias"]

    check_mixer(FlowAttention(8, 2, bound=bound), framed(mix), grid, prefix)


def test_cross_attention():
    """With three times as many queries as keys, some sources reach a bound of 3."""
    q = torch.randn(1, 9, 2, 4, dtype=torch.float64)
    k, v = torch.randn(2, 1, 3, 2, 4, dtype=torch.float64)
    close(flow_attention(q, k, v, 3.0), flow(q, k, v, 3.0), "cross-attention")
    assert not torch.allclose(flow(q, k, v, 3.0), flow(q, k, v, 50.0))


def phase(cell, size):
    """Of one token, channel by channel."""
    each = math.ceil(size / len(cell))
    phases = [t * 10000.0 ** (-2 * i / size) for t in cell for i in range(each)]
    return torch.tensor(phases[:size], dtype=torch.float64)


def lightnet(gate, lrpe, rank):
    def mix(p, tokens, grid, before):
        q, k, v = ((tokens @ p[f"{n}_proj.weight"].T).unflatten(-1, (2, -1)) for n in "qkv")
        q = q * sigmoid(q)
        k = k.exp() / k.exp().sum(1, keepdim=True)
        if lrpe:
            cells = [torch.zeros(len(grid)).tolist()] * before
            cells += torch.cartesian_prod(*map(torch.arange, grid)).reshape(-1, len(grid)).tolist()
            phases = torch.stack([phase(cell, q.shape[-1]) for cell in cells])
            turn = (phases[:, None] - phases).cos()
            weights = torch.einsum("bihd,bjhd,ijd->bhij", q, k, turn)
        else:
            weights = torch.einsum("bihd,bjhd->bhij", q, k)
        o = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(-2)
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p["g_norm.weight"]
        names = ["g_proj.0.weight", "g_proj.1.weight"] if rank else ["g_proj.weight"]
        g = tokens
        for name in names:
            g = g @ p[name].T
        return (o * (sigmoid(g) if gate == "sigmoid" else g * sigmoid(g))) @ p["o_proj.weight"].T

    return mix


@pytest.mark.parametrize(
    ("grid", "prefix", "gate", "lrpe", "rank"),
    [
        ((5, 3), 0, "sigmoid", True, None),
        ((2, 4), 2, "swish", True, 3),
        ((7,), 0, "sigmoid", False, None),
        ((2, 3, 2), 1, "swish", True, None),
    ],
)
def test_lightnet_is_its_equations(grid, prefix, gate, lrpe, rank):
    mixer = LightNetAttention(8, 2, expand_k=1.5, gate=gate, lrpe=lrpe, gate_rank=rank)
    check_mixer(mixer, framed(lightnet(gate, lrpe, rank)), grid, prefix)


def test_lightnet_is_the_last_state_of_the_additive_recurrence():
    k, v = torch.randn(2, 9, 4, dtype=torch.float64)
    total, state = torch.zeros(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    for key, value in zip(k, v, strict=True):
        decay = total / (total + key.exp())
        total = total + key.exp()
        state = decay[:, None] * state + (key.exp() / total)[:, None] * value
    close(k.softmax(0).T @ v, state, "state")


def test_positions_are_relative():
    """Products depend on the displacement only; odd sizes are cut."""
    q, k = torch.randn(2, 1, 1, 1, 5, dtype=torch.float64)
    a, b = (md_lrpe(t.expand(1, 12, 1, 5), (3, 4)) for t in (q, k))
    assert a.shape == (1, 12, 1, 10)
    products = torch.einsum("bihd,bjhd->ij", a, b)
    assert torch.allclose(products[0, 5], products[6, 11])
    assert not torch.allclose(products[0, 5], products[0, 1])


def test_they_compile_whole():
    x = torch.randn(1, 3, 4, 8)
    for mixer in (FlowAttention(8, 2), LightNetAttention(8, 2, lrpe=True)):
        torch.compiler.reset()
        compiled = torch.compile(mixer, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(x), mixer(x), atol=1e-6)
    torch.compiler.reset()


def test_bad_arguments():
    with pytest.raises(ValueError, match="bound=0"):
        FlowAttention(8, 2, bound=0)
    with pytest.raises(ValueError, match="gate='tanh'"):
        LightNetAttention(8, 2, gate="tanh")
    with pytest.raises(ValueError, match=r"expand_k=0\.1"):
        LightNetAttention(8, 2, expand_k=0.1)
