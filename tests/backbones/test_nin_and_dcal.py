"""NiNformer's gate, and DCAL's two attentions."""

import math

import pytest
import torch

from tests.backbones.checks import check_mixer, close, randomized, softmax_attention
from vidattn.backbones.mixers import GlobalLocalCrossAttention, NiNGate, PairwiseCrossAttention
from vidattn.backbones.mixers.dcal import attention_rollout


def nin(p, x):
    def layer(name, t):
        return t @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name, t):
        t = (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return t * p[f"{name}.weight"] + p[f"{name}.bias"]

    def mlp(name, t):
        h = layer(f"{name}.fc1", t)
        return layer(f"{name}.fc2", h / 2 * (1 + torch.erf(h / math.sqrt(2))))

    n = x.flatten(1, -2)
    a = n + mlp("token_mlp", norm("token_norm", n).mT).mT
    m = a + mlp("channel_mlp", norm("channel_norm", a))
    return (layer("linear", n) * m).reshape(x.shape)


@pytest.mark.parametrize("grid", [(4, 2), (3, 5), (7,)])
def test_the_gate_is_its_equations(grid):
    check_mixer(NiNGate(4, math.prod(grid), 6), nin, grid)


def projected(p, tokens):
    qkv = (tokens @ p["qkv.weight"].T + p["qkv.bias"]).unflatten(-1, (3, 2, -1))
    return qkv.unbind(2)


class Distracted(torch.nn.Module):
    """Pair-wise attention as a module of one map: two images one above the other."""

    def __init__(self, mixer):
        super().__init__()
        self.mixer, self.dim = mixer, mixer.dim

    def forward(self, x):
        return self.mixer.pairwise(x[:, :3], x[:, 3:])


def test_pair_wise_attention_is_its_equations():
    def call(p, x):
        p = {k.removeprefix("mixer."): v for k, v in p.items()}
        q, k, v = projected(p, x)
        out = softmax_attention(q[:, :3], k, v, 0.5).flatten(-2)
        return out @ p["proj.weight"].T + p["proj.bias"]

    check_mixer(Distracted(PairwiseCrossAttention(8, 2)), call, (7,))


@pytest.mark.parametrize(("grid", "ratio", "count"), [((3, 5), 0.3, 4), ((4, 2), 0.1, 1)])
def test_the_selected_tokens_attend_to_all(grid, ratio, count):
    mixer = randomized(GlobalLocalCrossAttention(8, 2, ratio=ratio))
    x, prefix = torch.randn(2, *grid, 8).double().requires_grad_(), torch.randn(2, 2, 8).double()
    size = 2 + math.prod(grid)
    attentions = [torch.randn(2, 3, size, size).double().softmax(-1) for _ in range(3)]
    found, chosen = mixer.select(x, prefix, attentions)
    tokens, eye = torch.cat([prefix, x.flatten(1, -2)], 1), torch.eye(size).double()
    rolled = [a.mean(1) / 2 + eye / 2 for a in attentions]
    rolled = rolled[2] @ rolled[1] @ rolled[0]
    close(attention_rollout(attentions), rolled, "rollout")
    p = dict(mixer.named_parameters())
    q, k, v = projected(p, tokens)
    full = softmax_attention(q, k, v, 0.5).flatten(-2) @ p["proj.weight"].T + p["proj.bias"]
    picked = []
    for b in range(2):
        order = sorted(range(2, size), key=lambda n, b=b: -rolled[b, 0, n].item())[:count]
        assert [n - 2 for n in order] == chosen[b].tolist()
        picked.append(full[b, [0, *order]])
    expected = torch.stack(picked)
    close(found.detach(), expected.detach(), "tokens")
    weights = torch.randn_like(found)
    gradients = [
        torch.autograd.grad((t * weights).sum(), [x, *p.values()], retain_graph=True)
        for t in (found, expected)
    ]
    for got, wanted in zip(*gradients, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-6, atol=1e-10)


def test_they_compile():
    x, attention = torch.randn(1, 3, 4, 8), [torch.randn(1, 2, 13, 13).softmax(-1)]
    select, gate = GlobalLocalCrossAttention(8, 2), NiNGate(8, 12)
    pair = PairwiseCrossAttention(8, 2)
    calls = [
        (gate, (x,)),
        (select.select, (x, x[:, 0, :1], attention)),
        (pair.pairwise, (x[:, 0], x[:, 1])),
    ]
    for call, inputs in calls:
        torch.compiler.reset()
        torch.testing.assert_close(
            torch.compile(call, fullgraph=True, backend="eager")(*inputs), call(*inputs)
        )
    torch.compiler.reset()


def test_bad_arguments():
    x = torch.randn(1, 3, 4, 8)
    with pytest.raises(ValueError, match="num_tokens=0"):
        NiNGate(8, 0)
    with pytest.raises(ValueError, match=r"\(3, 4\): must have num_tokens=9"):
        NiNGate(8, 9)(x)
    with pytest.raises(ValueError, match="ratio=0"):
        GlobalLocalCrossAttention(8, 2, ratio=0)
    with pytest.raises(ValueError, match="attentions has shapes"):
        attention_rollout([])
    with pytest.raises(ValueError, match=r"must be \(1, 13\)"):
        GlobalLocalCrossAttention(8, 2).select(x, x[:, 0, :1], [torch.eye(5)[None, None]])
    with pytest.raises(ValueError, match="one batch"):
        PairwiseCrossAttention(8, 2).pairwise(torch.randn(2, 3, 8), torch.randn(1, 3, 8))
