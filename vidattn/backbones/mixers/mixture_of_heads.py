"""Mixture-of-head attention (MoH, Jin et al., arXiv 2410.11842)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vidattn.backbones.mixers.base import Mixer, dense_attention, split


class MixtureOfHeadAttention(Mixer):
    """Softmax attention whose heads are weighted per token: some are always on, of the others each token has
    a few.

    The first S heads are shared; of the other E, a token x activates R. With p = softmax(wg x), the gates of
    those with the R greatest p are R p / (their sum of p), all others 0; the gates of the shared heads are
    S softmax(wg_1 x), or 1 for a single one. Where there are both kinds, the two groups are weighted by
    2 softmax(wg_0 x), the shared group first. Gates multiply the heads' outputs before the projection. With
    zero routers and all heads active this is multi-head attention. All heads are computed, as in the authors'
    code: routing saves no time here.

    Args:
        dim: channels.
        num_heads: heads, shared and routed together.
        shared: S.
        routed: R; 0 only where all heads are shared.
        head_dim: channels per head; ``dim / num_heads`` when None.
        qkv_bias: biases in the first projection.

    Raises:
        ValueError: values out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        shared: int = 2,
        routed: int = 4,
        head_dim: int | None = None,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads)
        experts = num_heads - shared
        if not 0 <= shared <= num_heads or not min(experts, 1) <= routed <= experts:
            raise ValueError(
                f"shared={shared}, routed={routed}: must be at most num_heads={num_heads} together, and"
                " routed at least 1 unless all heads are shared"
            )
        self.shared, self.routed = shared, routed
        self.head_dim = head_dim or self.head_dim
        width = num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, dim)
        if routed:
            self.wg = nn.Linear(dim, experts, bias=False)
        if routed and shared:
            self.wg_0 = nn.Linear(dim, 2, bias=False)
        if shared > 1:
            self.wg_1 = nn.Linear(dim, shared, bias=False)

    def start_from(self, qkv: nn.Linear, proj: nn.Linear) -> None:
        """As for all mixers; routers become 0, so that gates are 1 on the heads that are on."""
        super().start_from(qkv, proj)
        for name in ("wg", "wg_0", "wg_1"):
            if (router := getattr(self, name, None)) is not None:
                nn.init.zeros_(router.weight)

    def mix(self, x: Tensor, prefix: Tensor | None) -> Any:
        """Prefix tokens are tokens like all others, with gates of their own."""
        before = 0 if prefix is None else prefix.shape[1]
        tokens = self.tokens(x, prefix)
        q, k, v = (self.heads(t) for t in self.qkv(tokens).chunk(3, -1))
        out = dense_attention(q, k, v) * self.gates(tokens)[..., None]
        mapped, rest = split(self.proj(out.flatten(-2)), x, before)
        return (mapped, rest) if before else mapped

    def gates(self, tokens: Tensor) -> Tensor:
        """(B, S, num_heads) of tokens (B, S, C), shared heads first."""
        groups = []
        if self.shared > 1:
            groups.append(self.shared * self.wg_1(tokens).softmax(-1))
        elif self.shared:
            groups.append(torch.ones_like(tokens[..., :1]))
        if self.routed:
            share = self.wg(tokens).softmax(-1)
            kept = share * _greatest(share, self.routed)
            groups.append(self.routed * kept / kept.sum(-1, keepdim=True))
        if len(groups) == 2:
            balance = 2 * self.wg_0(tokens).softmax(-1)
            groups = [balance[..., i : i + 1] * group for i, group in enumerate(groups)]
        return torch.cat(groups, -1)


def balance_loss(logits: Tensor, routed: int) -> Tensor:
    """E sum_e mean(p_e) mean(whether e is on), which is ``routed`` where all heads are used alike.

    Args:
        logits: of the routed heads, (..., E).
        routed: heads that a token activates.

    Returns:
        A scalar; the authors add the mean over layers, times 0.01, to their training loss.
    """
    share = logits.flatten(0, -2).softmax(-1)
    on = _greatest(share, routed)
    return share.shape[-1] * (share.mean(0) * on.mean(0)).sum()


@contextmanager
def collect_balance(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the balance losses of all forward passes within, one per layer and pass.

    Args:
        model: has :class:`MixtureOfHeadAttention` layers that route.

    Yields:
        A list that fills as the model runs.

    Raises:
        ValueError: no such layers.

    Example:
        >>> from vidattn.backbones.mixers import MixtureOfHeadAttention
        >>> layer = MixtureOfHeadAttention(16, 4, shared=1, routed=2)
        >>> with collect_balance(layer) as losses:
        ...     out = layer(torch.randn(1, 5, 5, 16))
        >>> loss = out.square().mean() + 0.01 * torch.stack(losses).mean()
    """
    layers = [m for m in model.modules() if isinstance(m, MixtureOfHeadAttention) and m.routed]
    if not layers:
        raise ValueError(f"model={type(model).__name__}: has no MixtureOfHeadAttention that routes")
    losses: list[Tensor] = []

    def record(routed: int, module: nn.Module, inputs: Any, logits: Tensor) -> None:
        losses.append(balance_loss(logits, routed))

    handles = [layer.wg.register_forward_hook(partial(record, layer.routed)) for layer in layers]
    try:
        yield losses
    finally:
        for handle in handles:
            handle.remove()


def query_norm_gates(query: Tensor, shared: float = 0.5, top: float = 0.25) -> Tensor:
    """Routing without parameters, as in MoH-LLaMA: of the heads that are not shared, those with the longest
    queries are on.

    The authors divide the norms by their standard deviation over heads and take the softmax first. Neither
    changes which are greatest, and the gates are 0 or 1, so both are left out.

    Args:
        query: (B, S, H, D).
        shared: share of the heads that are always on, the first ones.
        top: share of all heads that a token has on beyond those.

    Returns:
        (B, S, H) of zeros and ones in the query's dtype, for the heads' outputs.

    Raises:
        ValueError: shares out of range.
    """
    heads = query.shape[2]
    fixed, active = int(heads * shared), int(heads * top)
    if not 0 <= shared <= 1 or not 0 <= top <= 1 or fixed + active > heads or fixed + active < 1:
        raise ValueError(
            f"shared={shared}, top={top}: must be from 0 to 1, and leave 1 to {heads} of {heads} heads on"
        )
    lengths = query[:, :, fixed:].norm(dim=-1)
    return torch.cat([torch.ones_like(query[:, :, :fixed, 0]), _greatest(lengths, active)], -1)


def _greatest(values: Tensor, count: int) -> Tensor:
    """1 at the ``count`` greatest of the last axis, else 0; not differentiated."""
    return torch.zeros_like(values).scatter(-1, values.topk(count, -1).indices, 1.0)
