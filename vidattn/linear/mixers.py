"""Modules that stand in for softmax attention once q, k and v are there: (B, S, H, D) to (B, S, H, D).

All know the layout: padding of the text (``text_valid``) is not summed, and text tokens keep what patterns
promise them, where a module has a pattern.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidattn.attention import attention
from vidattn.layout import TokenLayout
from vidattn.linear.feature_maps import FeatureMap
from vidattn.linear.functional import linear_attention
from vidattn.patterns import Full, Groups, Pattern
from vidattn.patterns.boxes import box_tokens
from vidattn.patterns.sizes import Size

GATES = ("none", "headwise", "elementwise")
_EPS = 1e-12


def real_keys(layout: TokenLayout, key: Tensor) -> Tensor | None:
    """bool (B, S): which keys are not padding; None when all are real."""
    if layout.text_valid is None:
        return None
    valid = layout.text_valid_tensor(key.shape[0], key.device)
    return None if valid is None else layout.real_keys(valid)


def without_padding(features: Tensor, layout: TokenLayout) -> Tensor:
    """Key features (B, S, H, F) with zeros at padding, which then adds nothing to any sum."""
    real = real_keys(layout, features)
    return features if real is None else features * real[:, :, None, None]


class FeatureMapAttention(nn.Module):
    """Linear attention over all tokens with a feature map, each for queries and for keys.

    y_i = phi_q(q_i) . sum_j phi_k(k_j) v_j^T / (phi_q(q_i) . sum_j phi_k(k_j) + eps), in float32.

    Args:
        num_heads: H.
        head_dim: D.
        feature_map: kind of :class:`FeatureMap`.
    """

    def __init__(self, num_heads: int, head_dim: int, feature_map: str = "hedgehog") -> None:
        super().__init__()
        self.feature_map_q = FeatureMap(feature_map, num_heads, head_dim)
        self.feature_map_k = FeatureMap(feature_map, num_heads, head_dim)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, scale: float | None = None
    ) -> Tensor:
        """The scale is softmax attention's and is not used: feature maps have their own."""
        features = without_padding(self.feature_map_k(key), layout)
        mapped = self.feature_map_q(query)
        out = linear_attention(mapped, features, value.to(mapped.dtype), feature_map="identity", eps=_EPS)
        return out.to(query.dtype)


