"""Rank-augmented linear attention (RALA, Fan et al., arXiv 2411.07635)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vidattn.backbones.mixers.gated import GatedMixer, Turn, relevance
from vidattn.backbones.mixers.two_pass import elu1, in_float, read, score


class RALA(GatedMixer):
    """Linear attention with keys weighted by their relevance to the mean query, and a gate on the output.

    With f = elu + 1 and a = softmax over the keys j of (mean_i f(q_i) . f(k_j) / sqrt(D)), the keys are
    N a_j f(k_j); attention is normalised by the sum of the scores without rotations, plus 1e-6.

    Args:
        dim: channels.
        num_heads: heads.
        kv_weighting: weight the keys; without it this is plain gated linear attention.
        **options: see :class:`vidattn.backbones.mixers.gated.GatedMixer`.

    Raises:
        ValueError: sizes out of range.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, kv_weighting: bool = True, **options: Any) -> None:
        super().__init__(dim, num_heads, **options)
        self.kv_weighting = kv_weighting

    def core(self, q: Tensor, k: Tensor, v: Tensor, turn: Turn) -> Tensor:
        """See the class."""
        dtype = v.dtype
        q, k, v = in_float(q, k, v)
        q, k = elu1(q), elu1(k)
        if self.kv_weighting:
            k = k * (relevance(q, k) * k.shape[1])
        return (read(turn(q), turn(k), v) / (score(q, k) + 1e-6)).to(dtype)
