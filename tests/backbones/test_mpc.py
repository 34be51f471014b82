"""MPCViT's normalizers and the search among heads."""

import pytest
import torch

from tests.backbones.checks import check_mixer
from vidattn.backbones.mixers import MPCAttention, TokenAwarePooling
from vidattn.backbones.mixers.mpc import settle_heads


def mpc(heads, kind):
    def call(p, x, prefix=None):
        grid, before = x.shape[1:-1], 0 if prefix is None else prefix.shape[1]
        tokens = x.flatten(1, -2) if prefix is None else torch.cat([prefix, x.flatten(1, -2)], 1)
        q, k, v = (tokens @ p["qkv.weight"].T).unflatten(-1, (3, heads, -1)).unbind(2)
        s = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
        positive = torch.where(s > 0, s, 0)
        weights = {
            "softmax": s.exp() / s.exp().sum(-1, keepdim=True),
            "relu": positive / (positive.sum(-1, keepdim=True) + 1e-5),
            "scale": s / s.shape[-1],
        }
        if kind == "search":
            a = p["alpha"][:, None, None]
            mixed = a * weights["relu"] + (1 - a) * weights["scale"]
        else:
            mixed = weights[kind]
        out = torch.einsum("bhij,bjhd->bihd", mixed, v).flatten(-2) @ p["proj.weight"].T + p["proj.bias"]
        mapped = out[:, before:].unflatten(1, grid)
        return mapped if prefix is None else (mapped, out[:, :before])

    return call


@pytest.mark.parametrize("kind", ["softmax", "relu", "scale", "search"])
@pytest.mark.parametrize(("grid", "prefix"), [((4, 6), 0), ((5, 3), 1), ((7,), 0)])
def test_the_mixer_is_its_equations(kind, grid, prefix):
    check_mixer(MPCAttention(8, 2, normalizer=kind), mpc(2, kind), grid, prefix)


def test_the_search_is_over_all_layers_together():
    mixers = [MPCAttention(8, 2), MPCAttention(12, 3)]
    for mixer, values in zip(mixers, ([0.9, 0.1], [0.2, 0.8, 0.3]), strict=True):
        mixer.alpha.data = torch.tensor(values)
    settle_heads(mixers, 0.6)
    assert [mixer.alpha.tolist() for mixer in mixers] == [[1, 0], [0, 1, 1]]
    assert not any(mixer.alpha.requires_grad for mixer in mixers)


def test_settled_heads_are_of_one_kind():
    mixer, x = MPCAttention(8, 2).double(), torch.randn(1, 3, 4, 8, dtype=torch.float64)
    for share, kind in ((1, "relu"), (0, "scale")):
        settle_heads([mixer], share)
        plain = MPCAttention(8, 2, normalizer=kind).double()
        plain.load_state_dict({k: v for k, v in mixer.state_dict().items() if k != "alpha"})
        assert torch.allclose(mixer(x), plain(x))


def test_they_compile():
    x = torch.randn(1, 5, 6, 8)
    for module in (MPCAttention(8, 2), TokenAwarePooling(8).eval()):
        torch.compiler.reset()
        found = torch.compile(module, fullgraph=True, backend="eager")(x)
        torch.testing.assert_close(found, module(x))
    torch.compiler.reset()


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"normalizer='rellu'.*'relu'"):
        MPCAttention(8, 2, normalizer="rellu")
    with pytest.raises(ValueError, match="fraction=2"):
        settle_heads([MPCAttention(8, 2)], 2)
    with pytest.raises(ValueError, match="normalizer='search'"):
        settle_heads([MPCAttention(8, 2, normalizer="relu")], 0.5)
