"""SVG2's clusters: k-means, the block map, and tiles over ordered tokens, in plain loops."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.patterns.exact import assert_exact, tensors
from vidattn import TokenLayout, attention
from vidattn.patterns import SemanticClusters
from vidattn.patterns.clusters import cluster


def test_k_means_finds_what_is_apart_and_is_a_fixed_point():
    make = torch.Generator().manual_seed(2)
    centres = torch.randn(2, 5, 6, generator=make, dtype=torch.float64) * 20
    owner = torch.arange(40) % 5
    tokens = centres[:, owner] + torch.randn(2, 40, 6, generator=make, dtype=torch.float64)
    labels, means, sizes = cluster(tokens, 5, 8)
    for item in range(2):
        assert len({(int(a), int(b)) for a, b in zip(labels[item], owner, strict=True)}) == 5
        for one in range(5):
            inside = tokens[item, labels[item] == one]
            assert sizes[item, one] == len(inside) == 8
            torch.testing.assert_close(means[item, one], inside.mean(0))
    distances = torch.cdist(tokens, means)
    assert torch.equal(distances.argmin(-1), labels)


def test_more_clusters_than_tokens_and_equal_tokens():
    labels, _, sizes = cluster(torch.ones(1, 4, 3), 9, 3)
    assert labels.tolist() == [[0, 0, 0, 0]]
    assert sizes.tolist() == [[4, 0, 0, 0]]


def tile_pairs(pattern, query, key, scale):
    """Orders, and for each query tile its key tiles with the share that their kept clusters hold."""
    (rows, row_means, _), (columns, column_means, sizes) = (
        [t[0] for t in cluster(x[None], n, pattern.iterations)]
        for x, n in ((query, pattern.queries), (key, pattern.keys))
    )
    kept = {}
    for a in range(len(row_means)):
        weights = [
            float(n) * math.exp(float(row_means[a] @ m) * scale)
            for m, n in zip(column_means, sizes, strict=True)
        ]
        ranks, held = sorted(range(len(weights)), key=lambda b: -weights[b]), 0.0
        for rank, b in enumerate(ranks):
            if weights[b] and (held < pattern.mass or rank < math.ceil(pattern.least * len(weights))):
                kept[a, b] = weights[b] / sum(weights)
            held += weights[b] / sum(weights)
    orders = [sorted(range(len(x)), key=lambda i: (int(x[i]), i)) for x in (rows, columns)]
    cuts = [[o[i : i + pattern.tile] for i in range(0, len(o), pattern.tile)] for o in orders]

    def spans(labels, tokens):
        return range(int(labels[tokens[0]]), int(labels[tokens[-1]]) + 1)

    table = []
    for own in cuts[0]:
        shares = {}
        for number, other in enumerate(cuts[1]):
            pairs = [(a, b) for a in spans(rows, own) for b in spans(columns, other) if (a, b) in kept]
            if pairs:
                shares[number] = sum(kept[p] for p in pairs)
        table.append((own, shares))
    return table, cuts[1]


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_tiles_hold_the_kept_clusters(keep):
    layout = TokenLayout((3, 4, 3), 1, 1)
    pattern = SemanticClusters(4, 7, mass=0.6, least=0.3, keep=keep, tile=5, iterations=3)
    query, key, _ = inputs = tensors(layout, batch=1, heads=2, key_heads=1)
    mask = pattern.mask_for(query, key, layout)
    assert mask[..., 0].all()
    assert mask[..., -1, :].all()
    slots = math.ceil(keep * 8)
    for head in range(2):
        table, others = tile_pairs(pattern, query[0, 1:-1, head].detach(), key[0, 1:-1, 0].detach(), 12**-0.5)
        expected = torch.zeros(36, 36, dtype=torch.bool)
        for own, shares in table:
            for number in sorted(shares, key=lambda n: -shares[n])[:slots]:
                expected[torch.tensor(own)[:, None], torch.tensor(others[number])] = True
        assert torch.equal(mask[0, head, 1:-1, 1:-1], expected)
    assert_exact(pattern, layout, inputs, mask)


def test_ragged_padded_and_grouped():
    layout = TokenLayout((2, 5, 5), 1, 2, text_valid=(3, 1))
    pattern = SemanticClusters(5, 6, keep=0.5, tile=8, iterations=2)
    scale = torch.tensor([0.1, 0.7, 0.3, 0.2], dtype=torch.float64).requires_grad_()
    inputs = tensors(layout)
    mask = pattern.mask_for(*inputs[:2], layout, scale=scale)
    assert_exact(pattern, layout, inputs, mask, scale=scale)
    assert pattern.density(layout) >= mask.double().mean().item()


def test_one_graph_that_waits_for_nothing():
    layout = TokenLayout((2, 5, 5), 2)
    pattern = SemanticClusters(5, 6, keep=0.5, tile=8, iterations=2)
    inputs = [t.detach().float() for t in tensors(layout)]
    call = torch.compile(lambda *x: attention(*x, pattern, layout), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(call(*inputs), attention(*inputs, pattern, layout))
    with FakeTensorMode():
        x = torch.empty(2, layout.tokens, 4, 8)
        measured = pattern.measure(x, x, x, layout)
    assert [(tuple(t.shape), t.dtype) for t in measured] == pattern.measured(2, 4, layout.grid)


@pytest.mark.parametrize(
    "options", [{"queries": 0}, {"tile": 1.5}, {"mass": 0}, {"least": -1}, {"keep": True}]
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        SemanticClusters(**options)
