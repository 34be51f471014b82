"""Attention inside clusters."""

import math

import pytest
import torch

from tests.backbones.checks import check_mixer, close, randomized
from vidattn.backbones.mixers import ClusteredAttention


def sphere(t):
    return (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def nearest(t, centroid, window):
    return sorted(range(len(t)), key=lambda n: -(sphere(t[n]) @ centroid).item())[:window]


def routing(heads, clusters, window):
    """Sample by sample, head by head, cluster by cluster."""

    def call(p, x):
        tokens = x.flatten(1, -2)
        count = tokens.shape[1]
        size = min(count, window or math.ceil(count / clusters))
        qkv = (tokens @ p["qkv.weight"].T + p["qkv.bias"]).unflatten(-1, (3, heads, -1))
        samples = []
        for sample in qkv:
            outs = []
            for h in range(heads):
                q, k, v = sample[:, :, h].unbind(1)
                found = [[] for _ in range(count)]
                for c in range(clusters):
                    keys = nearest(k, p["means"][h, c], size)
                    for n in nearest(q, p["means"][h, c], size):
                        weights = (k[keys] @ q[n] / q.shape[-1] ** 0.5).softmax(0)
                        found[n].append(weights @ v[keys])
                outs.append(torch.stack([sum(f) / len(f) if f else v[0] * 0 for f in found]))
            samples.append(torch.cat(outs, -1))
        out = torch.stack(samples) @ p["proj.weight"].T + p["proj.bias"]
        return out.unflatten(1, x.shape[1:-1])

    return call


@pytest.mark.parametrize(
    ("grid", "clusters", "window"),
    [((4, 4), 4, None), ((5, 3), 4, None), ((7,), 2, 2), ((2, 3, 2), 3, 9), ((3,), 2, 8)],
)
def test_the_mixer_is_its_equations(grid, clusters, window):
    mixer = ClusteredAttention(8, 2, num_clusters=clusters, window=window)
    check_mixer(mixer, routing(2, clusters, window), grid)


def test_one_cluster_is_attention_of_all():
    mixer = randomized(ClusteredAttention(8, 2, num_clusters=1))
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    q, k, v = mixer.qkv(x).flatten(1, 2).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(mixer(x), mixer.proj(out))


def test_an_update_moves_centroids_to_their_members():
    mixer = randomized(ClusteredAttention(6, 2, num_clusters=2, ema=0.9))
    x, before = torch.randn(3, 5, 6, dtype=torch.float64), mixer.means.clone()
    qkv = mixer.qkv(x).detach().unflatten(-1, (3, 2, 3))
    expected = torch.empty_like(before)
    for h in range(2):
        for c in range(2):
            members = [
                sphere(sample[n, kind, h])
                for sample in qkv
                for kind in (0, 1)
                for n in nearest(sample[:, kind, h], before[h, c], 3)
            ]
            expected[h, c] = 0.9 * before[h, c] + 0.1 * sum(members) / len(members)
    mixer.update(x)
    close(mixer.means, expected, "centroids")


def test_it_compiles():
    mixer, x = ClusteredAttention(8, 2), torch.randn(1, 5, 6, 8)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(mixer, fullgraph=True, backend="eager")(x), mixer(x))
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_clusters": 0}, "num_clusters=0"), ({"window": 0}, "window=0"), ({"ema": 2}, "ema=2")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClusteredAttention(8, 2, **arguments)