class HybridLinearAttention(nn.Module):
    """LoLCATs' hybrid (Zhang et al., arXiv 2410.10254) on a grid: softmax among near tokens, linear attention
    for the rest, normalised together.

    With S(i) the tokens of the groups around i's (and all text) and T(i) the others::

        out_i = (g sum_S e^(l_ij - m_i) v_j + a sum_T phi(q_i).phi(k_j) v_j) / (the same without v)

    g = sigmoid(window_factors) per head, which starts at 0.1, and a = 1, or 1 - g when ``affine``. The paper
    takes m_i as the greatest l_ij in S(i); here it is their log-sum-exp, so that the first sum of the
    denominator is g. That sum over T is the sum over all groups less that over the near ones, so the
    cost grows with the tokens. Text queries see all tokens by softmax.

    Args:
        num_heads: H.
        head_dim: D.
        size: of a group, as ``Groups`` takes it.
        reach: how many groups away are still near, on each axis.
        feature_map: kind of :class:`FeatureMap`.
        affine: see above.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        size: Size = (1, 8, 8),
        reach: int = 1,
        feature_map: str = "hedgehog",
        affine: bool = False,
    ) -> None:
        super().__init__()
        self.pattern = Groups(size, region="blocks", reach=reach)
        self.affine = affine
        self.feature_map_q = FeatureMap(feature_map, num_heads, head_dim)
        self.feature_map_k = FeatureMap(feature_map, num_heads, head_dim)
        self.window_factors = nn.Parameter(torch.full((num_heads,), -2.197))

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, scale: float | None = None
    ) -> Tensor:
        """``scale`` is that of the softmax part."""
        near = attention(query, key, value, self.pattern, layout, scale=scale)
        assert isinstance(near, Tensor)
        part = slice(layout.text_before, layout.text_before + layout.grid_tokens)
        numerator, denominator = self._far(query[:, part], key[:, part], value[:, part], layout)
        gamma = self.window_factors.to(numerator.dtype).sigmoid()[:, None]
        alpha = 1 - gamma if self.affine else torch.ones_like(gamma)
        mixed = gamma * near[:, part].to(numerator.dtype) + alpha * numerator
        mixed = (mixed / (gamma + alpha * denominator)).to(query.dtype)
        return torch.cat([near[:, : part.start], mixed, near[:, part.stop :]], 1)

    def _far(self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
        """Sums over T of phi(q_i).phi(k_j) v_j, (B, N, H, D), and without v, (B, N, H, 1)."""
        box = self.pattern.group_size(layout.grid)
        tokens, real = box_tokens(layout.grid, box, query.device)
        q, k = self.feature_map_q(query), self.feature_map_k(key)
        ones = value.new_ones(*value.shape[:-1], 1)
        v = torch.cat([value, ones], -1).to(k.dtype)
        boxed = [t[:, tokens] for t in (q, k, v)]  # (B, boxes, tokens of a box, H, features)
        boxed[1] = boxed[1] * real[:, :, None, None]
        states = torch.einsum("bnthf,bnthd->bnhfd", boxed[1], boxed[2])
        counts = [-(-n // b) for n, b in zip(layout.grid, box, strict=True)]
        far = states.sum(1, keepdim=True) - _sum_near(states, counts, self.pattern.reach)
        out = torch.einsum("bnthf,bnhfd->bnthd", boxed[0], far)
        # where each token stands among the boxes; places behind the grid's end sort last
        order = torch.where(real, tokens, layout.grid_tokens).flatten().argsort()[: layout.grid_tokens]
        flat = out.flatten(1, 2).index_select(1, order)
        return flat[..., :-1], flat[..., -1:].clamp(min=0)


def _sum_near(states: Tensor, counts: list[int], reach: int) -> Tensor:
    """Sums over the boxes at most ``reach`` away on each axis: (B, boxes, ...) to the same."""
    grid = states.unflatten(1, counts)
    for axis in (1, 2, 3):
        total = grid.cumsum(axis)
        place = torch.arange(grid.shape[axis], device=grid.device)
        upper = (place + reach).clamp(max=grid.shape[axis] - 1)
        lower = place - reach - 1
        below = total.index_select(axis, lower.clamp(min=0))
        shape = [1] * grid.ndim
        shape[axis] = -1
        grid = total.index_select(axis, upper) - below * (lower >= 0).view(shape)
    return grid.flatten(1, 3)


class SparseLinearAttention(nn.Module):
    """SLA (Zhang et al., arXiv 2509.24006): sparse softmax attention plus linear attention over all keys, the
    latter through a projection that starts at zero, so that at first only the sparse part is there.

    Args:
        num_heads: H.
        head_dim: D.
        pattern: of the sparse part; SLA's is ``TopK(0.2, score="smooth")``.
        feature_map: kind of :class:`FeatureMap` of the linear part.
    """

    def __init__(self, num_heads: int, head_dim: int, pattern: Pattern, feature_map: str = "softmax") -> None:
        super().__init__()
        self.pattern = pattern
        self.linear = FeatureMapAttention(num_heads, head_dim, feature_map)
        self.proj_l = nn.Linear(head_dim, head_dim)
        nn.init.zeros_(self.proj_l.weight)
        nn.init.zeros_(self.proj_l.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, scale: float | None = None
    ) -> Tensor:
        """``scale`` is that of the softmax part."""
        sparse = attention(query, key, value, self.pattern, layout, scale=scale)
        assert isinstance(sparse, Tensor)
        rest = self.linear(query, key, value, layout)
        return sparse + self.proj_l(rest.to(self.proj_l.weight.dtype)).to(sparse.dtype)


class SoftmaxAttention(nn.Module):
    """The model's own attention, for a gate to follow."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, layout: TokenLayout, scale: float | None = None
    ) -> Tensor:
        """Every query sees every key."""
        out = attention(query, key, value, Full(), layout, scale=scale)
        assert isinstance(out, Tensor)
        return out


class GatedAttention(nn.Module):
    """Another mixer with a gate on its output (Qiu et al., arXiv 2505.06708): out * 2 sigmoid(W x + b).

    x is the input of the attention layer. W and b start at zero, where the gate is 1 and changes nothing.

    Args:
        mixer: what is gated.
        dim: width of x.
        num_heads: H.
        head_dim: D.
        gate: "headwise" (a factor per head) or "elementwise" (one per channel).
    """

    def __init__(self, mixer: nn.Module, dim: int, num_heads: int, head_dim: int, gate: str) -> None:
        super().__init__()
        if gate not in GATES[1:]:
            raise ValueError(f"gate={gate!r}: must be one of {', '.join(GATES)}")
        self.mixer = mixer
        self.gate = nn.Linear(dim, num_heads * (1 if gate == "headwise" else head_dim))
        self.num_heads = num_heads
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TokenLayout,
        scale: float | None = None,
        *,
        inputs: Tensor,
    ) -> Tensor:
        """``inputs`` (B, S, dim) are the layer's, in the order of q's tokens."""
        out = self.mixer(query, key, value, layout, scale)
        factor = 2 * self.gate(inputs.to(self.gate.weight.dtype)).sigmoid()
        return out * factor.unflatten(-1, (self.num_heads, -1)).to(out.dtype)
