"""Activator's gated linear unit."""

import math

import pytest
import torch

from tests.backbones.checks import check_mixer
from vidattn.backbones.mixers import Activator


def activator(p, x, prefix=None):
    def layer(name, t):
        return t @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(t):
        t = (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return t * p["norm.weight"] + p["norm.bias"]

    def each(t):
        h = layer("gate_proj", t)
        return layer("proj", norm(h / 2 * (1 + torch.erf(h / math.sqrt(2)))) * norm(layer("value_proj", t)))

    return each(x) if prefix is None else (each(x), each(prefix))


@pytest.mark.parametrize(("grid", "prefix"), [((4, 2), 0), ((3, 5), 2), ((7,), 0)])
def test_the_mixer_is_its_equations(grid, prefix):
    check_mixer(Activator(4, 6), activator, grid, prefix)


def test_tokens_do_not_meet():
    mixer, x = Activator(4), torch.randn(1, 3, 4, 4)
    changed = x.clone()
    changed[0, 0, 0] += 1
    differs = (mixer(x) != mixer(changed)).any(-1)[0]
    assert differs.nonzero().tolist() == [[0, 0]]


def test_it_compiles():
    mixer, x = Activator(4), torch.randn(1, 3, 4, 4)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="eager")(x), mixer(x))
    torch.compiler.reset()


def test_bad_arguments():
    with pytest.raises(ValueError, match="hidden=0"):
        Activator(4, 0)
