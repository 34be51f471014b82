"""Token-aware pooling and the attention diversification loss."""

import math

import pytest
import torch

from tests.backbones.checks import check_mixer, close
from vidattn.backbones.mixers import TokenAwarePooling
from vidattn.backbones.mixers.tap import attention_diversification_loss


def shifted(x, di, dj):
    """x[i + di, j + dj], zeros outside the map."""
    out = torch.zeros_like(x)
    height, width = x.shape[1:3]
    for i in range(height):
        for j in range(width):
            if 0 <= i + di < height and 0 <= j + dj < width:
                out[:, i, j] = x[:, i + di, j + dj]
    return out


def tap(scales):
    def call(p, x):
        taps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]

        def conv(name, t):
            kernel = p[f"dilation_predictor.proj.{name}.weight"]
            return sum(shifted(t, i, j) @ kernel[:, :, i + 1, j + 1].T for i, j in taps)

        at = "dilation_predictor.proj.1"
        z = conv(0, x) - p[f"{at}.running_mean"]
        z = z / (p[f"{at}.running_var"] + 1e-5).sqrt() * p[f"{at}.weight"] + p[f"{at}.bias"]
        w = conv(2, z).exp()
        w = w / w.sum(-1, keepdim=True)
        means = [x] + [sum(shifted(x, k * i, k * j) for i, j in taps) / 9 for k in range(1, scales)]
        return sum(w[..., k, None] * mean for k, mean in enumerate(means))

    return call


@pytest.mark.parametrize(("grid", "scales"), [((4, 6), 4), ((5, 3), 4), ((3, 3), 2), ((2, 5), 3)])
def test_the_pooling_is_its_equations(grid, scales):
    check_mixer(TokenAwarePooling(3, scales), tap(scales), grid)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_loss_is_its_equations(batch):
    logits = [torch.randn(batch, 2, n, n, dtype=torch.float64, requires_grad=True) for n in (5, 8)]
    attentions = [t.softmax(-1) for t in logits]
    cosines = []
    for attention in attentions:
        n, layer = attention.shape[-1], []
        for sample in attention.mean(1):
            cut = [[v if v > 0.7 / n else v * 0 for v in row] for row in (sample.mean(0), *sample)]
            for row in cut[1:]:
                top = sum(a * b for a, b in zip(cut[0], row, strict=True))
                layer.append(top / torch.sqrt(sum(a * a for a in cut[0]) * sum(a * a for a in row)))
        cosines.append(sum(layer) / len(layer))
    expected = sum(cosines) / 2
    found = attention_diversification_loss(attentions, 0.7)
    close(found.detach(), expected.detach(), "loss")
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True) for loss in (found, expected)]
    for got, wanted in zip(*gradients, strict=True):
        close(got, wanted, "gradient")


def test_the_ends_of_the_loss():
    same = torch.zeros(1, 1, 8, 8)
    same[..., 3] = 1
    assert attention_diversification_loss([same]).item() == pytest.approx(1)
    # the mean has every entry at 1 / 8 and nothing over 2 / 8
    assert attention_diversification_loss([torch.eye(8)[None, None]]).item() == 0
    assert attention_diversification_loss([torch.eye(8)[None, None]], 0).item() == pytest.approx(
        1 / math.sqrt(8)
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match="scales=0"):
        TokenAwarePooling(4, 0)
    with pytest.raises(ValueError, match="grid of 1 axes"):
        TokenAwarePooling(4)(torch.randn(1, 4, 4))
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        attention_diversification_loss([torch.eye(4)])
    with pytest.raises(ValueError, match="threshold=-1"):
        attention_diversification_loss([torch.eye(4)[None, None]], -1)
