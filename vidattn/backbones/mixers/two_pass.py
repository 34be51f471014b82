"""The operator behind the linear mixers: keys and values are reduced to a state, then every query reads it.

With features f(q), f(k) and rotations R the state is S = mean_j R_j(f(k_j)) v_j^T. A query reads
R_i(f(q_i)) S, and its score is s_i = f(q_i) . mean_j f(k_j), without rotations. Mixers differ in the
features, and in how they combine the two and the mean value. All of it is in float32 (float64 for float64).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vidattn.linear import linear_attention


def elu1(x: Tensor) -> Tensor:
    """elu(x) + 1, which is positive."""
    return F.elu(x) + 1


def read(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query_i (mean_j key_j value_j^T) on (B, S, H, D), features as they are."""
    return linear_attention(query, key, value, feature_map="identity", normalize=False)


def score(query: Tensor, key: Tensor) -> Tensor:
    """query_i . mean_j key_j, as (B, S, H, 1)."""
    return torch.einsum("bshd,bhd->bsh", query, key.mean(1))[..., None]


def in_float(*tensors: Tensor) -> list[Tensor]:
    """The tensors in float32, or float64 where they are."""
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
