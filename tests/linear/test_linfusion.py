"""LinFusionAttention against the published equations, restated here in float64."""

import pytest
import torch
from diffusers.models.attention_processor import Attention

from vidattn.linear import LinFusionAttention


def by_equation(module, x):
    """The equations token by token and head by head; parameters under their published names."""
    p = {k: v.double() for k, v in module.state_dict().items()}
    x = x.double()

    def f(name, t):
        if f"{name}.0.weight" not in p:
            return t
        h = t @ p[f"{name}.0.weight"].T + p[f"{name}.0.bias"]
        mean, var = h.mean(-1, keepdim=True), h.var(-1, unbiased=False, keepdim=True)
        h = (h - mean) / (var + 1e-5).sqrt() * p[f"{name}.1.weight"] + p[f"{name}.1.bias"]
        h = torch.where(h > 0, h, 0.01 * h)
        return h @ p[f"{name}.3.weight"].T + p[f"{name}.3.bias"]

    q = (x + f("to_q_", x)) @ p["to_q.weight"].T
    k = (x + f("to_k_", x)) @ p["to_k.weight"].T
    v = x @ p["to_v.weight"].T
    tokens, dim = x.shape[1], x.shape[2] // module.num_heads
    phi = lambda z: torch.where(z > 0, z + 1, z.exp())  # noqa: E731
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for h in range(module.num_heads):
            part = slice(h * dim, (h + 1) * dim)
            fq, fk = phi(q[b, :, part]), phi(k[b, :, part])
            state, norm = torch.zeros(dim, dim).double(), torch.zeros(dim).double()
            for i in range(tokens):
                state += torch.outer(fk[i], v[b, i, part]) / tokens
                norm += fk[i] / tokens
            out[b, :, part] = fq @ state / (fq @ norm + 1e-4)[:, None]
    return out @ p["to_out.0.weight"].T + p["to_out.0.bias"]


@pytest.mark.parametrize("mid_dim", [None, 3, -1])
def test_equals_the_equations(mid_dim):
    module = LinFusionAttention(24, 3, mid_dim)
    x = torch.randn(2, 17, 24, requires_grad=True)
    expected = by_equation(module, x)
    torch.testing.assert_close(module(x).double(), expected, rtol=0, atol=1e-6)
    probe = torch.randn(2, 17, 24)
    got, wanted = (torch.autograd.grad((y * probe).sum(), x)[0] for y in (module(x), expected))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_names_and_shapes_are_the_published_ones():
    shapes = {k: tuple(v.shape) for k, v in LinFusionAttention(8, 2, 3).state_dict().items()}
    network = {"0.weight": (3, 8), "0.bias": (3,), "1.weight": (3,), "1.bias": (3,)}
    network |= {"3.weight": (8, 3), "3.bias": (8,)}
    expected = {f"{n}.{k}": v for n in ("to_q_", "to_k_") for k, v in network.items()}
    expected |= {f"{n}.weight": (8, 8) for n in ("to_q", "to_k", "to_v", "to_out.0")} | {
        "to_out.0.bias": (8,)
    }
    assert shapes == expected
    assert "to_q_.0.weight" not in LinFusionAttention(8, 2, -1).state_dict()


def test_the_identity_form_sees_twice_the_input():
    module = LinFusionAttention(8, 2, -1)
    other = LinFusionAttention(8, 2, 4)
    with torch.no_grad():
        other.zero_()
        for name, parameter in module.named_parameters():
            twice = name in ("to_q.weight", "to_k.weight")
            other.get_parameter(name).copy_(2 * parameter if twice else parameter)
    x = torch.randn(1, 5, 8)
    torch.testing.assert_close(module(x), other(x))


@pytest.mark.parametrize("out_bias", [True, False])
def test_starts_from_a_pretrained_layer(out_bias):
    attn = Attention(query_dim=16, heads=2, dim_head=8, out_bias=out_bias).double()
    module = LinFusionAttention.from_pretrained_attention(attn)
    for mine, theirs in ((module.to_q, attn.to_q), (module.to_k, attn.to_k), (module.to_v, attn.to_v)):
        assert torch.equal(mine.weight, theirs.weight)
        assert mine.weight.data_ptr() != theirs.weight.data_ptr()
    x = torch.randn(1, 6, 16).double()
    assert module.to_q_(x).abs().max() == module.to_k_(x).abs().max() == 0
    torch.testing.assert_close(module(x), by_equation(module, x))
    assert module(x).dtype == torch.float64


def test_float16_holds_a_million_large_tokens():
    module = LinFusionAttention(4, 1, -1)
    with torch.no_grad():
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            module.get_submodule(name).weight.copy_(torch.eye(4))
        module.to_out[0].bias.zero_()
    x = torch.full((1, 1_000_000, 4), 1e3, dtype=torch.float16)
    x[:, ::2] = -1e3  # phi is 0 there, 1001 or 2001 elsewhere: the state would be 1e12 without the mean
    out = module.half()(x)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out[0, 1].float(), torch.full((4,), 1e3), rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LinFusionAttention(8, 3), "num_heads=3: must be a divisor of dim=8"),
        (lambda: LinFusionAttention(8, 2, 0), "mid_dim=0"),
        (lambda: LinFusionAttention(8, 2)(torch.zeros(1, 8)), r"hidden_states has shape \(1, 8\)"),
        (
            lambda: LinFusionAttention.from_pretrained_attention(
                Attention(8, heads=2, dim_head=4, bias=True)
            ),
            "to_q of the layer has a bias",
        ),
        (
            lambda: LinFusionAttention.from_pretrained_attention(Attention(8, 6, heads=2, dim_head=4)),
            r"to_k of the layer has shape \(8, 6\)",
        ),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_compiles_without_a_break():
    module = LinFusionAttention(8, 2, 4)
    x = torch.randn(1, 6, 8)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="eager")(x), module(x))
