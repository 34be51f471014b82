"""Token-aware average pooling and the attention diversification loss (TAP and ADL, Guo et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidattn.backbones.layers.conv import BatchNorm2d, Conv2d
from vidattn.backbones.mixers.base import Mixer


class TokenAwarePooling(Mixer):
    """Every token becomes a mixture of itself and of means around it, in proportions of its own.

    x' = sum over k of w_k * P_k(x): P_0(x) = x, P_k(x) the mean of 3x3 tokens at distance k with zeros, which
    count, outside the map; w = softmax over k of conv3(BN(conv3(x))). It stands in front of an attention's
    norm, and the residual takes x: x + attention(LN(x')).

    Args:
        dim: channels.
        scales: number of mixed maps, x itself among them.

    Raises:
        ValueError: ``scales`` is under 1.
    """

    takes_prefix = False

    def __init__(self, dim: int, scales: int = 4) -> None:
        super().__init__(dim, 1)
        if scales < 1:
            raise ValueError(f"scales={scales}: must be at least 1")
        self.scales = scales
        proj = nn.Sequential(
            Conv2d(dim, scales, 3, padding=1, bias=False),
            BatchNorm2d(scales),
            Conv2d(scales, scales, 3, padding=1, bias=False),
        )
        self.dilation_predictor = nn.ModuleDict({"proj": proj})

    def mix(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """See the class."""
        if x.ndim != 4:
            raise ValueError(f"x has a grid of {x.ndim - 2} axes: must be 2")
        weights = self.dilation_predictor["proj"](x).softmax(-1)
        image, mean = x.movedim(-1, 1), x.new_full((self.dim, 1, 3, 3), 1 / 9)
        out = x * weights[..., :1]
        for k in range(1, self.scales):
            pooled = F.conv2d(image, mean, padding=k, dilation=k, groups=self.dim)
            out = out + pooled.movedim(1, -1) * weights[..., k : k + 1]
        return out


def attention_diversification_loss(attentions: Sequence[Tensor], threshold: float = 2.0) -> Tensor:
    """Mean cosine between the attention of each query and the mean over all queries.

    Per layer: A is the mean over the heads, and a the mean of its rows; entries of both that are at most
    ``threshold / N`` become 0. The loss is the mean of cos(a, A_i) over layers, samples and queries. A row
    with nothing left counts as 0. Add it to the task's loss, by the authors with factor 1.

    Args:
        attentions: weights (B, H, N, N) per layer; rows sum to 1.
        threshold: over N.

    Raises:
        ValueError: no layers, another shape, or a negative threshold.
    """
    if not attentions or any(a.ndim != 4 for a in attentions):
        raise ValueError(
            f"attentions has shapes {[tuple(a.shape) for a in attentions]}: must be (B, H, N, N)"
        )
    if threshold < 0:
        raise ValueError(f"threshold={threshold}: must be at least 0")
    losses = []
    for attention in attentions:
        rows = attention.mean(1)
        means = rows.mean(1, keepdim=True)
        least = threshold / rows.shape[-1]
        kept = [torch.where(t > least, t, torch.zeros_like(t)) for t in (means, rows)]
        losses.append(F.cosine_similarity(kept[0], kept[1], dim=-1).mean())
    return torch.stack(losses).mean()
